"""Train the small language model that ships inside the package, and write it as GGUF.

    python tools/train_default_model.py train --data DIR --work DIR --minutes 55
    python tools/train_default_model.py export --work DIR --out FILE.gguf
    python tools/train_default_model.py evaluate --data DIR FILE.gguf

DIR for `--data` holds `war-and-peace.txt` and `tinyshakespeare.txt` (public-domain text, 4.3 MB).
The model is of the llama architecture (RMSNorm, RoPE on interleaved pairs, SwiGLU, grouped-query
attention, tied embeddings) with a byte-level BPE vocabulary trained on the same text. Matrices are
stored as Q8_0, norms as F32; the file stays below 3,000,000 bytes.

Training is driven by the clock: the learning rate warms up, stays, and decays to zero at the end
of `--minutes`, so a run always ends annealed whatever share of the machine it got. Checkpoints are
written atomically; `train` again goes on from the last one.

The shipped model has 2,755,008 parameters and saw 1,747 steps of 8 windows (about 3.9 million
tokens, 3 times the text) with `--batch 8 --bfloat16` in 38 minutes of two cores that were mostly
busy with other work. Losses over 64 evenly spread windows of 256 tokens, float32:

    training documents    3.272 nats per token    1.509 bits per byte
    held-out documents    3.456 nats per token    1.604 bits per byte
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tilewright.tokenizers
from tilewright import nn
from tilewright.formats.gguf import GGMLType, open_gguf, tensor_from_array, write_gguf
from tilewright.nn import functional as F
from tilewright.optim import AdamW, Muon, clip_grad_norm
from tilewright.tensor import random
from tilewright.tensor.compiled import compile
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import asarray
from tilewright.tensor.modes import no_grad
from tilewright.tokenizers import Tokenizer
from tilewright.train.checkpoint import load_checkpoint, save_checkpoint

MAX_BYTES = 3_000_000
BOS, EOS = "<|begin|>", "<|end|>"
BOS_ID, EOS_ID = 0, 1
TOKEN_NORMAL, TOKEN_CONTROL = 1, 3  # gguf token types
VALIDATION_EVERY = 24  # every 24th document is held out


@dataclass(frozen=True)
class Config:
    """Hyperparameters of the shipped model; matrix rows are multiples of 64, so Q8_0 fits."""

    vocab: int = 2048
    dim: int = 192
    n_layers: int = 6
    n_heads: int = 6
    n_kv_heads: int = 2
    ffn: int = 512
    context: int = 512
    rope_base: float = 10000.0
    eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


# --------------------------------------------------------------------------------------------- text


def prose_documents(text: str) -> list[str]:
    """Chapters of a hard-wrapped novel, headings dropped, each paragraph on one line."""
    text = text.replace("\r\n", "\n")
    chapters = re.split(
        r"(?m)^(?:CHAPTER [IVXLC]+|BOOK [A-Z]+.*|(?:FIRST|SECOND) EPILOGUE.*)\s*$", text
    )
    documents = []
    for chapter in chapters:
        paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", chapter)]
        document = "\n\n".join(p for p in paragraphs if p)
        if len(document) > 200:
            documents.append(document)
    return documents


def play_documents(text: str, speeches: int = 40) -> list[str]:
    """Runs of consecutive speeches; verse lines are kept."""
    parts = [p.strip() for p in re.split(r"\n\s*\n", text.replace("\r\n", "\n")) if p.strip()]
    return ["\n\n".join(parts[i : i + speeches]) for i in range(0, len(parts), speeches)]


def load_documents(data: Path) -> tuple[list[str], list[str]]:
    """(training, validation) documents; the split depends on nothing but the files."""
    documents = prose_documents((data / "war-and-peace.txt").read_text("utf-8"))
    documents += play_documents((data / "tinyshakespeare.txt").read_text("utf-8"))
    train = [d for i, d in enumerate(documents) if i % VALIDATION_EVERY != VALIDATION_EVERY - 1]
    held_out = [d for i, d in enumerate(documents) if i % VALIDATION_EVERY == VALIDATION_EVERY - 1]
    return train, held_out


def train_tokenizer(documents: list[str], vocab: int) -> Any:
    """Byte-level BPE with GPT-2's pre-tokeniser; ids 0 and 1 are the begin and end tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    if tokenizer.get_vocab_size() != vocab:
        raise SystemExit(f"the vocabulary has {tokenizer.get_vocab_size()} tokens, wanted {vocab}")
    return tokenizer


def encode_documents(
    encode: Callable[[str], list[int]], documents: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(all tokens with an end token after each document, offsets at which a paragraph begins)."""
    tokens: list[int] = []
    starts: list[int] = []
    for document in documents:
        paragraphs = document.split("\n\n")
        for i, paragraph in enumerate(paragraphs):
            starts.append(len(tokens))
            # GPT-2's pre-tokeniser never joins a letter to the line break before or after it.
            tokens.extend(encode(paragraph if i == len(paragraphs) - 1 else paragraph + "\n\n"))
        tokens.append(EOS_ID)
    return np.array(tokens, np.int64), np.array(starts, np.int64)


# -------------------------------------------------------------------------------------------- model


def make_model(c: Config) -> nn.Llama:
    """The network, freshly initialised: tied embeddings, RoPE on the pairs GGUF's llama turns."""
    model = nn.Llama(
        nn.LlamaConfig(
            vocab_size=c.vocab,
            block_size=c.context,
            n_layer=c.n_layers,
            n_head=c.n_heads,
            n_kv_head=c.n_kv_heads,
            n_embd=c.dim,
            hidden=c.ffn,
            rope_base=c.rope_base,
            interleaved=True,
            norm_eps=c.eps,
            tied=True,
        )
    )
    for name, p in model.named_parameters():
        if p.ndim == 2:
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 0.02 / math.sqrt(2 * c.n_layers) if residual else 0.02
            p.assign(random.normal(p.shape, std=std * (2.0 if p.shape[0] != c.vocab else 1.0)))
    return model


_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """A parameter's name in a GGUF file."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    layer, rest = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name).groups()  # type: ignore[union-attr]
    return f"blk.{layer}.{_PARTS[rest]}.weight"


# ----------------------------------------------------------------------------------------- training


def sample_batch(
    tokens: np.ndarray, starts: np.ndarray, rng: np.random.Generator, batch: int, length: int
) -> tuple[Tensor, Tensor]:
    """`batch` windows, each opened by the begin token; half of them start at a paragraph."""
    offsets = rng.integers(0, len(tokens) - length, batch)
    paragraphs = rng.choice(starts[starts < len(tokens) - length], batch)
    offsets = np.where(rng.random(batch) < 0.5, paragraphs, offsets)
    y = np.stack([tokens[o : o + length] for o in offsets])
    x = np.concatenate([np.full((batch, 1), BOS_ID), y[:, :-1]], 1)
    return asarray(x), asarray(y)


def windows(tokens: np.ndarray, length: int, limit: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Up to `limit` consecutive windows spread evenly over `tokens`, in batches of 8."""
    count = min(limit, len(tokens) // length)
    offsets = np.linspace(0, len(tokens) - length, count).astype(int)
    for i in range(0, count, 8):
        y = np.stack([tokens[o : o + length] for o in offsets[i : i + 8]])
        x = np.concatenate([np.full((len(y), 1), BOS_ID), y[:, :-1]], 1)
        yield asarray(x), asarray(y)


def mean_loss(model: nn.Llama, tokens: np.ndarray, length: int = 256, limit: int = 64) -> float:
    """Mean negative log-likelihood (nats per token) over evenly spread windows, in float32."""
    total, count = 0.0, 0
    with no_grad():
        for x, y in windows(tokens, length, limit):
            total += F.cross_entropy(model(x), y).item() * y.size
            count += y.size
    return total / count


def bits_per_byte(loss: float, tokens: np.ndarray, documents: list[str]) -> float:
    """Nats per token -> bits per UTF-8 byte of the text that the tokens spell."""
    return loss / math.log(2) * len(tokens) / sum(len(d.encode()) for d in documents)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write(temporary path)`, then rename, so that a reader never sees half a file."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


def learning_rate(peak: float, done: float) -> float:
    """Warm-up over 2 % of the time, flat to 30 %, then linear to zero; `done` is the share."""
    return peak * min(1.0, done / 0.02, (1.0 - done) / 0.7)


def train(args: argparse.Namespace) -> None:
    """Train until `--minutes` of wall clock are spent, those of earlier runs included."""
    config = Config()
    random.seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    train_docs, held_out = load_documents(args.data)
    tokenizer = train_tokenizer(train_docs, config.vocab)
    write_atomically(args.work / "tokenizer.json", lambda p: tokenizer.save(str(p)))

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    tokens, starts = encode_documents(encode, train_docs)
    val_tokens, _ = encode_documents(encode, held_out)
    model = make_model(config)
    size = sum(p.size for p in model.parameters())
    print(
        f"{size:,} parameters, {len(tokens):,} training and {len(val_tokens):,} validation tokens",
        flush=True,
    )

    # Muon (orthogonalised momentum) for the matrices inside the blocks, AdamW for the rest.
    named = list(model.named_parameters())
    matrices = [(n, p) for n, p in named if p.ndim == 2 and ".layers." in n]
    rest = [(n, p) for n, p in named if p.ndim < 2 or ".layers." not in n]
    optimizers = [
        Muon(matrices, lr=args.lr, weight_decay=0.1, momentum=0.95),
        AdamW(rest, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.01),
    ]
    state = {f"model.{n}": p for n, p in named}
    for i, optimizer in enumerate(optimizers):
        state |= {f"{i}.{n}": t for n, t in optimizer.state_dict().items()}
    checkpoint, step, spent = args.work / "checkpoint.safetensors", 0, 0.0
    if checkpoint.exists():
        found = load_checkpoint(checkpoint)
        for name, tensor in state.items():
            tensor.assign(asarray(found.tensors[name]))
        step, spent = found.step, found.state["spent"]

    @compile
    def update(x: Tensor, y: Tensor) -> Tensor:
        for optimizer in optimizers:
            optimizer.zero_grad()
        with nn.autocast(enabled=args.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        clip_grad_norm([p for _, p in named], 1.0)
        for optimizer in optimizers:
            optimizer.step()
        return loss

    rng = np.random.default_rng((args.seed, step))
    budget, begin, running, seen = args.minutes * 60.0, time.monotonic() - spent, 0.0, 0
    reported = saved = spent

    def save() -> None:
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        save_checkpoint(checkpoint, arrays, {"spent": spent}, step=step)

    while (spent := time.monotonic() - begin) < budget:
        done = spent / budget
        # The full context comes last: short windows make more of a slow machine.
        length, batch = (256, args.batch) if done < 0.75 else (config.context, args.batch // 2)
        x, y = sample_batch(tokens, starts, rng, batch, length)
        for optimizer in optimizers:
            optimizer.lr = learning_rate(args.lr, done)
        loss = update(x, y)
        running, seen, step = running + loss.item(), seen + 1, step + 1
        if spent - reported > 180:
            val = mean_loss(model, val_tokens, limit=24)
            rate = seen * batch * length / (spent - reported)
            print(
                f"{spent / 60:5.1f} min  step {step:5d}  train {running / seen:.4f}  "
                f"val {val:.4f}  {rate:.0f} tokens/s",
                flush=True,
            )
            running, seen, reported = 0.0, 0, spent
        if spent - saved > 120:
            save()
            saved = spent
    save()
    report = {
        "steps": step,
        "minutes": args.minutes,
        "train_loss": mean_loss(model, tokens),
        "val_loss": mean_loss(model, val_tokens),
    }
    report["val_bits_per_byte"] = bits_per_byte(report["val_loss"], val_tokens, held_out)
    report["train_bits_per_byte"] = bits_per_byte(report["train_loss"], tokens, train_docs)
    write_atomically(
        args.work / "report.json",
        lambda p: p.write_text(json.dumps(report | asdict(config), indent=1)),
    )
    print(json.dumps(report, indent=1), flush=True)


# ------------------------------------------------------------------------------------------- files


def metadata(config: Config, tokenizer: Any, report: dict[str, Any]) -> dict[str, Any]:
    """Everything a reader needs besides the weights, under GGUF's standard keys."""
    vocabulary = tokenizer.get_vocab()
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = [TOKEN_CONTROL if t in (BOS, EOS) else TOKEN_NORMAL for t in tokens]
    return {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "tilewright default",
        "general.description": (
            "A very small language model trained from scratch on War and Peace (in the Maude "
            "translation) and on plays of Shakespeare, both in the public domain. Validation: "
            f"{report['val_loss']:.3f} nats per token, "
            f"{report['val_bits_per_byte']:.3f} bits per byte."
        ),
        "general.author": "The tilewright developers",
        "general.license": "mit",
        "general.languages": ["en"],
        "general.size_label": "2.8M",
        "general.quantization_version": 2,
        "general.file_type": 7,  # mostly Q8_0
        "llama.vocab_size": config.vocab,
        "llama.context_length": config.context,
        "llama.embedding_length": config.dim,
        "llama.block_count": config.n_layers,
        "llama.feed_forward_length": config.ffn,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_base,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [
            m if isinstance(m, str) else " ".join(m) for m in model["merges"]
        ],
        "tokenizer.ggml.bos_token_id": BOS_ID,
        "tokenizer.ggml.eos_token_id": EOS_ID,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def tensors(model: nn.Llama) -> dict[str, np.ndarray]:
    """Weights by their GGUF names, float32; a matrix is (outputs, inputs)."""
    return {gguf_name(name): p.numpy() for name, p in model.named_parameters()}


def load_gguf(path: Path) -> tuple[nn.Llama, Tokenizer]:
    """(model with the file's weights, its tokenizer)."""
    with open_gguf(path) as file:
        model = make_model(Config())
        for name, p in model.named_parameters():
            p.assign(asarray(file.dequantize(gguf_name(name))))
        tokenizer = tilewright.tokenizers.from_gguf(file)
    return model, tokenizer


def evaluate_file(path: Path, data: Path, split: str) -> tuple[float, float]:
    """(nats per token, bits per byte) of the file's weights on the "train" or "val" documents."""
    model, tokenizer = load_gguf(path)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special=False)

    documents = dict(zip(("train", "val"), load_documents(data), strict=True))[split]
    tokens, _ = encode_documents(encode, documents)
    loss = mean_loss(model, tokens)
    return loss, bits_per_byte(loss, tokens, documents)


def export(args: argparse.Namespace) -> None:
    """Write the last checkpoint of `--work` as GGUF."""
    import tokenizers

    model = make_model(Config())
    found = load_checkpoint(args.work / "checkpoint.safetensors")
    for name, p in model.named_parameters():
        p.assign(asarray(found.tensors[f"model.{name}"]))
    tokenizer = tokenizers.Tokenizer.from_file(str(args.work / "tokenizer.json"))
    report = json.loads((args.work / "report.json").read_text("utf-8"))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    keys = metadata(Config(), tokenizer, report)
    sources = [
        tensor_from_array(name, array, GGMLType.Q8_0 if array.ndim == 2 else None)
        for name, array in tensors(model).items()
    ]
    write_gguf(args.out, keys, sources)
    size = args.out.stat().st_size
    if size > MAX_BYTES:
        raise SystemExit(f"{args.out} has {size:,} bytes, the limit is {MAX_BYTES:,}")
    print(f"{args.out}: {size:,} bytes")


def evaluate(args: argparse.Namespace) -> None:
    """Print the losses of a GGUF file and two samples of its prose."""
    for split in ("train", "val"):
        loss, bits = evaluate_file(args.file, args.data, split)
        print(f"{split}: {loss:.4f} nats per token, {bits:.4f} bits per byte")
    model = tilewright.load(args.file)
    for temperature in (0.0, 0.8):
        pieces = model.generate(args.prompt, max_tokens=100, temperature=temperature, seed=0)
        text = "".join(pieces)
        print(f"--- temperature {temperature}\n{args.prompt}{text}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    p = commands.add_parser("train", help="train the tokenizer and the model")
    p.set_defaults(run=train)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--work", type=Path, required=True)
    p.add_argument("--minutes", type=float, default=55.0)
    p.add_argument("--batch", type=int, default=16, help="windows of 256 tokens in a step")
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--bfloat16", action="store_true", help="bfloat16 products")
    p = commands.add_parser("export", help="write the trained model as GGUF")
    p.set_defaults(run=export)
    p.add_argument("--work", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p = commands.add_parser("evaluate", help="losses and samples of a GGUF file")
    p.set_defaults(run=evaluate)
    p.add_argument("file", type=Path)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--prompt", default="The old general looked at the map and said,")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()

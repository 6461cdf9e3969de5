"""Seeded random models as GGUF files: real architectures and formats, weights that mean nothing.

Matrices are normal with a standard deviation of 1 / sqrt(embedding), which keeps attention scores
and logits of unit size, so that a mistake anywhere moves the logits. Norm weights scatter around
one and biases are not zero for the same reason. Blocks come from a pool of quantised normal values,
drawn with replacement: a 1.1-billion-parameter file takes seconds, and memory for one tensor.

    python -m tests.reference.builders DIR tinyllama-q8_0 gpt2-q4_k_m ...
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
from numpy.typing import NDArray
from tests.reference.quantize import Type, quantize

TYPES = (
    *("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"),
    *("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl"),
)
MIXED = ("q4_k_m", "q5_k_m", "mostly_q4_0")
POOL_VALUES = 1 << 20

# What llama.cpp stores instead when a row is not a multiple of 256 values.
FALLBACK = {
    Type.Q2_K: Type.IQ4_NL,
    Type.Q3_K: Type.IQ4_NL,
    Type.Q4_K: Type.Q5_0,
    Type.Q5_K: Type.Q5_1,
    Type.Q6_K: Type.Q8_0,
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder; the defaults are small enough for a float64 forward pass in a test."""

    arch: str = "llama"
    n_layers: int = 2
    n_embd: int = 256
    n_heads: int = 8
    n_kv_heads: int = 2
    n_ff: int = 512
    n_vocab: int = 512
    n_ctx: int = 256
    tied: bool = False
    eps: float = 1e-5
    rope_base: float = 10000.0
    rope_factors: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_heads


LLAMA = Shape()
GPT2 = Shape(arch="gpt2", n_kv_heads=8)
SHAPES = {
    "tinyllama": Shape(
        n_layers=22, n_embd=2048, n_heads=32, n_kv_heads=4, n_ff=5632, n_vocab=32000, n_ctx=2048
    ),
    "stories15m": Shape(
        n_layers=6, n_embd=288, n_heads=6, n_kv_heads=6, n_ff=768, n_vocab=32000, n_ctx=256,
        tied=True,
    ),
    "gpt2": Shape(
        arch="gpt2", n_layers=12, n_embd=768, n_heads=12, n_kv_heads=12, n_ff=3072, n_vocab=50257,
        n_ctx=1024, tied=True,
    ),
}  # fmt: skip


class Write(Protocol):
    """What ``write_llama`` and ``write_gpt2`` have in common."""

    def __call__(self, path: Path, recipe: str = ..., seed: int = ..., **sizes: Any) -> Path: ...


def write_llama(path: str | Path, recipe: str = "f32", seed: int = 0, **sizes: Any) -> Path:
    """A small llama (grouped-query attention by default); ``sizes`` replace fields of Shape."""
    return write(path, replace(LLAMA, **sizes), recipe, seed)


def write_gpt2(path: str | Path, recipe: str = "f32", seed: int = 0, **sizes: Any) -> Path:
    """A small GPT-2; ``sizes`` replace fields of Shape."""
    return write(path, replace(GPT2, **sizes), recipe, seed)


def cached(directory: str | Path, name: str) -> Path:
    """``<shape>-<recipe>.gguf`` in ``directory``, written if it is not there yet."""
    shape, _, recipe = name.partition("-")
    path = Path(directory) / f"{name}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, SHAPES[shape], recipe, seed=0)
    return path


def write(path: str | Path, shape: Shape, recipe: str, seed: int = 0) -> Path:
    """Write a model; it appears under ``path`` only when it is complete.

    ``recipe`` is a tensor type for every matrix (one of TYPES) or one of MIXED: the mixtures of
    llama.cpp's quantiser, per tensor.
    """
    path = Path(path)
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, shape.arch)
    add_metadata(writer, shape, recipe)
    plan = list(plan_tensors(shape, recipe))
    for tensor in plan:
        writer.add_tensor_info(
            tensor.name, tensor.stored_shape, tensor.stored_dtype, tensor.nbytes, tensor.raw_type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for i, tensor in enumerate(plan):
        writer.write_tensor_data(tensor.data(np.random.default_rng([seed, i])))
    writer.close()
    os.replace(partial, path)
    return path


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor: its type, its shape (outermost first), mean and spread of its values."""

    name: str
    kind: Type
    shape: tuple[int, ...]
    mean: float
    std: float

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the bytes in the file for quantised types, of the values otherwise."""
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        if self.raw_type is None:
            return self.shape
        return (*self.shape[:-1], self.shape[-1] // block * size)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        return np.dtype({Type.F32: np.float32, Type.F16: np.float16}.get(self.kind, np.uint8))

    @property
    def raw_type(self) -> Type | None:
        return None if self.kind in (Type.F32, Type.F16) else self.kind

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.stored_shape)) * self.stored_dtype.itemsize

    def data(self, rng: np.random.Generator) -> NDArray[Any]:
        """Values for the file; blocks of matrices come from a pool, vectors are drawn afresh."""
        if len(self.shape) == 1:
            values = self.mean + self.std * rng.standard_normal(self.shape, np.float32)
            return values.astype(np.float32)
        block = max(gguf.GGML_QUANT_SIZES[self.kind][0], 32)
        pool = block_pool(self.kind, self.std)  # (blocks, items in one block)
        rows = pool[rng.integers(0, len(pool), np.prod(self.shape) // block)]
        return rows.reshape(self.stored_shape)


@lru_cache(maxsize=32)
def block_pool(kind: Type, std: float) -> NDArray[Any]:
    """Quantised blocks of seeded normal values, (blocks, bytes or floats in a block)."""
    block = max(gguf.GGML_QUANT_SIZES[kind][0], 32)
    values = np.random.default_rng(int(kind)).standard_normal(
        (POOL_VALUES // block, block), np.float32
    )
    return quantize(values * np.float32(std), kind)


def plan_tensors(shape: Shape, recipe: str) -> Iterator[PlannedTensor]:
    """Every tensor of the model in file order."""
    d, ff, std = shape.n_embd, shape.n_ff, shape.n_embd**-0.5
    kv = shape.n_kv_heads * shape.head_dim

    def matrix(name: str, rows: int, columns: int, layer: int = 0) -> PlannedTensor:
        kind = tensor_type(recipe, name, layer, shape)
        if columns % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = FALLBACK[kind]
        return PlannedTensor(f"{name}.weight", kind, (rows, columns), 0.0, std)

    def vector(name: str, n: int, mean: float) -> PlannedTensor:
        return PlannedTensor(name, Type.F32, (n,), mean, 0.1)

    yield matrix("token_embd", shape.n_vocab, d)
    if shape.arch == "gpt2":
        yield PlannedTensor("position_embd.weight", Type.F32, (shape.n_ctx, d), 0.0, std)
    if shape.rope_factors:
        yield PlannedTensor("rope_freqs.weight", Type.F32, (shape.head_dim // 2,), 3.0, 0.5)
    for i in range(shape.n_layers):
        blk = f"blk.{i}"
        if shape.arch == "gpt2":
            for norm in ("attn_norm", "ffn_norm"):
                yield vector(f"{blk}.{norm}.weight", d, 1.0)
                yield vector(f"{blk}.{norm}.bias", d, 0.0)
            sizes = {
                "attn_qkv": (3 * d, d),
                "attn_output": (d, d),
                "ffn_up": (ff, d),
                "ffn_down": (d, ff),
            }
            for name, (rows, columns) in sizes.items():
                yield matrix(f"{blk}.{name}", rows, columns, i)
                yield vector(f"{blk}.{name}.bias", rows, 0.0)
            continue
        yield vector(f"{blk}.attn_norm.weight", d, 1.0)
        for name, rows in (("attn_q", d), ("attn_k", kv), ("attn_v", kv)):
            yield matrix(f"{blk}.{name}", rows, d, i)
            if shape.arch == "qwen2":
                yield vector(f"{blk}.{name}.bias", rows, 0.0)
        yield matrix(f"{blk}.attn_output", d, d, i)
        yield vector(f"{blk}.ffn_norm.weight", d, 1.0)
        yield matrix(f"{blk}.ffn_gate", ff, d, i)
        yield matrix(f"{blk}.ffn_up", ff, d, i)
        yield matrix(f"{blk}.ffn_down", d, ff, i)
    yield vector("output_norm.weight", d, 1.0)
    if shape.arch == "gpt2":
        yield vector("output_norm.bias", d, 0.0)
    if not shape.tied:
        yield matrix("output", shape.n_vocab, d)


def tensor_type(recipe: str, name: str, layer: int, shape: Shape) -> Type:
    """The type that llama.cpp's quantiser (``llama-quant.cpp``) gives the tensor in a recipe."""
    if recipe in TYPES:
        return Type[recipe.upper()]
    base, better, qkv = {
        "q4_k_m": (Type.Q4_K, Type.Q6_K, Type.Q5_K),
        "q5_k_m": (Type.Q5_K, Type.Q6_K, Type.Q6_K),
        "mostly_q4_0": (Type.Q4_0, Type.Q4_0, Type.Q4_0),
    }[recipe]
    if name == "output" or (name == "token_embd" and shape.tied):
        return Type.Q6_K
    eighth = shape.n_layers // 8
    more_bits = layer < eighth or layer >= 7 * shape.n_layers // 8 or (layer - eighth) % 3 == 2
    if name.endswith(("attn_v", "ffn_down")) and more_bits:
        return better
    return qkv if name.endswith("attn_qkv") else base


def add_metadata(writer: gguf.GGUFWriter, shape: Shape, recipe: str) -> None:
    """Every key that llama.cpp asks of the architecture, and a tokenizer."""
    writer.add_name(f"random {shape.arch} {recipe}")
    writer.add_quantization_version(2)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layers)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_heads)
    if shape.arch == "gpt2":
        writer.add_layer_norm_eps(shape.eps)
        add_byte_level_tokenizer(writer, shape.n_vocab)
    else:
        writer.add_head_count_kv(shape.n_kv_heads)
        writer.add_layer_norm_rms_eps(shape.eps)
        writer.add_rope_dimension_count(shape.head_dim)
        writer.add_rope_freq_base(shape.rope_base)
        writer.add_vocab_size(shape.n_vocab)
        add_sentencepiece_tokenizer(writer, shape.n_vocab)
    for key, value in shape.extra.items():
        kinds: dict[type, Callable[[str, Any], None]] = {
            str: writer.add_string,
            int: writer.add_uint32,
            float: writer.add_float32,
            bool: writer.add_bool,
        }
        kinds[type(value)](f"{shape.arch}.{key}", value)


def letter_strings() -> Iterator[str]:
    """a, b, ..., aa, ab, ...: distinct strings of letters without end."""
    for n in range(1 << 30):
        text = ""
        while n >= 0:
            text, n = chr(ord("a") + n % 26) + text, n // 26 - 1
        yield text


def add_sentencepiece_tokenizer(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """<unk> <s> </s>, 256 byte tokens, printable ASCII, then strings of letters."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    types += [gguf.TokenType.BYTE] * 256
    pieces = ["\u2581", *(chr(i) for i in range(33, 127))]
    letters = (start + text for text in letter_strings() for start in ("", "\u2581"))
    while len(pieces) < n_vocab - len(tokens):
        text = next(letters)
        if len(text) > 1:
            pieces.append(text)
    tokens += pieces[: n_vocab - len(tokens)]
    types += [gguf.TokenType.NORMAL] * (n_vocab - len(types))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0 if i < 259 else 259.0 - i for i in range(n_vocab)])
    writer.add_token_types([int(t) for t in types])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


def add_byte_level_tokenizer(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """The 256 byte characters, merges of earlier tokens, and <|endoftext|> at the end."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [i for i in range(256) if i not in printable]
    alphabet = [chr(i) for i in printable] + [chr(256 + n) for n in range(len(others))]
    tokens, known, merges = list(alphabet), set(alphabet), []
    rng = np.random.default_rng(7)
    while len(tokens) < n_vocab - 1:
        first, second = (tokens[i] for i in rng.integers(0, min(len(tokens), 2000), 2))
        if first + second not in known and len(first + second) <= 8:
            known.add(first + second)
            tokens.append(first + second)
            merges.append(f"{first} {second}")
    tokens.append("<|endoftext|>")
    types = [int(gguf.TokenType.NORMAL)] * (n_vocab - 1) + [int(gguf.TokenType.CONTROL)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(n_vocab - 1)
    writer.add_eos_token_id(n_vocab - 1)
    writer.add_add_bos_token(False)


def main(arguments: list[str]) -> None:
    """Write the named models (``<shape>-<recipe>``) into a directory."""
    directory, *names = arguments
    for name in names:
        path = cached(directory, name)
        print(f"{path}  {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])

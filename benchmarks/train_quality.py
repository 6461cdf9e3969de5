"""Does training here reach what it reaches in PyTorch?

``gpt``: tilewright and torch train the same GPT from the same initial weights on the same windows
of text, with the same AdamW, schedule and clipping; both validation losses are printed, and how far
the losses of single steps are apart. ``mnist``: accuracy of the recipes, and the time they take.

::

    python -m benchmarks.train_quality gpt TEXT                  # 3 layers x 128, 300 steps
    python -m benchmarks.train_quality gpt TEXT --layers 6 --heads 6 --width 384 --context 256 \\
        --batch 64 --steps 5000 --dropout 0.2                    # nanoGPT's set-up; hours
    python -m benchmarks.train_quality mnist FOLDER [--model vit]

Dropout makes the two differ in their random numbers, so steps can be compared without it only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from typing import Any

import numpy as np


def train_tilewright(args: argparse.Namespace, text: Any, options: Any) -> dict[str, Any]:
    """Losses, validation loss, seconds, and the initial weights by name."""
    from tilewright.tensor import random
    from tilewright.train.recipes.gpt import make_gpt
    from tilewright.train.recipes.language import train_language_model
    from tilewright.train.record import read_record, series

    random.seed(options.seed)
    module = make_gpt(
        text.vocab_size,
        context=args.context,
        layers=args.layers,
        heads=args.heads,
        width=args.width,
        dropout=args.dropout,
    ).realize()
    weights = {name: t.numpy().copy() for name, t in module.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        results = train_language_model(module, text, options, folder)
        seconds = time.perf_counter() - begin
        losses = series(read_record(os.path.join(folder, "record.jsonl")), "loss")[1]
    return {"losses": losses, **results, "seconds": seconds, "weights": weights}


def train_torch(
    args: argparse.Namespace, text: Any, options: Any, weights: dict[str, np.ndarray]
) -> dict[str, Any]:
    """The same in PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from tilewright.data import RandomWindows, Windows
    from tilewright.train.recipes.language import learning_rate

    torch.manual_seed(options.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    width, heads = args.width, args.heads

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
            self.attn, self.mlp = nn.Module(), nn.Module()
            self.attn.c_attn = nn.Linear(width, 3 * width, bias=False)
            self.attn.c_proj = nn.Linear(width, width, bias=False)
            self.mlp.c_fc = nn.Linear(width, 4 * width, bias=False)
            self.mlp.c_proj = nn.Linear(4 * width, width, bias=False)
            self.drop = nn.Dropout(args.dropout)

        def forward(self, x: Any) -> Any:
            batch, steps, _ = x.shape
            q, k, v = (
                t.view(batch, steps, heads, width // heads).transpose(1, 2)
                for t in self.attn.c_attn(self.ln_1(x)).split(width, 2)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.drop(self.attn.c_proj(y.transpose(1, 2).reshape(batch, steps, width)))
            h = F.gelu(self.mlp.c_fc(self.ln_2(x)), approximate="tanh")
            return x + self.drop(self.mlp.c_proj(h))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            body = nn.Module()
            body.wte = nn.Embedding(text.vocab_size, width)
            body.wpe = nn.Embedding(args.context, width)
            body.h = nn.ModuleList(Block() for _ in range(args.layers))
            body.ln_f = nn.LayerNorm(width, bias=False)
            self.transformer, self.drop = body, nn.Dropout(args.dropout)
            self.lm_head = nn.Linear(width, text.vocab_size, bias=False)
            self.lm_head.weight = body.wte.weight

        def forward(self, ids: Any, targets: Any) -> Any:
            body = self.transformer
            x = self.drop(body.wte(ids) + body.wpe.weight[: ids.shape[1]])
            for block in body.h:
                x = block(x)
            logits = self.lm_head(body.ln_f(x))
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    model = GPT()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, options.beta2))
    schedule = learning_rate(options)
    loader = RandomWindows(text.train, options.batch, options.context, seed=options.seed)
    losses = []
    begin = time.perf_counter()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        x, y = (torch.from_numpy(a).long() for a in next(loader))
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            loss = model(x, y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % max(options.steps // 10, 1) == 0:
            print(f"torch: step {step + 1}  loss {losses[-1]:.4f}", flush=True)
    model.eval()
    batch = min(options.batch, (len(text.validation) - 1) // options.context)
    found = []
    with torch.no_grad():
        windows = Windows(text.validation, batch, options.context, drop_last=True)
        for number, arrays in enumerate(windows):
            if number == options.evaluate_batches:
                break
            found.append(float(model(*(torch.from_numpy(a).long() for a in arrays))))
    seconds = time.perf_counter() - begin
    return {"losses": losses, "val_loss": math.fsum(found) / len(found), "seconds": seconds}


def compare_gpt(args: argparse.Namespace) -> None:
    """Train both, print a table."""
    from tilewright.train.recipes.language import LanguageOptions
    from tilewright.train.recipes.text import prepare_text

    options = LanguageOptions(
        context=args.context,
        batch=args.batch,
        steps=args.steps,
        lr=args.lr,
        warmup=min(100, args.steps // 10),
        evaluate_every=args.steps,
        checkpoint_every=0,
        precision=args.precision,
        seed=args.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        text = prepare_text([args.data], "chars", folder, context=args.context)
        ours = train_tilewright(args, text, options)
        theirs = train_torch(args, text, options, ours.pop("weights"))
    apart = np.abs(np.array(ours["losses"]) - np.array(theirs["losses"]))
    print(f"{args.layers} layers x {args.width}, context {args.context}, batch {args.batch}, "
          f"{args.steps} steps, dropout {args.dropout}, {args.precision}")  # fmt: skip
    for name, one in (("tilewright", ours), ("torch", theirs)):
        print(f"{name:>10}: validation loss {one['val_loss']:.4f}, {one['seconds']:.1f} s")
    for steps in (1, 10, 50, len(apart)):
        if steps <= len(apart):
            print(f"losses of {steps} steps: at most {apart[:steps].max():.2e} apart")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"arguments": vars(args), "tilewright": ours, "torch": theirs}, file)


def measure_mnist(args: argparse.Namespace) -> None:
    """Accuracy and time of a recipe."""
    from dataclasses import replace

    from tilewright.train.recipes.mnist import mnist_options, run_mnist

    options = replace(mnist_options(args.model), seed=args.seed)
    if args.epochs:
        options = replace(options, epochs=args.epochs)
    with tempfile.TemporaryDirectory() as folder:
        begin, cpu = time.perf_counter(), time.process_time()
        _, results = run_mnist(args.data, options, folder, model=args.model)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    print(
        f"{args.model}: {results['test_accuracy']:.2%} of the test images after {options.epochs} "
        f"epochs; {seconds:.0f} s, {cpu:.0f} s of processor time"
    )


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("gpt", "mnist"))
    parser.add_argument("data")
    for name, default in (
        *(("layers", 3), ("heads", 4), ("width", 128), ("context", 128), ("batch", 16)),
        *(("steps", 300), ("seed", 1337), ("epochs", 0), ("threads", 0)),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--model", choices=("cnn", "vit"), default="cnn")
    parser.add_argument("--json", help="file to write everything to")
    args = parser.parse_args()
    if args.threads:
        os.environ["TILEWRIGHT_THREADS"] = str(args.threads)
    compare_gpt(args) if args.what == "gpt" else measure_mnist(args)


if __name__ == "__main__":
    main()

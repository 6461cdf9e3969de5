"""Training steps beside PyTorch: one run, the same models, two threads each.

    python -m benchmarks.training -t 2 -r 5 --json OUT [--only gpt,gpt-bf16,cnn,mlp,overheads]

- gpt: 6 layers, 384 wide, context 256, batch 16 of random tokens; forward, backward, AdamW. The
  rival is PyTorch eager (and ``torch.compile`` with ``--torch-compile``, which wants a compiler);
- gpt-bf16: the same with bf16 compute and f32 master weights, beside ``torch.autocast``;
- cnn, mlp: MNIST-sized networks, batch 64;
- overheads: one small op of 1,000 elements through the dynamic path, and a compiled step of a
  three-layer MLP that has next to nothing to compute.

Steps of the two engines alternate, so that a busy machine hits both. The floor is the step's
multiplications over the peak that tilewright's probe measures in the same run.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import Spread, ceilings, machine, spread, table, time_once, write_report

WIDTH, LAYERS, HEADS, CONTEXT, BATCH, VOCAB = 384, 6, 6, 256, 16, 65
Step = Callable[[], float]


def gpt_flops() -> float:
    """Multiplications and additions of one step: 6 per weight and token, and attention."""
    weights = 12 * LAYERS * WIDTH * WIDTH + VOCAB * WIDTH
    tokens = BATCH * CONTEXT
    attention = LAYERS * BATCH * HEADS * CONTEXT * CONTEXT / 2 * (WIDTH // HEADS) * 2 * (2 + 5)
    return 6.0 * weights * tokens + attention


def ours_gpt(bf16: bool) -> Step:
    """One compiled step of tilewright's GPT."""
    from tilewright import nn
    from tilewright.nn import functional as F
    from tilewright.optim import AdamW
    from tilewright.tensor import random
    from tilewright.tensor.compiled import compile
    from tilewright.tensor.creation import asarray

    random.seed(0)
    config = nn.GPTConfig(VOCAB, CONTEXT, LAYERS, HEADS, WIDTH, tied=False)
    model = nn.GPT(config)
    optimizer = AdamW(model.named_parameters(), lr=1e-3)

    @compile
    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        with nn.autocast(enabled=bf16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    x, y = (asarray(a) for a in _tokens())
    return lambda: step(x, y).item()


def torch_gpt(bf16: bool, compiled: bool) -> Step:
    """One eager (or compiled) step of the same network in PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.fc, self.out = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: Any) -> Any:
            b, t, c = x.shape
            parts = self.qkv(self.ln_1(x)).split(c, 2)
            q, k, v = (p.view(b, t, HEADS, c // HEADS).transpose(1, 2) for p in parts)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(y.transpose(1, 2).reshape(b, t, c))
            return x + self.out(F.gelu(self.fc(self.ln_2(x))))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(VOCAB, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            self.h = nn.ModuleList(Block() for _ in range(LAYERS))
            self.ln_f = nn.LayerNorm(WIDTH)
            self.head = nn.Linear(WIDTH, VOCAB, bias=False)

        def forward(self, ids: Any) -> Any:
            x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
            for block in self.h:
                x = block(x)
            return self.head(self.ln_f(x))

    torch.manual_seed(0)
    net: Any = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    run = torch.compile(net) if compiled else net
    x, y = (torch.from_numpy(a.astype(np.int64)) for a in _tokens())

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(run(x).flatten(0, 1), y.flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _tokens() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCAB, (BATCH, CONTEXT + 1)).astype(np.int32)
    return ids[:, :-1].copy(), ids[:, 1:].copy()


def _images(flat: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.random((64, 784) if flat else (64, 1, 28, 28), np.float32)
    return x, rng.integers(0, 10, 64)


def ours_small(kind: str) -> Step:
    """One compiled step of the MNIST CNN or MLP."""
    from tilewright import nn, relu
    from tilewright.nn import functional as F
    from tilewright.optim import AdamW
    from tilewright.tensor.compiled import compile
    from tilewright.tensor.creation import asarray

    model: Any
    if kind == "mlp":
        model = nn.Sequential(
            nn.Linear(784, 256), relu, nn.Linear(256, 256), relu, nn.Linear(256, 10)
        )
    else:
        model = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), relu, nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), relu, nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * 49, 128), relu, nn.Linear(128, 10),
        )  # fmt: skip
    optimizer = AdamW(model.named_parameters(), lr=1e-3)

    @compile
    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    x, y = (asarray(a) for a in _images(kind == "mlp"))
    return lambda: step(x, y).item()


def torch_small(kind: str) -> Step:
    """One eager step of the same network in PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    if kind == "mlp":
        model = nn.Sequential(
            nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
        )
    else:
        model = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = (torch.from_numpy(a) for a in _images(kind == "mlp"))

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def beside(ours: Step, rivals: dict[str, Step], rounds: int, calls: int) -> dict[str, Any]:
    """Seconds per step of each, alternating; the ratio of medians to each rival."""
    steps = {"tilewright": ours, **rivals}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(2):
            step()
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(time_once(lambda s=step: [s() for _ in range(calls)]) / calls)
    spreads: dict[str, Spread] = {name: spread(values) for name, values in seconds.items()}
    ratios = {n: spreads[n].median / spreads["tilewright"].median for n in rivals}
    return {"seconds": spreads, "times_faster": ratios}


def overheads(rounds: int) -> dict[str, Any]:
    """Microseconds of a small dynamic op and of a compiled step with little to do."""
    from tilewright import nn, relu
    from tilewright.optim import SGD
    from tilewright.tensor.compiled import compile
    from tilewright.tensor.creation import asarray

    rng = np.random.default_rng(0)
    a, b = (asarray(rng.random(1000, np.float32)) for _ in range(2))

    def op() -> None:
        (a + b).realize()

    model = nn.Sequential(nn.Linear(8, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, 1))
    optimizer = SGD(model.named_parameters(), lr=1e-3)

    @compile
    def step(x: Any) -> Any:
        optimizer.zero_grad()
        loss = model(x).sum()
        loss.backward()
        optimizer.step()
        return loss

    x = asarray(rng.random((4, 8), np.float32))

    def mlp() -> None:
        step(x)

    found = {}
    for name, work in (("dynamic op of 1000 elements", op), ("compiled 3-layer MLP step", mlp)):
        for _ in range(200):
            work()
        micros = [
            time_once(lambda w=work: [w() for _ in range(500)]) / 500e-6 for _ in range(rounds)
        ]
        found[name] = spread(micros)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--only", default="gpt,gpt-bf16,cnn,mlp,overheads")
    parser.add_argument("--torch-compile", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()
    os.environ["TILEWRIGHT_THREADS"] = str(args.threads)
    import torch

    torch.set_num_threads(args.threads)
    report: dict[str, Any] = {"machine": machine(), "threads": args.threads}
    report["ceilings"] = ceilings(args.threads)
    wanted = args.only.split(",")
    rows = []
    for name in ("gpt", "gpt-bf16", "cnn", "mlp"):
        if name not in wanted:
            continue
        if name.startswith("gpt"):
            bf16 = name == "gpt-bf16"
            rivals = {"torch eager": torch_gpt(bf16, False)}
            if args.torch_compile and not bf16:
                rivals["torch.compile"] = torch_gpt(False, True)
            found = beside(ours_gpt(bf16), rivals, args.rounds, 1)
        else:
            found = beside(ours_small(name), {"torch eager": torch_small(name)}, args.rounds, 30)
        report[name] = found
        for who, seconds in found["seconds"].items():
            ratio = found["times_faster"].get(who)
            rows.append([name, who, str(seconds), "" if ratio is None else f"{ratio:.2f}"])
    if "overheads" in wanted:
        report["overheads_us"] = overheads(args.rounds)
        rows += [[n, "tilewright", f"{v} us", ""] for n, v in report["overheads_us"].items()]
    print(table(["step", "engine", "seconds", "tilewright is faster by"], rows))
    print(f"GPT step: {gpt_flops() / 1e9:.0f} GFLOP; ceilings: {report['ceilings']}")
    report["gpt_gflop"] = gpt_flops() / 1e9
    write_report(args.json, report)


if __name__ == "__main__":
    main()

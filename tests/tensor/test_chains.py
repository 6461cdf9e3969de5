"""Random chains of operations: values, gradients and second gradients against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tilewright as tw

torch = pytest.importorskip("torch")


@dataclass(frozen=True)
class Step:
    """One operation in both libraries, for tensors that ``fits`` says yes to."""

    ours: Callable[[Any], Any]
    theirs: Callable[[Any], Any]
    fits: Callable[[tuple[int, ...]], bool] = lambda shape: True


def _fixed(*shape: int) -> np.ndarray:
    return np.linspace(-1, 1, int(np.prod(shape))).reshape(shape)


def _matmul(x: Any, library: Any) -> Any:
    weight = _fixed(x.shape[-1], 3)
    return x @ library(weight)


IDS = [1, 0, 1]

# of which second derivatives exist everywhere
SMOOTH = {
    "sin": Step(tw.sin, lambda x: torch.sin(x)),
    "tanh": Step(tw.tanh, lambda x: torch.tanh(x)),
    "exp": Step(lambda x: tw.exp(-x * x), lambda x: torch.exp(-x * x)),
    "sigmoid": Step(tw.sigmoid, lambda x: torch.sigmoid(x)),
    "gelu": Step(tw.gelu, lambda x: torch.nn.functional.gelu(x)),
    "log1p": Step(lambda x: tw.log1p(x * x), lambda x: torch.log1p(x * x)),
    "sqrt": Step(lambda x: tw.sqrt(x * x + 1), lambda x: torch.sqrt(x * x + 1)),
    "atan2": Step(lambda x: tw.atan2(x, x * x + 2), lambda x: torch.atan2(x, x * x + 2)),
    "square": Step(lambda x: x**2, lambda x: x**2),
    "pow": Step(lambda x: (x * x + 1) ** 1.5, lambda x: (x * x + 1) ** 1.5),
    "divide": Step(lambda x: x / (x * x + 1), lambda x: x / (x * x + 1)),
    "numbers": Step(lambda x: 2 - x * 0.5, lambda x: 2 - x * 0.5),
    "T": Step(lambda x: x.mT, lambda x: x.mT, lambda s: len(s) > 1),
    "flat": Step(lambda x: tw.reshape(x, (-1,)), lambda x: x.reshape(-1)),
    "rows": Step(lambda x: x[1:, ...], lambda x: x[1:, ...], lambda s: s[0] > 1),
    "back": Step(lambda x: tw.flip(x, axis=0), lambda x: torch.flip(x, (0,))),
    "every other": Step(
        lambda x: x[..., ::-2], lambda x: torch.flip(x, (-1,))[..., ::2], lambda s: s[-1] > 1
    ),
    "outer": Step(lambda x: x[..., None] * x[..., None, :],
                  lambda x: x[..., None] * x[..., None, :], lambda s: len(s) < 3),
    "broadcast": Step(
        lambda x: tw.broadcast_to(x, (2, *x.shape)) * tw.asarray(_fixed(2, *x.shape)),
        lambda x: x.expand(2, *x.shape) * torch.asarray(_fixed(2, *x.shape)),
        lambda s: len(s) < 3,
    ),
    "sum": Step(lambda x: x.sum(axis=0, keepdims=True) + x, lambda x: x.sum(0, keepdim=True) + x),
    "mean": Step(lambda x: x - x.mean(axis=-1, keepdims=True), lambda x: x - x.mean(-1, True)),
    "var": Step(
        lambda x: x * x.var(axis=-1, keepdims=True),
        lambda x: x * x.var(-1, correction=0, keepdim=True),
    ),
    "softmax": Step(lambda x: x.softmax(axis=-1), lambda x: x.softmax(-1)),
    "log_softmax": Step(lambda x: x.log_softmax(axis=0), lambda x: x.log_softmax(0)),
    "logsumexp": Step(lambda x: x - tw.logsumexp(x, axis=-1, keepdims=True),
                      lambda x: x - torch.logsumexp(x, -1, keepdim=True)),
    "matmul": Step(lambda x: _matmul(x, tw.asarray), lambda x: _matmul(x, torch.asarray)),
    "gram": Step(lambda x: tw.tanh(x.mT @ x), lambda x: torch.tanh(x.mT @ x), lambda s: len(s) > 1),
    "einsum": Step(lambda x: tw.einsum("...i,...j->...ij", x, x),
                   lambda x: torch.einsum("...i,...j->...ij", x, x), lambda s: len(s) < 3),
    "concat": Step(lambda x: tw.concat([x, tw.sin(x)], axis=-1),
                   lambda x: torch.cat([x, torch.sin(x)], -1)),
    "stack": Step(lambda x: tw.stack([x, x * x], axis=1), lambda x: torch.stack([x, x * x], 1),
                  lambda s: len(s) < 3),
    "take": Step(lambda x: x[tw.asarray(IDS)], lambda x: x[torch.asarray(IDS)], lambda s: s[0] > 1),
    "cumsum": Step(lambda x: x.cumsum(axis=0), lambda x: x.cumsum(0)),
    "cumprod": Step(lambda x: tw.cumulative_prod(tw.cos(x), axis=-1),
                    lambda x: torch.cumprod(torch.cos(x), -1)),
    "prod": Step(lambda x: x + tw.cos(x).prod(axis=-1, keepdims=True),
                 lambda x: x + torch.cos(x).prod(-1, keepdim=True)),
    "pad": Step(lambda x: tw.pad(x, [(1, 2)] + [(0, 0)] * (x.ndim - 1)),
                lambda x: torch.cat([torch.zeros_like(x[:1]), x, *[torch.zeros_like(x[:1])] * 2])),
    "roll": Step(lambda x: tw.roll(x, 1, axis=0), lambda x: torch.roll(x, 1, 0)),
    "repeat": Step(lambda x: tw.repeat(x, 2, axis=-1), lambda x: x.repeat_interleave(2, -1)),
    "tril": Step(lambda x: tw.tril(x, k=1), lambda x: torch.tril(x, 1), lambda s: len(s) > 1),
    "stop": Step(lambda x: x * x.detach(), lambda x: x * x.detach()),
}  # fmt: skip

ROUGH = {
    "abs": Step(lambda x: abs(x), lambda x: abs(x)),
    "relu": Step(tw.relu, lambda x: torch.relu(x)),
    "where": Step(lambda x: tw.where(x > 0.1, x, x * 2), lambda x: torch.where(x > 0.1, x, x * 2)),
    "clip": Step(lambda x: x.clip(-0.5, 0.5), lambda x: x.clip(-0.5, 0.5)),
    "maximum": Step(lambda x: tw.maximum(x, 0.3 - x), lambda x: torch.maximum(x, 0.3 - x)),
    "max": Step(lambda x: x - x.max(axis=-1, keepdims=True), lambda x: x - x.amax(-1, True)),
    "sort": Step(lambda x: tw.sort(x, axis=-1), lambda x: x.sort(-1).values),
    "topk": Step(lambda x: tw.topk(x, 1, axis=-1)[0], lambda x: x.topk(1, -1).values),
    "mask": Step(lambda x: x[x > -10], lambda x: x[x > -10]),
}


@st.composite
def chains(draw: Any, steps: dict[str, Step], most: int) -> tuple[tuple[int, ...], list[str]]:
    """A shape and names of steps that fit one another."""
    start = shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    names: list[str] = []
    for _ in range(draw(st.integers(1, most))):
        fitting = [n for n, s in steps.items() if s.fits(shape)]
        names.append(draw(st.sampled_from(fitting)))
        shape = tuple(steps[names[-1]].theirs(torch.zeros(shape, dtype=torch.float64)).shape)
        if int(np.prod(shape)) > 300:
            break
    return start, names


def _run(names: list[str], steps: dict[str, Step], library: str, x: Any) -> Any:
    for name in names:
        x = getattr(steps[name], library)(x)
    return (x * x * 0.5 + x).sum()


# no two elements are equal, and none is on an edge
def _values(shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    return np.random.default_rng(count).permutation(np.linspace(-1.37, 1.31, count)).reshape(shape)


SETTINGS = {
    "deadline": None, "derandomize": True, "database": None,
    "suppress_health_check": list(HealthCheck),
}  # fmt: skip


@settings(max_examples=80, **SETTINGS)
@given(chains({**SMOOTH, **ROUGH}, 6))
def test_values_and_gradients(chain: tuple[tuple[int, ...], list[str]]) -> None:
    steps = {**SMOOTH, **ROUGH}
    shape, names = chain
    values = _values(shape)
    theirs = torch.tensor(values, requires_grad=True)
    wanted = _run(names, steps, "theirs", theirs)
    wanted.backward()
    ours = tw.asarray(values)
    ours.requires_grad = True
    got = _run(names, steps, "ours", ours)
    got.backward()
    np.testing.assert_allclose(got.numpy(), wanted.detach().numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-7, atol=1e-8)


@settings(max_examples=50, **SETTINGS)
@given(chains(SMOOTH, 3))
def test_second_gradients(chain: tuple[tuple[int, ...], list[str]]) -> None:
    shape, names = chain
    values = _values(shape)
    direction = np.cos(np.arange(values.size, dtype=np.float64)).reshape(shape)
    theirs = torch.tensor(values, requires_grad=True)
    (first,) = torch.autograd.grad(_run(names, SMOOTH, "theirs", theirs), theirs, create_graph=True)
    inner = (first * torch.tensor(direction)).sum()
    wanted = torch.zeros_like(theirs)
    if inner.requires_grad:
        (found,) = torch.autograd.grad(inner, theirs, allow_unused=True)
        wanted = wanted if found is None else found

    gradient = tw.grad(lambda x: _run(names, SMOOTH, "ours", x))
    got = tw.grad(lambda x: (gradient(x) * tw.asarray(direction)).sum())(tw.asarray(values))
    scale = max(1.0, float(wanted.abs().max()))
    np.testing.assert_allclose(got.numpy(), wanted.detach().numpy(), rtol=1e-7, atol=1e-8 * scale)

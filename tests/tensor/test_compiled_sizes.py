"""Compiled functions of many sizes: the bits of the dynamic path from few programs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright import Tensor, nn, optim
from tilewright.errors import ShapeError, TraceError

F = nn.functional
SIZES = (3, 5, 2, 8, 17, 33, 64, 100, 257)


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return tw.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def ids(*shape: int, below: int = 16) -> Tensor:
    return tw.asarray(np.random.default_rng(1).integers(0, below, shape))


def bits(value: Any) -> list[tuple[tuple[int, ...], bytes]]:
    results = value if isinstance(value, tuple) else (value,)
    return [(t.shape, np.ascontiguousarray(t.numpy()).tobytes()) for t in results]


def check(
    fn: Callable[..., Any],
    calls: Iterable[Sequence[Any]],
    most: int,
    dynamic: dict[str, Any] | None = None,
) -> Any:
    """Compare with the dynamic path at every call; ``most`` programs may come of it."""
    compiled = tw.compile(fn, dynamic=dynamic)
    for args in calls:
        where = [a.shape for a in args if isinstance(a, Tensor)]
        assert bits(compiled(*args)) == bits(fn(*args)), where
    assert compiled.programs <= most, compiled.assumptions()
    return compiled


W = tensor(16, 8)


def causal(q: Tensor, k: Tensor) -> Tensor:
    length = q.shape[-2]
    seen = tw.arange(length)[:, None] >= tw.arange(length)[None, :]
    scores = tw.where(seen, q @ k.mT / 4.0, -1e9)
    return F.softmax(scores, axis=-1) @ k


def loss_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    def loss(w: Tensor) -> Tensor:
        return F.softmax(tw.tanh(x @ w), axis=-1)[:, 0].sum() / x.shape[0]

    return tw.value_and_grad(loss)(W)


# what it does, shapes of arguments for a size n, programs: one for the first size, then one of many
CASES: dict[str, tuple[Callable[..., Any], Callable[[int], Sequence[Tensor]], int]] = {
    "elementwise": (lambda x: x * 2 + 1, lambda n: [tensor(n, 16)], 2),
    "sum of all": (lambda x: (tw.exp(x) * 2 + x).sum(), lambda n: [tensor(n, 16)], 2),
    "mean": (lambda x: tw.mean(x, axis=0), lambda n: [tensor(n, 16)], 2),
    "variance": (lambda x: tw.var(x, axis=0, correction=1), lambda n: [tensor(n, 16)], 2),
    "long sum": (lambda x: x.sum(), lambda n: [tensor(n * 256, 3)], 3),
    "softmax": (lambda x: F.softmax(x, axis=-1), lambda n: [tensor(7, n)], 3),
    "product": (lambda x: tw.tanh(x @ W), lambda n: [tensor(n, 16)], 3),
    "sum over rows": (lambda x: x.mT @ x, lambda n: [tensor(n, 16)], 3),
    "arithmetic on sizes": (
        lambda x: (x.reshape(x.shape[0] * x.shape[1], -1) * 2).sum(axis=0) / x.size,
        lambda n: [tensor(n, n + 1, 16)],
        3,
    ),
    "fractions of sizes": (lambda x: x * x.shape[0] ** -0.5, lambda n: [tensor(n, 4)], 2),
    "slices": (
        lambda x: x[:, -1] + x[:, 0] + x[:, 1:].sum(axis=1) + x[:, ::2].sum(axis=1),
        lambda n: [tensor(4, n, 16)],
        3,
    ),
    "positions": (
        lambda x: x * tw.arange(x.shape[0], dtype="f32")[:, None] + tw.ones((x.shape[0], 1)),
        lambda n: [tensor(n, 16)],
        2,
    ),
    "reversed": (lambda x: tw.flip(x, axis=0) - x, lambda n: [tensor(n, 5)], 3),
    "joined": (
        lambda x, y: tw.concat([x, y], axis=0) * 2,
        lambda n: [tensor(n, 4), tensor(n + 2, 4)],
        2,
    ),
    "halves": (
        lambda x: tuple(tw.split(x, x.shape[0] // 2)),
        lambda n: [tensor(2 * n, 4)],
        2,
    ),
    "triangle, scan": (
        lambda x: tw.tril(x) + tw.cumulative_sum(x, axis=-1),
        lambda n: [tensor(n, n)],
        4,
    ),
    "lookup": (lambda i: W[i], lambda n: [ids(n)], 2),
    "cross entropy": (
        lambda x, t: F.cross_entropy(x, t),
        lambda n: [tensor(n, 16), ids(n)],
        2,
    ),
    "attention": (causal, lambda n: [tensor(2, 3, n, 16), tensor(2, 3, n, 16)], 4),
    "flash attention": (
        lambda q: F.attention(q, q, q, causal=True),
        lambda n: [tensor(2, 3, n, 16)],
        3,
    ),
    "gradient": (loss_and_gradient, lambda n: [tensor(n, 16)], 3),
    "gradient of attention": (
        lambda q: tw.grad(lambda q: F.attention(q, q, q, causal=True).sum())(q),
        lambda n: [tensor(2, 3, n, 16)],
        4,
    ),
    "convolution": (
        lambda x: tw.grad(lambda w: F.relu(F.conv(x, w)).sum())(tensor(4, 3, 3, 3)),
        lambda n: [tensor(n, 3, 9, 9)],
        4,
    ),
    "pooling": (lambda x: F.max_pool(x, 2), lambda n: [tensor(n, 3, 8, 8)], 3),
}


@pytest.mark.parametrize("name", CASES)
def test_one_program_serves_many_sizes(name: str) -> None:
    fn, args, most = CASES[name]
    check(fn, [args(n) for n in SIZES], most)


STEPS: list[Callable[[Tensor, random.Random], Tensor]] = [
    lambda x, r: tw.tanh(x) * r.uniform(0.5, 2),
    lambda x, r: x - x.mean(axis=r.randrange(3), keepdims=True),
    lambda x, r: F.softmax(x, axis=r.choice([0, 1, 2])),
    lambda x, r: (
        tw.permute_dims(x, (1, 0, 2)) if r.random() < 0.5 else tw.permute_dims(x, (0, 2, 1))
    ),
    lambda x, r: x @ x.mT @ x / (x.shape[-1] * x.shape[-2]),
    lambda x, r: tw.concat([x, x[:, :1]], axis=1),
    lambda x, r: x[1:] if r.random() < 0.5 else x[:, :-1],
    lambda x, r: x.reshape(x.shape[0] * x.shape[1], 1, -1),
    lambda x, r: x + tw.arange(x.shape[1], dtype="f32")[:, None] / x.shape[1],
    lambda x, r: tw.where(x > 0, x, x.sum(axis=1, keepdims=True)),
    lambda x, r: tw.flip(x, axis=1) + tw.max(x, axis=2, keepdims=True),
    lambda x, r: tw.pad(x, [(0, 0), (1, 2), (0, 0)]) if r.random() < 0.5 else x[:, ::2],
    lambda x, r: x * tw.var(x, axis=(0, 1), keepdims=True),
    lambda x, r: x if x.shape[1] > 6 else x * 3,
    lambda x, r: tw.take(x, tw.arange(x.shape[1]) // 2, axis=1),
]


@pytest.mark.parametrize("seed", range(12))
def test_random_chains(seed: int) -> None:
    def chain(x: Tensor) -> tuple[Tensor, ...]:
        rng = random.Random(seed)
        found = []
        for _ in range(6):
            x = rng.choice(STEPS)(x, rng)
            found.append(x.sum(axis=0))
        gradient = tw.grad(lambda y: (tw.tanh(y) * y).mean())(x)
        return *found, gradient

    sizes = random.Random(seed)
    shapes = [(sizes.choice((2, 3, 4, 9)), sizes.choice((3, 4, 7, 8, 12, 30)), 4) for _ in range(7)]
    compiled = tw.compile(chain)
    for i, shape in enumerate([*shapes, shapes[1]]):
        x = tensor(*shape, seed=i)
        assert bits(compiled(x)) == bits(chain(x)), (seed, shape)


def test_a_batch_that_is_short_makes_one_more_program_in_a_training_loop() -> None:
    def trained(compiled: bool) -> tuple[list[bytes], int]:
        tw.random.seed(0)
        model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))
        optimizer = optim.AdamW(model.named_parameters(), lr=1e-3)

        def step(x: Tensor, y: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        run: Any = tw.compile(step) if compiled else step
        losses = []
        for n in (32, 32, 32, 7, 32, 2, 5, 32, 30):
            losses.append(run(tensor(n, 20, seed=n), ids(n, below=10)).numpy().tobytes())
        found = [p.numpy().tobytes() for p in model.parameters()]
        return losses + found, run.programs if compiled else 0

    dynamic, programs = trained(False)[0], trained(True)
    assert programs == (dynamic, 2)


def test_axes_named_dynamic_are_symbols_at_once() -> None:
    calls = [(tensor(n, 6), tensor(n, 2), tensor(6, 4)) for n in (4, 9, 3)]
    fn = lambda x, y, w: ((x @ w).sum(), x[:, :2] - y)  # noqa: E731
    for dynamic in (
        {"x": {0: "rows"}, "y": {0: "rows"}},
        {"x": 0, "y": (0,)},
    ):
        compiled = check(fn, calls, 1, dynamic)
        with pytest.raises(ShapeError):
            compiled(tensor(4, 6), tensor(5, 2), tensor(6, 4))
    with pytest.raises(TraceError, match=r"dynamic names 'z', the function's parameters are"):
        tw.compile(fn, dynamic={"z": 0})(*calls[0])
    with pytest.raises(TraceError, match=r"dynamic names axis 2 of 'x', a tensor of shape"):
        tw.compile(dynamic={"x": 2})(fn)(*calls[0])


def test_a_branch_on_a_size_makes_a_program_for_each_side() -> None:
    def fn(x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 10 else x + 1

    check(fn, [[tensor(n, 3)] for n in (4, 5, 20, 21, 6, 300, 2)], 3)


def test_a_loop_over_a_size_is_traced_for_each() -> None:
    def fn(x: Tensor) -> Tensor:
        total = x[0]
        for i in range(1, x.shape[0]):
            total = total * x[i]
        return total

    compiled = check(fn, [[tensor(n, 3)] for n in (4, 5, 6, 4, 5)], 3)
    assert ["5 <= s0 <= 5"] in compiled.assumptions()


def test_sizes_that_are_returned_are_numbers() -> None:
    fn = tw.compile(lambda x: {"sum": x.sum(), "n": x.shape[0]})
    for n in (4, 6, 9):
        found = fn(tensor(n, 2))["n"]
        assert type(found) is int
        assert found == n


def test_sizes_do_not_outlive_the_trace() -> None:
    kept: list[Any] = []

    def fn(x: Tensor) -> Tensor:
        kept.append(x.shape[0])
        return x + 1

    run = tw.compile(fn)
    run(tensor(4, 2))
    run(tensor(5, 2))
    with pytest.raises(TraceError, match="was read while a function was traced"):
        kept[-1] + 1


def test_views_of_a_buffer_that_grows_keep_its_strides() -> None:
    """A step of decoding: one query over the first ``past`` places of a cache."""
    cache = tensor(2, 8, 300, 32).realize()

    def fn(q: Tensor, keys: Tensor) -> Tensor:
        return F.softmax(q @ keys.mT / 8.0, axis=-1) @ keys

    calls = []
    for past in (2, 3, 17, 64, 65, 100, 257, 300):
        keys = cache[:, :, :past].realize()
        assert keys.buffer().pointer == cache.buffer().pointer
        calls.append((tensor(2, 8, 1, 32), keys))
    check(fn, calls, 4)


def test_results_of_other_sizes_stay_what_they_were() -> None:
    run = tw.compile(lambda x: x * 2)
    held = [(run(tensor(n, 5, seed=n)), n) for n in (3, 8, 5, 9, 8, 3, 100, 4)]
    for result, n in held:
        np.testing.assert_array_equal(result.numpy(), tensor(n, 5, seed=n).numpy() * 2)


def test_a_function_that_needs_numbers_is_traced_for_each_size() -> None:
    def fn(x: Tensor) -> Tensor:
        return x * float(np.log(x.shape[0]))  # NumPy asks for the number

    check(fn, [[tensor(n, 3)] for n in (4, 5, 6, 5)], 3)


def test_what_cannot_do_with_symbols_is_traced_at_its_sizes_and_says_why() -> None:
    def fn(x: Tensor) -> Tensor:
        if not isinstance(x.shape[0], int):
            raise TypeError("wants numbers for sizes")
        return x + 1

    compiled = check(fn, [[tensor(n, 3)] for n in (4, 5)], 2)
    assert compiled.assumptions() == [
        ["(4, 3)"],
        ["(5, 3)", "symbols: TypeError: wants numbers for sizes"],
    ]

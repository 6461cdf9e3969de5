"""Random functions that read and change state, as a training step does, but without its sense.

What a function does is drawn anew from its seed at every call, and depends on shapes and dtypes
only: each call, traced or not, does the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np

import tilewright as tw
from tilewright import Tensor
from tilewright.errors import TilewrightError, TraceError
from tilewright.optim import SGD, AdamW
from tilewright.tensor import random as draws

LARGEST = 12_000
KINDS = (tw.float32, tw.float32, tw.float32, tw.float64, tw.bfloat16, tw.int32, tw.bool)
SIZES = (1, 2, 3, 5, 8, 17, 33, 70)


def array(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Tensor:
    if dtype is tw.bool:
        return Tensor(rng.random(shape) < 0.5)
    if dtype is tw.int32:
        return Tensor(rng.integers(-9, 9, shape).astype(np.int32))
    values = Tensor(rng.standard_normal(shape))
    return values.astype(dtype).realize()


class Program:
    """One function with its state.

    Attributes:
        states: what it changes.
        step: the function; takes what :meth:`inputs` gives, returns a list of tensors.
    """

    def __init__(self, seed: int, realised: float = 0.0) -> None:
        self.seed = seed
        self.realised = realised  # how many of the intermediate results are asked for at once
        self.asking = random.Random(seed + 1)
        r, rng = random.Random(seed), np.random.default_rng(seed)
        self.base = tuple(r.choice(SIZES) for _ in range(r.choice([1, 2, 2, 3])))
        self.learns = r.random() < 0.35
        one = r.choice(KINDS) if not self.learns else tw.float32
        kinds = [one] if r.random() < 0.6 else list(KINDS)
        self.states: list[Tensor] = []
        for _ in range(r.randint(2, 5)):
            kind = r.choice(kinds) if not self.learns else one
            self.states.append(array(rng, self._shape(r), kind))
        self.kinds = [r.choice(kinds) for _ in range(r.randint(0, 3))]
        self.shapes = [self._shape(r) for _ in self.kinds]
        self.optimizer: Any = None
        if self.learns:
            self.params = self.states[: r.randint(1, 2)]
            for p in self.params:
                p.requires_grad = True
            self.optimizer = r.choice([SGD, AdamW])(self.params, lr=0.05)
        self.generator = draws.Generator(seed)

    def _shape(self, r: random.Random) -> tuple[int, ...]:
        shape = tuple(n if r.random() < 0.8 else 1 for n in self.base)
        return shape[r.randint(0, len(shape)) if r.random() < 0.4 else 0 :]

    def inputs(self, call: int) -> list[Tensor]:
        """Arguments of a call, now and then one that is state."""
        rng = np.random.default_rng((self.seed, call))
        r = random.Random(self.seed * 100 + call)
        made = [array(rng, s, k) for s, k in zip(self.shapes, self.kinds)]
        for i, t in enumerate(made):
            if t.ndim == 2 and r.random() < 0.2:
                made[i] = Tensor(np.asfortranarray(t.numpy())).astype(t.dtype)
            same = [s for s in self.states if (s.shape, s.dtype) == (t.shape, t.dtype)]
            if same and r.random() < 0.1 and not self.learns:
                made[i] = r.choice(same)
        return made

    # what a step is made of

    def step(self, *inputs: Tensor) -> list[Tensor]:
        self.r = random.Random(self.seed * 7 + 3)
        self.pool = [*self.states, *inputs]
        if self.optimizer is not None:
            self.optimizer.zero_grad()
        for _ in range(self.r.randint(3, 16)):
            if self.r.random() < 0.25:
                self._assign()
                continue
            make = self.r.choice(MAKERS)
            state = self.r.getstate()
            x = self.r.choice(self.pool[-4:]) if self.r.random() < 0.6 else self.pick()
            try:
                made = make(self, x)
            except TraceError:
                raise
            except (TilewrightError, ValueError, IndexError):
                self.r.setstate(state)  # however far it came
                self.r.random()
                continue
            if made.size <= LARGEST and made.ndim <= 4:
                self._ask(made)
                self.pool.append(made)
        if self.optimizer is not None:
            self._learn()
        count = self.r.randint(1, 4)
        pool, self.pool = self.pool, []
        return self.r.sample(pool, min(count, len(pool)))

    def pick(self) -> Tensor:
        return self.r.choice(self.pool)

    def _ask(self, x: Tensor) -> None:
        if self.realised and self.asking.random() < self.realised:
            x.realize()

    def axis(self, x: Tensor) -> int:
        return self.r.randrange(x.ndim)

    def axes(self, x: Tensor) -> tuple[int, ...] | None:
        if self.r.random() < 0.3:
            return None
        return tuple(sorted(self.r.sample(range(x.ndim), self.r.randint(1, x.ndim))))

    def _assign(self) -> None:
        r = self.r
        a = r.choice(self.states)
        same = [s for s in self.states if (s.shape, s.dtype) == (a.shape, a.dtype) and s is not a]
        if same and r.random() < 0.4:
            b = r.choice(same)
            kept = a.detach()
            a.assign(b)
            b.assign(kept if r.random() < 0.7 else b * b)
            return
        value = self._fitted(self.pick(), a)
        if value is not None:
            with tw.no_grad():
                a.assign(value)
                self._ask(a)

    def _fitted(self, x: Tensor, a: Tensor) -> Tensor | None:
        """Something of the shape of ``a``, made of ``x`` and mostly of ``a``."""
        r = self.r
        x = x.detach()
        if x.shape != a.shape:
            try:
                joint = tw.broadcast_shapes(x.shape, a.shape)
            except TilewrightError:
                x = x.astype(a.dtype).sum()
                joint = a.shape
            if joint != a.shape:
                if math.prod(joint) > LARGEST:
                    return None
                x = (tw.broadcast_to(x, joint)).astype(tw.float32)
                extra = tuple(range(len(joint) - a.ndim))
                x = x.mean(axis=extra) if extra else x
                thin = tuple(i for i, n in enumerate(a.shape) if n == 1 and x.shape[i] != 1)
                x = x.max(axis=thin, keepdims=True) if thin else x
        x = tw.broadcast_to(x, a.shape)
        if a.dtype is tw.bool:
            return tw.logical_xor(x.astype(tw.bool), a)
        if a.dtype is tw.int32:
            x = tw.clip(x, -100, 100) if x.dtype.is_float else x
            return (x.astype(tw.int32) + a) % 101
        x = x.astype(a.dtype)
        return x if r.random() < 0.3 else tw.tanh(a * 0.7 + x * 0.3)

    def _learn(self) -> None:
        loss = sum(((p * p).mean() for p in self.params), Tensor(0.0))
        for x in self.pool:
            if x.dtype is tw.float32 and x.requires_grad and self.r.random() < 0.5:
                loss = loss + tw.tanh(x).mean()
        loss.backward()
        self.optimizer.step()
        self.pool.append(loss.detach())


Make = Callable[[Program, Tensor], Tensor]


def _real(x: Tensor) -> Tensor:
    return x if x.dtype.is_float else x.astype(tw.float32)


def _slice(p: Program, x: Tensor) -> Tensor:
    axis = p.axis(x)
    step = p.r.choice([1, 1, 2, -1])
    start = p.r.randrange(x.shape[axis])
    key: list[Any] = [slice(None)] * x.ndim
    key[axis] = slice(None, None, step) if p.r.random() < 0.3 else slice(start, None, abs(step))
    return x[tuple(key)]


def _matmul(p: Program, x: Tensor) -> Tensor:
    y = p.pick()
    x, y = _real(x).astype(tw.float32), _real(y).astype(tw.float32)
    return tw.tanh(x.mT @ y) if p.r.random() < 0.4 else x @ y


def _take(p: Program, x: Tensor) -> Tensor:
    axis = p.axis(x)
    ids = [p.r.randrange(x.shape[axis]) for _ in range(p.r.randint(1, 4))]
    return tw.take(x, tw.asarray(ids), axis=axis)


def _updated(p: Program, x: Tensor) -> Tensor:
    y = tw.stop_gradient(x) * 1
    y[p.r.randrange(y.shape[0])] = 1
    return y


def _flat(p: Program, x: Tensor) -> Tensor:
    return x.reshape((-1,)) if p.r.random() < 0.5 else x[None]


def _drawn(p: Program, x: Tensor) -> Tensor:
    kind = x.dtype if x.dtype.is_float else tw.float32
    return x.astype(kind) * draws.uniform(x.shape, dtype=kind, generator=p.generator)


def _gradient(p: Program, x: Tensor) -> Tensor:
    x, y = _real(x), p.pick().detach()
    weight = tw.broadcast_to(y, x.shape).astype(x.dtype)
    return tw.grad(lambda v: (tw.tanh(v) * weight + v * v.mean()).sum())(x)


MAKERS: list[Make] = [
    lambda p, x: x + p.pick(),
    lambda p, x: x * p.pick(),
    lambda p, x: x - p.pick(),
    lambda p, x: tw.maximum(x, p.pick()),
    lambda p, x: tw.where(x > p.pick(), x, p.pick()),
    lambda p, x: x + p.r.choice([1, 2.5, True]),
    lambda p, x: tw.tanh(_real(x)),
    lambda p, x: tw.exp(-abs(_real(x))),
    lambda p, x: tw.sqrt(abs(_real(x))),
    lambda p, x: _real(x) / (tw.sum(_real(x) * _real(x), axis=p.axes(x), keepdims=True) + 1) ** 0.5,
    lambda p, x: _real(x).softmax(axis=p.axis(x)),
    lambda p, x: x.sum(axis=p.axes(x), keepdims=p.r.random() < 0.5),
    lambda p, x: x.max(axis=p.axes(x), keepdims=p.r.random() < 0.5),
    lambda p, x: _real(x).mean(axis=p.axes(x), keepdims=True) + p.pick(),
    lambda p, x: _real(x) - _real(x).var(axis=p.axis(x), keepdims=True),
    lambda p, x: tw.argmax(x, axis=p.axis(x)),
    lambda p, x: tw.any(x > 0, axis=p.axis(x), keepdims=True),
    lambda p, x: tw.cumulative_sum(x, axis=p.axis(x)),
    lambda p, x: tw.sort(x, axis=p.axis(x)),
    lambda p, x: x.mT,
    lambda p, x: tw.flip(x, axis=p.axis(x)),
    lambda p, x: tw.concat([x, p.pick()], axis=p.axis(x)),
    lambda p, x: tw.roll(x, 1, axis=p.axis(x)),
    lambda p, x: tw.pad(x, [(1, 0)] * x.ndim),
    lambda p, x: x.astype(p.r.choice(KINDS)),
    lambda p, x: x.detach(),
    lambda p, x: tw.checkpoint(lambda v: tw.tanh(v) * v)(_real(x)),
    _slice, _slice, _matmul, _matmul, _take, _updated, _flat, _drawn, _gradient,
]  # fmt: skip

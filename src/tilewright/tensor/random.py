"""Random tensors: counter-based, reproducible, the same on every target.

A :class:`Generator` is a seed and a count of what was drawn from it. Each draw has a key of its own
made of the two (Threefry-2x32, Salmon et al., SC 2011), and an element depends on its key and its
index only. In a compiled function the count is state: each call draws anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, boolean, i64
from tilewright.errors import DTypeError
from tilewright.graph import Node, scalar_node
from tilewright.ops import elementwise as ew
from tilewright.ops import random as ops
from tilewright.ops import views
from tilewright.tensor.core import Tensor, source
from tilewright.tensor.creation import from_numpy, shape_tuple
from tilewright.tensor.modes import mode
from tilewright.tensor.promotion import DEFAULT_FLOAT, as_dtype

__all__ = [
    "Generator",
    "bernoulli",
    "categorical",
    "default",
    "exponential",
    "gumbel",
    "normal",
    "permutation",
    "randint",
    "seed",
    "truncated_normal",
    "uniform",
]


class Generator:
    """A stream of random tensors.

    Attributes:
        state: three uint32: the two words of the key and the number of draws. Saving it and
            assigning it later continues the stream.
    """

    def __init__(self, seed: int = 0) -> None:
        self.state = _state(seed)

    def seed(self, seed: int) -> None:
        """Start the stream of ``seed`` (its lowest 64 bits count)."""
        self.state.assign(_state(seed))

    def key(self) -> ops.Key:
        """The key of the next draw."""
        state = self.state
        if mode.trace is None:
            first, second, drawn = state.tolist()
            following = np.array([first, second, (drawn + 1) & 0xFFFFFFFF], np.uint32)
            state._rebind(from_numpy(following, copy=False).node, 0)
            dtype = state.dtype
            stream = (scalar_node(first, dtype), scalar_node(second, dtype))
            return ops.fold_in(stream, scalar_node(drawn, dtype))
        words = [views.reshape(views.slice_(state.node, (i,), (1,)), ()) for i in range(3)]
        one = views.concat(
            [views.broadcast(scalar_node(n, state.dtype), (k,)) for n, k in ((0, 2), (1, 1))], 0
        )
        key = ops.fold_in((words[0], words[1]), words[2])
        state._rebind(ew.add(state.node, one), 0)
        return key


def _state(seed: int) -> Tensor:
    number = seed & 0xFFFFFFFFFFFFFFFF
    return from_numpy(np.array([number & 0xFFFFFFFF, number >> 32, 0], np.uint32), copy=False)


_DEFAULT: Final = Generator()


def default() -> Generator:
    """The generator of draws that name none (seed 0 until :func:`seed` is called)."""
    return _DEFAULT


def seed(value: int) -> None:
    """Seed the default generator."""
    _DEFAULT.seed(value)


def _key(generator: Generator | None) -> ops.Key:
    return (_DEFAULT if generator is None else generator).key()


def _floating(dtype: Any) -> DType:
    kind = DEFAULT_FLOAT if dtype is None else as_dtype(dtype)
    if not kind.is_float:
        raise DTypeError(f"random real numbers are floating-point, not {kind}")
    return kind


def _scaled(node: Node, factor: float, shift: float) -> Tensor:
    """``node * factor + shift``; both may change without another compilation."""
    if factor != 1:
        node = ew.mul(node, scalar_node(float(factor), node.dtype))
    if shift != 0:
        node = ew.add(node, scalar_node(float(shift), node.dtype))
    return Tensor(node)


def uniform(
    shape: int | Sequence[int] = (),
    *,
    low: float = 0.0,
    high: float = 1.0,
    dtype: Any = None,
    generator: Generator | None = None,
) -> Tensor:
    """Uniform in [low, high)."""
    drawn = ops.uniform(shape_tuple(shape), _key(generator), _floating(dtype))
    return _scaled(drawn, high - low, low)


def normal(
    shape: int | Sequence[int] = (),
    *,
    mean: float = 0.0,
    std: float = 1.0,
    dtype: Any = None,
    generator: Generator | None = None,
) -> Tensor:
    """Normal with ``mean`` and standard deviation ``std`` (Box-Muller)."""
    drawn = ops.normal(shape_tuple(shape), _key(generator), _floating(dtype))
    return _scaled(drawn, std, mean)


def truncated_normal(
    shape: int | Sequence[int] = (),
    *,
    mean: float = 0.0,
    std: float = 1.0,
    low: float = -2.0,
    high: float = 2.0,
    dtype: Any = None,
    generator: Generator | None = None,
) -> Tensor:
    """Normal, given that it lies within ``low`` to ``high`` standard deviations of ``mean``."""
    drawn = ops.truncated_normal(shape_tuple(shape), _key(generator), low, high, _floating(dtype))
    return _scaled(drawn, std, mean)


def _simple(build: Callable[..., Node], shape: Any, dtype: Any, generator: Any) -> Tensor:
    return Tensor(build(shape_tuple(shape), _key(generator), _floating(dtype)))


def exponential(
    shape: int | Sequence[int] = (), *, dtype: Any = None, generator: Generator | None = None
) -> Tensor:
    """Exponential with mean 1."""
    return _simple(ops.exponential, shape, dtype, generator)


def gumbel(
    shape: int | Sequence[int] = (), *, dtype: Any = None, generator: Generator | None = None
) -> Tensor:
    """Standard Gumbel."""
    return _simple(ops.gumbel, shape, dtype, generator)


def bernoulli(
    p: float | Tensor,
    shape: int | Sequence[int] | None = None,
    *,
    generator: Generator | None = None,
) -> Tensor:
    """True with probability ``p``: a number, or a tensor that broadcasts to ``shape``."""
    if isinstance(p, Tensor):
        sizes = p.shape if shape is None else shape_tuple(shape)
        return Tensor(ops.bernoulli(sizes, _key(generator), source(p)))
    sizes = () if shape is None else shape_tuple(shape)
    return Tensor(ops.bernoulli(sizes, _key(generator), scalar_node(float(p), DEFAULT_FLOAT)))


def randint(
    low: int,
    high: int,
    shape: int | Sequence[int] = (),
    *,
    dtype: Any = None,
    generator: Generator | None = None,
) -> Tensor:
    """Integers in [low, high), int64 by default."""
    kind = i64 if dtype is None else as_dtype(dtype)
    if not kind.is_integer or kind is boolean:
        raise DTypeError(f"random integers have an integer dtype, not {kind}")
    return Tensor(ops.randint(low, high, shape_tuple(shape), _key(generator), kind))


def categorical(logits: Tensor, /, *, axis: int = -1, generator: Generator | None = None) -> Tensor:
    """An index (int64) along ``axis`` with probability ``softmax(logits)``."""
    return Tensor(ops.categorical(source(logits), _key(generator), axis))


def permutation(n: int, *, generator: Generator | None = None) -> Tensor:
    """The numbers 0 to ``n - 1`` (int64) in random order."""
    return Tensor(ops.permutation(n, _key(generator)))

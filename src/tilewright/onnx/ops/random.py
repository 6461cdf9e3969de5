"""Random numbers, functions of a key and a counter.

An operator with a ``seed`` gives the same numbers in every run. Without one they are others in
every run and for every operator, and the same for every session that runs as often.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.dtypes import DType, boolean, f32
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.graph import Node
from tilewright.onnx.ops.common import tensor_type
from tilewright.onnx.registry import Call, op
from tilewright.ops import elementwise as ew
from tilewright.ops import random, reductions, scans, sorting, views
from tilewright.tensor.core import Tensor, apply


def _normal(
    ctx: Call, shape: Sequence[int], dtype: DType, seed: float | None, mean: float, scale: float
) -> Tensor:
    wide = f32 if dtype.bits == 16 else dtype
    drawn = random.normal(shape, ctx.random_key(seed), wide)
    return Tensor(ew.cast(_moved(drawn, scale, mean), dtype))


def _uniform(
    ctx: Call, shape: Sequence[int], dtype: DType, seed: float | None, low: float, high: float
) -> Tensor:
    wide = f32 if dtype.bits == 16 else dtype
    drawn = random.uniform(shape, ctx.random_key(seed), wide)
    return Tensor(ew.cast(_moved(drawn, high - low, low), dtype))


def _moved(x: Node, factor: float, start: float) -> Node:
    return ew.add(ew.mul(x, ew.literal(factor, x)), ew.literal(start, x))


def _float_type(number: int | None, like: Tensor | None = None) -> DType:
    if number is None:
        assert like is not None
        found = like.dtype
    else:
        found = tensor_type(number)
    if not found.is_float:
        raise UnsupportedError(f"this distribution is over floats, got {found}")
    return found


@op("RandomNormal")
def random_normal(
    *,
    shape: Sequence[int],
    dtype: int = 1,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    ctx: Call,
) -> Tensor:
    """Normal numbers of a mean and a standard deviation."""
    return _normal(ctx, tuple(shape), _float_type(dtype), seed, mean, scale)


@op("RandomNormalLike")
def random_normal_like(
    x: Tensor,
    *,
    dtype: int | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    ctx: Call,
) -> Tensor:
    """Normal numbers in the shape of a tensor."""
    return _normal(ctx, x.shape, _float_type(dtype, x), seed, mean, scale)


@op("RandomUniform")
def random_uniform(
    *,
    shape: Sequence[int],
    dtype: int = 1,
    low: float = 0.0,
    high: float = 1.0,
    seed: float | None = None,
    ctx: Call,
) -> Tensor:
    """Uniform numbers in [low, high)."""
    return _uniform(ctx, tuple(shape), _float_type(dtype), seed, low, high)


@op("RandomUniformLike")
def random_uniform_like(
    x: Tensor,
    *,
    dtype: int | None = None,
    low: float = 0.0,
    high: float = 1.0,
    seed: float | None = None,
    ctx: Call,
) -> Tensor:
    """Uniform numbers in the shape of a tensor."""
    return _uniform(ctx, x.shape, _float_type(dtype, x), seed, low, high)


@op("Bernoulli", since=15)
def bernoulli(
    x: Tensor, *, dtype: int | None = None, seed: float | None = None, ctx: Call
) -> Tensor:
    """1 with the probability that an element says, else 0."""
    key = ctx.random_key(seed)
    kind = x.dtype if dtype is None else tensor_type(dtype)

    def build(p: Node) -> Node:
        return ew.cast(random.bernoulli(x.shape, key, p), kind)

    return apply(build, x)


@op("Multinomial", since=7)
def multinomial(
    x: Tensor,
    *,
    dtype: int = 6,
    sample_size: int = 1,
    seed: float | None = None,
    ctx: Call,
) -> Tensor:
    """Classes drawn by logarithms of their probabilities (batch, classes): (batch, samples)."""
    if x.ndim != 2 or not x.shape[1]:
        raise ShapeError(f"wants (batch, classes), got {x.shape}")
    key = ctx.random_key(seed)
    kind = tensor_type(dtype)
    if not kind.is_integer:
        raise UnsupportedError(f"classes are integers, got {kind}")

    def build(logits: Node) -> Node:
        shares = reductions.softmax(ew.cast(logits, f32), 1)
        edges = scans.cumsum(shares, 1)
        batch, classes = views.sizes_of(shares)
        total = views.slice_(edges, (0, classes - 1), (batch, 1))
        drawn = ew.mul(random.uniform((batch, sample_size), key), total)
        found = sorting.searchsorted(edges, drawn, right=True)
        return ew.cast(ew.minimum(found, ew.literal(classes - 1, found)), kind)

    return apply(build, x)


# --- dropout -------------------------------------------------------------------------------------


def _dropped(
    ctx: Call, x: Tensor, ratio: float, seed: float | None, mask_type: DType
) -> tuple[Tensor, Tensor]:
    """Elements are kept with probability 1 - ratio and divided by it; and which were kept."""
    if not 0 <= ratio < 1:
        raise ShapeError(f"a ratio is in [0, 1), got {ratio}")
    key = ctx.random_key(seed)
    kept = random.bernoulli(x.shape, key, 1 - ratio)

    def build(node: Node) -> Node:
        scaled = ew.mul(node, ew.literal(1 / (1 - ratio), node))
        return ew.where(kept, scaled, ew.literal(0, node))

    return apply(build, x), Tensor(ew.cast(kept, mask_type))


def _undropped(x: Tensor, mask_type: DType) -> tuple[Tensor, Tensor]:
    return x, Tensor(ew.ones(x.shape, mask_type))


@op("Dropout", since=12, host=(1, 2))
def dropout(
    x: Tensor,
    ratio: np.ndarray | None = None,
    training_mode: np.ndarray | None = None,
    *,
    seed: float | None = None,
    ctx: Call,
) -> tuple[Tensor, ...]:
    """In training some elements are zeroed and the others scaled; else the input."""
    share = 0.5 if ratio is None else float(ratio.reshape(()))
    training = training_mode is not None and bool(training_mode.reshape(()))
    if training and share:
        return _dropped(ctx, x, share, seed, boolean)[: ctx.n_outputs]
    return _undropped(x, boolean)[: ctx.n_outputs]


@op("Dropout", since=10)
def dropout_10(x: Tensor, *, ratio: float = 0.5, ctx: Call) -> tuple[Tensor, ...]:
    """From version 7 to 11 models are not trained; the mask is bool."""
    return _undropped(x, boolean)[: ctx.n_outputs]


@op("Dropout", since=7)
def dropout_7(x: Tensor, *, ratio: float = 0.5, ctx: Call) -> tuple[Tensor, ...]:
    """In version 7 the mask has the type of the elements."""
    return _undropped(x, x.dtype)[: ctx.n_outputs]


@op("Dropout", since=1)
def dropout_1(
    x: Tensor,
    *,
    ratio: float = 0.5,
    is_test: int = 0,
    consumed_inputs: Sequence[int] | None = None,
    ctx: Call,
) -> tuple[Tensor, ...]:
    """Before version 7 an attribute said whether the model is tested."""
    if is_test or not ratio:
        return _undropped(x, x.dtype)[: ctx.n_outputs]
    return _dropped(ctx, x, ratio, None, x.dtype)[: ctx.n_outputs]

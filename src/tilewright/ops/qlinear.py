"""Quantised products, convolutions and sums of ONNX, built of integer ops.

A real number is ``(q - zero_point) * scale``. What scales and zero points contribute to a product
is known per output and is graph code over small vectors, folded where they are constants:

    sum (x - zx)(w - zw) = sum xu ws - zx' sum ws - zw' sum xu + K zx' zw'

with xu, ws the bytes as ``dot4`` reads them and zx', zw' the zero points shifted alike. The
multiplier of a requantised result is ``(x_scale * w_scale) / y_scale``, each step rounded to f32,
as onnxruntime has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from tilewright.dtypes import DType, f32, i8, i32, u8
from tilewright.errors import DTypeError, ShapeError
from tilewright.graph import Node, shape_of
from tilewright.ops import integer
from tilewright.ops.arithmetic import add, div, literal, mul
from tilewright.ops.comparison import eq, where
from tilewright.ops.constants import constant, folded, values
from tilewright.ops.conv_shapes import Pairs, output_sizes
from tilewright.ops.creation import cast, iota, zeros
from tilewright.ops.integer_layout import channels_first, channels_last
from tilewright.ops.table import get, make
from tilewright.ops.views import (
    broadcast,
    broadcast_shapes,
    concat,
    expand_dims,
    permute,
    reshape,
    sizes_of,
)
from tilewright.ops.views import slice_ as take_slice

__all__ = [
    "Result",
    "conv_integer",
    "dense",
    "matmul_integer",
    "on_channels_last",
    "qlinear_conv",
    "qlinear_matmul",
    "zero_of",
]


class Result:
    """What becomes of exact sums.

    Args:
        x_scale, w_scale, y_scale, y_zero: of a requantised result; y_scale None: an f32 result,
            scaled by x_scale * w_scale; x_scale None: the sums themselves, i32.
        bias: i32, added to the sums.
    """

    def __init__(
        self,
        x_scale: Node | None = None,
        w_scale: Node | None = None,
        y_scale: Node | None = None,
        y_zero: Node | None = None,
        bias: Node | None = None,
    ) -> None:
        self.x_scale, self.w_scale, self.y_scale = map(_in_f32, (x_scale, w_scale, y_scale))
        self.y_zero, self.bias = y_zero, bias

    @property
    def mode(self) -> str:
        """How the kernels call it."""
        if self.x_scale is None:
            return "i32"
        if self.y_scale is None:
            return "f32"
        assert self.y_zero is not None
        return self.y_zero.dtype.name

    def multiplier(self, outputs: int) -> Node:
        """f32 (1 or batch, outputs)."""
        if self.x_scale is None:
            return constant(np.zeros((1, outputs), np.float32))
        assert self.w_scale is not None
        scale = mul(_number(self.x_scale), self.w_scale)
        if self.y_scale is not None:
            scale = div(scale, _number(self.y_scale))
        if len(scale.shape) < 2 or scale.shape[0] == 1:
            scale = reshape(
                broadcast(scale, broadcast_shapes(scale.shape, (outputs,))), (1, outputs)
            )
        return folded(scale)

    def zero(self) -> Node:
        """The result's zero point, one number."""
        if self.y_zero is None:
            return constant(np.zeros(1, np.uint8))
        return reshape(self.y_zero, (1,))


def _in_f32(scale: Node | None) -> Node | None:
    return None if scale is None else cast(scale, f32)


def zero_of(zero: Node | None, like: Node) -> Node:
    """A zero point, zero when there is none."""
    if zero is None:
        return constant(np.zeros((), like.dtype.storage))
    if zero.dtype is not like.dtype:
        raise DTypeError(f"a zero point of {like.dtype} is {like.dtype}, got {zero.dtype}")
    return zero


def _number(x: Node) -> Node:
    """A scale or zero point for all elements as a 0-d node."""
    if prod(sizes_of(x)) != 1:
        raise ShapeError(f"one scale and zero point for all are wanted, got {shape_of(x.shape)}")
    return reshape(x, ())


def _shifted(zero: Node, dtype: DType, to_unsigned: bool) -> Node:
    """A zero point as dot4 reads the bytes it belongs to: i32."""
    wide = cast(zero, i32)
    shift = (128 if dtype is i8 else 0) if to_unsigned else (-128 if dtype is u8 else 0)
    return add(wide, literal(shift, wide)) if shift else wide


def _is_zero(zero: Node) -> bool:
    """Whether an integer vector is known to be nothing but zeros."""
    known = values(zero)
    return known is not None and not known.any()


def _offsets(
    panels: Node, outputs: int, zx: Node, zws: Node, bias: Node | None
) -> tuple[Node, Node, bool]:
    """(off i32 (G, outputs), zws i32 (G, outputs), asym) of a product."""
    groups = sizes_of(panels)[0]
    sums = integer.byte_sums(panels)
    sums = take_slice(sums, (0, 0), (groups, outputs)) if sums.shape[1] != outputs else sums
    off = mul(sums, mul(zx, literal(-1, zx)))
    asym = not _is_zero(zws)
    if asym:
        k = sizes_of(panels)[2] * 4
        off = add(off, mul(mul(zws, zx), literal(k, zx)))
    if bias is not None:
        off = add(off, reshape(bias, (-1, outputs)))
    return folded(off), folded(zws), asym


def _per_output(value: Node, outputs: int) -> Node:
    """One number, or one per output, as (outputs,)."""
    if prod(sizes_of(value)) == 1:
        return broadcast(reshape(value, (1,)), (outputs,))
    if value.shape != (outputs,):
        raise ShapeError(f"{outputs} outputs want as many numbers, got {shape_of(value.shape)}")
    return value


def dense(x: Node) -> Node:
    """``x`` in memory as rows of words are read: views and strange leaves are copied."""
    if x.value is not None:
        steps = x.value.strides
        good = not steps or (steps[-1] == 1 and not any(s % 4 for s in steps[:-1]))
        return x if good else make("copy", x)
    source = x
    while source.op == "reshape" and source.value is None:
        source = source.inputs[0]
    is_view = source.op != "part" and not source.is_leaf and get(source.op).view is not None
    is_view = is_view and source.value is None
    return make("copy", x) if is_view or source.is_leaf else x


# --- products ------------------------------------------------------------------------------------


def matmul_integer(
    a: Node, b: Node, a_zero: Node | None, b_zero: Node | None, result: Result
) -> Node:
    """a (..., M, K) times b (..., K, N), bytes of either sign, as NumPy's matmul.

    a_zero: one number. b_zero: one number, one per column (N,), or (..., 1, N).
    """
    if len(a.shape) == 1:
        made = matmul_integer(expand_dims(a, 0), b, a_zero, b_zero, result)
        return reshape(made, (*made.shape[:-2], made.shape[-1]))
    if len(b.shape) == 1:
        made = matmul_integer(a, expand_dims(b, 1), a_zero, b_zero, result)
        return reshape(made, made.shape[:-1])
    k, n = sizes_of(b)[-2:]
    if a.shape[-1] != k:
        raise ShapeError(f"matmul: {shape_of(a.shape)} and {shape_of(b.shape)} do not fit")
    lead = broadcast_shapes(a.shape[:-2], b.shape[:-2])
    many = prod(sizes_of(b)[:-2]) > 1
    groups = prod(map(int, lead)) if many else 1
    if many:
        a = broadcast(a, (*lead, *a.shape[-2:]))
        b = broadcast(b, (*lead, k, n))
    out_shape = (*lead, a.shape[-2], n)
    if 0 in out_shape:
        return zeros(out_shape, integer.RESULTS[result.mode])  # type: ignore[arg-type]
    if k == 0:
        raise ShapeError(f"matmul of {shape_of(a.shape)} and {shape_of(b.shape)} sums nothing")
    rows = reshape(a, (groups, -1, k))
    if k % 4:
        # any value will do: the weights beside it are neutral
        none = constant(np.zeros((1, 1, 1), a.dtype.storage))
        rows = concat([rows, broadcast(none, (*rows.shape[:2], -k % 4))], 2)
    zw = zero_of(b_zero, b)
    if prod(sizes_of(zw)) == 1:
        zw = broadcast(reshape(zw, (1, 1)), (groups, n))
    elif prod(sizes_of(zw)) == n:
        zw = broadcast(reshape(zw, (1, n)), (groups, n))
    else:
        zw = reshape(broadcast(zw, (*lead, 1, n)), (groups, n))
    panels = folded(integer.byte_panels(reshape(b, (groups, k, n)), zw))
    zx = _shifted(_number(zero_of(a_zero, a)), a.dtype, True)
    zws = _shifted(zw, b.dtype, False)
    off, zws, asym = _offsets(panels, n, zx, zws, result.bias)
    mult = result.multiplier(n)
    made = integer.byte_gemm(
        dense(rows), panels, off, mult, zws, result.zero(), outputs=n, mode=result.mode, asym=asym
    )
    return reshape(made, out_shape)


def qlinear_matmul(
    a: Node,
    a_scale: Node,
    a_zero: Node | None,
    b: Node,
    b_scale: Node,
    b_zero: Node | None,
    y_scale: Node,
    y_zero: Node,
    bias: Node | None = None,
) -> Node:
    """ONNX QLinearMatMul: a (..., M, K) times b (..., K, N), requantised.

    Scale and zero point of a and y are one number, those of b one or one per column; bias i32 is
    added to the sums.
    """
    n = sizes_of(b)[-1] if len(b.shape) > 1 else 1
    scale = b_scale
    if prod(sizes_of(scale)) in (1, n):
        scale = _per_output(reshape(scale, (-1,)), n)
    return matmul_integer(a, b, a_zero, b_zero, Result(a_scale, scale, y_scale, y_zero, bias))


# --- convolutions --------------------------------------------------------------------------------


def _merged(groups: int, channels: int) -> int:
    """How many groups are computed as one, so that each reads whole words of channels."""
    if groups == 1:
        return 1
    fits = (m for m in range(1, groups + 1) if groups % m == 0 and channels * m % 4 == 0)
    return next(fits, groups)


def _conv_weights(w: Node, zw: Node, groups: int, merged: int) -> tuple[Node, Node]:
    """(w (G', K', O'), zw (G', O')): taps in order, channels within, groups that are one joined."""
    o, channels, *kernel = sizes_of(w)
    og, count, rank = o // groups, groups // merged, len(kernel)
    cut = reshape(w, (count, merged, og, channels, *kernel))
    taps = tuple(range(4, 4 + rank))
    wide = permute(cut, (0, *taps, 3, 1, 2))  # (G', taps, C, merged, O)
    zero = reshape(zw, (count, *(1,) * rank, 1, merged, og))
    if merged > 1:
        shape = (count, *kernel, merged, channels, merged, og)
        at = len(shape) - 4
        same = eq(
            reshape(iota((merged,)), (merged, 1, 1, 1)), reshape(iota((merged,)), (1, 1, merged, 1))
        )
        own = reshape(wide, (*shape[:at], 1, *shape[at + 1 :]))
        wide = where(
            broadcast(same, shape),
            broadcast(own, shape),
            broadcast(reshape(zero, (count, *(1,) * (rank + 2), merged, og)), shape),
        )
    c, outs = merged * channels, merged * og
    wide = reshape(wide, (count, *kernel, c, outs))
    if c % 4:
        more = broadcast(
            reshape(zero, (count, *(1,) * rank, 1, outs)), (count, *kernel, -c % 4, outs)
        )
        wide = concat([wide, more], rank + 1)
    return reshape(wide, (count, -1, outs)), reshape(zw, (count, outs))


def conv_integer(
    x: Node,
    w: Node,
    x_zero: Node | None,
    w_zero: Node | None,
    result: Result,
    strides: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
    groups: int = 1,
) -> Node:
    """Convolution of bytes: x (N, C, *size), w (O, C / groups, *kernel) -> (N, O, *out).

    Padding is the zero point of x. The result lies channels last behind a ``channels_first``.
    Raises :class:`ShapeError` when sizes do not fit.
    """
    _, c, *size = sizes_of(x)
    o, channels, *kernel = sizes_of(w)
    rank = len(kernel)
    if not 1 <= rank <= 3 or len(size) != rank:
        raise ShapeError(f"conv of {shape_of(x.shape)} and {shape_of(w.shape)}: 1 to 3 axes")
    if groups < 1 or c % groups or o % groups or channels != c // groups:
        raise ShapeError(
            f"conv: {c} channels to {o} in {groups} groups want a weight ({o}, {c}/{groups}, ...), "
            f"got {shape_of(w.shape)}"
        )
    out = output_sizes("conv", size, kernel, strides, padding, dilation)
    low = [p[0] for p in padding]
    zx = zero_of(x_zero, x)
    zw = _per_output(zero_of(w_zero, w), o)
    zx_wide = _shifted(_number(zx), x.dtype, True)
    inner = channels_last(x)
    mult = result.multiplier(o)
    last = (dense(inner), reshape(zx, (1,)))
    depthwise = groups == c == o and rank <= 2 and values(w) is not None
    if depthwise:
        made = _depthwise(w, zw, zx_wide, last, mult, result, kernel, strides, dilation, low, out)
        return channels_first(made, o)
    merged = _merged(groups, channels)
    wide, zero = _conv_weights(w, zw, groups, merged)
    panels = folded(integer.byte_panels(wide, zero))
    zws = _shifted(zero, w.dtype, False)
    outs = o * merged // groups
    off, zws, asym = _offsets(panels, outs, zx_wide, zws, result.bias)
    mult = folded(reshape(mult, (-1, outs)))
    return channels_first(
        _general(
            last, panels, off, mult, zws, asym, result, groups // merged, outs,
            (kernel, strides, dilation, low, out),
        ),
        o,
    )  # fmt: skip


def _three(numbers: Sequence[int], fill: int) -> tuple[int, ...]:
    return (fill,) * (3 - len(numbers)) + tuple(int(v) for v in numbers)


def _general(
    last: tuple[Node, Node],
    panels: Node,
    off: Node,
    mult: Node,
    zws: Node,
    asym: bool,
    result: Result,
    groups: int,
    outs: int,
    sizes: tuple[Sequence[int], ...],
) -> Node:
    x, zx = last
    kernel, strides, dilation, low, out = sizes
    n, *size, wide = sizes_of(x)
    zero, mode = result.zero(), result.mode
    if groups == prod(kernel) == prod(strides) == 1 and not any(low) and list(out) == size:
        stored = outs if mode in ("i32", "f32") else 4 * integer.words_of(outs)
        rows = reshape(x, (1, n * prod(size), wide))
        made = integer.byte_gemm(
            rows, panels, off, mult, zws, zero, outputs=outs, stored=stored, mode=mode, asym=asym
        )
        return reshape(made, (n, *out, stored))
    made = integer.byte_conv(
        reshape(x, (n, *_three(size, 1), wide)), panels, off, mult, zws, zero, zx,
        outputs=outs, groups=groups, mode=mode, asym=asym,
        kernel=_three(kernel, 1), strides=_three(strides, 1), dilation=_three(dilation, 1),
        low=_three(low, 0), out=_three(out, 1),
    )  # fmt: skip
    return reshape(made, (n, *out, made.shape[-1]))


def _depthwise(
    w: Node,
    zw: Node,
    zx: Node,
    last: tuple[Node, Node],
    mult: Node,
    result: Result,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
    low: Sequence[int],
    out: Sequence[int],
) -> Node:
    x, fill = last
    known = values(w)
    assert known is not None
    o, taps = known.shape[0], prod(kernel)

    def two(numbers: Sequence[int], missing: int) -> tuple[int, ...]:
        return (missing,) * (2 - len(numbers)) + tuple(int(v) for v in numbers)

    words = integer.depthwise_words(known.reshape(o, *two(kernel, 1)))
    wide = words.shape[-1]
    signed = known.reshape(o, taps).astype(np.int32) - (128 if w.dtype is u8 else 0)
    sums = constant(signed.sum(axis=1, dtype=np.int32))
    zws = folded(_shifted(zw, w.dtype, False))
    asym = not _is_zero(zws)
    off = mul(sums, mul(zx, literal(-1, zx)))
    if asym:
        off = add(off, mul(mul(zws, zx), literal(taps, zx)))
    if result.bias is not None:
        off = add(off, result.bias)
    n, *size, _ = sizes_of(x)
    made = integer.byte_depthwise(
        reshape(x, (n, *two(size, 1), wide)),
        constant(words), _widened(off, wide), _widened(reshape(mult, (o,)), wide),
        _widened(zws, wide), result.zero(), fill,
        kernel=two(kernel, 1), strides=two(strides, 1), dilation=two(dilation, 1),
        low=two(low, 0), out=two(out, 1), mode=result.mode, asym=asym,
    )  # fmt: skip
    return reshape(made, (n, *out, wide))


def _widened(vector: Node, wide: int) -> Node:
    """(n,) with zeros up to (wide,)."""
    more = wide - sizes_of(vector)[0]
    if more:
        rest = broadcast(constant(np.zeros(1, vector.dtype.storage)), (more,))
        vector = concat([vector, rest], 0)
    return folded(vector)


def qlinear_conv(
    x: Node,
    x_scale: Node,
    x_zero: Node | None,
    w: Node,
    w_scale: Node,
    w_zero: Node | None,
    y_scale: Node,
    y_zero: Node,
    bias: Node | None,
    strides: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
    groups: int = 1,
) -> Node:
    """ONNX QLinearConv: :func:`conv_integer`, its sums with bias (i32, (O,)) requantised.

    The scale and zero point of w are one number or one per output.
    """
    o = sizes_of(w)[0]
    result = Result(x_scale, _per_output(w_scale, o), y_scale, y_zero, bias)
    return conv_integer(x, w, x_zero, w_zero, result, strides, padding, dilation, groups)


def on_channels_last(fn: Callable[..., Node], *xs: Node) -> Node:
    """``fn(*xs)`` of an elementwise ``fn``, computed channels last where all of ``xs`` lie so."""
    first = xs[0]
    if all(
        x.op == "channels_first"
        and x.shape == first.shape
        and x.inputs[0].shape == first.inputs[0].shape
        for x in xs
    ):
        return channels_first(fn(*(x.inputs[0] for x in xs)), sizes_of(first)[1])
    return fn(*xs)

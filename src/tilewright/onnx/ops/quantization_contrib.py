"""Quantised operators of com.microsoft, as ONNX Runtime's quantiser writes them into models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import numpy as np

from tilewright.errors import FormatError, UnsupportedError
from tilewright.graph import Node
from tilewright.onnx.ops.convolution import pad_pairs
from tilewright.onnx.ops.microsoft_attention import self_attention
from tilewright.onnx.ops.quantization import conv_sizes, dynamic_bytes, known, node_of
from tilewright.onnx.ops.recurrent import lstm
from tilewright.onnx.registry import Call, op
from tilewright.ops import qlinear, qlinear_elementwise, reductions
from tilewright.ops.activations import leaky_relu
from tilewright.ops.arithmetic import add, floor, literal, mul, reciprocal
from tilewright.ops.comparison import where
from tilewright.ops.constants import constant, folded
from tilewright.ops.elementwise import sigmoid
from tilewright.ops.integer_layout import channels_first
from tilewright.ops.pool import avg_pool
from tilewright.ops.qlinear import Result, on_channels_last, zero_of
from tilewright.ops.qlinear_elementwise import number, requantize
from tilewright.ops.quantize import dequantize, quantize
from tilewright.ops.views import broadcast, concat, permute, reshape, sizes_of
from tilewright.tensor.core import Tensor

MS = "com.microsoft"


def _quantised(ctx: Call, scale: Tensor, zero: Tensor | None, like: Node) -> tuple[Node, Node]:
    """(scale, zero point) as 0-d nodes."""
    s, z = known(ctx, scale, zero)
    assert s is not None
    return number(s), number(zero_of(z, like))


def _unary(
    ctx: Call, x: Tensor, xq: tuple[Any, Any], yq: tuple[Any, Any], fn: Callable[[Node], Node]
) -> Tensor:
    """``quantize(fn(dequantize(x)))``, in the layout of x."""
    node = node_of(ctx, x)
    sx, zx = _quantised(ctx, *xq, node)
    sy, zy = _quantised(ctx, *yq, node)
    return Tensor(on_channels_last(lambda v: quantize(fn(dequantize(v, sx, zx)), sy, zy), node))


@op("QLinearAdd", domain=MS)
def qlinear_add(
    a: Tensor, a_scale: Tensor, a_zero: Any, b: Tensor, b_scale: Tensor, b_zero: Any,
    c_scale: Tensor, c_zero: Any = None, *, ctx: Call,
) -> Tensor:  # fmt: skip
    """The sum of quantised arrays."""
    x, y = node_of(ctx, a), node_of(ctx, b)
    sa, za = _quantised(ctx, a_scale, a_zero, x)
    sb, zb = _quantised(ctx, b_scale, b_zero, x)
    sc, zc = _quantised(ctx, c_scale, c_zero, x)
    return Tensor(qlinear_elementwise.qlinear_add(x, sa, za, y, sb, zb, sc, zc))


@op("QLinearMul", domain=MS)
def qlinear_mul(
    a: Tensor, a_scale: Tensor, a_zero: Any, b: Tensor, b_scale: Tensor, b_zero: Any,
    c_scale: Tensor, c_zero: Any = None, *, ctx: Call,
) -> Tensor:  # fmt: skip
    """The product of quantised arrays."""
    x, y = node_of(ctx, a), node_of(ctx, b)
    sa, za = _quantised(ctx, a_scale, a_zero, x)
    sb, zb = _quantised(ctx, b_scale, b_zero, x)
    sc, zc = _quantised(ctx, c_scale, c_zero, x)
    return Tensor(qlinear_elementwise.qlinear_mul(x, sa, za, y, sb, zb, sc, zc))


@op("QLinearSigmoid", domain=MS)
def qlinear_sigmoid(
    x: Tensor, x_scale: Tensor, x_zero: Any, y_scale: Tensor, y_zero: Any = None, *, ctx: Call
) -> Tensor:
    """The logistic function of a quantised array."""
    return _unary(ctx, x, (x_scale, x_zero), (y_scale, y_zero), sigmoid)


@op("QLinearLeakyRelu", domain=MS)
def qlinear_leaky_relu(
    x: Tensor, x_scale: Tensor, x_zero: Any, y_scale: Tensor, y_zero: Any = None, *,
    alpha: float = 0.01, ctx: Call,
) -> Tensor:  # fmt: skip
    """``x`` where it is positive, else ``alpha x``."""
    return _unary(
        ctx, x, (x_scale, x_zero), (y_scale, y_zero), lambda v: leaky_relu(v, float(alpha))
    )


@op("QLinearGlobalAveragePool", domain=MS)
def qlinear_global_average_pool(
    x: Tensor, x_scale: Tensor, x_zero: Any, y_scale: Tensor, y_zero: Any, *,
    channels_last: int = 0, ctx: Call,
) -> Tensor:  # fmt: skip
    """The mean of each plane: the bytes are summed exactly, then requantised."""
    node = node_of(ctx, x)
    if channels_last:
        node = channels_first(node, sizes_of(node)[-1])
    sx, zx = _quantised(ctx, x_scale, x_zero, node)
    sy, zy = _quantised(ctx, y_scale, y_zero, node)
    y = qlinear_elementwise.qlinear_plane_mean(node, sx, zx, sy, zy)
    rank = len(y.shape)
    return Tensor(permute(y, (0, *range(2, rank), 1)) if channels_last else y)


@op("QLinearAveragePool", domain=MS)
def qlinear_average_pool(
    x: Tensor, x_scale: Tensor, x_zero: Any, y_scale: Tensor, y_zero: Any = None, *,
    kernel_shape: tuple[int, ...], strides: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None, auto_pad: str = "NOTSET", ceil_mode: int = 0,
    count_include_pad: int = 0, channels_last: int = 0, ctx: Call,
) -> Tensor:  # fmt: skip
    """The mean of each window, computed in f32."""
    node = node_of(ctx, x)
    if channels_last:
        node = channels_first(node, sizes_of(node)[-1])
    sx, zx = _quantised(ctx, x_scale, x_zero, node)
    sy, zy = _quantised(ctx, y_scale, y_zero, node)
    rank = len(kernel_shape)
    steps = strides or (1,) * rank
    pairs = pad_pairs(auto_pad, pads, sizes_of(node)[2:], kernel_shape, steps, (1,) * rank)
    mean = avg_pool(
        dequantize(node, sx, zx), kernel_shape, steps, pairs, 1, bool(ceil_mode),
        bool(count_include_pad),
    )  # fmt: skip
    y = qlinear_elementwise.qlinear_window_mean(node, sx, zx, sy, zy, **mean.attrs)
    return Tensor(permute(y, (0, *range(2, rank + 2), 1)) if channels_last else y)


@op("QLinearConcat", domain=MS)
def qlinear_concat(y_scale: Tensor, y_zero: Tensor, *parts: Tensor, axis: int, ctx: Call) -> Tensor:
    """Quantised arrays one after the other, each requantised."""
    if len(parts) % 3:
        raise FormatError(f"QLinearConcat takes arrays by threes, got {len(parts)} values")
    nodes = []
    for x, scale, zero in zip(parts[::3], parts[1::3], parts[2::3]):
        node = node_of(ctx, x)
        sx, zx = _quantised(ctx, scale, zero, node)
        target = _quantised(ctx, y_scale, y_zero, node)
        nodes.append(on_channels_last(partial(_requantized, (sx, zx), target), node))
    return Tensor(concat(nodes, axis))


def _requantized(source: tuple[Node, Node], target: tuple[Node, Node], x: Node) -> Node:
    return requantize(x, *source, *target)


@op("QLinearSoftmax", domain=MS)
def qlinear_softmax(
    x: Tensor, x_scale: Tensor, x_zero: Any, y_scale: Tensor, y_zero: Any, *,
    axis: int = -1, opset: int, ctx: Call,
) -> Tensor:  # fmt: skip
    """Softmax along an axis (before opset 13: from it on), computed in f32.

    As ONNX Runtime has it, results are multiplied by ``floor(1 / y_scale)``.
    """

    def softmax(v: Node) -> Node:
        if opset >= 13:
            return reductions.softmax(v, axis)
        at = axis % len(v.shape)
        flat = reshape(v, (prod(sizes_of(v)[:at]), -1))
        return reshape(reductions.softmax(flat, -1), v.shape)

    node = node_of(ctx, x)
    sx, zx = _quantised(ctx, x_scale, x_zero, node)
    sy, zy = _quantised(ctx, y_scale, y_zero, node)
    steps = folded(floor(reciprocal(sy)))
    one = constant(np.ones((), np.float32))
    return Tensor(quantize(mul(softmax(dequantize(node, sx, zx)), steps), one, zy))


@op("QLinearWhere", domain=MS)
def qlinear_where(
    condition: Tensor, x: Tensor, x_scale: Tensor, x_zero: Any, y: Tensor, y_scale: Tensor,
    y_zero: Any, z_scale: Tensor, z_zero: Any, *, ctx: Call,
) -> Tensor:  # fmt: skip
    """``x`` where the condition holds, else ``y``; both requantised."""
    a, b = node_of(ctx, x), node_of(ctx, y)
    sz, zz = _quantised(ctx, z_scale, z_zero, a)
    left = requantize(a, *_quantised(ctx, x_scale, x_zero, a), sz, zz)
    right = requantize(b, *_quantised(ctx, y_scale, y_zero, b), sz, zz)
    return Tensor(where(condition.node, left, right))


@op("QLinearReduceMean", domain=MS)
def qlinear_reduce_mean(
    x: Tensor, x_scale: Tensor, x_zero: Any, y_scale: Tensor, y_zero: Any = None, *,
    axes: tuple[int, ...] | None = None, keepdims: int = 1, ctx: Call,
) -> Tensor:  # fmt: skip
    """The mean over axes, computed in f32."""
    node = node_of(ctx, x)
    sx, zx = _quantised(ctx, x_scale, x_zero, node)
    sy, zy = _quantised(ctx, y_scale, y_zero, node)
    mean = reductions.mean(dequantize(node, sx, zx), axes, bool(keepdims))
    return Tensor(quantize(mean, sy, zy))


@op("QLinearConv", domain=MS)
def qlinear_conv(
    x: Tensor, x_scale: Tensor, x_zero: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor,
    y_scale: Tensor, y_zero: Tensor, bias: Tensor | None = None, *, auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None, group: int = 1,
    kernel_shape: tuple[int, ...] | None = None, pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None, channels_last: int = 0, ctx: Call,
) -> Tensor:  # fmt: skip
    """ai.onnx's QLinearConv, or with ``channels_last`` of x (N, *size, C)."""
    attrs = {
        "auto_pad": auto_pad, "dilations": dilations, "group": group,
        "kernel_shape": kernel_shape, "pads": pads, "strides": strides,
    }  # fmt: skip
    args = known(ctx, x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias)
    if channels_last:
        node = args[0]
        assert node is not None
        x = Tensor(permute(node, (0, len(node.shape) - 1, *range(1, len(node.shape) - 1))))
        args[0] = x.node
    made = qlinear.qlinear_conv(*args, *conv_sizes(x, w, attrs))  # type: ignore[arg-type, call-arg]
    rank = len(made.shape)
    return Tensor(permute(made, (0, *range(2, rank), 1)) if channels_last else made)


# --- products ------------------------------------------------------------------------------------


@op("QGemm", domain=MS)
def qgemm(
    a: Tensor, a_scale: Tensor, a_zero: Any, b: Tensor, b_scale: Tensor, b_zero: Any,
    c: Tensor | None = None, y_scale: Tensor | None = None, y_zero: Tensor | None = None, *,
    alpha: float = 1.0, transA: int = 0, transB: int = 0, ctx: Call,
) -> Tensor:  # fmt: skip
    """``alpha a b + c`` of bytes, c in int32; requantised, or f32 without ``y_scale``."""
    x, sx, zx, w, sw, zw, bias, sy, zy = known(
        ctx, a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero
    )
    assert x is not None
    assert w is not None
    assert sx is not None
    if transA:
        x = permute(x, (1, 0))
    if transB:
        w = permute(w, (1, 0))
    if alpha != 1.0:
        sx = mul(sx, literal(float(alpha), sx))
    n = sizes_of(w)[1]
    if bias is not None:
        many = sizes_of(bias)
        if len(many) > 1 and many[0] != 1:
            raise UnsupportedError(f"QGemm with a bias of shape {many}: one number per column")
        bias = broadcast(reshape(bias, (-1,)), (n,))
    return Tensor(qlinear.matmul_integer(x, w, zx, zw, Result(sx, sw, sy, zy, bias)))


@op("MatMulIntegerToFloat", domain=MS)
def matmul_integer_to_float(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, a_zero: Tensor | None = None,
    b_zero: Tensor | None = None, bias: Tensor | None = None, *, ctx: Call,
) -> Tensor:  # fmt: skip
    """A product of bytes as real numbers, f32, with a bias."""
    x, w, sx, sw, zx, zw, c = known(ctx, a, b, a_scale, b_scale, a_zero, b_zero, bias)
    y = qlinear.matmul_integer(x, w, zx, zw, Result(sx, sw))  # type: ignore[arg-type]
    return Tensor(y if c is None else add(y, c))


@op("DynamicQuantizeMatMul", domain=MS)
def dynamic_quantize_matmul(
    a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None = None,
    bias: Tensor | None = None, *, ctx: Call,
) -> Tensor:  # fmt: skip
    """f32 rows, quantised over their range, times bytes: f32."""
    w, sw, zw, c = known(ctx, b, b_scale, b_zero, bias)
    x, sx, zx = dynamic_bytes(node_of(ctx, a))
    y = qlinear.matmul_integer(x, w, zx, zw, Result(sx, sw))  # type: ignore[arg-type]
    return Tensor(y if c is None else add(y, c))


# --- layers --------------------------------------------------------------------------------------


@op("QAttention", domain=MS)
def qattention(
    x: Tensor, weights: Tensor, bias: Tensor, x_scale: Tensor, w_scale: Tensor,
    mask: Tensor | None = None, x_zero: Tensor | None = None, w_zero: Tensor | None = None,
    past: Tensor | None = None, *, num_heads: int, unidirectional: int = 0, do_rotary: int = 0,
    past_present_share_buffer: int = 0, mask_filter_value: float = -10000.0,
    scale: float | None = None, ctx: Call,
) -> Any:  # fmt: skip
    """com.microsoft.Attention whose projection multiplies bytes; the rest is f32."""
    if do_rotary or past_present_share_buffer:
        raise UnsupportedError("do_rotary and past_present_share_buffer are for other machines")
    q, w, sx, sw, zx, zw = known(ctx, x, weights, x_scale, w_scale, x_zero, w_zero)
    y = qlinear.matmul_integer(q, w, zx, zw, Result(sx, sw))  # type: ignore[arg-type]
    kind = mask_filter_value, scale, unidirectional
    return self_attention(Tensor(add(y, bias.node)), mask, past, None, num_heads, None, *kind, ctx)


@op("DynamicQuantizeLSTM", domain=MS)
def dynamic_quantize_lstm(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, lens: Tensor | None,
    initial_h: Tensor | None, initial_c: Tensor | None, p: Tensor | None, w_scale: Tensor,
    w_zero: Tensor, r_scale: Tensor, r_zero: Tensor, *,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    activations: tuple[str, ...] | None = None, clip: float = 0.0, direction: str = "forward",
    hidden_size: int | None = None, input_forget: int = 0, ctx: Call,
) -> Any:  # fmt: skip
    """LSTM with weights of bytes (D, in, 4 H), computed in f32: inputs are not rounded."""

    def real(weights: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        q, s, z = known(ctx, weights, scale, zero)
        assert q is not None
        assert s is not None
        assert z is not None
        count = sizes_of(q)[0]
        s, z = (reshape(v, (count, 1, -1)) for v in (s, z))
        return Tensor(permute(dequantize(q, s, z), (0, 2, 1)))

    w, r = real(w, w_scale, w_zero), real(r, r_scale, r_zero)
    return lstm(
        x, w, r, b, lens, initial_h, initial_c, p, activation_alpha=activation_alpha,
        activation_beta=activation_beta, activations=activations, clip=clip, direction=direction,
        hidden_size=hidden_size, input_forget=input_forget,
    )  # fmt: skip

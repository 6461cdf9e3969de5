"""Products, convolutions, pools, attention and scans as ONNX nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import boolean, f32
from tilewright.errors import UnsupportedError
from tilewright.graph import Node
from tilewright.onnx.export.writer import KINDS, Writer, emits

_DENSE = 1 << 24  # elements of a resampling matrix


@emits("bmm")
def _bmm(w: Writer, node: Node, a: str, b: str) -> Any:
    kinds = {i.dtype for i in node.inputs}
    used = node.inputs[0].dtype if len(kinds) == 1 and len(node.attrs) == 0 else f32
    a, b = (w.cast(x, i.dtype, used) for x, i in zip((a, b), node.inputs))
    return w.cast(w.op("MatMul", a, b), used, node.dtype)


def _pads(node: Node, pairs: Sequence[tuple[int, int]]) -> list[int]:
    if any(n < 0 for pair in pairs for n in pair):
        raise UnsupportedError(f"{node.op} with negative padding cannot be exported to ONNX")
    return [low for low, _ in pairs] + [high for _, high in pairs]


@emits("conv")
def _conv(w: Writer, node: Node, x: str, weight: str) -> Any:
    attrs = node.attrs
    return w.op(
        "Conv", x, weight, strides=list(attrs["strides"]), dilations=list(attrs["dilation"]),
        group=attrs["groups"], pads=_pads(node, attrs["padding"]),
        kernel_shape=[int(n) for n in node.inputs[1].shape[2:]],
    )  # fmt: skip


@emits("conv_input_gradient")
def _conv_transpose(w: Writer, node: Node, x: str, weight: str) -> Any:
    attrs = node.attrs
    kernel = [int(n) for n in node.inputs[1].shape[2:]]
    pairs, more = [], []
    for n, size, s, (low, high), d, k in zip(
        node.inputs[0].shape[2:], attrs["size"], attrs["strides"], attrs["padding"],
        attrs["dilation"], kernel,
    ):  # fmt: skip
        extra = size - ((n - 1) * s - low - high + d * (k - 1) + 1)
        if high < 0:
            extra, high = extra - high, 0
        if not isinstance(extra, int):
            raise UnsupportedError(f"{node.op} of a size that varies cannot be exported to ONNX")
        pairs.append((low, high))
        more.append(extra)
    return w.op(
        "ConvTranspose", x, weight, strides=list(attrs["strides"]), group=attrs["groups"],
        dilations=list(attrs["dilation"]), pads=_pads(node, pairs), output_padding=more,
        kernel_shape=kernel,
    )  # fmt: skip


@emits("max_pool")
def _max_pool(w: Writer, node: Node, x: str) -> Any:
    attrs = node.attrs
    values = w.op(
        "MaxPool", x, kernel_shape=list(attrs["kernel"]), strides=list(attrs["strides"]),
        dilations=list(attrs["dilation"]), pads=_pads(node, attrs["padding"]),
        ceil_mode=int(attrs["ceil_mode"]),
    )  # fmt: skip
    return [values]


@emits("avg_pool")
def _avg_pool(w: Writer, node: Node, x: str) -> Any:
    attrs = node.attrs
    divisor = attrs.get("divisor", 0)
    if divisor and attrs["ceil_mode"]:
        raise UnsupportedError("avg_pool with a divisor and ceil_mode cannot be exported to ONNX")
    found = w.op(
        "AveragePool", x, kernel_shape=list(attrs["kernel"]), strides=list(attrs["strides"]),
        dilations=list(attrs["dilation"]), pads=_pads(node, attrs["padding"]),
        ceil_mode=int(attrs["ceil_mode"]),
        count_include_pad=int(attrs["count_include_pad"] or divisor != 0),
    )  # fmt: skip
    if divisor:
        factor = math.prod(attrs["kernel"]) / divisor
        return w.op("Mul", found, w.constant(factor, node.dtype))
    return found


@emits("part")
def _part(w: Writer, node: Node, parts: Any) -> Any:
    index = node.attrs["index"]
    if index >= len(parts) or parts[index] is None:
        raise UnsupportedError(
            f"result {index} of {node.inputs[0].op} cannot be exported to ONNX: only the first can"
        )
    return parts[index]


@emits("resample")
def _resample(w: Writer, node: Node, x: str, ids: str, weights: str) -> Any:
    """A product with a matrix that holds the weights at their places."""
    _, places, shares = node.inputs
    if places.value is None or shares.value is None:
        raise UnsupportedError("a resize whose tables are computed cannot be exported to ONNX")
    n, rows = node.inputs[0].shape[1], places.value.numpy()
    if not isinstance(n, int) or n * len(rows) > _DENSE:
        raise UnsupportedError("a resize of a large or varying axis cannot be exported to ONNX")
    matrix = np.zeros((len(rows), n), shares.value.numpy().dtype)
    np.add.at(matrix, (np.arange(len(rows))[:, None], rows), shares.value.numpy())
    return w.op("MatMul", w.constant(matrix, node.dtype), x)


# --- attention -----------------------------------------------------------------------------------


@emits("flash_attention")
def _attention(w: Writer, node: Node, q: str, k: str, v: str, mask: str = "") -> Any:
    queries, keys = node.inputs[0].shape, node.inputs[1].shape
    masks = node.inputs[3] if mask else None
    found = _attend(w, node, (q, k, v), (queries[1], keys[1]), (queries[2], keys[2]), mask, masks)
    if node.attrs["layout"] == "bthd":
        found = w.op("Transpose", found, perm=[0, 2, 1, 3])
    return [found]


@emits("flash_attention_packed")
def _attention_packed(w: Writer, node: Node, qkv: str, mask: str = "") -> Any:
    heads, shape = node.attrs["heads"], node.inputs[0].shape
    kv = (int(shape[2]) - heads) // 2
    parts = w.op("Split", qkv, w.ints(heads, kv, kv), outputs=3, axis=2)
    q, k, v = (w.op("Transpose", p, perm=[0, 2, 1, 3]) for p in parts)
    masks = node.inputs[1] if mask else None
    found = _attend(w, node, (q, k, v), (heads, kv), (shape[1], shape[1]), mask, masks)
    return [w.op("Transpose", found, perm=[0, 2, 1, 3])]


def _attend(
    w: Writer,
    node: Node,
    qkv: tuple[str, str, str],
    heads: tuple[Any, Any],
    lengths: tuple[Any, Any],
    mask: str,
    masks: Node | None,
) -> Any:
    """softmax(scale q k^T + mask) v; rows that see no key are zero."""
    kind = node.inputs[0].dtype
    q, k, v = qkv
    if heads[0] != heads[1]:
        k, v = (_repeated(w, x, int(heads[1]), int(heads[0]) // int(heads[1])) for x in (k, v))
    q = w.op("Mul", q, w.constant(node.attrs["scale"], kind))
    scores = w.op("MatMul", q, w.op("Transpose", k, perm=[0, 1, 3, 2]))
    if kind.bits == 16:
        scores = w.cast(scores, kind, f32)
    used = f32 if kind.bits == 16 else kind
    lowest = w.constant(-math.inf, used)
    if node.attrs["causal"]:
        scores = w.op("Where", _causal(w, *lengths), scores, lowest)
    if masks is not None:
        if masks.dtype is boolean:
            scores = w.op("Where", mask, scores, lowest)
        else:
            scores = w.op("Add", scores, w.cast(mask, masks.dtype, used))
    shares = w.op("Softmax", scores, axis=-1)
    if masks is not None:
        shares = w.op("Where", w.op("IsNaN", shares), w.constant(0, used), shares)
    return w.op("MatMul", w.cast(shares, used, kind), v)


def _causal(w: Writer, queries: Any, keys: Any) -> Any:
    def line(n: Any, axis: int) -> Any:
        if isinstance(n, int):
            return w.constant(np.arange(n).reshape((-1, 1) if axis == 0 else (1, -1)))
        end = w.op("Squeeze", w.size(n), w.ints(0))
        return w.op("Unsqueeze", w.op("Range", w.constant(0), end, w.constant(1)), w.ints(1 - axis))

    return w.op("LessOrEqual", line(keys, 1), line(queries, 0))


def _repeated(w: Writer, x: str, heads: int, times: int) -> Any:
    """(B, Hkv, T, D) with every head ``times`` in a row."""
    ids = np.repeat(np.arange(heads), times)
    return w.op("Gather", x, w.constant(ids), axis=1)


# --- scans ---------------------------------------------------------------------------------------


def _scan(
    w: Writer, body: Writer, start: str, state: tuple[str, str], xs: list[tuple[str, str]],
    outs: list[str], kind: int,
) -> Any:  # fmt: skip
    """A Scan along the first axis; ``state`` and ``xs`` name the body's values and the graph's."""
    import onnx

    def info(name: str) -> Any:
        return onnx.helper.make_tensor_value_info(name, kind, None)

    graph = onnx.helper.make_graph(
        body.nodes, "step", [info(state[0]), *(info(inner) for inner, _ in xs)],
        [info(state[1]), *(info(o) for o in outs)],
    )  # fmt: skip
    w.initializers.update(body.initializers)
    names = w.op(
        "Scan", start, *(outer for _, outer in xs), outputs=1 + len(outs), body=graph,
        num_scan_inputs=len(xs),
    )  # fmt: skip
    return names[1]


@emits("linear_scan")
def _linear_scan(w: Writer, node: Node, a: str, b: str, start: str = "") -> Any:
    axis, rank = node.attrs["axis"], len(node.shape)
    order = [axis, *(i for i in range(rank) if i != axis)]
    back = [int(i) for i in np.argsort(order)]
    a, b = (w.op("Transpose", x, perm=order) for x in (a, b))
    if not start:
        rest = w.shape([n for i, n in enumerate(node.shape) if i != axis])
        start = w.op("Expand", w.constant(0, node.dtype), rest)
    body = Writer(w.opset)
    body._count = w._count + 10_000  # names of the body differ from those around it
    h = body.op("Add", body.op("Mul", "scan_a", "scan_h"), "scan_b")
    out = body.op("Identity", h)
    xs = [("scan_a", a), ("scan_b", b)]
    if node.attrs["reverse"]:
        xs = [(inner, _flipped(w, outer)) for inner, outer in xs]
    found = _scan(w, body, start, ("scan_h", h), xs, [out], KINDS[node.dtype])
    w._count = body._count
    found = _flipped(w, found) if node.attrs["reverse"] else found
    return w.op("Transpose", found, perm=back)


def _flipped(w: Writer, x: str) -> Any:
    return w.op("Slice", x, w.ints(-1), w.ints(-(1 << 62)), w.ints(0), w.ints(-1))


@emits("selective_scan")
def _selective_scan(
    w: Writer, node: Node, x: str, delta: str, a: str, b: str, c: str, d: str
) -> Any:
    """Step by step: ``h = exp(delta a) h + delta b x``, ``y = c h + d x`` (Gu & Dao 2023)."""
    kind = node.inputs[0].dtype
    x, delta, b, c = (w.op("Transpose", v, perm=[1, 0, 2]) for v in (x, delta, b, c))
    gains = w.op("Transpose", a, perm=[1, 0])  # (N, D)
    batch, _, width = node.inputs[0].shape
    states = w.shape([batch, node.inputs[2].shape[1], width])
    start = w.op("Expand", w.constant(0, kind), states)
    body = Writer(w.opset)
    body._count = w._count + 10_000
    one, last = body.ints(1), body.ints(2)
    dt = body.op("Unsqueeze", "scan_delta", one)  # (B, 1, D)
    gain = body.op("Exp", body.op("Mul", dt, gains))
    fed = body.op("Unsqueeze", body.op("Mul", "scan_delta", "scan_x"), one)
    new = body.op("Mul", fed, body.op("Unsqueeze", "scan_b", last))
    h = body.op("Add", body.op("Mul", gain, "scan_h"), new)
    seen = body.op("Mul", h, body.op("Unsqueeze", "scan_c", last))
    y = body.op("Add", body.op("ReduceSum", seen, one, keepdims=0), body.op("Mul", "scan_x", d))
    xs = [("scan_x", x), ("scan_delta", delta), ("scan_b", b), ("scan_c", c)]
    found = _scan(w, body, start, ("scan_h", h), xs, [y], KINDS[kind])
    w._count = body._count
    return [w.op("Transpose", found, perm=[1, 0, 2])]

"""Integer kernels for networks that are written as quantise-dequantise pairs (QDQ).

Such a network computes in f32 between a ``dequantize`` of bytes and a ``quantize``. What that means
in integers is known for convolutions, products, sums and means, and they are computed so, as ONNX
Runtime does: sums exact in int32, scaled once. (The f32 network would round each product. This is
the one pass that changes numbers; its results are those of the same network in operator form.)

Movements commute with quantisation: a ``dequantize`` goes behind reshapes, permutations, slices and
max pooling, a ``quantize`` of a ``dequantize`` of the same scale vanishes, clamps become clamps of
bytes, or nothing where saturation does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from tilewright.compiler.fusion import pending
from tilewright.dtypes import f32, i8, i32, u8
from tilewright.graph import Node
from tilewright.ops import nbits, qlinear, qlinear_elementwise
from tilewright.ops.comparison import maximum, minimum
from tilewright.ops.constants import constant, folded, values
from tilewright.ops.quantize import dequantize, limits, rounded
from tilewright.ops.table import evaluate_nodes
from tilewright.ops.views import permute, reshape, sizes_of

__all__ = ["fuse_quantized"]

_MOVES = frozenset({"reshape", "permute", "slice"})
_BYTES = (u8, i8)


def fuse_quantized(roots: Sequence[Node], dynamic: Callable[[Node], bool]) -> list[Node]:
    """``roots`` with integer ops for what stands between ``dequantize`` and ``quantize``.

    ``dynamic`` says of leaves whether they change from run to run.
    """
    order = pending(roots)
    if not any(n.op == "dequantize" and n.value is None for n in order):
        return list(roots)
    found = _Pass(order, roots, dynamic)
    return found.finish(found.run())


def _is_number(node: Node) -> bool:
    return node.shape == ()


def _by_numbers(node: Node) -> bool:
    """A ``dequantize`` of bytes by one scale and zero point."""
    if node.op != "dequantize" or node.value is not None or node.inputs[0].dtype not in _BYTES:
        return False
    return _is_number(node.inputs[1]) and _is_number(node.inputs[2])


def _same(a: Node, b: Node) -> bool:
    if a is b:
        return True
    x, y = values(a), values(b)
    return x is not None and y is not None and x.dtype == y.dtype and np.array_equal(x, y)


class _Pass:
    def __init__(
        self, order: Sequence[Node], roots: Sequence[Node], dynamic: Callable[[Node], bool]
    ) -> None:
        self.order, self.roots, self.dynamic = order, roots, dynamic
        self.new: dict[Node, Node] = {}
        self.uses: dict[Node, int] = {}  # of new nodes, by old ones
        self.places: dict[Node, set[int]] = {}
        self.count: dict[Node, int] = dict.fromkeys(roots, 1)
        for node in order:
            if node.value is not None:
                continue
            for source in node.inputs:
                self.count[source] = self.count.get(source, 0) + 1
            if node.op == "part":
                self.places.setdefault(node.inputs[0], set()).add(node.attrs["index"])

    def run(self) -> list[Node]:
        for node in self.order:
            if node.value is not None or node.is_leaf:
                self.new[node] = node
                continue
            made = self._rewritten(node, tuple(self.new[i] for i in node.inputs))
            self.new[node] = made
            self.uses[made] = max(self.uses.get(made, 0), self.count.get(node, 0))
        return [self.new[r] for r in self.roots]

    def _rewritten(self, node: Node, inputs: tuple[Node, ...]) -> Node:
        first = inputs[0] if inputs else None
        if node.op in _MOVES and first is not None and _by_numbers(first):
            q, scale, zero = first.inputs
            moved = Node(node.op, (q,), node.shape, q.dtype, node.attrs, node.name)
            return dequantize(moved, scale, zero)
        if node.op == "part" and first is not None:
            made = self._pooled(node, first)
            if made is not None:
                return made
        again = Node(node.op, inputs, node.shape, node.dtype, node.attrs, node.name)
        if node.op == "quantize":
            return self._quantized(again) or again
        return again

    def _once(self, node: Node) -> bool:
        """Whether one node reads this one."""
        return self.uses.get(node, 0) == 1

    def _known(self, node: Node) -> np.ndarray | None:
        """The values of a node that depends on nothing that changes."""
        order = pending([node])
        leaves = (n for n in order if (n.is_leaf and n.op != "const") or n.value is not None)
        if any(n.value is None or self.dynamic(n) for n in leaves):
            return None
        array: np.ndarray = np.asarray(evaluate_nodes(order, {})[node])
        return array

    def _pooled(self, node: Node, pool: Node) -> Node | None:
        """Max pooling of bytes instead of what they stand for."""
        if pool.op != "max_pool" or self.places[node.inputs[0]] != {0}:
            return None
        (x,) = pool.inputs
        if not _by_numbers(x):
            return None
        scale = values(x.inputs[1])
        if scale is None or not scale > 0:
            return None
        q, s, zero = x.inputs
        bytes_ = Node("max_pool", (q,), (), q.dtype, pool.attrs, pool.name)
        return dequantize(Node("part", (bytes_,), node.shape, q.dtype, {"index": 0}), s, zero)

    # --- results ---------------------------------------------------------------------------------

    def _quantized(self, node: Node) -> Node | None:
        x, scale, zero = node.inputs
        whole = (node.attrs["low"], node.attrs["high"]) == limits(node.dtype)
        if node.dtype not in _BYTES or not _is_number(scale) or not _is_number(zero) or not whole:
            return None
        if _by_numbers(x) and _same(x.inputs[1], scale) and _same(x.inputs[2], zero):
            return x.inputs[0]
        value, bounds = self._unclamped(x, scale, zero)
        made = self._heavy(value, scale, zero)
        if made is None:
            return None
        low, high = limits(node.dtype)
        if bounds[0] > low:
            made = self._inside(maximum, made, bounds[0])
        if bounds[1] < high:
            made = self._inside(minimum, made, bounds[1])
        return made

    @staticmethod
    def _inside(clamp: Callable[[Node, Node], Node], x: Node, bound: int) -> Node:
        number = constant(np.asarray(bound, x.dtype.storage))
        return qlinear.on_channels_last(lambda v: clamp(v, number), x)

    def _unclamped(self, x: Node, scale: Node, zero: Node) -> tuple[Node, tuple[int, int]]:
        """``x`` before clamps that it alone is read by, and what those mean for bytes."""
        low, high = limits(zero.dtype)
        s, z = values(scale), values(zero)
        while s is not None and z is not None and s > 0 and self._once(x):
            bounds = self._clamp(x)
            if bounds is None:
                break
            below, above = (int(rounded(np.float32(b) / s, z, low, high, np.int32)) for b in bounds)
            # what was clamped later clamps what was clamped earlier
            low, high = (max(low, min(below, high)), min(high, max(above, low)))
            x = x.inputs[0]
        return x, (low, high)

    def _clamp(self, x: Node) -> tuple[float, float] | None:
        if x.op == "relu":
            return 0.0, np.inf
        if x.op not in ("clip", "maximum", "minimum") or x.dtype is not f32:
            return None
        found = [self._known(i) for i in x.inputs[1:]]
        if any(f is None or f.size != 1 or np.isnan(f).any() for f in found):
            return None
        numbers = [float(f.reshape(-1)[0]) for f in found if f is not None]
        if x.op == "clip":
            return (numbers[0], numbers[1]) if numbers[0] <= numbers[1] else None
        return (numbers[0], np.inf) if x.op == "maximum" else (-np.inf, numbers[0])

    def _heavy(self, x: Node, scale: Node, zero: Node) -> Node | None:
        """What ``quantize(x)`` is in integers."""
        if not self._once(x):
            return None
        if x.op in ("add", "mul") and all(_by_numbers(i) for i in x.inputs):
            return self._pair(x, scale, zero)
        if x.op == "div":
            return self._mean(x, scale, zero)
        if x.op == "avg_pool" and zero.dtype is u8 and _by_numbers(x.inputs[0]):
            q, sx, zx = x.inputs[0].inputs
            if q.dtype is not zero.dtype:
                return None
            return qlinear_elementwise.qlinear_window_mean(q, sx, zx, scale, zero, **x.attrs)
        bias: Node | None = None
        if x.op == "add":
            heavy = next((i for i in x.inputs if i.op in ("conv", "bmm")), None)
            if heavy is None or not self._once(heavy):
                return None
            bias = x.inputs[1] if heavy is x.inputs[0] else x.inputs[0]
            x = heavy
        if x.op == "conv":
            return self._conv(x, bias, scale, zero)
        if x.op == "bmm":
            return self._product(x, bias, scale, zero)
        return None

    def _pair(self, x: Node, scale: Node, zero: Node) -> Node | None:
        a, b = x.inputs
        (qa, sa, za), (qb, sb, zb) = a.inputs, b.inputs
        if any(q.dtype is not zero.dtype for q in (qa, qb)):
            return None
        if x.op == "mul":
            return qlinear_elementwise.qlinear_mul(qa, sa, za, qb, sb, zb, scale, zero)
        return qlinear_elementwise.qlinear_add(qa, sa, za, qb, sb, zb, scale, zero)

    def _mean(self, x: Node, scale: Node, zero: Node) -> Node | None:
        total, count = x.inputs
        if total.op != "sum" or not self._once(total) or not _by_numbers(total.inputs[0]):
            return None
        q, s, z = total.inputs[0].inputs
        axes, size = tuple(range(2, len(q.shape))), sizes_of(q)[2:]
        known = self._known(count)
        if total.attrs["axes"] != axes or not axes or known is None or q.dtype is not zero.dtype:
            return None
        if known.size != 1 or float(known.reshape(-1)[0]) != prod(size):
            return None
        made = qlinear_elementwise.qlinear_plane_mean(q, s, z, scale, zero)
        return made if total.attrs["keepdims"] else reshape(made, x.shape)

    def _weights(self, w: Node) -> tuple[Node, Node, Node] | None:
        """(bytes, scale, zero point) of dequantised constant bytes, permuted or not."""
        axes = None
        if w.op == "permute" and w.value is None:
            axes, w = w.attrs["axes"], w.inputs[0]
        if w.op != "dequantize" or w.value is not None or w.inputs[0].dtype not in _BYTES:
            return None
        q, scale, zero = w.inputs
        if values(q) is None:
            return None
        if axes is not None:
            q, scale, zero = (permute(v, axes) if v.shape else v for v in (q, scale, zero))
        return folded(q), folded(scale), folded(zero)

    def _sums_of(
        self, bias: Node | None, outputs: int, axis_after: int, sx: Node, sw: Node
    ) -> tuple[bool, Node | None]:
        """(whether it can be added to the sums, a bias as i32 (outputs,)).

        ``axis_after`` axes stand behind that of the outputs.
        """
        if bias is None:
            return True, None
        shape = tuple(n for n in bias.shape[: len(bias.shape) - axis_after])
        if prod(sizes_of(bias)) != outputs or not shape or shape[-1] != outputs:
            return False, None
        source = bias
        while source.op in ("reshape", "broadcast") and source.value is None:
            source = source.inputs[0]
        x, w = values(sx), values(sw)
        if x is None or w is None:
            return False, None
        steps = (x * w).astype(np.float32).reshape(-1)
        if source.op == "dequantize" and source.value is None and source.inputs[0].dtype is i32:
            q, scale, zero = (values(v) for v in source.inputs)
            fits = q is not None and scale is not None and zero is not None and not zero.any()
            if fits and np.allclose(scale.reshape(-1), steps, 1e-5, 0):  # type: ignore[union-attr]
                return True, constant(q.reshape(-1))  # type: ignore[union-attr]
        known = self._known(bias)
        if known is None or not (steps > 0).all():
            return False, None
        wide = np.rint(known.reshape(-1).astype(np.float64) / steps)
        if np.abs(wide).max(initial=0) >= 2**31:
            return False, None
        return True, constant(wide.astype(np.int32))

    def _conv(self, x: Node, bias: Node | None, scale: Node, zero: Node) -> Node | None:
        source, weight = x.inputs
        found = self._weights(weight)
        if not _by_numbers(source) or found is None or source.inputs[0].dtype is not zero.dtype:
            return None
        w, sw, zw = found
        o, rank = sizes_of(w)[0], len(w.shape) - 2
        if any(v.shape and sizes_of(v)[0] != prod(sizes_of(v)) for v in (sw, zw)):
            return None  # not one per output
        q, sx, zx = source.inputs
        good, sums = self._sums_of(bias, o, rank, sx, sw)
        if not good:
            return None
        flat = [reshape(v, (-1,)) if v.shape else v for v in (sw, zw)]
        return qlinear.qlinear_conv(
            q, sx, zx, w, folded(flat[0]), folded(flat[1]), scale, zero, sums,
            x.attrs["strides"], x.attrs["padding"], x.attrs["dilation"], x.attrs["groups"],
        )  # fmt: skip

    def _columns(self, x: Node) -> tuple[Any, ...] | None:
        """(q, scale, zero) of both operands of a product of bytes: rows and columns."""
        a, b = x.inputs
        if x.dtype is not f32 or not _by_numbers(a):
            return None
        if _by_numbers(b):
            return (*a.inputs, *b.inputs)
        found = self._weights(b)
        if found is None:
            return None
        w, sw, zw = found
        n = sizes_of(w)[-1]
        if any(v.shape and (v.shape[-1] != n or prod(sizes_of(v)) != n) for v in (sw, zw)):
            return None
        flat = (folded(reshape(v, (-1,))) if v.shape else v for v in (sw, zw))
        return (*a.inputs, w, *flat)

    def _product(self, x: Node, bias: Node | None, scale: Node, zero: Node) -> Node | None:
        found = self._columns(x)
        if found is None:
            return None
        q, sx, zx, w, sw, zw = found
        good, sums = self._sums_of(bias, sizes_of(w)[-1], 0, sx, sw)
        if not good:
            return None
        return qlinear.qlinear_matmul(q, sx, zx, w, sw, zw, scale, zero, sums)

    # --- what stays in f32 -----------------------------------------------------------------------

    def finish(self, roots: Sequence[Node]) -> list[Node]:
        """Products with constant bytes, or values of fewer bits, whose results stay f32."""
        new: dict[Node, Node] = {}
        for node in pending(roots):
            if node.value is not None or node.is_leaf:
                new[node] = node
                continue
            inputs = tuple(new[i] for i in node.inputs)
            again = node.with_inputs(inputs)
            if node.op == "bmm":
                again = self._few_bits(again) or self._real_product(again) or again
            new[node] = again
        return [new[r] for r in roots]

    def _real_product(self, x: Node) -> Node | None:
        found = self._columns(x)
        if found is None or values(found[3]) is None:
            return None
        q, sx, zx, w, sw, zw = found
        return qlinear.matmul_integer(q, w, zx, zw, qlinear.Result(sx, sw))

    def _few_bits(self, x: Node) -> Node | None:
        """f32 rows times constant weights of few bits: unpacked where they are used."""
        a, w = x.inputs[:2]
        if a.dtype is not f32 or x.dtype is not f32 or len(w.shape) != 2 or len(x.attrs):
            return None
        turned = w.op == "permute" and w.value is None
        source = w.inputs[0] if turned else w
        if source.op != "dequantize" or source.value is not None or "bits" not in source.attrs:
            return None
        bits, block = source.attrs["bits"], source.attrs["block"]
        along = 1 if turned else 0  # the axis of k
        q, scale, zero = (values(v) for v in source.inputs)
        if q is None or scale is None or zero is None or (block and source.attrs["axis"] != along):
            return None
        s, z = (np.broadcast_to(v, q.shape) for v in (scale, zero.astype(np.int32)))
        q, s, z = (v if turned else v.T for v in (q.astype(np.int32), s, z))  # (N, K)
        k = q.shape[1]
        if not block:  # one scale per output: in blocks that unpack well
            block = next((b for b in (128, 64, 32, 16) if k % b == 0), 0)
        if block < 16 or block % 16:
            return None
        up = 1 << (bits - 1) if source.inputs[0].dtype is i8 else 0
        whole = -(-k // block) * block
        q = np.pad(q + up, ((0, 0), (0, whole - k)))
        rows = reshape(a, (-1, k))
        made = nbits.block_product(rows, q, s[:, ::block], z[:, ::block] + up, bits, block, False)
        return reshape(made, x.shape)

"""Convolutional networks with constant weights: blocked images from end to end.

Convolutions, poolings and what lies between them are moved to the layout of
:mod:`tilewright.ops.blocked`, whose kernels take weights that are packed once; images change their
layout only where something else reads them. What computes in the new layout has the same bits, but
for f16: images of it are f32 as long as they are blocked, rounded once where they leave.

``fold_scales`` first multiplies per-channel factors (a batch normalisation at rest) into the
weights before them. That rounds other numbers, as it does everywhere.

Both are for graphs whose weights do not change: a set of nodes says what is constant, and folding
constants afterwards (the packing is graph code) is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from tilewright.compiler.fusion import is_elementwise, pending
from tilewright.dtypes import DType, f16, f32
from tilewright.graph import Node, const_node
from tilewright.ops import conv_blocked, pool_blocked, table
from tilewright.ops.arithmetic import add, mul, neg
from tilewright.ops.blocked import BLOCK, blocks_of, from_blocked, to_blocked
from tilewright.ops.creation import cast
from tilewright.ops.views import concat, pad, reshape, sizes_of

__all__ = ["blocked_images", "fold_scales"]

Constant = Callable[[Node], bool]

_STARTS: Final = {"conv", "max_pool", "avg_pool"}
_FEWEST_OUTPUTS: Final = 4  # channels of a block that a convolution must fill
# What stays finite on the zeros beyond the last channel: nothing else may happen to them, because
# the next convolution multiplies them by weights of zero.
_TAME: Final = {
    "add", "sub", "mul", "neg", "abs", "square", "relu", "sigmoid", "silu", "gelu", "gelu_erf",
    "tanh", "leaky_relu", "elu", "softplus", "maximum", "minimum", "clip", "cast", "copy",
    "scale", "where", "floor", "ceil", "round", "erf", "sign",
}  # fmt: skip


def constants_of(order: Sequence[Node], dynamic: Callable[[Node], bool]) -> set[Node]:
    """The nodes of ``order`` that depend on no dynamic leaf."""
    found: set[Node] = set()
    for node in order:
        fixed = (
            not dynamic(node)
            if node.value is not None or node.is_leaf
            else all(i in found for i in node.inputs)
        )
        if fixed and node.op not in ("input", "scalar"):
            found.add(node)
    return found


# --- batch normalisations ------------------------------------------------------------------------


def fold_scales(roots: Sequence[Node], dynamic: Callable[[Node], bool]) -> list[Node]:
    """``conv(x, w) * k`` and ``(conv(x, w) + b) * k`` as ``conv(x, w * k) + b * k``.

    w, b and k are constant, b and k one number per channel; f32. Returns the roots' new nodes.
    """
    order = pending(roots)
    constant = constants_of(order, dynamic)
    users = _users(order, roots)
    new: dict[Node, Node] = {}
    linear: dict[Node, tuple[Node, Node | None]] = {}  # old: the convolution's new node, and b
    changed = False
    for node in order:
        if node.value is not None or node.is_leaf or node in constant:
            new[node] = node
            continue
        inputs = tuple(new[i] for i in node.inputs)
        new[node] = made = node.with_inputs(inputs)
        if node.op == "conv" and node.inputs[1] in constant and node.dtype is f32:
            linear[node] = made, None
        if node.op not in ("add", "sub", "mul"):
            continue
        for one, other in (node.inputs, node.inputs[::-1]):
            if one not in linear or users[one] != 1 or other not in constant:
                continue
            if other.dtype is not f32 or (node.op == "sub" and other is node.inputs[0]):
                continue
            row = _per_channel(other, node)
            if row is None:
                continue
            conv, bias = linear[one]
            if node.op == "mul":
                changed = True
                w = conv.inputs[1]
                k = reshape(row, (-1, *(1,) * (len(w.shape) - 1)))
                conv = conv.with_inputs((conv.inputs[0], mul(w, k)))
                bias = None if bias is None else mul(bias, row)
            else:
                row = neg(row) if node.op == "sub" else row
                bias = row if bias is None else add(bias, row)
            linear[node] = conv, bias
            if bias is None:
                new[node] = conv
            elif node.op == "mul" or conv is not new[one]:
                new[node] = add(conv, reshape(bias, (-1, *(1,) * (len(node.shape) - 2))))
            break
    return [new[r] for r in roots] if changed else list(roots)


def _users(order: Sequence[Node], roots: Sequence[Node]) -> dict[Node, int]:
    """How often each node is read; roots once more."""
    count = dict.fromkeys(order, 0)
    for node in order:
        if node.value is None:
            for source in node.inputs:
                count[source] += 1
    for root in roots:
        count[root] += 1
    return count


def _seen_through(node: Node) -> Node:
    """What a broadcast repeats."""
    while node.op == "broadcast" and node.value is None:
        node = node.inputs[0]
    return node


def _per_channel(operand: Node, node: Node) -> Node | None:
    """A constant operand of ``node`` (N, C, ...) as (C,), if it is one number per channel."""
    operand = _seen_through(operand)
    rank, channels = len(node.shape), node.shape[1]
    own = (1,) * (rank - len(operand.shape)) + tuple(operand.shape)
    if len(own) != rank or own != (1, channels, *(1,) * (rank - 2)):
        return None
    return reshape(operand, (channels,))


# --- layout --------------------------------------------------------------------------------------


def blocked_images(
    roots: Sequence[Node], dynamic: Callable[[Node], bool], compute: DType | None = None
) -> list[Node]:
    """``roots`` computed from blocked images wherever that is what kernels exist for.

    Args:
        dynamic: whether a leaf changes from run to run.
        compute: bf16: what convolutions round their operands to.
    """
    order = pending(roots)
    constant = constants_of(order, dynamic)
    if not any(n.op in _STARTS and n.value is None and n not in constant for n in order):
        return list(roots)
    return _Layout(order, constant, compute).run(roots)


class _Layout:
    """New nodes, plain and blocked, of each old one; either is made when somebody reads it."""

    def __init__(self, order: Sequence[Node], constant: set[Node], compute: DType | None) -> None:
        self.order, self.constant, self.compute = order, constant, compute
        self.plain: dict[Node, Node] = {}
        self.blocked: dict[Node, Node] = {}
        self.parts = {n.inputs[0] for n in order if n.op == "part" and n.attrs["index"]}

    def run(self, roots: Sequence[Node]) -> list[Node]:
        for node in self.order:
            if node.value is not None or node.is_leaf or node in self.constant:
                self.plain[node] = node
                continue
            made = self._moved(node)
            if made is not None:
                self.blocked[node] = made
        return [self._as_plain(root) for root in roots]

    def _as_plain(self, node: Node) -> Node:
        """The plain node, computed from the blocked one where there is one (no recursion deeper
        than one node: inputs come first in the order)."""
        found = self.plain.get(node)
        if found is None:
            if node in self.blocked:
                found = cast(from_blocked(self.blocked[node], sizes_of(node)), node.dtype)
            else:
                found = node.with_inputs(tuple(self._as_plain(i) for i in node.inputs))
            self.plain[node] = found
        return found

    def _as_blocked(self, node: Node) -> Node:
        found = self.blocked.get(node)
        if found is None:
            found = self.blocked[node] = to_blocked(_wide(self._as_plain(node)))
        return found

    def _moved(self, node: Node) -> Node | None:
        """The node's blocked image, or None where it stays plain."""
        if node.op == "conv":
            return self._conv(node)
        if node.op == "part":
            return self._pool(node.inputs[0]) if node.attrs["index"] == 0 else self._left(node)
        if node.op == "max_pool":
            return None  # made for its parts
        rank = len(node.shape)
        if node.op == "avg_pool":
            found = self._pool(node)
        elif rank in (3, 4) and is_elementwise(node):
            found = self._elementwise(node)
        elif node.op == "concat" and rank in (3, 4) and node.attrs["axis"] == 1:
            found = self._concat(node)
        elif node.op == "resize_image":
            found = self._resize(node)
        elif node.op == "take" and rank == 4:
            found = self._take(node)
        elif node.op == "pad" and rank == 4:
            found = self._pad(node)
        else:
            return self._left(node)
        return self._left(node) if found is None else found

    def _left(self, node: Node) -> Node | None:
        """No image; the plain node, so that later ones find their inputs made."""
        self._as_plain(node)
        return None

    def _conv(self, node: Node) -> Node | None:
        x, w = node.inputs
        groups, rank = node.attrs["groups"], len(node.shape) - 2
        if w not in self.constant or rank not in (1, 2):
            return self._left(node)
        depthwise = conv_blocked.suits_depthwise(x, w, groups) and groups > 1
        whole = conv_blocked.suits(x, w, groups) and sizes_of(w)[0] >= _FEWEST_OUTPUTS
        if not depthwise and not whole:
            return self._left(node)
        lead = 2 - rank
        shape = sizes_of(w)
        weight = reshape(w, (*shape[:2], *(1,) * lead, *shape[2:]))
        window = (
            (*(1,) * lead, *node.attrs["strides"]),
            (*((0, 0),) * lead, *node.attrs["padding"]),
            (*(1,) * lead, *node.attrs["dilation"]),
        )
        if depthwise:
            return conv_blocked.depthwise_blocked(self._as_blocked(x), weight, *window)
        if x in self.blocked or groups > 1:
            image = self._as_blocked(x)
        else:
            sizes = sizes_of(x)
            image = reshape(_wide(self._as_plain(x)), (*sizes[:2], *(1,) * lead, *sizes[2:]))
        return conv_blocked.conv_blocked(image, weight, *window, groups, self.compute)

    def _pool(self, pool: Node) -> Node | None:
        """The image that a pooling makes; of max_pool the values, if nobody wants their places."""
        (x,) = pool.inputs
        if pool in self.parts or not pool_blocked.suits(pool):
            return None
        if x not in self.blocked and (x.dtype not in (f16, f32) or sizes_of(x)[1] < BLOCK):
            return None
        return pool_blocked.pool_blocked(self._as_blocked(x), pool)

    def _concat(self, node: Node) -> Node | None:
        *first, _ = node.inputs
        if any(sizes_of(x)[1] % BLOCK for x in first):
            return None
        if not any(x in self.blocked for x in node.inputs):
            return None
        return concat([self._as_blocked(x) for x in node.inputs], 1)

    def _resize(self, node: Node) -> Node | None:
        x, *tables = node.inputs
        if x not in self.blocked or any(t not in self.constant for t in tables):
            return None
        return table.make("resize_image", self.blocked[x], *tables, **node.attrs)

    def _take(self, node: Node) -> Node | None:
        x, ids = node.inputs
        if x not in self.blocked or len(ids.shape) != 1 or node.attrs["axis"] < 2:
            return None
        return table.make("take", self.blocked[x], self._as_plain(ids), axis=node.attrs["axis"])

    def _pad(self, node: Node) -> Node | None:
        (x,) = node.inputs
        widths = node.attrs["widths"]
        if x not in self.blocked or any(map(any, widths[:2])):
            return None
        return pad(self.blocked[x], (*widths, (0, 0)), node.attrs["value"])

    def _elementwise(self, node: Node) -> Node | None:
        sizes = sizes_of(node)
        sources = [_seen_through(i) for i in node.inputs]
        if not any(s in self.blocked and s.shape == node.shape for s in sources):
            return None
        tame = sizes[1] % BLOCK == 0 or node.op in _TAME
        operands = [self._operand(s, sizes, sizes[1] % BLOCK == 0) for s in sources]
        if not tame or any(o is None for o in operands):
            return None
        made = [o for o in operands if o is not None]
        if node.op == "cast":
            return cast(made[0], f32 if node.dtype is f16 else node.dtype)
        return table.make(node.op, *made, **node.attrs)

    def _operand(self, source: Node, sizes: tuple[int, ...], whole: bool) -> Node | None:
        """An operand of elementwise work on a blocked image of ``sizes``, broadcasting as before.

        ``whole``: there are no channels beyond the last that it must not spoil.
        """
        shape = sizes_of(source)
        if shape == sizes:
            return self._as_blocked(source)
        if all(n == 1 for n in shape):
            return _wide(reshape(self._as_plain(source), ()))
        own = (1,) * (len(sizes) - len(shape)) + shape
        deep = (1,) * (4 - len(sizes))
        if own[1] == sizes[1] != 1:
            if len(shape) == len(sizes) and source in self.blocked:
                return self.blocked[source]
            image = to_blocked(_wide(reshape(self._as_plain(source), own)))
            assert image.shape[1] == blocks_of(sizes[1])
            return image
        if not whole:
            return None
        return _wide(reshape(self._as_plain(source), (*own[:2], *deep, *own[2:], 1)))


def _wide(x: Node) -> Node:
    """f16 as f32, anything else as it is; a number changes its dtype where it stands."""
    if x.dtype is not f16:
        return x
    if x.op == "const":
        return const_node(x.attrs["value"], f32)
    return cast(x, f32)

"""``Tensor``: a lazy value over the graph.

A tensor is a node of a graph with a shape and a dtype. Operations build nodes; a value is computed
when it is asked for (:meth:`Tensor.realize`, ``item``, ``numpy``, printing). Tensors behave as
values: an in-place operator or :meth:`Tensor.assign` gives *this* tensor another node, and what was
computed from the old one keeps the old value.

A tensor *tracks* gradients when the user asked for them (a leaf) or when it was computed from one
that does (then its node keeps its history when it is realised).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final, cast

import numpy as np

from tilewright.compiler.fusion import pending
from tilewright.compiler.realize import realize as realize_nodes
from tilewright.dtypes import DType
from tilewright.errors import DTypeError, ShapeError
from tilewright.graph import Node, data_node
from tilewright.ops import elementwise as ew
from tilewright.ops import views
from tilewright.runtime.buffers import Buffer
from tilewright.sizes import Real, Size
from tilewright.tensor.conversions import Conversions
from tilewright.tensor.methods import Methods
from tilewright.tensor.modes import mode, trace_error
from tilewright.tensor.nodes import (
    apart,
    cast_node,
    foreign,
    fresh,
    number_node,
    own,
    whole_quotient,
)
from tilewright.tensor.promotion import DEFAULT_FLOAT, promoted, same_kind, scalar_dtype

__all__ = [
    "DERIVED",
    "LEAF",
    "PLAIN",
    "VARIABLE",
    "Tensor",
    "apply",
    "binary",
    "cast_node",
    "fresh",
    "number_node",
    "own",
    "realize",
    "source",
    "wrap",
]

PLAIN: Final = 0  # tracks no gradient
LEAF: Final = 1  # the user asked for its gradient
DERIVED: Final = 2  # computed from one that tracks
VARIABLE: Final = 3  # what a transformation such as grad() differentiates by

Build = Callable[[Node, Node], Node]

_MANY_ASSIGNED: Final = 4096


class Tensor(Conversions, Methods):
    """An array of one dtype, computed when needed.

    ``Tensor(data, dtype=None, requires_grad=False)`` takes numbers, nested sequences, arrays and
    tensors (as :func:`tilewright.asarray` does).

    Attributes:
        grad: where :meth:`backward` of a loss leaves the gradient (it adds to what is there).
        node: the graph node (for the rooms that build on tensors).
    """

    __slots__ = ("__weakref__", "_grad", "_tracks", "node")

    __array_ufunc__ = None  # NumPy arrays leave mixed operators to this class, which refuses them

    def __init__(self, data: Any, dtype: Any = None, requires_grad: bool = False) -> None:
        self._tracks = PLAIN
        self._grad: Tensor | None = None
        if isinstance(data, Node):
            other = None if data.owner is None else data.owner()
            if other is not None:  # no two tensors have one node: each may be assigned to
                data = apart(data, other._tracks)
            self.node: Node = data
            data.owner = weakref.ref(self)
            return
        from tilewright.tensor.creation import asarray

        self.node = asarray(data, dtype=dtype, copy=True).node
        own(self.node, self)
        if requires_grad:
            self.requires_grad = True

    # what it is

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        return self.node.shape  # type: ignore[return-value]

    @property
    def dtype(self) -> DType:
        """Element type."""
        return self.node.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.node.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for n in self.shape:
            count *= n
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * self.node.dtype.nbytes

    @property
    def device(self) -> str:
        """Where the memory is: ``"cpu"``."""
        return "cpu"

    @property
    def strides(self) -> tuple[int, ...]:
        """Distances between neighbours along each axis, in elements; realises the tensor."""
        return self.buffer("strides").strides

    @property
    def T(self) -> Tensor:
        """The transpose of a matrix; :class:`ShapeError` unless there are two axes."""
        if self.ndim != 2:
            raise ShapeError(
                f"T is the transpose of a matrix, the tensor has shape {self.shape}: "
                "use mT for stacks of matrices, or permute_dims()"
            )
        return self.mT

    @property
    def mT(self) -> Tensor:
        """The last two axes exchanged."""
        n = self.ndim
        if n < 2:
            raise ShapeError(f"mT exchanges the last two axes, the tensor has shape {self.shape}")
        return apply(views.permute, self, axes=(*range(n - 2), n - 1, n - 2))

    @property
    def grad(self) -> Tensor | None:
        """What :meth:`backward` of a loss has left."""
        if mode.trace is not None:
            mode.trace.read_grad(self, self._grad)
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if mode.trace is not None:
            mode.trace.record_grad(self, self._grad)
        self._grad = value

    @property
    def requires_grad(self) -> bool:
        """Whether gradients are tracked; setting it makes the tensor a leaf of the history."""
        return self._tracks != PLAIN

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if self._tracks >= DERIVED:
            if not wanted:
                raise DTypeError(
                    "requires_grad of a computed tensor cannot be taken back: use detach()"
                )
            return
        if wanted and not self.node.dtype.is_float:
            raise DTypeError(
                f"only floating-point tensors have gradients, this one is {self.dtype}"
            )
        if wanted and self._tracks == PLAIN:
            # a node of its own: what was computed from the old one before does not depend on this
            before, after = self.node, fresh(self.node)
            own(after, self)
            if before.owner is not None and before.owner() is self:
                before.owner = None  # or a gradient would arrive at both
            self.node = after
        self._tracks = LEAF if wanted else PLAIN

    @property
    def is_leaf(self) -> bool:
        """Whether it was not computed from tensors that track gradients."""
        return self._tracks < DERIVED

    # values

    def realize(self) -> Tensor:
        """Compute the value, unless it is known; returns the tensor itself."""
        if self.node.op != "data" and self.node.value is None:
            realize(self)
        return self

    def buffer(self, what: str = "a buffer") -> Buffer:
        """The memory that holds the value; ``what`` names the asker in a :class:`TraceError`."""
        if mode.trace is not None:
            raise trace_error(what, self)
        if self.node.value is None:
            realize(self)
        return cast(Buffer, self.node.value)

    def __copy__(self) -> Tensor:
        copied = Tensor(fresh(self.node))
        copied._tracks = self._tracks
        own(copied.node, copied)
        return copied

    def __deepcopy__(self, memo: Any) -> Tensor:
        copied = self.__copy__()
        if self._tracks >= DERIVED:
            copied = self.detach()
        copied.grad = None if self.grad is None else self.grad.__copy__()
        return copied

    # state

    def assign(self, value: Any) -> Tensor:
        """Give this tensor the value of ``value`` (same shape; cast to this dtype); returns self.

        What was computed from the old value keeps it. The new value has no history: a leaf stays a
        leaf, and state carried from step to step does not grow a graph.
        """
        value = value if isinstance(value, Tensor) else Tensor(value)
        if value.shape != self.shape:
            raise ShapeError(f"assign: the tensor has shape {self.shape}, the value {value.shape}")
        node = value.node
        if node.dtype is not self.node.dtype:
            node = cast_node(node, self.node.dtype)
        if value._tracks:
            node = views.stop_gradient(node)
        if node is value.node:
            node = fresh(node)
        if mode.trace is None and node.value is None:
            self._await(node)
        self._rebind(node, LEAF if self._tracks == LEAF else PLAIN)
        return self

    def _await(self, node: Node) -> None:
        """See to it that ``node``, about to be assigned, is computed before its past grows long.

        The next ``backward`` computes it along. If it is assigned to again before, and the new
        value rests on the old one, the old one is computed now.
        """
        old = self.node
        waiting = old.value is None and old.owner is not None and old.owner() is self
        if waiting and old in pending([node]):
            realize_nodes([old])
            old.op, old.inputs, old.attrs = (
                "data",
                (),
                {},
            )  # or every step would hold the one before
        mode.assigned.append(weakref.ref(self))
        if len(mode.assigned) > _MANY_ASSIGNED:
            mode.assigned = [ref for ref in mode.assigned if _is_waiting(ref())]

    def _rebind(self, node: Node, tracks: int) -> None:
        own(node, self)
        if mode.trace is not None:  # before it happens: then it is undone in any case
            mode.trace.record_assign(self, self.node, node)
        self.node, self._tracks = node, tracks

    def _in_place(self, result: Any) -> Any:
        """What an in-place operator leaves: this tensor with another value."""
        if result is NotImplemented:
            return result
        if result.shape != self.shape:
            raise ShapeError(
                f"in place: a result of shape {result.shape} does not fit {self.shape}"
            )
        if self._tracks == LEAF:
            if result._tracks:
                raise DTypeError(
                    "a tensor that requires_grad is changed in place, which would be part of its "
                    "own history: use assign(), or do it under tilewright.no_grad()"
                )
            return self.assign(result)
        node = result.node
        if node.dtype is not self.node.dtype:
            if not same_kind(node.dtype, self.node.dtype):
                raise DTypeError(f"in place: a result of {node.dtype} does not fit {self.dtype}")
            node = cast_node(node, self.node.dtype)
        self._rebind(node, result._tracks)
        return self

    def detach(self) -> Tensor:
        """The same value without history."""
        node = self.node
        if node.value is not None and mode.trace is None:
            plain = Tensor(fresh(node))
            own(plain.node, plain)
            return plain
        return Tensor(views.stop_gradient(node) if self._tracks else node)

    def backward(self, cotangent: Tensor | None = None, *, retain_graph: bool = False) -> None:
        """Add the gradients of this tensor to ``grad`` of every leaf it was computed from.

        Computes this tensor and all gradients in one program.

        Args:
            cotangent: what to multiply the Jacobian with, of this tensor's shape; default 1, which
                wants a tensor of one element.
            retain_graph: keep the history, so that ``backward`` can be called again.
        """
        from tilewright.tensor.autograd import backward

        backward([self], [cotangent], retain_graph=retain_graph)

    # operators

    def __add__(self, other: Any, /) -> Tensor:
        return binary(ew.add, self, other)

    def __radd__(self, other: Any, /) -> Tensor:
        return binary(ew.add, self, other, swap=True)

    def __sub__(self, other: Any, /) -> Tensor:
        return binary(ew.sub, self, other)

    def __rsub__(self, other: Any, /) -> Tensor:
        return binary(ew.sub, self, other, swap=True)

    def __mul__(self, other: Any, /) -> Tensor:
        return binary(ew.mul, self, other)

    def __rmul__(self, other: Any, /) -> Tensor:
        return binary(ew.mul, self, other, swap=True)

    def __truediv__(self, other: Any, /) -> Tensor:
        return binary(ew.div, self, other, floating=True)

    def __rtruediv__(self, other: Any, /) -> Tensor:
        return binary(ew.div, self, other, swap=True, floating=True)

    def __floordiv__(self, other: Any, /) -> Tensor:
        return binary(whole_quotient, self, other)

    def __rfloordiv__(self, other: Any, /) -> Tensor:
        return binary(whole_quotient, self, other, swap=True)

    def __mod__(self, other: Any, /) -> Tensor:
        return binary(ew.remainder, self, other)

    def __rmod__(self, other: Any, /) -> Tensor:
        return binary(ew.remainder, self, other, swap=True)

    def __pow__(self, other: Any, /) -> Tensor:
        if other.__class__ is int and other == 2 and self.node.dtype.kind != "b":
            return apply(ew.square, self)  # the same bits as pow, without a logarithm
        return binary(ew.pow, self, other)

    def __rpow__(self, other: Any, /) -> Tensor:
        return binary(ew.pow, self, other, swap=True)

    def __matmul__(self, other: Any, /) -> Tensor:
        if not isinstance(other, Tensor):
            return foreign(other)
        from tilewright.tensor.linalg import matmul

        return matmul(self, other)

    def __rmatmul__(self, other: Any, /) -> Tensor:
        return foreign(other)  # the left operand is no tensor: __matmul__ would have been asked

    def __and__(self, other: Any, /) -> Tensor:
        return binary(ew.bitwise_and, self, other)

    def __rand__(self, other: Any, /) -> Tensor:
        return binary(ew.bitwise_and, self, other, swap=True)

    def __or__(self, other: Any, /) -> Tensor:
        return binary(ew.bitwise_or, self, other)

    def __ror__(self, other: Any, /) -> Tensor:
        return binary(ew.bitwise_or, self, other, swap=True)

    def __xor__(self, other: Any, /) -> Tensor:
        return binary(ew.bitwise_xor, self, other)

    def __rxor__(self, other: Any, /) -> Tensor:
        return binary(ew.bitwise_xor, self, other, swap=True)

    def __lshift__(self, other: Any, /) -> Tensor:
        return binary(ew.shift_left, self, other)

    def __rlshift__(self, other: Any, /) -> Tensor:
        return binary(ew.shift_left, self, other, swap=True)

    def __rshift__(self, other: Any, /) -> Tensor:
        return binary(ew.shift_right, self, other)

    def __rrshift__(self, other: Any, /) -> Tensor:
        return binary(ew.shift_right, self, other, swap=True)

    def __eq__(self, other: object, /) -> Tensor:  # type: ignore[override]
        return binary(ew.eq, self, other)

    def __ne__(self, other: object, /) -> Tensor:  # type: ignore[override]
        return binary(ew.ne, self, other)

    def __lt__(self, other: Any, /) -> Tensor:
        return binary(ew.lt, self, other)

    def __le__(self, other: Any, /) -> Tensor:
        return binary(ew.le, self, other)

    def __gt__(self, other: Any, /) -> Tensor:
        return binary(ew.gt, self, other)

    def __ge__(self, other: Any, /) -> Tensor:
        return binary(ew.ge, self, other)

    __hash__ = object.__hash__

    def __neg__(self) -> Tensor:
        return apply(ew.neg, self)

    def __pos__(self) -> Tensor:
        return apply(_same, self)

    def __abs__(self) -> Tensor:
        return apply(ew.abs, self)

    def __invert__(self) -> Tensor:
        return apply(ew.bitwise_invert, self)

    def __iadd__(self, other: Any, /) -> Tensor:
        return self._in_place(self + other)

    def __isub__(self, other: Any, /) -> Tensor:
        return self._in_place(self - other)

    def __imul__(self, other: Any, /) -> Tensor:
        return self._in_place(self * other)

    def __itruediv__(self, other: Any, /) -> Tensor:
        return self._in_place(self / other)

    def __ifloordiv__(self, other: Any, /) -> Tensor:
        return self._in_place(self // other)

    def __imod__(self, other: Any, /) -> Tensor:
        return self._in_place(self % other)

    def __ipow__(self, other: Any, /) -> Tensor:
        return self._in_place(self**other)

    def __imatmul__(self, other: Any, /) -> Tensor:
        return self._in_place(self @ other)

    def __iand__(self, other: Any, /) -> Tensor:
        return self._in_place(self & other)

    def __ior__(self, other: Any, /) -> Tensor:
        return self._in_place(self | other)

    def __ixor__(self, other: Any, /) -> Tensor:
        return self._in_place(self ^ other)

    def __ilshift__(self, other: Any, /) -> Tensor:
        return self._in_place(self << other)

    def __irshift__(self, other: Any, /) -> Tensor:
        return self._in_place(self >> other)


# building


def binary(
    build: Build, a: Tensor, b: Any, *, swap: bool = False, floating: bool = False
) -> Tensor:
    """``build`` of ``a`` and a tensor or Python number ``b``, promoted to a common dtype.

    ``swap`` exchanges the operands; ``floating`` turns integers into the default float first.
    """
    x = a.node
    tracks = a._tracks
    if b.__class__ is Tensor or isinstance(b, Tensor):
        y = b.node
        tracks |= b._tracks
        if tracks:
            x, y = source(a), source(b)
        if x.dtype is not y.dtype:
            dtype = promoted(x.dtype, y.dtype)
            if x.dtype is not dtype:
                x = cast_node(x, dtype)
            if y.dtype is not dtype:
                y = cast_node(y, dtype)
    else:
        if tracks:
            x = source(a)
        dtype = x.dtype
        if b.__class__ is not float or dtype.kind != "f":  # the most usual needs no checks
            if not isinstance(b, (bool, int, float, Size, Real)):
                if not isinstance(b, np.generic):
                    return foreign(b)
                b = b.item()
            dtype = scalar_dtype(b, dtype)
            if x.dtype is not dtype:
                x = cast_node(x, dtype)
        y = number_node(b, dtype)
    if floating and x.dtype.kind != "f":
        x, y = cast_node(x, DEFAULT_FLOAT), cast_node(y, DEFAULT_FLOAT)
    node = build(y, x) if swap else build(x, y)
    result = Tensor(node)
    if tracks and mode.grad and node.dtype.kind == "f":
        _derive(result, node)
    return result


def apply(build: Callable[..., Node], *tensors: Tensor, **options: Any) -> Tensor:
    """The tensor of ``build(*nodes, **options)``; tracks gradients if one of ``tensors`` does."""
    for t in tensors:
        if t._tracks:
            return wrap(build(*map(source, tensors), **options), *tensors)
    return Tensor(build(*[t.node for t in tensors], **options))


def source(tensor: Tensor) -> Node:
    """The node an operation reads: without history where gradients are not tracked."""
    if tensor._tracks and not mode.grad:
        return views.stop_gradient(tensor.node)
    return tensor.node


def wrap(node: Node, *sources: Tensor) -> Tensor:
    """A tensor of ``node``, computed from the ``source`` nodes of ``sources``."""
    result = Tensor(node)
    if mode.grad and node.dtype.is_float:
        for t in sources:
            if t._tracks:
                _derive(result, node)
                break
    return result


def _derive(tensor: Tensor, node: Node) -> None:
    """Note that ``tensor`` was computed from one that tracks gradients."""
    tensor._tracks = DERIVED
    if node.owner is None:
        node.owner = weakref.ref(tensor)


def _is_waiting(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.node.value is None


def _same(node: Node) -> Node:
    return node


# realising


def realize(*tensors: Tensor) -> None:
    """Compute the values of ``tensors`` in one program."""
    pending = [t for t in tensors if t.node.value is None]
    if pending:
        if mode.trace is not None:
            raise trace_error("realize()", pending[0])
        if mode.along:
            more = [t for ref in mode.along if (t := ref()) is not None]
            mode.along = None
            tensors += tuple(more)
            pending += [t for t in more if t.node.value is None]
        realize_nodes([t.node for t in pending])
    for t in tensors:
        _settle(t)


def _settle(tensor: Tensor) -> None:
    """Forget how a value was computed, unless gradients may want to know."""
    node = tensor.node
    if tensor._tracks == LEAF:  # stays the node that graphs lead to: gradients are added up there
        node.op, node.inputs, node.attrs = "data", (), {}
        own(node, tensor)
    elif tensor._tracks == PLAIN and node.op != "data":
        plain = data_node(node.value)
        own(plain, tensor)
        tensor.node = plain

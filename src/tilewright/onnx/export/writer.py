"""A graph of ONNX nodes while it is written, and the table of what an op becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from tilewright.dtypes import (
    DType,
    bf16,
    boolean,
    f16,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
)
from tilewright.errors import UnsupportedError
from tilewright.graph import Node, shape_of
from tilewright.ops.views import broadcast_shapes
from tilewright.sizes import Real, Size

__all__ = ["KINDS", "TABLE", "Writer", "emits"]

KINDS: Final[Mapping[DType, int]] = {
    f32: 1, u8: 2, i8: 3, u16: 4, i16: 5, i32: 6, i64: 7, boolean: 9, f16: 10, f64: 11, u32: 12,
    u64: 13, bf16: 16,
}  # fmt: skip
"""Numbers of element types in ONNX."""

Emit = Callable[..., Any]
TABLE: Final[dict[str, Emit]] = {}
"""By op: ``emit(writer, node, *names of inputs)`` gives the name of the result (or a list)."""


def emits(*ops: str) -> Callable[[Emit], Emit]:
    """Register how ops are written."""

    def register(function: Emit) -> Emit:
        for op in ops:
            TABLE[op] = function
        return function

    return register


class Writer:
    """Nodes and initialisers of a model that is being made.

    Attributes:
        names: of values that have been written, by graph node.
        symbols: names of one-element int64 vectors that hold symbolic sizes, by symbol.
        weights: names of initialisers that came from tensors, by address.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.names: dict[Node, Any] = {}
        self.symbols: dict[str, str] = {}
        self.nodes: list[Any] = []
        self.initializers: dict[str, tuple[int, np.ndarray]] = {}
        self._constants: dict[Any, str] = {}
        self._sizes: dict[Any, str] = {}
        self._count = 0

    def fresh(self, stem: str = "v") -> str:
        """A name that nothing has."""
        self._count += 1
        return f"{stem}_{self._count}"

    def op(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attrs: Any) -> Any:
        """Write a node; the name of its output, a list of names for several."""
        import onnx

        names = [self.fresh(kind.lower()) for _ in range(outputs)]
        given = {k: v for k, v in attrs.items() if v is not None}
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), names, domain=domain, **given))
        return names[0] if outputs == 1 else names

    # --- constants -------------------------------------------------------------------------------

    def constant(self, value: Any, dtype: DType = i64) -> str:
        """The name of an initialiser; equal ones are one."""
        if dtype is bf16:
            from tilewright.dtypes import from_float32

            array = from_float32(np.asarray(value, np.float32))
        else:
            array = np.asarray(value, dtype.storage)
        key = dtype, array.shape, array.tobytes()
        if key not in self._constants:
            name = self._constants[key] = self.fresh("constant")
            self.initializers[name] = (KINDS[dtype], array)
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """A vector of int64."""
        return self.constant(values)

    # --- sizes -----------------------------------------------------------------------------------

    def shape(self, sizes: Sequence[Any]) -> str:
        """A vector of sizes, some of which may be symbolic."""
        if all(isinstance(n, int) for n in sizes):
            return self.ints(*sizes)
        return str(self.op("Concat", *(self.size(n) for n in sizes), axis=0))

    def size(self, n: Any) -> str:
        """A size as a vector of one element."""
        if isinstance(n, int):
            return self.ints(n)
        assert isinstance(n, Size)
        if n.terms not in self._sizes:
            total = ""
            for monomial, factor in n.terms:
                term = self.ints(factor) if factor != 1 or not monomial else ""
                for atom in monomial:
                    one = self._atom(n.scope._atoms[atom])
                    term = str(self.op("Mul", term, one)) if term else one
                total = str(self.op("Add", total, term)) if total else term
            self._sizes[n.terms] = total
        return self._sizes[n.terms]

    def _atom(self, atom: Any) -> str:
        if not atom.op:
            return self.symbols[atom.name]
        args = [self.size(a) for a in atom.args]
        kinds = {"//": "Div", "%": "Mod", "min": "Min", "max": "Max"}
        if atom.op not in kinds:
            raise UnsupportedError(f"a size that depends on {atom.name!r} cannot be exported")
        return str(self.op(kinds[atom.op], *args))  # sizes are not negative: Div rounds alike

    # --- values ----------------------------------------------------------------------------------

    def name(self, node: Node) -> Any:
        """The name of a node that has been written."""
        found = self.names.get(node)
        if found is None and node.op in ("const", "scalar"):
            found = self.names[node] = self._number(node)
        if found is None:
            raise UnsupportedError(f"{node!r} is not part of what is exported")
        return found

    def _number(self, node: Node) -> str:
        value = node.attrs["value"]
        if isinstance(value, Size):
            vector = self.size(value)
            return self.cast(self.op("Squeeze", vector, self.ints(0)), i64, node.dtype)
        if isinstance(value, Real):
            raise UnsupportedError(
                f"the number {value!r} depends on a dynamic axis: it cannot be exported"
            )
        return self.constant(value, node.dtype)

    def cast(self, name: str, old: DType, new: DType) -> str:
        """A value in another element type."""
        return name if old is new else str(self.op("Cast", name, to=KINDS[new]))

    def operands(self, node: Node) -> list[str]:
        """Names of what an elementwise node reads: broadcasts are left to ONNX where that will do.

        Raises UnsupportedError for an input that cannot be named.
        """
        sources = [
            i.inputs[0] if i.op == "broadcast" and i.value is None else i for i in node.inputs
        ]
        if shape_of(broadcast_shapes(*(s.shape for s in sources))) != shape_of(node.shape):
            sources = list(node.inputs)
        return [self.name(s) for s in sources]

    def write(self, node: Node) -> None:
        """Write a node whose inputs are written.

        Raises UnsupportedError, naming the op, when there is no such operator.
        """
        if node in self.names or node.op in ("const", "scalar"):
            return
        emit = TABLE.get(node.op)
        if emit is None:
            hint = ""
            if "random" in node.op:
                hint = ": it makes random numbers; call eval() on the module first"
            raise UnsupportedError(f"op {node.op!r} cannot be exported to ONNX{hint}")
        names = self.operands(node) if emit in ELEMENTWISE else [self.name(i) for i in node.inputs]
        self.names[node] = emit(self, node, *names)


ELEMENTWISE: Final[set[Emit]] = set()
"""Those of :data:`TABLE` that want operands which are not broadcast yet."""

"""Run nodes by their table entries' kernels, beside their references, on odd layouts of memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from tests.ops.kernel_calls import interpret, run

from tilewright.dtypes import DType, bf16, boolean, from_float32, to_float32
from tilewright.graph import Node, data_node, topological
from tilewright.ops import table
from tilewright.ops.calls import KernelCall
from tilewright.runtime.buffers import Buffer, empty, from_array

Launch = Callable[[Iterable[KernelCall]], None]

LAYOUTS = ("dense", "strided", "reversed", "transposed")


def laid_out(values: np.ndarray, layout: str) -> np.ndarray:
    """The same values in memory that is dense, has gaps, runs backwards or is transposed."""
    if layout == "dense" or not values.ndim:
        return values.copy()
    if layout == "transposed":
        return values.T.copy().T
    if layout == "strided":
        wide = np.zeros([2 * n + 1 for n in values.shape], values.dtype)
        view = wide[tuple(slice(0, 2 * n, 2) for n in values.shape)]
    else:
        view = np.zeros_like(values)[(slice(None, None, -1),) * values.ndim]
    view[...] = values
    return view


def leaf(values: Any, dtype: DType, layout: str = "dense") -> Node:
    """A data leaf with these values (bf16: rounded from float32)."""
    array = np.asarray(values)
    array = from_float32(array) if dtype is bf16 else array.astype(dtype.storage)
    return data_node(from_array(laid_out(array, layout), dtype))


def random_values(rng: np.random.Generator, shape: Sequence[int], dtype: DType) -> np.ndarray:
    """Values that ``dtype`` can hold, all over its range."""
    if dtype is boolean:
        return rng.random(shape) < 0.5
    if dtype.is_integer:
        info = np.iinfo(dtype.storage)
        return rng.integers(info.min, info.max, shape, dtype.storage, endpoint=True)
    values = rng.standard_normal(shape) * 4
    return to_float32(from_float32(values)) if dtype is bf16 else values.astype(dtype.storage)


def array_of(buffer: Buffer) -> np.ndarray:
    """A buffer's values; bf16 as float32."""
    return to_float32(buffer.numpy()) if buffer.dtype is bf16 else buffer.numpy()


def reference(*nodes: Node) -> Any:
    """The nodes' values by the references alone; one array for one node."""
    order = topological(nodes)
    values = table.evaluate_nodes(order, {})
    out = [values[n] for n in nodes]
    return out[0] if len(nodes) == 1 else out


def compiled(*nodes: Node, launch: Launch = run) -> Any:
    """The nodes' values by kernels wherever their entries call some."""
    values: dict[Node, Any] = {}
    for node in topological(nodes):
        values[node] = _value(node, values, launch)
    out = [array_of(values[n]) for n in nodes]
    return out[0] if len(nodes) == 1 else out


def interpreted(*nodes: Node) -> Any:
    """The nodes' values by kernels that the interpreter runs."""
    return compiled(*nodes, launch=interpret)


def _value(node: Node, values: dict[Node, Any], launch: Launch) -> Any:
    if node.value is not None:
        return node.value
    if node.op == "part":
        return values[node.inputs[0]][node.attrs["index"]]
    entry = None if node.is_leaf else table.get(node.op)
    inputs = [values[i] for i in node.inputs]
    if entry is not None and entry.calls is not None:
        return _called(node, entry, inputs, launch)
    if entry is not None and entry.view is not None:
        seen = entry.view(node, inputs[0])
        if seen is not None:
            return seen
    for input, value in zip(node.inputs, inputs):
        input.set_value(value)
    result = table.evaluate_nodes([*node.inputs, node], {})[node]
    return _buffer(result, node.dtype)


def _buffer(values: np.ndarray, dtype: DType) -> Buffer:
    out = empty(dtype, values.shape)
    out.numpy()[...] = from_float32(values) if dtype is bf16 else values
    return out


def _called(node: Node, entry: table.OpDef, inputs: list[Any], launch: Launch) -> Any:
    assert entry.calls is not None
    out: Any
    if entry.infer_parts is not None:
        parts = entry.infer_parts(node.inputs, node.attrs)
        out = [_soiled(dtype, shape) for shape, dtype in parts]
    else:
        out = _soiled(node.dtype, node.shape)
    work = [] if entry.workspace is None else [_soiled(*w) for w in entry.workspace(node)]
    launch(entry.calls(node, inputs, out, *([work] if entry.workspace else [])))
    return out


def _soiled(dtype: DType, shape: Any) -> Buffer:
    """Memory full of what nobody should read, rows padded."""
    out = empty(dtype, shape, pad_rows=True)
    out.owner[...] = 0x7F
    return out


def check(*nodes: Node, rtol: float = 0.0, atol: float = 0.0) -> None:
    """The kernels give what the references say (by default bit for bit, NaN like NaN)."""
    for node, got, wanted in zip(nodes, _all(compiled, nodes), _all(reference, nodes)):
        assert got.shape == node.shape == wanted.shape
        if rtol or atol:
            np.testing.assert_allclose(got, wanted, rtol, atol)
        else:
            np.testing.assert_array_equal(got, wanted)


def _all(how: Callable[..., Any], nodes: Sequence[Node]) -> list[Any]:
    out = how(*nodes)
    return [out] if len(nodes) == 1 else out


def with_threads(n: int, what: Callable[[], Any]) -> Any:
    """``what()`` on a pool of ``n`` threads."""
    before = os.environ.get("TILEWRIGHT_THREADS")
    os.environ["TILEWRIGHT_THREADS"] = str(n)
    try:
        return what()
    finally:
        if before is None:
            del os.environ["TILEWRIGHT_THREADS"]
        else:
            os.environ["TILEWRIGHT_THREADS"] = before

"""``tilewright.onnx.save``: a function or a module of tensors as an ONNX model."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

from tilewright.compiler.fusion import pending
from tilewright.compiler.realize import realize as realize_nodes
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.formats.atomic import atomic_file
from tilewright.graph import Node
from tilewright.nn import Module
from tilewright.onnx.export import elementwise, heavy, shapes
from tilewright.onnx.export.writer import KINDS, Writer
from tilewright.sizes import Size
from tilewright.tensor.core import Tensor, realize
from tilewright.tensor.creation import asarray
from tilewright.tensor.dynamic import Pattern
from tilewright.tensor.modes import no_grad
from tilewright.tensor.tracer import Tracer
from tilewright.tensor.tree import leaves

__all__ = ["save"]

FAMILIES: Final = (elementwise, shapes, heavy)  # importing them fills the table
OPSETS: Final = (20, 26)
_EXTERNAL: Final = 2_000_000_000  # bytes of weights beyond which they lie in a file of their own
_SMALL: Final = 1 << 12  # bytes of constants that decide shapes


class _Traced(Tracer):
    """Runs a function once without values, and keeps its graph."""

    def _finish(
        self,
        result: Any,
        outputs: list[Node],
        states: list[Any],
        grads: list[Any],
        at: dict[Node, Any],
        start: int,
    ) -> Any:
        if states or grads:
            raise UnsupportedError(
                "the function assigns to tensors outside (a normalisation in training mode, say): "
                "call eval() on the module first"
            )
        return SimpleNamespace(result=result, outputs=outputs, at=at, start=start)


def save(
    fn: Callable[..., Any],
    example_inputs: Any,
    path: str | os.PathLike[str],
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    opset: int = 20,
    output_names: Sequence[str] | None = None,
) -> None:
    """Write what ``fn`` computes as an ONNX model.

    ``fn`` runs once, on stand-ins for the inputs; the graph of what it returns is written, with the
    tensors that it reads as initialisers. Weights of a module have the names of its ``state_dict``.

    Args:
        fn: a module, or a function of tensors; it returns a tensor, or tuples, lists or dicts of
            them.
        example_inputs: a tensor or array, a tuple of those, or a dict by parameter.
        path: of the ``.onnx`` file. Weights of more than 2 GB go into ``path + ".data"``.
        dynamic_axes: by name of an input the axes that may have other sizes, with a name for each:
            ``{"x": {0: "batch"}}``.
        opset: version of the standard's operator set, 20 or later.
        output_names: default ``output``, ``output_0`` ..., or the keys of a dict.

    Raises:
        UnsupportedError: an op that ONNX has nothing for; the message names it.
        ShapeError: inputs or axes that do not exist.
    """
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise UnsupportedError(f"opset is {OPSETS[0]} to {OPSETS[1]}, got {opset}")
    names, tensors = _inputs(fn, example_inputs)
    state = fn.state_dict() if isinstance(fn, Module) else {}
    realize(*tensors, *state.values())
    layouts = [(t.node.shape, t.node.value.strides, t.node.dtype) for t in tensors]
    labels = _labels(names, tensors, dynamic_axes or {})
    pattern = Pattern(layouts, labels, tensors) if labels else None
    tracer = _Traced(
        fn,
        [(i, -1) for i in range(len(tensors))],
        None if pattern is None else pattern.scope,
        () if pattern is None else pattern.buffers,
    )
    with no_grad():
        traced: Any = tracer.trace(tuple(tensors), {}, tensors)
    if pattern is not None and pattern.scope._pinned:
        pinned = [pattern.scope._atoms[i] for i in pattern.scope._pinned]
        fixed = ", ".join(f"{a.name} is {a.hint}" for a in pinned)
        raise UnsupportedError(f"the function can do with one size of a dynamic axis only: {fixed}")
    writer = Writer(opset)
    _write_inputs(writer, names, traced.at)
    roots = _write_graph(writer, traced, state)
    outputs = _output_names(traced.result, output_names)
    _store(Path(path), writer, names, traced, outputs, roots)


def _inputs(fn: Callable[..., Any], given: Any) -> tuple[list[str], list[Tensor]]:
    """Names of the parameters, and a tensor for each."""
    target = fn.forward if isinstance(fn, Module) else fn
    parameters = inspect.signature(target).parameters.values()
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if isinstance(given, Mapping):
        missing = [n for n in given if n not in known[: len(given)]]
        if missing:
            raise ShapeError(f"the first parameters are {known[: len(given)]}, got {list(given)}")
        values = [given[n] for n in known[: len(given)]]
        names = known[: len(given)]
    else:
        values = list(given) if isinstance(given, (tuple, list)) else [given]
        names = known[: len(values)]
        names += [f"input_{i}" for i in range(len(names), len(values))]
    made = [v if isinstance(v, Tensor) else asarray(np.asarray(v)) for v in values]
    return names, made


def _labels(
    names: Sequence[str], tensors: Sequence[Tensor], axes: Mapping[str, Mapping[int, str]]
) -> dict[tuple[int, int], str]:
    found = {}
    for name, labels in axes.items():
        if name not in names:
            raise ShapeError(f"dynamic_axes names {name!r}; the inputs are {', '.join(names)}")
        i = names.index(name)
        for axis, label in labels.items():
            if not 0 <= axis < tensors[i].ndim:
                raise ShapeError(
                    f"dynamic_axes: {name!r} of shape {tensors[i].shape} has no {axis}"
                )
            if tensors[i].shape[axis] < 2:
                raise ShapeError(
                    f"dynamic_axes: axis {axis} of {name!r} wants an example of 2 or more, since "
                    "sizes 0 and 1 broadcast"
                )
            found[i, axis] = label
    return found


def _write_inputs(writer: Writer, names: Sequence[str], at: Mapping[Node, int]) -> None:
    for node, i in at.items():
        writer.names[node] = names[i]
        for axis, n in enumerate(node.shape):
            if isinstance(n, Size):
                label = str(n)
                if label not in writer.symbols:
                    shape = writer.op("Shape", names[i], start=axis, end=axis + 1)
                    writer.symbols[label] = shape


def _write_graph(writer: Writer, traced: Any, state: Mapping[str, Tensor]) -> list[Any]:
    order = pending(traced.outputs)
    edge = {i for n in order if n.index >= traced.start for i in n.inputs} | set(traced.outputs)
    outside = [n for n in edge if n.index < traced.start and n.value is None]
    lazy = [n for n in outside if n.op not in ("const", "scalar")]
    if lazy:  # what was made before and never asked for
        realize_nodes(lazy)
    named = [(name, t.node.value) for name, t in state.items()]
    known = {value.pointer: name for name, value in reversed(named)}
    for node in [*pending(traced.outputs), *traced.outputs]:
        if node in writer.names:
            continue
        if node.value is not None:
            _write_weight(writer, node, known)
        else:
            writer.write(node)
    return [writer.name(n) for n in traced.outputs]


def _write_weight(writer: Writer, node: Node, known: Mapping[int, str]) -> None:
    array = np.ascontiguousarray(node.value.numpy()).reshape(node.shape)
    name = known.get(node.value.pointer, "") if array.size else ""
    if not name or name in writer.initializers:
        name = writer.fresh("constant")
    writer.initializers[name] = (KINDS[node.dtype], array)
    writer.names[node] = name


def _output_names(result: Any, given: Sequence[str] | None) -> list[str]:
    count = len(leaves(result))
    if given is not None:
        if len(given) != count or len(set(given)) != count:
            raise ShapeError(f"{count} different names of outputs are wanted, got {list(given)}")
        return list(given)
    if isinstance(result, Mapping) and all(isinstance(v, Tensor) for v in result.values()):
        return [str(k) for k in result]
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def _store(
    path: Path,
    writer: Writer,
    names: Sequence[str],
    traced: Any,
    outputs: Sequence[str],
    roots: Sequence[str],
) -> None:
    import onnx

    nodes = [*writer.nodes]
    for name, root in zip(outputs, roots):
        nodes.append(onnx.helper.make_node("Identity", [root], [name]))
    nodes = _alive(nodes, outputs)
    read = {i for n in nodes for i in _reads(n)}
    infos: list[Any] = [None] * len(names)
    for node, i in traced.at.items():
        infos[i] = _info(names[i], node)
    kept = {n: v for n, v in writer.initializers.items() if n in read}
    large = {n for n, (_, array) in kept.items() if array.nbytes > _SMALL}
    results = [_info(o, node) for o, node in zip(outputs, traced.outputs)]
    imports = [onnx.helper.make_opsetid("", writer.opset)]
    # shapes are inferred and the model is checked with inputs in place of large weights
    claims = [onnx.helper.make_tensor_value_info(n, kept[n][0], kept[n][1].shape) for n in large]
    graph = onnx.helper.make_graph(nodes, "tilewright", [*infos, *claims], results)
    for name in kept.keys() - large:
        _fill(graph.initializer.add(), name, *kept[name])
    model = onnx.helper.make_model(
        graph, opset_imports=imports, producer_name="tilewright", ir_version=10
    )
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model)
    del model.graph.input[len(infos) :]
    del model.graph.initializer[:]
    for name, (kind, array) in kept.items():
        _fill(model.graph.initializer.add(), name, kind, array)
    if sum(array.nbytes for _, array in kept.values()) <= _EXTERNAL:
        with atomic_file(path) as file:
            file.write(model.SerializeToString())
    else:
        data = path.name + ".data"
        (path.parent / data).unlink(missing_ok=True)  # it would be appended to
        onnx.save(model, path, save_as_external_data=True, location=data, size_threshold=1024)


def _fill(tensor: Any, name: str, kind: int, array: np.ndarray) -> None:
    """A ``TensorProto`` of an array."""
    tensor.name, tensor.data_type = name, kind
    tensor.dims.extend(array.shape)
    tensor.raw_data = array.tobytes()


def _info(name: str, node: Node) -> Any:
    import onnx

    shape = [n if isinstance(n, int) else str(n) for n in node.shape]
    return onnx.helper.make_tensor_value_info(name, KINDS[node.dtype], shape)


def _alive(nodes: list[Any], outputs: Sequence[str]) -> list[Any]:
    """The nodes that something is read of."""
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if needed.isdisjoint(node.output):
            continue
        kept.append(node)
        needed.update(_reads(node))
    return kept[::-1]


def _reads(node: Any) -> list[str]:
    inner = [i for a in node.attribute if a.HasField("g") for n in a.g.node for i in _reads(n)]
    return [*node.input, *inner]

"""Control flow: bodies are traced into the graph around them.

A condition that depends on the model's inputs cuts the program; so do long loops, every few
iterations, so that the pieces, which look alike, are compiled once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from tilewright.errors import FormatError, ShapeError, UnsupportedError
from tilewright.formats.onnx import Graph, ValueInfo
from tilewright.formats.onnx.tensors import named_dtype
from tilewright.onnx.ops.gathers import rows_at
from tilewright.onnx.registry import Call, op
from tilewright.tensor.core import Tensor
from tilewright.tensor.manipulation import concat, moveaxis, pad, stack

_NODES: Final = 64  # of a body, in one segment of a long loop
_TRIPS: Final = 1 << 20  # of a loop with nothing to end it; each is traced


@op("If", host=(0,))
def if_(cond: np.ndarray, *, then_branch: Graph, else_branch: Graph, ctx: Call) -> Any:
    """One of two bodies."""
    if cond.size != 1:
        raise ShapeError(f"a condition is one bool, got {cond.shape}")
    return tuple(ctx.run(then_branch if cond.item() else else_branch, []))


def _truth(ctx: Call, value: Any) -> bool:
    """A condition's contents; it is one bool."""
    found = ctx.value(value)
    if found.size != 1:
        raise ShapeError(f"a condition is one bool, got {found.shape}")
    return bool(found.item())


class _Collected:
    """One output of each iteration, along a new axis: in pieces that are closed at cuts.

    Args:
        info: what the body says of it.
        axis: of the result; reverse: the last iteration comes first.
    """

    def __init__(self, info: ValueInfo, axis: int = 0, reverse: int = 0) -> None:
        self.info, self.axis, self.reverse = info, axis, bool(reverse)
        self.values: list[Any] = []
        self.pieces: list[Any] = []

    def close(self, ctx: Call) -> None:
        """Make one array of what came since the last time."""
        values = self.values[::-1] if self.reverse else self.values
        self.values = []
        if not values:
            return
        if any(v is None or isinstance(v, list) for v in values):
            raise FormatError(f"output {self.info.name!r} of a body is no tensor")
        if any(isinstance(v, Tensor) for v in values):
            self.pieces.append(ctx.keep(stack([_tensor(ctx, v) for v in values], axis=self.axis)))
        else:
            self.pieces.append(np.stack(values, self.axis))

    def result(self, ctx: Call) -> Any:
        """All of them."""
        self.close(ctx)
        pieces = self.pieces[::-1] if self.reverse else self.pieces
        if not pieces:
            sizes = [n if isinstance(n, int) else 0 for n in self.info.shape or ()]
            sizes.insert(self.axis if self.axis >= 0 else self.axis + len(sizes) + 1, 0)
            what = f"output {self.info.name!r}"
            return np.zeros(sizes, named_dtype(self.info.elements, what))
        if len(pieces) == 1:
            return pieces[0]
        if any(isinstance(p, Tensor) for p in pieces):
            return concat([_tensor(ctx, p) for p in pieces], axis=self.axis)
        return np.concatenate(pieces, self.axis)


def _tensor(ctx: Call, value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else ctx.trace.tensor(value)


def _cut(ctx: Call, collected: Sequence[_Collected]) -> None:
    for one in collected:
        one.close(ctx)
    ctx.cut()


def _never_ends(body: Graph) -> bool:
    """Whether the condition that a body gives is the one that it takes, or always true."""
    if not body.outputs or len(body.inputs) < 2:
        return False
    makers = {name: node for node in body.nodes for name in node.outputs}
    name = body.outputs[0].name
    while name in makers and makers[name].op == "Identity" and not makers[name].domain:
        name = makers[name].inputs[0]
    if name in body.constants:
        return bool(np.all(body.constants[name]))
    return name == body.inputs[1].name


def _chunk(body: Graph, trips: int) -> int:
    """After how many iterations a long loop is cut; 0 for one that is short enough."""
    nodes = max(len(body.nodes), 1)
    return 0 if trips * nodes <= 4 * _NODES else max(_NODES // nodes, 1)


@op("Loop", host=(0, 1), raw=True)
def loop(
    trips: np.ndarray | None, cond: np.ndarray | None = None, *states: Any, body: Graph, ctx: Call
) -> Any:
    """A body that runs up to ``trips`` times while its condition holds.

    The body takes the number of the iteration, the condition and the states, and gives the
    condition, the states and what is collected of every iteration.
    """
    most = None if trips is None else int(trips.item())
    running = cond is None or bool(cond.item())
    carried: list[Any] = [ctx.known(s) for s in states]
    n = len(carried)
    collected = [_Collected(info) for info in body.outputs[n + 1 :]]
    if len(body.outputs) < n + 1:
        raise FormatError(f"body {body.name!r} gives {len(body.outputs)} values, {n + 1} are due")
    if running and (most is None or most > _TRIPS) and _never_ends(body):
        count = "without end" if most is None else f"{most} times"
        raise UnsupportedError(f"a loop that runs {count} is not run: at most {_TRIPS} times are")
    chunk = _chunk(body, 1 << 62 if most is None else most)
    i = 0
    while running and (most is None or i < most):
        number = np.array(i, np.int64)
        found = ctx.run(
            body, [ctx.trace.hide(number) if chunk else number, np.array(True), *carried]
        )
        condition, carried = found[0], found[1 : n + 1]
        for one, value in zip(collected, found[n + 1 :]):
            one.values.append(value)
        del found
        i += 1
        if most is None or i < most:
            if chunk and i % chunk == 0:
                _cut(ctx, collected)
            running = _truth(ctx, condition)
    return (*carried, *[one.result(ctx) for one in collected])


def _place(i: int, n: int, reverse: int) -> int:
    return n - 1 - i if reverse else i


def _item(ctx: Call, x: Tensor, axis: int, i: int, long: bool) -> Tensor:
    """Element ``i`` along an axis; where a loop is long by a table, so that pieces look alike."""
    front = moveaxis(x, axis, 0)
    if not long:
        return ctx.keep(front[i])
    return ctx.keep(rows_at(front, ctx.trace.tensor(np.array([i], np.int64)))[0])


def run_scan(
    ctx: Call,
    body: Graph,
    states: Sequence[Any],
    inputs: Sequence[Tensor],
    in_axes: Sequence[int],
    in_reverse: Sequence[int],
    collected: Sequence[_Collected],
) -> list[Any]:
    """The states at the end; other outputs go into ``collected``."""
    lengths = {x.shape[a] for x, a in zip(inputs, in_axes)}
    if len(lengths) != 1:
        raise ShapeError(f"scan inputs have different lengths: {sorted(lengths)}")
    (count,) = lengths
    carried: list[Any] = [ctx.known(s) for s in states]
    n = len(carried)
    chunk = _chunk(body, count)
    for i in range(count):
        items = [
            _item(ctx, x, a, _place(i, count, r), bool(chunk))
            for x, a, r in zip(inputs, in_axes, in_reverse)
        ]
        found = ctx.run(body, [*carried, *items])
        del items
        carried = found[:n]
        for one, value in zip(collected, found[n:]):
            one.values.append(value)
        del found
        if chunk and (i + 1) % chunk == 0 and i + 1 < count:
            _cut(ctx, collected)
    return carried


@op("Scan", since=9, raw=True)
def scan(
    *args: Any,
    body: Graph,
    num_scan_inputs: int,
    scan_input_axes: tuple[int, ...] | None = None,
    scan_input_directions: tuple[int, ...] | None = None,
    scan_output_axes: tuple[int, ...] | None = None,
    scan_output_directions: tuple[int, ...] | None = None,
    ctx: Call,
) -> Any:
    """A body that runs over the elements of inputs along an axis, with states."""
    n = len(args) - num_scan_inputs
    states, inputs = args[:n], args[n:]
    outs = len(body.outputs) - n
    if n < 0 or outs < 0:
        raise FormatError(f"{len(args)} inputs do not fit body {body.name!r}")
    axes = [
        a + x.ndim if a < 0 else a for a, x in zip(scan_input_axes or (0,) * len(inputs), inputs)
    ]
    reverse = scan_input_directions or (0,) * len(inputs)
    out_axes, out_reverse = scan_output_axes or (0,) * outs, scan_output_directions or (0,) * outs
    collected = [
        _Collected(info, axis, back)
        for info, axis, back in zip(body.outputs[n:], out_axes, out_reverse)
    ]
    carried = run_scan(ctx, body, states, inputs, axes, reverse, collected)
    return (*carried, *[one.result(ctx) for one in collected])


@op("Scan", since=8, host=(0,))
def scan_8(
    lengths: np.ndarray | None,
    *args: Tensor,
    body: Graph,
    num_scan_inputs: int,
    directions: tuple[int, ...] | None = None,
    ctx: Call,
) -> Any:
    """Before version 9 every value had a batch in front, each example a length of its own."""
    n = len(args) - num_scan_inputs
    batch, longest = args[-1].shape[0], args[-1].shape[1]
    reverse = directions or (0,) * num_scan_inputs
    finals: list[list[Any]] = []
    outputs: list[list[Any]] = []
    for b in range(batch):
        length = longest if lengths is None else int(lengths[b])
        items = [ctx.keep(x[b, :length]) for x in args[n:]]
        states = [ctx.keep(s[b]) for s in args[:n]]
        collected = [_Collected(info) for info in body.outputs[n:]]
        carried = run_scan(ctx, body, states, items, (0,) * len(items), reverse, collected)
        finals.append([ctx.keep(_tensor(ctx, c)) for c in carried])
        padded = []
        for one in collected:
            whole = _tensor(ctx, one.result(ctx))
            more = [(0, longest - length)] + [(0, 0)] * (whole.ndim - 1)
            padded.append(ctx.keep(pad(whole, more)))
        outputs.append(padded)
    return tuple(stack(list(each)) for part in (finals, outputs) for each in zip(*part))

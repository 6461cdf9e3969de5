"""Forests of decision trees: every row walks down every tree, and what the leaves hold is added.

A forest is arrays over its nodes. At node ``i`` a row goes to ``yes[i]`` where its element
``feature[i]`` is at most ``threshold[i]`` (NaN: where ``missing[i]`` is set), else to ``no[i]``; a
leaf leads to itself. A leaf gives ``weight[p]`` to output ``target[p]`` for the p from
``starts[i]`` to ``starts[i + 1]``. Each output has one accumulator, trees in ascending order.

Many rows are walked side by side, one per lane; of few rows one at a time, with a tree per lane.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="assignment,call-overload"

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, f32, f64, i32
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.lang import Array, Const, arange, full, isnan, minimum, program_id, scratch, where
from tilewright.ops.calls import KernelCall
from tilewright.ops.indexing_kernels import joined
from tilewright.ops.layout_kernels import divide
from tilewright.ops.table import OpDef, make, register
from tilewright.runtime.launch import kernel

__all__ = ["TABLES", "forest"]

TABLES: Final = (
    "feature", "threshold", "yes", "no", "missing", "roots", "depths", "weight", "target", "starts",
)  # fmt: skip
"""The arrays of a forest, in the order of the op's inputs after x. ``depths`` are of the trees."""

START: Final = {"add": 0.0, "max": float("-inf"), "min": float("inf")}
_LANES: Final = 32
_SPAN: Final = 256  # rows that share a tree in the cache, where there are many
_FEW: Final = 8  # rows: up to here a lane per tree


def one_down(x, rows, feature, threshold, yes, no, missing, at, MISSING):
    """Inline: the nodes one level below ``at``."""
    value = x[rows, feature[at]]
    left = value <= threshold[at]
    if MISSING:
        left = left | (isnan(value) & (missing[at] != 0))
    return where(left, yes[at], no[at])


def vote(out, row, leaf, weight, target, starts, VOTES, JOIN):
    """Inline: a leaf's weights added to a row of out."""
    if VOTES == "dense":
        start = starts[leaf]
        for c in range(0, out.shape[1], 8):
            kept = out[row, c : c + 8]
            out[row, c : c + 8] = joined(kept, weight[start + c : start + c + 8], JOIN)
    else:
        for p in range(starts[leaf], starts[leaf + 1]):
            c = target[p]
            out[row, c] = joined(out[row, c], weight[p], JOIN)


@kernel
def forest_rows(
    x: Array,
    feature: Array,
    threshold: Array,
    yes: Array,
    no: Array,
    missing: Array,
    roots: Array,
    depths: Array,
    weight: Array,
    target: Array,
    starts: Array,
    out: Array,
    MISSING: Const,
    JOIN: Const,
    FIRST: Const,
    VOTES: Const,
    SPAN: Const,
    BLOCK: Const,
):
    """out (N, C), a row per lane: grid (N / SPAN,). VOTES as of :func:`forest`.

    A tree stays in the cache while all SPAN rows walk down.
    """
    start = program_id(0) * SPAN
    places = scratch((BLOCK,), i32)
    totals = scratch((SPAN,), out.dtype)
    stop = minimum(start + SPAN, out.shape[0])
    if VOTES == "single":
        for j in range(0, SPAN, BLOCK):
            totals[j : j + BLOCK] = full((BLOCK,), FIRST, out.dtype)
    else:
        for r in range(start, stop):
            for c in range(out.shape[1]):
                out[r, c] = FIRST
    for t in range(roots.shape[0]):
        for first in range(start, stop, BLOCK):
            rows = first + arange(BLOCK)
            at = full((BLOCK,), 0, i32) + roots[t]
            for _ in range(depths[t]):
                at = one_down(x, rows, feature, threshold, yes, no, missing, at, MISSING)
            if VOTES == "single":
                j = first - start
                totals[j : j + BLOCK] = joined(totals[j : j + BLOCK], weight[at], JOIN)
            else:
                places[0:BLOCK] = at
                for r in range(minimum(BLOCK, stop - first)):
                    vote(out, first + r, places[r], weight, target, starts, VOTES, JOIN)
    if VOTES == "single":
        for first in range(start, stop, BLOCK):
            j = first - start
            out[first + arange(BLOCK), 0] = totals[j : j + BLOCK]


@kernel
def forest_trees(
    x: Array,
    feature: Array,
    threshold: Array,
    yes: Array,
    no: Array,
    missing: Array,
    roots: Array,
    depths: Array,
    weight: Array,
    target: Array,
    starts: Array,
    out: Array,
    MISSING: Const,
    JOIN: Const,
    FIRST: Const,
    VOTES: Const,
    DEPTH: Const,
    BLOCK: Const,
):
    """out (N, C), a tree per lane: grid (N,). DEPTH is that of the deepest tree."""
    row = program_id(0)
    places = scratch((BLOCK,), i32)
    for c in range(out.shape[1]):
        out[row, c] = FIRST
    many = roots.shape[0]
    for t in range(0, many, BLOCK):
        at = roots[t : t + BLOCK]
        for _ in range(DEPTH):
            at = one_down(x, row, feature, threshold, yes, no, missing, at, MISSING)
        places[0:BLOCK] = at
        for i in range(minimum(BLOCK, many - t)):
            leaf = places[i]
            if VOTES == "single":
                out[row, 0] = joined(out[row, 0], weight[leaf], JOIN)
            else:
                vote(out, row, leaf, weight, target, starts, VOTES, JOIN)


def _infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    x, tables = inputs[0], dict(zip(TABLES, inputs[1:], strict=True))
    if x.dtype not in (f32, f64) or len(x.shape) != 2:
        raise ShapeError(f"forest wants f32 or f64 rows (N, F), got {x.dtype}{shape_of(x.shape)}")
    if attrs["join"] not in START:
        raise ShapeError(f"forest: join is {', '.join(START)}, got {attrs['join']!r}")
    for name, table in tables.items():
        kind = x.dtype if name in ("threshold", "weight") else i32
        if table.dtype is not kind or len(table.shape) != 1:
            got = f"{table.dtype}{shape_of(table.shape)}"
            raise ShapeError(f"forest wants {name} to be a vector of {kind}, got {got}")
    return (x.shape[0], attrs["targets"]), x.dtype


def _reference(x: np.ndarray, *tables: np.ndarray, **attrs: Any) -> np.ndarray:
    t = dict(zip(TABLES, tables))
    out = np.full((len(x), attrs["targets"]), START[attrs["join"]], x.dtype)
    combine = {"add": np.add, "max": np.maximum, "min": np.minimum}[attrs["join"]]
    rows = np.arange(len(x))
    for root in t["roots"]:
        at = np.full(len(x), root)
        for _ in range(attrs["depth"]):
            value = x[rows, t["feature"][at]]
            left = (value <= t["threshold"][at]) | (np.isnan(value) & (t["missing"][at] != 0))
            at = np.where(left, t["yes"][at], t["no"][at])
        for row, leaf in zip(rows, at):
            if attrs["votes"] == "single":
                out[row, 0] = combine(out[row, 0], t["weight"][leaf])
                continue
            for p in range(t["starts"][leaf], t["starts"][leaf + 1]):
                c = t["target"][p]
                out[row, c] = combine(out[row, c], t["weight"][p])
    return out


def _calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    n, targets = out.shape
    if not n * targets:
        return []
    attrs = node.attrs
    consts = {
        "MISSING": attrs["missing"],
        "JOIN": attrs["join"],
        "FIRST": START[attrs["join"]],
        "VOTES": attrs["votes"],
        "BLOCK": _LANES,
    }
    if n <= _FEW:
        return [KernelCall(forest_trees, (n,), (*inputs, out), {**consts, "DEPTH": attrs["depth"]})]
    span = _LANES if n < 16 * _SPAN else _SPAN
    grid = (divide(n, span),)
    return [KernelCall(forest_rows, grid, (*inputs, out), {**consts, "SPAN": span})]


register(OpDef("forest", _infer, _reference, calls=_calls))


def forest(
    x: Node,
    tables: Mapping[str, Node],
    targets: int = 1,
    join: str = "add",
    votes: str = "pairs",
    missing: bool = True,
    depth: int = 1,
) -> Node:
    """What the leaves give that each row of x (N, F) comes to: (N, targets), in x's dtype.

    Args:
        x: f32 or f64.
        tables: the arrays :data:`TABLES`, i32 but for ``threshold`` and ``weight``, which have x's
            dtype.
        targets: how many outputs there are.
        join: how what a target gets is combined: ``"add"``, ``"max"`` or ``"min"``; a target that
            gets nothing is 0, -inf or inf.
        votes: ``"pairs"`` as above; ``"dense"``: every leaf gives a weight to each target, in
            order (``target`` is not read); ``"single"``: there is one target, and leaf i gives it
            ``weight[i]`` (``target`` and ``starts`` are not read).
        missing: whether ``missing`` has to be looked at.
        depth: the largest of ``depths``.

    No gradient.
    """
    if votes not in ("pairs", "dense", "single") or (votes == "single" and targets != 1):
        raise ShapeError(f"forest: votes {votes!r} for {targets} targets do not exist")
    return make(
        "forest",
        x,
        *(tables[name] for name in TABLES),
        targets=int(targets),
        join=join,
        votes=votes,
        missing=bool(missing),
        depth=int(depth),
    )

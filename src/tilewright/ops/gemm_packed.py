"""Table entry: ``bmm_packed``, a product with a constant matrix that was packed beforehand.

What :func:`pack_matrix` makes of b (k, n) is cut into panels of 32 (or 16) columns; a panel holds
its words of k one after the other, so that any product reads memory in one stream. Words are f32,
pairs of bf16, or f16 that becomes f32 when it is read; a panel is padded with zeros to whole chunks
of k. Nothing of it depends on the number of rows, and the bits are those of ``bmm``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from tilewright.dtypes import DType, bf16, f16, f32, to_float32, u32
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, data_node, shape_of
from tilewright.ops.calls import KernelCall
from tilewright.ops.epilogue import Epilogue
from tilewright.ops.gemm import absorbed, bmm, product_reference
from tilewright.ops.gemm_calls import (
    WINDOWS,
    Plan,
    pack_call,
    packed_calls,
    panel_plan,
    plan_product,
    split_batches,
    workspace_of,
)
from tilewright.ops.gemm_kernels import MOST_WORDS, no_epilogue
from tilewright.ops.table import OpDef, make, register
from tilewright.runtime.buffers import Buffer, empty
from tilewright.runtime.launch import default_pool, default_target
from tilewright.runtime.program import Launch, LaunchTable

__all__ = ["bmm_packed", "can_pack", "pack_matrix"]


def can_pack(a: DType, b: DType, compute: DType | None) -> bool:
    """Whether ``bmm`` of these dtypes has a packed form."""
    if compute is bf16:
        return {a, b} <= {f32, bf16}
    return a is b and b in (f32, f16, bf16)


def pack_matrix(b: Buffer, compute: DType | None = None, wide: bool = False) -> Node:
    """b (k, n), of any strides, as a leaf for :func:`bmm_packed`: (panels * words, columns).

    f32 makes f32 words, bf16 pairs, and so does f32 with ``compute=bf16``. f16 stays f16, which is
    half as much to read for few rows, or becomes f32 if ``wide``: for many rows a tenth faster,
    since every 8 of them would convert it again.
    """
    k, n = b.shape
    store = f32 if wide and b.dtype is f16 else _store(b.dtype, compute)
    plan = panel_plan(k, n, (b.dtype, b.dtype), compute)
    rows = plan.all_panels * plan.chunks * plan.chunk + MOST_WORDS
    made = empty(f32 if store is f16 else store, (rows, plan.panel))
    _run([pack_call(plan, b, made)])
    made.view((MOST_WORDS, plan.panel), (plan.panel, 1), (rows - MOST_WORDS) * plan.panel).numpy()[
        ...
    ] = 0
    if store is f16:  # the values are those of f16, so nothing is rounded
        narrow = empty(f16, made.shape)
        narrow.numpy()[...] = made.numpy()
        made = narrow
    return data_node(made)


def _run(calls: Sequence[KernelCall]) -> None:
    target = default_target()
    launches = [
        Launch(target.compile(c.kernel, c.kernel.signature(c.args, c.consts)), c.grid, c.args)
        for c in calls
    ]
    LaunchTable(launches).run(default_pool())


def _store(dtype: DType, compute: DType | None) -> DType:
    return u32 if bf16 in (dtype, compute) else dtype


def bmm_packed(
    a: Node,
    packed: Node,
    n: int,
    *,
    of: DType,
    out_dtype: DType | None = None,
    compute: DType | None = None,
) -> Node:
    """``a @ b``: a (*batch, m, k) and :func:`pack_matrix` of b (k, n) -> (*batch, m, n).

    Args:
        n: columns of b; of: its dtype.
        out_dtype, compute: as for :func:`~tilewright.ops.gemm.bmm`.
    """
    k = a.shape[-1]
    return make("bmm_packed", a, packed, k=k, n=n, of=of, out_dtype=out_dtype, compute=compute)


def _plain(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> Node:
    """The ``bmm`` that this is."""
    b = Node("input", (), (attrs["k"], attrs["n"]), attrs["of"])
    return bmm(inputs[0], b, out_dtype=attrs["out_dtype"], compute=attrs["compute"])


def _infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    a, packed = inputs[:2]
    if not can_pack(a.dtype, attrs["of"], attrs["compute"]):
        raise ShapeError(f"bmm_packed: no packed product of {a.dtype} and {attrs['of']}")
    like = _plain(inputs, attrs)
    plan = _panels(attrs)
    rows = plan.all_panels * plan.chunks * plan.chunk + MOST_WORDS
    store = _store(attrs["of"], attrs["compute"])
    stored = (store, f32) if store is f16 else (store,)
    if packed.shape != (rows, plan.panel) or packed.dtype not in stored:
        raise ShapeError(
            f"bmm_packed wants b ({attrs['k']}, {attrs['n']}) as {store}({rows}, {plan.panel}), "
            f"got {packed.dtype}{shape_of(packed.shape)}"
        )
    return like.shape, like.dtype


def _panels(attrs: Mapping[str, Any]) -> Plan:
    return panel_plan(attrs["k"], attrs["n"], (attrs["of"],) * 2, attrs["compute"])


def _reference(
    a: np.ndarray,
    packed: np.ndarray,
    *extras: np.ndarray,
    k: int,
    n: int,
    of: DType,
    out_dtype: DType | None,
    compute: DType | None,
    epilogue: Epilogue | None = None,
) -> np.ndarray:
    """``bmm`` of what was packed."""
    plan = panel_plan(k, n, (of, of), compute)
    words = plan.chunks * plan.chunk
    b = packed[: plan.all_panels * words].reshape(plan.all_panels, words, plan.panel)
    if packed.dtype == np.uint32:
        low, high = (to_float32(x.astype(np.uint16)) for x in (b & 0xFFFF, b >> 16))
        b = np.stack([low, high], axis=2).reshape(plan.all_panels, 2 * words, plan.panel)
    b = b.transpose(1, 0, 2).reshape(b.shape[1], -1)[:k, :n]
    return product_reference(a, b, *extras, out_dtype=out_dtype, compute=compute, epilogue=epilogue)


def _plan(node: Node) -> Plan:
    """As for ``bmm``, with the panels that are there."""
    a, attrs = node.inputs[0], node.attrs
    panels = _panels(attrs)
    batch = math.prod(cast(tuple[int, ...], node.shape[:-2]))
    m = cast(int, node.shape[-2])
    plan = plan_product(
        m, panels.k, panels.n, batch, (a.dtype, attrs["of"], node.dtype), attrs["compute"],
        panels.panel,
    )  # fmt: skip
    keep = plan.chunks > 1 and node.dtype is not plan.accumulate
    return replace(plan, pack_first=False, small=False, keep_sums=keep)


def _workspace(node: Node) -> Sequence[tuple[DType, Shape]]:
    plan, batch = _plan(node), node.shape[:-2]
    needed = workspace_of(plan, batch)  # type: ignore[arg-type]
    if node.inputs[0].dtype is not plan.word:
        words = -(-plan.k // 2) if plan.word is u32 else plan.k
        needed.append((plan.word, (*batch, plan.m, words)))
    return needed


def _calls(
    node: Node, inputs: Sequence[Any], out: Any, workspace: Sequence[Any] = ()
) -> list[KernelCall]:
    if 0 in out.shape:
        return []
    a, packed, *extras = inputs
    plan = _plan(node)
    sums = workspace[0] if plan.keep_sums else out
    copied = list(workspace[plan.keep_sums :])
    epilogue = node.attrs.get("epilogue")
    finish = no_epilogue
    if epilogue is not None:
        finish = epilogue.function("acc, o, p, i, j, extras", WINDOWS)
    calls: list[KernelCall] = []
    parts = split_batches(a, *extras, *copied, sums, out)
    for one, *more, between, y in parts:
        rest, rows = more[: len(extras)], more[len(extras) :]
        calls += packed_calls(
            plan, one, packed, y, between, finish, tuple(rest), rows[0] if rows else None
        )
    return calls


register(
    OpDef("bmm_packed", _infer, _reference, calls=_calls, workspace=_workspace, absorb=absorbed)
)

"""Probabilities of several classes from those of pairs of them.

The second method of Wu, Lin and Weng, "Probability estimates for multi-class classification by
pairwise coupling" (JMLR 5, 2004), as LIBSVM computes it: a fixed point, in float64.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="assignment,call-overload"

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, f32, f64
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.lang import Array, Const, abs, cast, maximum, program_id, scratch, where
from tilewright.ops.calls import KernelCall
from tilewright.ops.table import OpDef, make, register
from tilewright.runtime.launch import kernel

__all__ = ["coupled"]


@kernel
def coupling_kernel(shares: Array, out: Array, K: Const):
    """out (N, K) from shares (N, K (K - 1) / 2): grid (N,)."""
    row = program_id(0)
    r = scratch((K, K), f64)
    q = scratch((K, K), f64)
    qp = scratch((K,), f64)
    p = scratch((K,), f64)
    at = 0
    for i in range(K):
        p[i] = 1.0 / K
        for j in range(i + 1, K):
            r[i, j] = shares[row, at].to(f64)
            r[j, i] = 1.0 - shares[row, at].to(f64)
            at = at + 1
    for t in range(K):
        total = cast(0.0, f64)
        for j in range(K):
            total = total + where(j == t, 0.0, r[j, t] * r[j, t])
            q[t, j] = -r[j, t] * r[t, j]
        q[t, t] = total
    done = cast(0.0, f64)
    for _ in range(100 if K < 100 else K):
        whole = cast(0.0, f64)
        for t in range(K):
            one = cast(0.0, f64)
            for j in range(K):
                one = one + q[t, j] * p[j]
            qp[t] = one
            whole = whole + p[t] * one
        worst = cast(0.0, f64)
        for t in range(K):
            worst = maximum(worst, abs(qp[t] - whole))
        done = where(worst < 0.005 / K, 1.0, done)
        for t in range(K):
            step = where(done > 0.0, 0.0, (whole - qp[t]) / q[t, t])
            grown = 1.0 + step
            p[t] = p[t] + step
            whole = (whole + step * (step * q[t, t] + 2.0 * qp[t])) / (grown * grown)
            for j in range(K):
                qp[j] = (qp[j] + step * q[t, j]) / grown
                p[j] = p[j] / grown
    for t in range(K):
        out[row, t] = p[t].to(f32)


def _reference(shares: np.ndarray, classes: int) -> np.ndarray:
    rows = shares.astype(np.float64)
    n, k = len(rows), classes
    r = np.zeros((n, k, k))
    upper = np.triu_indices(k, 1)
    r[:, upper[0], upper[1]] = rows
    r[:, upper[1], upper[0]] = 1 - rows
    q = -r.transpose(0, 2, 1) * r
    q[:, range(k), range(k)] = (r**2).sum(1)
    p = np.full((n, k), 1 / k)
    done = np.zeros(n, bool)
    for _ in range(max(100, k)):
        qp = np.einsum("ntj,nj->nt", q, p)
        whole = (p * qp).sum(1)
        done |= np.abs(qp - whole[:, None]).max(1, initial=0) < 0.005 / k
        for t in range(k):
            step = np.where(done, 0, (whole - qp[:, t]) / q[:, t, t])
            grown = 1 + step
            p[:, t] += step
            whole = (whole + step * (step * q[:, t, t] + 2 * qp[:, t])) / grown**2
            qp = (qp + step[:, None] * q[:, t]) / grown[:, None]
            p /= grown[:, None]
    return p.astype(np.float32)


def _infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    (x,) = inputs
    k = attrs["classes"]
    if x.dtype is not f32 or len(x.shape) != 2 or x.shape[1] != k * (k - 1) // 2 or k < 2:
        raise ShapeError(
            f"coupled wants f32 shares (N, {k * (k - 1) // 2}) of the pairs of {k} classes, got "
            f"{x.dtype}{shape_of(x.shape)}"
        )
    return (x.shape[0], k), f32


def _calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    if not out.shape[0]:
        return []
    consts = {"K": node.attrs["classes"]}
    return [KernelCall(coupling_kernel, (out.shape[0],), (inputs[0], out), consts)]


register(OpDef("coupled", _infer, _reference, calls=_calls))


def coupled(shares: Node, classes: int) -> Node:
    """Probabilities (N, classes) from the shares of the first class of each pair; no gradient.

    shares: f32 (N, classes (classes - 1) / 2) in (0, 1), pairs (0, 1), (0, 2), ... (1, 2) ...
    """
    return make("coupled", shares, classes=int(classes))

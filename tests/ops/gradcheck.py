"""Checks of gradients that every family of ops shares.

``check_gradient(fn, *arrays)`` holds the gradient and the jvp of ``fn`` (nodes to a node, or to
several) against central differences in float64 along random directions and, when asked, the
gradient's own gradient, and values and gradients against a PyTorch function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.compiler.realize import realize
from tilewright.dtypes import DType, bf16, from_float32, to_float32
from tilewright.graph import Node, data_node, topological
from tilewright.ops.autodiff import jvp, vjp
from tilewright.ops.table import evaluate_nodes
from tilewright.runtime.buffers import from_array

__all__ = ["check_gradient", "compiled", "data", "referenced", "strided"]

Run = Callable[[Sequence[Node]], list[np.ndarray]]


def data(array: Any, dtype: DType | None = None) -> Node:
    """A leaf with the values of ``array``; as bf16 they are rounded first."""
    values = np.asarray(array)
    if dtype is bf16:
        return data_node(from_array(from_float32(values), bf16))
    if dtype is not None:
        with np.errstate(over="ignore"):
            values = values.astype(dtype.storage)
    return data_node(from_array(values))


def referenced(nodes: Sequence[Node]) -> list[np.ndarray]:
    """The nodes' values by the ops' NumPy references."""
    values = evaluate_nodes(topological(nodes), {})
    return [np.asarray(values[n]) for n in nodes]


def compiled(nodes: Sequence[Node]) -> list[np.ndarray]:
    """The nodes' values by the kernels; bf16 as float32, as the references have it."""
    return [to_float32(b.numpy()) if b.dtype is bf16 else b.numpy().copy() for b in realize(nodes)]


def strided(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same values in memory with other strides: gaps, negative steps, axes in another order."""
    array = np.asarray(array)
    order = rng.permutation(array.ndim)
    steps = [int(rng.choice([-2, -1, 1, 2])) for _ in order]
    shape = [array.shape[a] * abs(s) for a, s in zip(order, steps)]
    memory = np.zeros(shape, array.dtype)
    view = memory[(..., *(slice(None, None, s) for s in steps))].transpose(np.argsort(order))
    view[...] = array
    return view


def _many(result: Node | Sequence[Node]) -> list[Node]:
    return [result] if isinstance(result, Node) else list(result)


def check_gradient(
    fn: Callable[..., Node | Sequence[Node]],
    *arrays: np.ndarray,
    order: int = 1,
    torch_fn: Callable[..., Any] | None = None,
    run: Run = referenced,
    seed: int = 0,
    step: float = 1e-5,
    tolerance: float = 1e-6,
) -> None:
    """Check ``fn``'s gradient by every float array.

    Args:
        fn: nodes to a node or several; called many times.
        arrays: float64 where differentiated; integers and bools are passed on.
        order: 2 checks the gradient of the gradient too, and so on.
        torch_fn: the same function of torch tensors; its values and gradients must agree.
        run: how values and gradients are computed; differences always use the references.
        seed: of cotangents and directions.
        step: of the differences: the values must be smooth on that scale.
        tolerance: relative to the size of what is compared.
    """
    rng = np.random.default_rng(seed)
    wrt = [i for i, a in enumerate(arrays) if a.dtype == np.float64]
    leaves = [data(a) for a in arrays]
    outs = _many(fn(*leaves))
    cotangents = [rng.standard_normal(y.shape) for y in outs]
    grads = vjp(outs, [data(c) for c in cotangents], [leaves[i] for i in wrt])
    found = run([g for g in grads if g is not None])
    filled = iter(found)
    got = [np.zeros(arrays[i].shape) if g is None else next(filled) for i, g in zip(wrt, grads)]

    directions = [rng.standard_normal(arrays[i].shape) for i in wrt]
    pushed = referenced(jvp(outs, [leaves[i] for i in wrt], [data(d) for d in directions]))

    def moved(by: float, only: int | None = None) -> list[np.ndarray]:
        inputs = list(arrays)
        for i, d in zip(wrt, directions):
            if only is None or only == i:
                inputs[i] = np.asarray(arrays[i] + by * d)
        return referenced(_many(fn(*(data(a) for a in inputs))))

    for i, g, d in zip(wrt, got, directions):
        high, low = moved(step, i), moved(-step, i)
        terms = [c * (h - l) / (2 * step) for c, h, l in zip(cotangents, high, low)]
        _close(_total(g * d), _total(*terms), _size(g * d, *terms), tolerance, f"gradient {i}")
    high, low = moved(step), moved(-step)
    for i, (p, h, l) in enumerate(zip(pushed, high, low)):
        slope = (h - l) / (2 * step)
        _close(p, slope, _size(p, slope), tolerance, f"jvp of output {i}")

    if torch_fn is not None:
        _check_torch(torch_fn, arrays, wrt, cotangents, run(outs), got)
    if order > 1:

        def gradient(*nodes: Node) -> list[Node]:
            ys = _many(fn(*nodes))
            parts = vjp(ys, [data(c) for c in cotangents], [nodes[i] for i in wrt])
            return [g for g in parts if g is not None]

        check_gradient(
            gradient,
            *arrays,
            order=order - 1,
            run=run,
            seed=seed + 1,
            step=step,
            tolerance=10 * tolerance,
        )


def _total(*arrays: np.ndarray) -> float:
    return float(sum(np.sum(a) for a in arrays))


def _size(*arrays: np.ndarray) -> float:
    return float(sum(np.sum(np.abs(a)) for a in arrays))


def _close(got: Any, wanted: Any, size: float, tolerance: float, what: str) -> None:
    error = np.max(np.abs(np.asarray(got) - wanted), initial=0)
    assert error <= tolerance * (size + 1e-3), (
        f"{what}: got {got}, differences give {wanted} (error {error:.3g}, size {size:.3g})"
    )


def _check_torch(
    fn: Callable[..., Any],
    arrays: Sequence[np.ndarray],
    wrt: Sequence[int],
    cotangents: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    grads: Sequence[np.ndarray],
) -> None:
    try:
        import torch
    except ImportError:
        return
    tensors = [torch.from_numpy(np.array(a)).requires_grad_(i in wrt) for i, a in enumerate(arrays)]
    result = fn(*tensors)
    outs = [result] if isinstance(result, torch.Tensor) else list(result)
    for mine, theirs in zip(values, outs, strict=True):
        np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=1e-9, atol=1e-12)
    wanted = torch.autograd.grad(
        outs,
        [tensors[i] for i in wrt],
        [torch.from_numpy(c) for c in cotangents],
        allow_unused=True,
    )
    for mine, theirs in zip(grads, wanted, strict=True):
        expected = np.zeros_like(mine) if theirs is None else theirs.numpy()
        np.testing.assert_allclose(mine, expected, rtol=1e-8, atol=1e-10)

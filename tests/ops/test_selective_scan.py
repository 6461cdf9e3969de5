"""The selective scan: kernels against references, torch, central differences, threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.ops.gradcheck import check_gradient, compiled
from tests.ops.node_calls import LAYOUTS, leaf, reference, with_threads

from tilewright.dtypes import DType, bf16, f16, f32, f64
from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.ops.autodiff import vjp
from tilewright.ops.selective_scan import selective_scan

NAMES = ("x", "delta", "a", "b", "c", "d")


def arrays_of(
    rng: np.random.Generator, batch: int, steps: int, width: int, n: int
) -> list[np.ndarray]:
    """Inputs of the sizes a Mamba block has: small steps, negative rates."""
    return [
        rng.standard_normal((batch, steps, width)),
        np.exp(rng.standard_normal((batch, steps, width)) - 2),
        -np.exp(rng.standard_normal((width, n))),
        rng.standard_normal((batch, steps, n)),
        rng.standard_normal((batch, steps, n)),
        rng.standard_normal(width),
    ]


def torch_scan(
    x: torch.Tensor,
    delta: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor,
) -> torch.Tensor:
    h = torch.zeros(x.shape[0], x.shape[2], a.shape[1], dtype=x.dtype)
    out = []
    for t in range(x.shape[1]):
        h = torch.exp(delta[:, t, :, None] * a) * h
        h = h + (delta[:, t] * x[:, t])[:, :, None] * b[:, t, None]
        out.append((h * c[:, t, None]).sum(-1) + d * x[:, t])
    return torch.stack(out, 1)


SIZES = [(1, 1, 1, 1), (1, 70, 17, 16), (3, 9, 20, 5), (1, 60, 6, 32)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients(sizes: tuple[int, ...], layout: str) -> None:
    rng = np.random.default_rng(1)
    arrays = arrays_of(rng, *sizes)
    leaves = [leaf(v, f32, layout) for v in arrays]
    y = selective_scan(*leaves)
    up = rng.standard_normal(arrays[0].shape)
    grads = vjp([y], [leaf(up, f32, layout)], leaves)
    nodes: list[Node] = [y, *(g for g in grads if g is not None)]
    assert len(nodes) == 7
    for name, got, want in zip(("y", *NAMES), compiled(nodes), reference(*nodes)):
        size = np.abs(want).max() + 1
        np.testing.assert_allclose(got / size, want / size, rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("dtype", [f64, bf16, f16])
def test_dtypes(dtype: DType) -> None:
    arrays = arrays_of(np.random.default_rng(2), 2, 20, 9, 4)
    y = selective_scan(*(leaf(v, dtype) for v in arrays))
    tight = {f64: 1e-12, f16: 2e-3, bf16: 1e-2}[dtype]
    (got,) = compiled([y])
    np.testing.assert_allclose(got, reference(y), rtol=tight, atol=tight)


@pytest.mark.parametrize("kernels", [False, True])
def test_gradients_against_differences_and_torch(kernels: bool) -> None:
    arrays = arrays_of(np.random.default_rng(3), 2, 7, 3, 4)
    how = {"run": compiled} if kernels else {}
    check_gradient(selective_scan, *arrays, order=2, torch_fn=torch_scan, **how)


def test_without_a_skip() -> None:
    arrays = arrays_of(np.random.default_rng(4), 1, 6, 3, 2)[:5]
    nodes = [leaf(v, f64) for v in arrays]
    wanted = torch_scan(*map(torch.tensor, arrays), torch.zeros(3, dtype=torch.float64))
    np.testing.assert_allclose(compiled([selective_scan(*nodes)])[0], wanted, rtol=1e-12)


@pytest.mark.parametrize("sizes", [(0, 3, 4, 2), (2, 0, 4, 2), (2, 3, 0, 2)])
def test_empty(sizes: tuple[int, ...]) -> None:
    arrays = arrays_of(np.random.default_rng(5), *sizes)
    leaves = [leaf(v, f32) for v in arrays]
    y = selective_scan(*leaves)
    grads = [g for g in vjp([y], [leaf(arrays[0], f32)], leaves) if g is not None]
    for node, got in zip([y, *grads], compiled([y, *grads])):
        assert got.shape == node.shape
        assert not np.any(got)


def test_same_bits_for_any_number_of_threads() -> None:
    rng = np.random.default_rng(6)
    arrays = arrays_of(rng, 2, 100, 50, 16)
    up = rng.standard_normal(arrays[0].shape)
    results = []
    for n in (1, 2, 3, 4):
        leaves = [leaf(v, f32) for v in arrays]
        y = selective_scan(*leaves)
        grads = [g for g in vjp([y], [leaf(up, f32)], leaves) if g is not None]
        results.append(with_threads(n, lambda nodes=(y, *grads): compiled(nodes)))
    for other in results[1:]:
        for one, two in zip(results[0], other):
            np.testing.assert_array_equal(one, two)


def test_errors_name_what_does_not_fit() -> None:
    nodes = [leaf(v, f32) for v in arrays_of(np.random.default_rng(7), 2, 3, 4, 5)]
    with pytest.raises(ShapeError, match=r"wants floats x and delta \(B, T, D\).*got f32"):
        selective_scan(*nodes[:5], nodes[0])
    with pytest.raises(ShapeError, match="f64"):
        selective_scan(leaf(np.zeros((2, 3, 4)), f64), *nodes[1:])

"""Products, Einstein sums, and the linalg extension against NumPy."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

import tilewright as tw
from tilewright.tensor import linalg_extension

RNG = np.random.default_rng(0)

EQUATIONS = [
    "ij,jk->ik",
    "ij,jk",
    "bij,bjk->bik",
    "bhqd,bhkd->bhqk",
    "ij->ji",
    "ij->",
    "ii",
    "ii->i",
    "iij->j",
    "i,j->ij",
    "i,i",
    "ij,ij->ij",
    "ij,kj,kl->il",
    "...ij,...jk->...ik",
    "i...,i...->...",
    "ij,j->i",
    "abc,cd,bd->a",
    "ba,b->",
]
SIZES = dict(zip("abcdefghijklqk", [2, 3, 4, 5, 2, 3, 2, 3, 3, 4, 5, 2, 4, 5]))


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(equation: str) -> None:
    operands = []
    for k, letters in enumerate(equation.split("->")[0].split(",")):
        shape: list[int] = []
        for part in letters.replace("...", "."):
            shape += [2, 1 + 2 * k] if part == "." else [SIZES[part]]
        operands.append(RNG.standard_normal(shape))
    got = tw.einsum(equation, *map(tw.asarray, operands))
    wanted = np.einsum(equation, *operands)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("equation", ["ij,jk,kl->il", "ij,kj", "ij->ix", "iij->ij", "i1->i"])
def test_einsum_errors(equation: str) -> None:
    with pytest.raises(tw.ShapeError, match="einsum"):
        tw.einsum(equation, tw.ones((2, 3)))


def test_einsum_has_gradients() -> None:
    a = tw.asarray(RNG.standard_normal((3, 4)))
    b = tw.asarray(RNG.standard_normal((4, 2)))
    ga, gb = tw.grad(lambda x, y: tw.einsum("ij,jk->", x, y), (0, 1))(a, b)
    np.testing.assert_allclose(ga.numpy(), np.tile(b.numpy().sum(1), (3, 1)), rtol=1e-12)
    np.testing.assert_allclose(gb.numpy(), np.tile(a.numpy().sum(0)[:, None], (1, 2)), rtol=1e-12)


MATRICES = RNG.standard_normal((2, 4, 3))
SQUARE = RNG.standard_normal((2, 4, 4))
POSITIVE = SQUARE @ SQUARE.swapaxes(-1, -2) + np.eye(4)

CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("cholesky", (POSITIVE,), {}),
    ("cholesky", (POSITIVE,), {"upper": True}),
    ("cross", (MATRICES, RNG.standard_normal((4, 3))), {}),
    ("cross", (RNG.standard_normal((3, 2)), RNG.standard_normal((3, 2))), {"axis": -2}),
    ("det", (SQUARE,), {}),
    ("eigvalsh", (POSITIVE,), {}),
    ("inv", (POSITIVE,), {}),
    ("matrix_rank", (MATRICES,), {}),
    ("matrix_rank", (np.ones((3, 3)),), {"rtol": 1e-3}),
    ("matrix_transpose", (MATRICES,), {}),
    ("outer", (MATRICES[0, 0], SQUARE[0, 0]), {}),
    ("pinv", (MATRICES,), {}),
    ("solve", (POSITIVE, MATRICES), {}),
    ("solve", (POSITIVE, SQUARE[0, 0]), {}),
    ("svdvals", (MATRICES,), {}),
    ("trace", (SQUARE,), {}),
    ("trace", (MATRICES,), {"offset": -1}),
    *(("matrix_power", (SQUARE, n), {}) for n in (-2, 0, 1, 5)),
    *(("diagonal", (MATRICES,), {"offset": k}) for k in (-4, -1, 0, 1, 2, 5)),
    *(
        ("matrix_norm", (MATRICES,), {"ord": o, "keepdims": k})
        for o, k in [("fro", True), ("nuc", False), (1, False), (-1, True), (2, False), (-2, True),
                     (np.inf, False), (-np.inf, False)]
    ),
    *(
        ("vector_norm", (MATRICES,), {"ord": o, "axis": a, "keepdims": True})
        for o, a in [(2, None), (1, 0), (np.inf, (0, 2)), (-np.inf, 1), (0, None), (3, 2), (0.5, 1)]
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "kwargs"), CALLS)
def test_agrees_with_strict(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    def given(xp: Any) -> list[Any]:
        return [xp.asarray(a.copy()) if isinstance(a, np.ndarray) else a for a in args]

    wanted = np.asarray(getattr(strict.linalg, name)(*given(strict), **kwargs)._array)
    got = getattr(tw.linalg, name)(*given(tw), **kwargs)
    assert got.shape == wanted.shape
    assert got.dtype is getattr(tw, str(wanted.dtype))
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (2, 3, 3), (0, 3)])
def test_factors_multiply_to_the_matrix(shape: tuple[int, ...]) -> None:
    x = tw.asarray(RNG.standard_normal(shape))
    for mode in ("reduced", "complete"):
        q, r = tw.linalg.qr(x, mode=mode)
        np.testing.assert_allclose((q @ r).numpy(), x.numpy(), atol=1e-12)
    u, s, vh = tw.linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose(((u * s[..., None, :]) @ vh).numpy(), x.numpy(), atol=1e-12)
    assert tw.linalg.svd(x).U.shape == (*shape[:-1], shape[-2])


def test_eigenvectors_and_logdet() -> None:
    x = tw.asarray(POSITIVE)
    values, vectors = tw.linalg.eigh(x)
    np.testing.assert_allclose((x @ vectors).numpy(), (vectors * values[:, None, :]).numpy())
    sign, log = tw.linalg.slogdet(x)
    np.testing.assert_allclose((sign * tw.exp(log)).numpy(), tw.linalg.det(x).numpy())


def test_linalg_errors() -> None:
    with pytest.raises(tw.ShapeError, match="ingular"):
        tw.linalg.inv(tw.zeros((2, 2)))
    with pytest.raises(tw.ShapeError, match="square"):
        tw.linalg.det(tw.zeros((2, 3)))
    with pytest.raises(TypeError, match="astype"):
        tw.linalg.inv(tw.zeros((2, 2), dtype=tw.float16))
    x = tw.ones((2, 2))
    x.requires_grad = True
    with pytest.raises(tw.UnsupportedError, match="gradient"):
        tw.linalg.inv(x)
    with pytest.raises(tw.UnsupportedError, match="gradient"):
        tw.linalg.det(x).backward()


@pytest.mark.parametrize("name", [n for n in linalg_extension.__all__ if n[0].islower()])
def test_signature_is_that_of_the_standard(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = inspect.signature(getattr(strict.linalg, name)).parameters.values()
    got = inspect.signature(getattr(tw.linalg, name)).parameters
    assert [(p.name, p.kind) for p in wanted] == [
        (n, got[n].kind) for n in (p.name for p in wanted)
    ]


def test_norm_and_outer() -> None:
    x = RNG.standard_normal((3, 4))
    np.testing.assert_allclose(tw.norm(tw.asarray(x)).numpy(), np.linalg.norm(x))
    np.testing.assert_allclose(tw.norm(tw.asarray(x), axis=1, ord=1).numpy(), np.abs(x).sum(1))
    with pytest.raises(tw.ShapeError, match="vectors"):
        tw.outer(tw.ones((2, 2)), tw.ones((2,)))


def test_shapes_beyond_the_standard() -> None:
    x = np.arange(12.0).reshape(3, 4)
    parts = tw.split(tw.asarray(x), [1, 3], axis=1)
    assert [p.shape for p in parts] == [(3, 1), (3, 3)]
    np.testing.assert_array_equal(tw.concat(parts, axis=1).numpy(), x)
    assert [p.shape for p in tw.split(tw.asarray(x), 2)] == [(2, 4), (1, 4)]
    np.testing.assert_array_equal(
        tw.pad(tw.asarray(x), [(1, 0), (0, 2)], value=5).numpy(),
        np.pad(x, [(1, 0), (0, 2)], constant_values=5),
    )
    np.testing.assert_array_equal(tw.pad(tw.asarray(x), 1).numpy(), np.pad(x, 1))
    values, where = tw.topk(tw.asarray(x), 2, axis=1)
    np.testing.assert_array_equal(values.numpy(), x[:, [3, 2]])
    np.testing.assert_array_equal(where.numpy(), [[3, 2]] * 3)
    assert tw.asarray(x).flatten().shape == (12,)
    assert tw.asarray(x).reshape(2, -1).shape == (2, 6)
    assert tw.asarray(x).transpose(0, 1).shape == (4, 3)

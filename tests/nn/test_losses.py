"""Losses against PyTorch's, values and gradients, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.nn.torch_twins import close, torch

from tilewright import asarray
from tilewright.dtypes import bf16
from tilewright.errors import ShapeError
from tilewright.nn import functional as F
from tilewright.tensor.core import Tensor

TF = torch.nn.functional


def x(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def compare(
    ours: Callable[..., Tensor], theirs: Callable[..., Any], *inputs: np.ndarray, grads: int = 1
) -> None:
    """Values and the gradients of the first ``grads`` inputs."""
    mine = [asarray(v.copy()) for v in inputs]
    peers = [torch.from_numpy(v.copy()) for v in inputs]
    for a, b in list(zip(mine, peers))[:grads]:
        a.requires_grad = True
        b.requires_grad_()
    got, want = ours(*mine), theirs(*peers)
    close(got, want, "value")
    weight = x(*want.shape, seed=9)
    want.backward(torch.from_numpy(weight))
    got.backward(asarray(weight))
    for a, b in list(zip(mine, peers))[:grads]:
        close(a.grad, b.grad, "gradient", 2e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(reduction: str, smoothing: float, weighted: bool) -> None:
    targets = np.random.default_rng(1).integers(0, 7, 20)
    targets[[3, 5]] = -100
    weight = np.abs(x(7)) + 0.1 if weighted else None

    def ours(z: Tensor, t: Tensor) -> Tensor:
        w = None if weight is None else asarray(weight)
        return F.cross_entropy(z, t, w, label_smoothing=smoothing, reduction=reduction)

    def theirs(z: Any, t: Any) -> Any:
        w = None if weight is None else torch.from_numpy(weight)
        return TF.cross_entropy(z, t, w, label_smoothing=smoothing, reduction=reduction)

    compare(ours, theirs, x(20, 7) * 5, targets)


def test_cross_entropy_of_sequences_has_classes_last() -> None:
    targets = np.random.default_rng(1).integers(0, 7, (4, 5)).astype(np.int32)
    compare(
        lambda z, t: F.cross_entropy(z, t, ignore_index=2),
        lambda z, t: TF.cross_entropy(z.flatten(0, 1), t.flatten().long(), ignore_index=2),
        x(4, 5, 7),
        targets,
    )


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_cross_entropy_of_probabilities(reduction: str) -> None:
    p = np.exp(x(6, 7, seed=3))
    p /= p.sum(1, keepdims=True)
    w = np.abs(x(7, seed=4))
    compare(
        lambda z, t: F.cross_entropy(z, t, asarray(w), label_smoothing=0.2, reduction=reduction),
        lambda z, t: TF.cross_entropy(
            z, t, torch.from_numpy(w), label_smoothing=0.2, reduction=reduction
        ),
        x(6, 7),
        p,
        grads=2,
    )


def test_cross_entropy_of_huge_logits_is_exact() -> None:
    z = asarray(np.array([[1e4, 0.0], [0.0, 1e4]], np.float32))
    assert F.cross_entropy(z, asarray(np.array([0, 0])), reduction="none").tolist() == [0.0, 1e4]


def test_losses_of_bf16_are_computed_in_f32() -> None:
    z = asarray(x(6, 7)).astype(bf16)
    loss = F.cross_entropy(z, asarray(np.arange(6)))
    want = TF.cross_entropy(torch.from_numpy(z.numpy().copy()), torch.arange(6))
    assert str(loss.dtype) == "f32"
    close(loss, want)


PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "mse": (F.mse_loss, TF.mse_loss),
    "l1": (F.l1_loss, TF.l1_loss),
    "huber": (lambda a, b: F.huber_loss(a, b, 0.7), lambda a, b: TF.huber_loss(a, b, delta=0.7)),
    "smooth_l1": (
        lambda a, b: F.smooth_l1_loss(a, b, 0.3),
        lambda a, b: TF.smooth_l1_loss(a, b, beta=0.3),
    ),
    "cosine": (F.cosine_similarity, lambda a, b: TF.cosine_similarity(a, b, dim=-1)),
    "kl of logarithms": (
        lambda a, b: F.kl_div(a, b, log_target=True),
        lambda a, b: TF.kl_div(a, b, reduction="batchmean", log_target=True),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_losses_of_pairs(name: str) -> None:
    compare(*PAIRS[name], x(5, 6), x(5, 6, seed=1), grads=2)


def test_binary_cross_entropy() -> None:
    t = np.random.default_rng(2).random((5, 6)).astype(np.float32)
    weight, positive = np.abs(x(6)), np.abs(x(6, seed=5)) + 0.5
    name = "binary_cross_entropy_with_logits"
    compare(getattr(F, name), getattr(TF, name), x(5, 6) * 30, t)
    compare(
        lambda a, b: F.binary_cross_entropy_with_logits(
            a, b, asarray(weight), asarray(positive), "sum"
        ),
        lambda a, b: TF.binary_cross_entropy_with_logits(
            a,
            b,
            torch.from_numpy(weight),
            pos_weight=torch.from_numpy(positive),
            reduction="sum",
        ),
        x(5, 6) * 5,
        t,
    )


def test_kl_div_of_zeros() -> None:
    p = np.array([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]], np.float32)
    for reduction in ("batchmean", "sum", "none"):
        compare(
            lambda a, b, r=reduction: F.kl_div(a, b, reduction=r),
            lambda a, b, r=reduction: TF.kl_div(a, b, reduction=r),
            x(2, 3),
            p,
        )


def test_nll_and_cosine_embedding() -> None:
    t = np.random.default_rng(1).integers(0, 7, 9)
    t[2] = 4
    w = np.abs(x(7))
    compare(
        lambda z, i: F.nll_loss(z, i, asarray(w), ignore_index=4),
        lambda z, i: TF.nll_loss(z, i, torch.from_numpy(w), ignore_index=4),
        x(9, 7),
        t,
    )
    signs = np.array([1, -1, 1, -1, -1])
    compare(
        lambda a, b: F.cosine_embedding_loss(a, b, asarray(signs), 0.1),
        lambda a, b: TF.cosine_embedding_loss(a, b, torch.from_numpy(signs), 0.1),
        x(5, 6),
        x(5, 6, seed=1),
        grads=2,
    )


def test_losses_refuse_shapes_that_differ() -> None:
    a, b = asarray(x(2, 3)), asarray(x(3))
    with pytest.raises(ShapeError, match="one shape"):
        F.mse_loss(a, b)
    with pytest.raises(ShapeError, match="targets"):
        F.cross_entropy(a, asarray(np.arange(3)))
    with pytest.raises(ValueError, match="reduction"):
        F.l1_loss(a, a, "average")

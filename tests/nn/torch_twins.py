"""Layers beside PyTorch's: the same names, and from the same weights the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tilewright.nn import Module
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import asarray
from tilewright.tensor.tree import leaves

torch = pytest.importorskip("torch")

__all__ = ["check_twin", "close", "load_from_torch", "to_torch", "torch"]


def close(ours: Any, theirs: Any, what: str = "", tolerance: float = 1e-5) -> None:
    """Equal within ``tolerance`` of the largest number."""
    a = ours.numpy() if isinstance(ours, Tensor) else np.asarray(ours)
    b = theirs.detach().float().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    assert a.shape == b.shape, f"{what}: {a.shape} and {b.shape}"
    scale = max(1.0, float(np.abs(b).max(initial=0)))
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=what)


def to_torch(x: Tensor) -> Any:
    return torch.from_numpy(np.array(x.numpy()))


def load_from_torch(ours: Module, theirs: Any) -> None:
    """Load the state of a torch module; names and shapes have to be the same."""
    state = {name: t.detach().numpy() for name, t in theirs.state_dict().items()}
    own = ours.state_dict()
    assert set(own) == set(state), set(own) ^ set(state)
    ours.load_state_dict(state)


def _arrays(result: Any) -> list[Any]:
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, (tuple, list)):
        return [a for r in result for a in _arrays(r)]
    return []


def check_twin(
    ours: Module,
    theirs: Any,
    *inputs: np.ndarray,
    call: Callable[..., Any] | None = None,
    tolerance: float = 1e-5,
) -> None:
    """State both ways, results, gradients of parameters and of float inputs, buffers after."""
    load_from_torch(ours, theirs)
    call = call or (lambda module, *xs: module(*xs))
    mine = [asarray(x.copy()) for x in inputs]
    for x in mine:
        if x.dtype.is_float:
            x.requires_grad = True
    peers = [torch.from_numpy(x.copy()) for x in inputs]
    for p in peers:
        p.requires_grad_(p.is_floating_point())
    got: Sequence[Tensor] = leaves(call(ours, *mine))
    want = _arrays(theirs(*peers))
    assert len(got) == len(want)
    rng = np.random.default_rng(7)
    weights = [rng.standard_normal(w.shape).astype(np.float32) for w in want]
    loss = sum((g * asarray(w)).sum() for g, w in zip(got, weights))
    sum((g * torch.from_numpy(w)).sum() for g, w in zip(want, weights)).backward()
    loss.backward()  # type: ignore[union-attr]
    for i, (g, w) in enumerate(zip(got, want)):
        close(g, w, f"result {i}", tolerance)
    named = dict(ours.named_parameters())
    for name, p in theirs.named_parameters():
        close(named[name].grad, p.grad, f"gradient of {name}", tolerance)
    for i, (x, p) in enumerate(zip(mine, peers)):
        if p.requires_grad:
            close(x.grad, p.grad, f"gradient of input {i}", tolerance)
    state = ours.state_dict()
    for name, p in theirs.state_dict().items():
        close(state[name], p.numpy(), name, tolerance)
    theirs.load_state_dict({name: to_torch(t) for name, t in state.items()})

"""What is done to gradients before a step: clipping, accumulation, loss scaling.

All of it is graph code and may be part of a compiled step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from tilewright.compiler.realize import realize as realize_nodes
from tilewright.errors import ShapeError
from tilewright.ops import views
from tilewright.ops.unique_rows import unique_rows
from tilewright.optim.optimizer import Optimizer
from tilewright.runtime.interrupts import Held
from tilewright.tensor.core import Tensor, realize
from tilewright.tensor.creation import asarray
from tilewright.tensor.elementwise import clip, isfinite, logical_not, sqrt, where
from tilewright.tensor.modes import mode, no_grad
from tilewright.tensor.sparse import SparseRows, sparse_node, sparse_rows
from tilewright.tensor.tree import leaves, map_tree

__all__ = ["LossScaler", "accumulate", "clip_grad_norm", "clip_grad_value"]


def _set(p: Tensor, grad: Tensor | None) -> None:
    p.grad = grad


def _parts(grad: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A gradient's numbers, and what makes a gradient of changed ones.

    Of a sparse gradient these are its rows, each id's added up.
    """
    sparse = sparse_rows(grad.node)
    if sparse is None:
        return grad.detach(), lambda values: values
    ids, sums, _ = unique_rows(sparse.ids, sparse.rows)
    n = grad.shape[0]
    return Tensor(sums), lambda values: _sparse(SparseRows(ids, values.node), n)


def _sparse(rows: SparseRows, n: int) -> Tensor:
    if mode.trace is None:
        realize_nodes([rows.ids, rows.rows])
    return Tensor(sparse_node(rows.ids, rows.rows, n))


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype.bits < 32 else x


def grad_norm(params: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together, 0-d f32."""
    total: Tensor | None = None
    with no_grad():
        for p in params:
            if p.grad is not None:
                values = _wide(_parts(p.grad)[0])
                square = (values * values).sum()
                total = square if total is None else total + square
        return asarray(np.float32(0)) if total is None else sqrt(total)


def clip_grad_norm(params: Iterable[Tensor], max_norm: float | Tensor) -> Tensor:
    """Scale all gradients so that their common norm is at most ``max_norm``; returns the norm.

    The factor is ``max_norm / (norm + 1e-6)``, as in PyTorch.
    """
    params = list(params)
    norm = grad_norm(params)
    with no_grad():
        factor = clip(max_norm / (norm + 1e-6), max=1.0)
        _scale(params, factor)
    return norm


def clip_grad_value(params: Iterable[Tensor], limit: float) -> None:
    """Bring every element of the gradients into [-limit, limit]."""
    with no_grad():
        for p in params:
            if p.grad is not None:
                values, made = _parts(p.grad)
                _set(p, made(clip(values, -limit, limit)))


def _scale(params: Iterable[Tensor], factor: Tensor) -> None:
    for p in params:
        if p.grad is not None:
            values, made = _parts(p.grad)
            _set(p, made((_wide(values) * factor).astype(values.dtype, copy=False)))


def accumulate(
    loss_fn: Callable[..., Tensor],
    params: Iterable[Tensor],
    parts: int,
    *args: Any,
    scale: Tensor | None = None,
) -> Tensor:
    """``backward`` of the mean loss over ``parts`` equal pieces of a batch; returns the mean loss.

    The tensors among ``args`` (in trees, too) are cut along their first axis. Gradients are those
    of the whole batch when ``loss_fn`` is a mean over its rows. In a compiled step the pieces are
    computed one after the other too: each waits for the gradients of ``params`` from before,
    so that the memory of one is enough for all.

    ``scale``: losses are multiplied by it for ``backward``, as :meth:`LossScaler.scale` does.
    """
    params = list(params)
    sizes = {t.shape[0] if t.ndim else 0 for t in leaves(list(args))}
    if len(sizes) != 1 or parts < 1 or min(sizes) % parts or not min(sizes):
        raise ShapeError(
            f"accumulate: {parts} pieces of first axes {sorted(sizes)}: tensors of one size which "
            "is a multiple"
        )
    rows = min(sizes) // parts
    total: Tensor | None = None
    for i in range(parts):
        after = [p.grad for p in params if i and mode.trace is not None and p.grad is not None]
        loss = loss_fn(*map_tree(_Piece(i * rows, rows, after), list(args)))
        share = loss * (1 / parts)
        (share if scale is None else share * scale).backward()
        found = loss.detach()
        total = found if total is None else total + found
    assert total is not None
    return total * (1 / parts)


class _Piece:
    """Rows of a tensor, not to be looked at before other tensors are computed."""

    def __init__(self, start: int, rows: int, after: list[Tensor]) -> None:
        self.start, self.rows, self.after = start, rows, after

    def __call__(self, x: Tensor) -> Tensor:
        cut = x[self.start : self.start + self.rows]
        if not self.after:
            return cut
        return Tensor(views.barrier(cut.node, *[t.node for t in self.after]))


class LossScaler:
    """Keeps the small gradients of float16 from becoming 0 (Micikevicius et al. 2018).

    ::

        scaler.scale(loss).backward()
        scaler.step(optimizer)

    The loss is multiplied by a scale that grows after ``interval`` steps without overflow and
    shrinks after one with (whose step is skipped). All of it is state that lives in tensors.
    """

    def __init__(
        self,
        scale: float = 65536.0,
        growth: float = 2.0,
        backoff: float = 0.5,
        interval: int = 2000,
    ) -> None:
        self.factor = asarray(np.float32(scale))
        self.good = asarray(np.float32(0))
        self.growth, self.backoff, self.interval = growth, backoff, interval
        self._found: Tensor | None = None

    def scale(self, loss: Tensor) -> Tensor:
        """``loss`` times the scale, in f32."""
        return _wide(loss) * self.factor

    def unscale(self, params: Iterable[Tensor]) -> Tensor:
        """Divide the gradients by the scale; returns whether one is not finite (0-d bool)."""
        with no_grad():
            inverse = 1.0 / self.factor
            found = asarray(False)
            for p in params:
                if p.grad is not None:
                    values, made = _parts(p.grad)
                    wide = _wide(values) * inverse
                    found = found | logical_not(isfinite(wide).all())
                    _set(p, made(wide))
        self._found = found
        return found

    def step(self, optimizer: Optimizer) -> None:
        """Unscale (unless that was done, say to clip), make a step or skip it, change the scale."""
        found = self.unscale(optimizer.params) if self._found is None else self._found
        self._found = None
        with Held(), no_grad():
            changed = optimizer._stepped(found)
            good = where(found, 0.0, self.good + 1.0)
            full = good >= float(self.interval)
            grown = where(full, self.factor * self.growth, self.factor)
            self.factor.assign(where(found, self.factor * self.backoff, grown))
            self.good.assign(where(full, 0.0, good))
        if mode.trace is None:
            realize(*changed, self.factor, self.good)

    def state_dict(self) -> dict[str, Tensor]:
        """The scale and the number of good steps."""
        return {"scale": self.factor, "good": self.good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Assign what :meth:`state_dict` gave."""
        for name, tensor in self.state_dict().items():
            value = state[name]
            tensor.assign(value if isinstance(value, Tensor) else asarray(value))

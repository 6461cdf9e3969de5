"""The update rules."""

from __future__ import annotations

import math
from typing import Any

from tilewright.dtypes import f32
from tilewright.graph import Node
from tilewright.ops import indexing
from tilewright.ops.unique_rows import unique_rows
from tilewright.optim.optimizer import Optimizer, Params, State, Step
from tilewright.tensor.core import Tensor, apply
from tilewright.tensor.creation import zeros
from tilewright.tensor.elementwise import clip, expm1, log, maximum, rsqrt, sign, sqrt
from tilewright.tensor.elementwise import exp as exponential
from tilewright.tensor.sparse import SparseRows

__all__ = ["SGD", "Adafactor", "Adagrad", "Adam", "AdamW", "Lion", "SparseAdam"]


def _added(x: Tensor, ids: Node, rows: Tensor) -> Tensor:
    """``x`` with ``rows`` added at ``ids``."""
    return apply(lambda table, r: indexing.scatter_add(table, ids, r), x, rows)


def _coalesced(rows: SparseRows) -> tuple[Node, Tensor]:
    """Each id once (then ids of no row), and the sums of its rows."""
    ids, sums, _ = unique_rows(rows.ids, rows.rows)
    return ids, _f32(Tensor(sums))


def _f32(x: Tensor) -> Tensor:
    return x.astype(f32, copy=False) if x.dtype.bits < 32 else x


def _looked_up(x: Tensor, ids: Node) -> Tensor:
    return apply(lambda table: indexing.take(table, ids, 0), x)


def _replaced(x: Tensor, ids: Node, rows: Tensor) -> Tensor:
    return apply(lambda table, r: indexing.scatter(table, ids, r), x, rows)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum as in PyTorch: ``b = momentum * b + g``.

    Without momentum and weight decay sparse gradients change only their rows.

    Args:
        momentum: 0 keeps no state.
        nesterov: step along ``g + momentum * b`` (Sutskever et al. 2013).
        coupled: weight decay is added to the gradient, as PyTorch's SGD does; default decoupled.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        coupled: bool = False,
        **kwargs: Any,
    ) -> None:
        self.slots = ("momentum",) if momentum else ()
        self.momentum, self.nesterov = momentum, nesterov
        self.decoupled = not coupled
        super().__init__(params, lr, weight_decay, **kwargs)
        self.takes_sparse = not momentum and not any(g.weight_decay for g in self.groups)

    def rule(self, x: Tensor, g: Tensor, state: State, step: Step) -> Tensor:
        if "momentum" in state:
            momentum = self.option(step, "momentum")
            b = state["momentum"].assign(state["momentum"] * momentum + g)
            g = g + b * momentum if self.option(step, "nesterov") else b
        return g * step.lr

    def sparse_rule(self, x: Tensor, rows: SparseRows, state: State, step: Step) -> Tensor:
        return _added(x, rows.ids, _f32(Tensor(rows.rows)) * -step.lr)


def _correction(beta: float, step: Step) -> Tensor | float:
    """``1 - beta^count``, with all its digits also where it is small."""
    if not beta:
        return 1.0
    key = ("correction", beta)
    if key not in step.shared:
        step.shared[key] = -expm1(step.count * math.log(beta))
    found: Tensor = step.shared[key]
    return found


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), bias-corrected.

    Args:
        coupled: weight decay is added to the gradient, as in PyTorch's Adam; default decoupled,
            which is AdamW.
    """

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        coupled: bool = False,
        **kwargs: Any,
    ) -> None:
        self.betas, self.eps = betas, eps
        self.decoupled = not coupled
        super().__init__(params, lr, weight_decay, **kwargs)

    def rule(self, x: Tensor, g: Tensor, state: State, step: Step) -> Tensor:
        b1, b2 = self.option(step, "betas")
        m = state["exp_avg"].assign(state["exp_avg"] * b1 + g * (1 - b1))
        v = state["exp_avg_sq"].assign(state["exp_avg_sq"] * b2 + g * g * (1 - b2))
        return self._moved(m, v, step)

    def _moved(self, m: Tensor, v: Tensor, step: Step) -> Tensor:
        """``lr * m_hat / (sqrt(v_hat) + eps)``."""
        rate, root = self._factors(step)
        return m * rate / (sqrt(v) * root + self.option(step, "eps"))

    def _factors(self, step: Step) -> tuple[Tensor, Tensor | float]:
        """``lr / (1 - b1^n)`` and ``1 / sqrt(1 - b2^n)``."""
        if "factors" not in step.shared:
            c1, c2 = (_correction(b, step) for b in self.option(step, "betas"))
            root = rsqrt(c2) if isinstance(c2, Tensor) else 1.0
            step.shared["factors"] = step.lr / c1, root
        found: tuple[Tensor, Tensor | float] = step.shared["factors"]
        return found


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), by default 0.01."""

    def __init__(
        self, params: Params, lr: float | Tensor = 1e-3, weight_decay: float = 0.01, **kwargs: Any
    ) -> None:
        super().__init__(params, lr, weight_decay=weight_decay, **kwargs)


class SparseAdam(Adam):
    """Adam for tables: rows without a gradient keep value and moments ("lazy"), as in PyTorch.

    As there, ``eps`` is added to the root before its bias correction. Dense gradients are treated
    as by :class:`Adam`.
    """

    takes_sparse = True

    def __init__(self, params: Params, lr: float | Tensor = 1e-3, **kwargs: Any) -> None:
        super().__init__(params, lr, **kwargs)
        if any(g.weight_decay for g in self.groups):
            raise ValueError("SparseAdam has no weight decay: it would change every row")

    def sparse_rule(self, x: Tensor, rows: SparseRows, state: State, step: Step) -> Tensor:
        b1, b2 = self.option(step, "betas")
        ids, g = _coalesced(rows)
        m_rows = _looked_up(state["exp_avg"], ids) * b1 + g * (1 - b1)
        v_rows = _looked_up(state["exp_avg_sq"], ids) * b2 + g * g * (1 - b2)
        state["exp_avg"].assign(_replaced(state["exp_avg"], ids, m_rows))
        state["exp_avg_sq"].assign(_replaced(state["exp_avg_sq"], ids, v_rows))
        rate, root = self._factors(step)
        moved = m_rows * (rate / root) / (sqrt(v_rows) + self.option(step, "eps"))
        return _added(x, ids, -moved)


class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011): the sum of squared gradients; sparse gradients stay sparse."""

    slots = ("sum",)

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.eps = eps
        super().__init__(params, lr, weight_decay, **kwargs)
        self.takes_sparse = not any(g.weight_decay for g in self.groups)

    def rule(self, x: Tensor, g: Tensor, state: State, step: Step) -> Tensor:
        total = state["sum"].assign(state["sum"] + g * g)
        return g * step.lr / (sqrt(total) + self.option(step, "eps"))

    def sparse_rule(self, x: Tensor, rows: SparseRows, state: State, step: Step) -> Tensor:
        ids, g = _coalesced(rows)
        total = _looked_up(state["sum"], ids) + g * g
        state["sum"].assign(_replaced(state["sum"], ids, total))
        return _added(x, ids, -(g * step.lr / (sqrt(total) + self.option(step, "eps"))))


class Lion(Optimizer):
    """Lion (Chen et al. 2023): the sign of an interpolated momentum."""

    slots = ("exp_avg",)

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.betas = betas
        super().__init__(params, lr, weight_decay, **kwargs)

    def rule(self, x: Tensor, g: Tensor, state: State, step: Step) -> Tensor:
        b1, b2 = self.option(step, "betas")
        m = +state["exp_avg"]
        direction = sign(m * b1 + g * (1 - b1))
        state["exp_avg"].assign(m * b2 + g * (1 - b2))
        return direction * step.lr


class Adafactor(Optimizer):
    """Adafactor (Shazeer & Stern 2018): second moments of matrices kept as rows and columns.

    For a parameter with two axes at least the mean squares over its last axis (``exp_avg_sq_row``)
    and over the one before (``exp_avg_sq_col``) stand for the whole. Defaults as in
    ``torch.optim``.

    Args:
        lr: the largest step, relative to the parameter's root mean square; steps are
            ``max(eps[1], rms(p)) * min(lr, 1 / sqrt(count))``.
        beta2_decay: the second moments decay by ``1 - count^beta2_decay``.
        eps: (added to squares; None is the dtype's epsilon, least relative step).
        clip: updates with a greater root mean square are scaled down to it.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        clip: float = 1.0,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.beta2_decay, self.eps, self.clip = beta2_decay, eps, clip
        super().__init__(params, lr, weight_decay, **kwargs)

    def slots_of(self, p: Tensor) -> tuple[str, ...]:
        return ("exp_avg_sq_row", "exp_avg_sq_col") if p.ndim > 1 else ("exp_avg_sq",)

    def initial(self, slot: str, p: Tensor) -> Tensor:
        shapes = {
            "exp_avg_sq": p.shape,
            "exp_avg_sq_row": (*p.shape[:-1], 1) if p.ndim else (),
            "exp_avg_sq_col": (*p.shape[:-2], 1, p.shape[-1]) if p.ndim > 1 else (),
        }
        return zeros(shapes[slot], dtype=self.state_dtype(p))

    def rule(self, x: Tensor, g: Tensor, state: State, step: Step) -> Tensor:
        tiny, least = self.option(step, "eps")
        tiny = (2.0**-23 if x.dtype.bits == 32 else 2.0**-52) if tiny is None else tiny
        if "share" not in step.shared:
            decay = self.option(step, "beta2_decay")
            step.shared["share"] = exponential(log(step.count) * decay)
            step.shared["rho"] = _least(step.lr, rsqrt(step.count))
        share, rho = step.shared["share"], step.shared["rho"]
        alpha = clip(_rms(x), min=least) * rho

        def averaged(slot: str, new: Tensor) -> Tensor:
            old = state[slot]
            return old.assign(old + (new - old) * share)

        squares = g * g
        if "exp_avg_sq" in state:
            v = averaged("exp_avg_sq", squares)
        else:
            rows = averaged("exp_avg_sq_row", squares.mean(axis=-1, keepdims=True))
            columns = averaged("exp_avg_sq_col", squares.mean(axis=-2, keepdims=True))
            total = clip(rows.mean(axis=-2, keepdims=True), min=tiny)
            v = rows * columns / total
        u = g * rsqrt(clip(v, min=tiny * tiny))
        largest = self.option(step, "clip")
        scale = alpha / clip(_rms(u) / largest, min=1.0)
        return u * scale


def _rms(x: Tensor) -> Tensor:
    return sqrt((x * x).mean())


def _least(x: Tensor, y: Tensor) -> Tensor:
    return -maximum(-x, -y)

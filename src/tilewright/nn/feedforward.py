"""The parts of a transformer that act on each position alone: MLPs, mixtures of experts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from tilewright.dtypes import i64
from tilewright.errors import ShapeError
from tilewright.graph import Node, const_node
from tilewright.nn import functional as F
from tilewright.nn.layers import Linear, uniform_parameter
from tilewright.nn.module import Module
from tilewright.nn.precision import widened
from tilewright.ops import elementwise as ew
from tilewright.ops import indexing, reductions, scans, views
from tilewright.tensor.core import Tensor, apply
from tilewright.tensor.sorting import topk

__all__ = ["MLP", "MoE", "SwiGLU"]

ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": F.tanh,
    "sigmoid": F.sigmoid,
}


class MLP(Module):
    """Two linear layers with an activation between.

    Args:
        names: of the layers: nanoGPT's ``("c_fc", "c_proj")``, or timm's ``("fc1", "fc2")``.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        bias: bool = True,
        activation: str = "gelu",
        dropout: float = 0.0,
        names: tuple[str, str] = ("c_fc", "c_proj"),
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"MLP: one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.names, self.activation, self.dropout = names, activation, dropout
        setattr(self, names[0], Linear(width, hidden, bias))
        setattr(self, names[1], Linear(hidden, width, bias))

    def forward(self, x: Tensor) -> Tensor:
        h = ACTIVATIONS[self.activation](getattr(self, self.names[0])(x))
        return F.dropout(getattr(self, self.names[1])(h), self.dropout, self.training)


class SwiGLU(Module):
    """``down_proj(silu(gate_proj(x)) * up_proj(x))`` (Shazeer 2020), llama's names."""

    def __init__(self, width: int, hidden: int, bias: bool = False) -> None:
        self.gate_proj = Linear(width, hidden, bias)
        self.up_proj = Linear(width, hidden, bias)
        self.down_proj = Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoE(Module):
    """A mixture of SwiGLU experts of which each row uses the ``top_k`` it likes best.

    Rows are sent to slots of their experts, each expert has ``capacity`` of them, and all experts
    run as one stack of products. Parameters ``gate.weight`` (E, width), and of all experts together
    ``w1``, ``w3`` (E, hidden, width) and ``w2`` (E, width, hidden), named as in Mixtral.

    Args:
        capacity_factor: slots of an expert, in units of ``top_k * rows / experts``. Rows that find
            none lose that expert's part (Fedus et al. 2022). None: as many as there are rows, and
            nothing is lost.
        renormalize: the gates of the chosen experts add up to 1, as in Mixtral.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: int,
        top_k: int = 2,
        capacity_factor: float | None = None,
        renormalize: bool = True,
    ) -> None:
        if not 1 <= top_k <= experts:
            raise ShapeError(f"MoE: top_k {top_k} of {experts} experts")
        self.gate = Linear(width, experts, bias=False)
        self.w1 = uniform_parameter((experts, hidden, width), width)
        self.w3 = uniform_parameter((experts, hidden, width), width)
        self.w2 = uniform_parameter((experts, width, hidden), hidden)
        self.experts, self.top_k = experts, top_k
        self.capacity_factor, self.renormalize = capacity_factor, renormalize

    def capacity(self, rows: int) -> int:
        """Slots of each expert for so many rows."""
        if self.capacity_factor is None:
            return rows
        wanted = math.ceil(self.capacity_factor * self.top_k * rows / self.experts)
        return min(max(wanted, 1), rows)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (..., width) -> (the same shape, load-balancing loss).

        The loss is ``E * sum_i f_i P_i`` with f_i the share of choices that fell on expert i and
        P_i its mean probability (Fedus et al. 2022, eq. 4); 1 when balanced.
        """
        width, experts, k = x.shape[-1], self.experts, self.top_k
        rows = math.prod(x.shape[:-1])
        flat = x.reshape((rows, width))
        probs = widened(self.gate(flat)).softmax(-1)
        gates, chosen = topk(probs, k, axis=-1)
        if self.renormalize:
            gates = gates / gates.sum(axis=-1, keepdims=True)
        hits = F.one_hot(chosen, experts)
        shares = hits.detach().sum(axis=(0, 1)) / (rows * k)
        balance = (shares * probs.mean(axis=0)).sum() * experts

        slots = self.capacity(rows)
        place = apply(_places, chosen, experts=experts, slots=slots)
        inside = _dispatch(flat, place, experts * slots, k).reshape((experts, slots, width))
        h = F.silu(F.matmul(inside, self.w1.mT)) * F.matmul(inside, self.w3.mT)
        y = F.matmul(h, self.w2.mT).reshape((experts * slots, width))
        back = _rows(y, place)  # (rows, k, width), zeros where there was no slot
        out = (back * gates.astype(back.dtype).unsqueeze(-1)).sum(axis=1)
        return out.astype(x.dtype).reshape(x.shape), balance


def _places(chosen: Node, experts: int, slots: int) -> Node:
    """The slot (expert * slots + turn) of each choice (rows, k); beyond all slots if it is full."""
    rows, k = views.sizes_of(chosen)
    flat = views.reshape(ew.cast(chosen, i64), (rows * k, 1))
    column = ew.iota((rows * k, experts), 1, i64)
    hit = ew.eq(column, flat)
    turns = scans.cumsum(ew.cast(hit, i64), 0)
    zero, one = const_node(0, i64), const_node(1, i64)
    turn = ew.sub(reductions.sum(ew.where(hit, turns, zero), (1,)), one)
    expert = views.reshape(flat, (rows * k,))
    place = ew.add(ew.mul(expert, const_node(slots, i64)), turn)
    fits = ew.lt(turn, const_node(slots, i64))
    return views.reshape(ew.where(fits, place, const_node(experts * slots, i64)), (rows, k))


def _dispatch(x: Tensor, place: Tensor, slots: int, k: int) -> Tensor:
    """(slots, width): the row that is in each slot, zeros in those that stay empty."""

    def owners(p: Node) -> Node:
        rows = views.sizes_of(p)[0]
        row = ew.iota((rows, k), 0, i64)
        nobody = views.broadcast(const_node(rows, i64), (slots,))
        flat = views.reshape(p, (rows * k,))
        return indexing.scatter(nobody, flat, views.reshape(row, (rows * k,)), 0)

    return _rows(x, apply(owners, place))


def _rows(x: Tensor, ids: Tensor) -> Tensor:
    """Rows of ``x``; zeros for an id behind the last."""
    return apply(indexing.take, x, ids, axis=0)

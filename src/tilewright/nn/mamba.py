"""Mamba: a selective state space layer, its block and a language model.

Gu & Dao 2023, "Mamba: linear-time sequence modeling with selective state spaces". Parameters are
named and initialised as in the authors' code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tilewright.graph import Node
from tilewright.nn import functional as F
from tilewright.nn import init
from tilewright.nn.convolution import Conv1d
from tilewright.nn.layers import Embedding, Linear, RMSNorm
from tilewright.nn.module import Module, ModuleList, Parameter
from tilewright.ops.selective_scan import selective_scan
from tilewright.tensor import random
from tilewright.tensor.core import Tensor, apply
from tilewright.tensor.creation import asarray, ones
from tilewright.tensor.elementwise import exp, expm1, log
from tilewright.tensor.manipulation import split

__all__ = ["Mamba", "MambaBlock", "MambaConfig", "MambaLM"]


class Mamba(Module):
    """The mixer: a gated, causal, selective state space model over x (B, T, d_model).

    Parameters ``in_proj``, ``conv1d`` (depthwise), ``x_proj``, ``dt_proj``, ``A_log`` (d_inner,
    d_state), ``D`` (d_inner,), ``out_proj``.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ) -> None:
        inner = expand * d_model
        rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        self.d_state, self.d_conv, self.dt_rank = d_state, d_conv, rank
        self.in_proj = Linear(d_model, 2 * inner, bias=False)
        self.conv1d = Conv1d(inner, inner, d_conv, padding=d_conv - 1, groups=inner)
        self.x_proj = Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = Linear(rank, inner)
        init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        assert self.dt_proj.bias is not None
        # softplus(bias) is log-uniform in [dt_min, dt_max]
        low, high = math.log(dt_min), math.log(dt_max)
        dt = F.relu(exp(random.uniform((inner,), low=low, high=high)) - 1e-4) + 1e-4
        self.dt_proj.bias.assign(dt + log(-expm1(-dt)))
        rates = np.tile(np.arange(1, d_state + 1, dtype=np.float32), (inner, 1))
        self.A_log = Parameter(asarray(np.log(rates)))
        self.D = Parameter(ones((inner,)))
        self.out_proj = Linear(inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[1]
        h, gate = _halves(self.in_proj(x))
        h = self.conv1d(h.permute(0, 2, 1))[..., :steps].permute(0, 2, 1)
        h = F.silu(h)
        n = self.d_state
        dt, b, c = split(self.x_proj(h), [self.dt_rank, n, n], axis=-1)
        delta = F.softplus(_f32(F.linear(dt, self.dt_proj.weight)) + self.dt_proj.bias)
        a = -exp(self.A_log)
        y = apply(_scan, _f32(h), delta, a, _f32(b), _f32(c), self.D)
        return self.out_proj(y.astype(gate.dtype) * F.silu(gate))


def _scan(*nodes: Node) -> Node:
    return selective_scan(*nodes)


def _f32(x: Tensor) -> Tensor:
    return x.astype("f32", copy=False) if x.dtype.bits == 16 else x


def _halves(x: Tensor) -> tuple[Tensor, ...]:
    return split(x, x.shape[-1] // 2, axis=-1)


class MambaBlock(Module):
    """``x + mixer(norm(x))``."""

    def __init__(self, config: MambaConfig) -> None:
        self.mixer = Mamba(config.d_model, config.d_state, config.d_conv, config.expand)
        self.norm = RMSNorm(config.d_model, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(self.norm(x))


@dataclass(frozen=True)
class MambaConfig:
    """Sizes of a :class:`MambaLM`."""

    vocab_size: int
    d_model: int = 384
    n_layer: int = 6
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2


class _Backbone(Module):
    def __init__(self, config: MambaConfig) -> None:
        self.embedding = Embedding(config.vocab_size, config.d_model)
        self.layers = ModuleList(MambaBlock(config) for _ in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model, 1e-5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm_f(x)


class MambaLM(Module):
    """A language model of Mamba blocks: ids (B, T) -> logits (B, T, vocab).

    The output layer is the embedding. Names as in ``mamba_ssm``: ``backbone.embedding``,
    ``backbone.layers.N.mixer.*``, ``backbone.layers.N.norm``, ``backbone.norm_f``, ``lm_head``.
    """

    def __init__(self, config: MambaConfig) -> None:
        self.config = config
        self.backbone = _Backbone(config)
        init.normal_(self.backbone.embedding.weight, std=0.02)
        for layer in self.backbone.layers:  # residual branches start small (GPT-2)
            weight = layer.mixer.out_proj.weight
            weight.assign(weight * (1 / math.sqrt(config.n_layer)))
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        self.lm_head.weight = self.backbone.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm_head(self.backbone(ids))

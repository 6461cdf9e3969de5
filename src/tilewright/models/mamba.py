"""Mamba decoders (Gu & Dao 2023): a state of fixed size per layer where others keep a cache.

Weights have the names and layouts of llama.cpp's files: ``ssm_in`` (2 W, D) makes the inputs and
the gates, ``ssm_conv1d`` (W, K) the causal convolution, ``ssm_x`` (R + 2 N, W) the step sizes, B
and C, ``ssm_dt`` (W, R), ``ssm_a`` (W, N), which is -exp(A_log), ``ssm_d`` (W,), ``ssm_out``
(D, W).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tilewright.errors import FormatError, UnsupportedError
from tilewright.graph import Graph, Node
from tilewright.layers import Step, WeightBook, embedding, linear, rms_norm
from tilewright.models.metadata import MetadataReader, vocab_size
from tilewright.ops.elementwise import add, mul, silu, softplus
from tilewright.ops.movement import columns, take_rows
from tilewright.ops.recurrent_steps import causal_conv_step, selective_step

__all__ = ["ARCHITECTURE", "MambaConfig", "build_mamba", "mamba_config"]

ARCHITECTURE: Final = "mamba"
_KEYS: Final = frozenset(
    {
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
        "block_count",
        "vocab_size",
        "ssm.conv_kernel",
        "ssm.inner_size",
        "ssm.state_size",
        "ssm.time_step_rank",
        "ssm.dt_b_c_rms",
    }
)


@dataclass(frozen=True)
class MambaConfig:
    """What a Mamba decoder is made of. Sizes in elements, context in tokens.

    Attributes:
        inner: channels of the state space layers.
        state: numbers that each channel remembers.
        conv: inputs that the convolution sees.
        rank: width of the step sizes' projection.
    """

    architecture: str
    vocab_size: int
    context_length: int
    dim: int
    n_layers: int
    inner: int
    state: int
    conv: int
    rank: int
    norm_eps: float

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.architecture}: {self.n_layers} layers, {self.dim} wide, {self.inner} channels "
            f"x {self.state} states, convolution {self.conv}, vocab {self.vocab_size}, "
            f"context {self.context_length}"
        )

    def memory_bytes(self, tokens: int) -> int:
        """What one sequence keeps, however long it is: bytes that a token reads."""
        return 4 * self.n_layers * self.inner * (self.state + self.conv - 1)


def mamba_config(metadata: Mapping[str, Any], path: object = None) -> MambaConfig:
    """The config that GGUF ``metadata`` describes; raises as ``config_from_metadata``."""
    read = MetadataReader(metadata, path, ARCHITECTURE)
    read.refuse_unknown(_KEYS)
    for key in ("feed_forward_length", "attention.head_count"):
        if read.count(key, 0):
            raise UnsupportedError(f"{read.where}a Mamba with {key} {read.count(key)}")
    if metadata.get(f"{ARCHITECTURE}.ssm.dt_b_c_rms", False):
        raise UnsupportedError(f"{read.where}norms of dt, B and C (ssm.dt_b_c_rms)")
    config = MambaConfig(
        architecture=ARCHITECTURE,
        vocab_size=vocab_size(read),
        context_length=read.count("context_length"),
        dim=read.count("embedding_length"),
        n_layers=read.count("block_count"),
        inner=read.count("ssm.inner_size"),
        state=read.count("ssm.state_size"),
        conv=read.count("ssm.conv_kernel"),
        rank=read.count("ssm.time_step_rank"),
        norm_eps=read.number("attention.layer_norm_rms_epsilon"),
    )
    read.refuse_sizes(config)
    if config.conv < 2:
        raise FormatError(f"a convolution over {config.conv} input", path=path)
    return config


def build_mamba(config: MambaConfig, weights: WeightBook, step: Step) -> Graph:
    """The graph of one step: token ids in, ``logits`` (R, V) out; what was seen is state."""
    table = weights.table("token_embd.weight", (config.vocab_size, config.dim))
    x = embedding(step.ids, table)  # (T, D)
    for layer in range(config.n_layers):
        norm = weights.vector(f"blk.{layer}.attn_norm.weight", config.dim)
        x = add(x, _mixer(rms_norm(x, norm, config.norm_eps), layer, config, weights, step))
    x = take_rows(x, step.output_rows)  # (R, D)
    x = rms_norm(x, weights.vector("output_norm.weight", config.dim), config.norm_eps)
    name = "output.weight" if "output.weight" in weights else "token_embd.weight"
    logits = linear(x, weights.matrix(name, (config.vocab_size, config.dim)))  # (R, V)
    weights.finish()
    return Graph({"logits": logits})


def _mixer(x: Node, layer: int, config: MambaConfig, weights: WeightBook, step: Step) -> Node:
    """A state space layer of normalised x (T, D)."""
    name, inner, n, rank = f"blk.{layer}", config.inner, config.state, config.rank
    slots = step.read_slots, step.write_slots
    both = linear(x, weights.matrix(f"{name}.ssm_in.weight", (2 * inner, config.dim)))
    h = causal_conv_step(
        columns(both, 0, inner),
        weights.matrix(f"{name}.ssm_conv1d.weight", (inner, config.conv)),
        weights.vector(f"{name}.ssm_conv1d.bias", inner),
        step.recurrent("conv", layer, (config.conv - 1, inner)),
        *slots,
    )
    h = silu(h)
    parts = linear(h, weights.matrix(f"{name}.ssm_x.weight", (rank + 2 * n, inner)))
    delta = linear(
        columns(parts, 0, rank),
        weights.matrix(f"{name}.ssm_dt.weight", (inner, rank)),
        weights.vector(f"{name}.ssm_dt.bias", inner),
    )
    y = selective_step(
        h,
        softplus(delta),
        weights.matrix(f"{name}.ssm_a", (inner, n)),
        columns(parts, rank, rank + n),
        columns(parts, rank + n, rank + 2 * n),
        weights.vector(f"{name}.ssm_d", inner),
        step.recurrent("ssm", layer, (n, inner)),
        *slots,
    )
    gated = mul(y, silu(columns(both, inner, 2 * inner)))
    return linear(gated, weights.matrix(f"{name}.ssm_out.weight", (config.dim, inner)))

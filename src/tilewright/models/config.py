"""A decoder's configuration, read from GGUF metadata.

Every key under the architecture's own prefix must be known here: a key that is not understood may
change the numbers, so it is refused by name before any weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tilewright.errors import FormatError, UnsupportedError
from tilewright.layers.rope import Pairing, Rope
from tilewright.models.metadata import (
    MetadataReader,
    architecture_of,
    unsupported_architecture,
    vocab_size,
)

__all__ = [
    "ARCHITECTURES",
    "COMMON_KEYS",
    "ROPE_KEYS",
    "Architecture",
    "DecoderConfig",
    "Rope",
    "config_from_metadata",
]


@dataclass(frozen=True)
class DecoderConfig:
    """What a decoder-only transformer is made of. Sizes in elements, context in tokens."""

    architecture: str
    vocab_size: int
    context_length: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    norm: Literal["rms", "layer"]
    norm_eps: float
    mlp: Literal["swiglu", "gelu"]
    rope: Rope | None

    def memory_bytes(self, tokens: int) -> int:
        """What a token reads of the cache after ``tokens`` of its sequence."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim * 4 * tokens

    def summary(self) -> str:
        """One line for people."""
        heads = f"{self.n_heads} heads"
        if self.n_kv_heads != self.n_heads:
            heads += f" ({self.n_kv_heads} kv)"
        return (
            f"{self.architecture}: {self.n_layers} layers, {self.dim} wide, {heads} x "
            f"{self.head_dim}, ffn {self.ffn_dim}, vocab {self.vocab_size}, "
            f"context {self.context_length}"
        )


@dataclass(frozen=True)
class Architecture:
    """How one architecture's metadata becomes a config.

    Attributes:
        norm, mlp: which of the decoder's variants it has.
        pairing: which features RoPE turns together; None: learned positions.
        keys: every key that its metadata may have, without the architecture's prefix.
    """

    norm: Literal["rms", "layer"]
    mlp: Literal["swiglu", "gelu"]
    pairing: Pairing | None
    keys: frozenset[str]


COMMON_KEYS = {
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "vocab_size",
}
ROPE_KEYS = {
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_log_multiplier",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "attention.layer_norm_rms_epsilon",
}
ARCHITECTURES: Mapping[str, Architecture] = {
    # expert_count is known so that a mixture of experts is refused for what it is
    "llama": Architecture(
        "rms",
        "swiglu",
        "interleaved",
        frozenset(
            COMMON_KEYS
            | ROPE_KEYS
            | {"expert_count", "expert_used_count", "attention.sliding_window"}
        ),
    ),
    "qwen2": Architecture("rms", "swiglu", "half", frozenset(COMMON_KEYS | ROPE_KEYS)),
    "gpt2": Architecture(
        "layer", "gelu", None, frozenset(COMMON_KEYS | {"attention.layer_norm_epsilon"})
    ),
}


def config_from_metadata(metadata: Mapping[str, Any], path: object = None) -> DecoderConfig:
    """The config of the model that ``metadata`` describes.

    Raises:
        UnsupportedError: unknown architecture, key, rope scaling, or mixture of experts.
        FormatError: a key is missing, of the wrong type, or inconsistent with another.
    """
    name = architecture_of(metadata, path)
    read = MetadataReader(metadata, path, name)
    arch = ARCHITECTURES.get(name)
    if arch is None:
        raise unsupported_architecture(name, ARCHITECTURES, path)
    read.refuse_unknown(arch.keys)
    if read.count("expert_count", 0):
        raise UnsupportedError(
            f"{read.where}this is a mixture of {read.count('expert_count', 0)} experts; "
            "only dense decoders are supported"
        )
    if read.count("attention.sliding_window", 0):
        raise UnsupportedError(f"{read.where}sliding-window attention is not supported")

    dim = read.count("embedding_length")
    heads = read.count("attention.head_count")
    kv_heads = read.count("attention.head_count_kv", heads)
    if heads == 0 or kv_heads == 0 or heads % kv_heads:
        raise FormatError(f"{heads} heads cannot share {kv_heads} kv heads", path=path)
    head_dim = read.count("attention.key_length", dim // heads)
    if read.count("attention.value_length", head_dim) != head_dim:
        raise UnsupportedError(f"{read.where}keys and values of different width")
    if head_dim == 0 or ("attention.key_length" not in read and dim % heads):
        raise FormatError(f"{dim} features do not divide into {heads} heads", path=path)
    eps_key = "layer_norm_rms_epsilon" if arch.norm == "rms" else "layer_norm_epsilon"
    rope = _rope(read, head_dim, arch.pairing) if arch.pairing else None
    config = DecoderConfig(
        architecture=name,
        vocab_size=vocab_size(read),
        context_length=read.count("context_length"),
        dim=dim,
        n_layers=read.count("block_count"),
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_dim=read.count("feed_forward_length"),
        norm=arch.norm,
        norm_eps=read.number(f"attention.{eps_key}"),
        mlp=arch.mlp,
        rope=rope,
    )
    read.refuse_sizes(config)
    return config


def _rope(read: MetadataReader, head_dim: int, pairing: Pairing) -> Rope:
    dims = read.count("rope.dimension_count", head_dim)
    if not 0 < dims <= head_dim or dims % 2:
        raise FormatError(f"{dims} rotary dimensions in heads of {head_dim}", path=read.path)
    kind = read.text("rope.scaling.type", "none")
    factor = read.number("rope.scaling.factor", read.number("rope.scale_linear", 1.0))
    if kind == "none" and "rope.scaling.type" not in read and factor != 1.0:
        kind = "linear"
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedError(f"{read.where}rope scaling {kind!r} (supported: linear, yarn)")
    if factor <= 0:
        raise FormatError(f"rope scaling factor is {factor}", path=read.path)
    base = read.number("rope.freq_base", 10000.0)
    if base <= 0:
        raise FormatError(f"rope frequency base is {base}", path=read.path)
    return Rope(
        dims=dims,
        base=base,
        pairing=pairing,
        scaling=kind,  # type: ignore[arg-type]
        factor=factor if kind != "none" else 1.0,
        original_context=read.count("rope.scaling.original_context_length", 0)
        or read.count("context_length"),
        attention_factor=read.number("rope.scaling.attn_factor", 1.0),
        beta_fast=read.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=read.number("rope.scaling.yarn_beta_slow", 1.0),
    )

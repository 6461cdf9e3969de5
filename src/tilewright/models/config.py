"""A decoder's configuration, read from GGUF metadata.

Every key under the architecture's own prefix must be known here: a key that is not understood may
change the numbers, so it is refused by name before any weight is read.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from tilewright.errors import FormatError, UnsupportedError
from tilewright.layers.rope import Pairing, Rope

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
    read = _Reader(metadata, path)
    name = read.text("general.architecture")
    arch = ARCHITECTURES.get(name)
    if arch is None:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        hint = f"; the nearest supported one is {near[0]!r}" if near else ""
        raise UnsupportedError(
            f"{read.where}architecture {name!r} is not supported "
            f"(supported: {', '.join(sorted(ARCHITECTURES))}){hint}"
        )
    unknown = sorted(
        k for k in metadata if k.startswith(name + ".") and k[len(name) + 1 :] not in arch.keys
    )
    if unknown:
        raise UnsupportedError(
            f"{read.where}metadata has keys that this engine does not understand, and they may "
            f"change the result: {', '.join(unknown)}"
        )
    read.prefix = name + "."
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
        vocab_size=_vocab_size(read),
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
    for item in fields(config):
        value = getattr(config, item.name)
        if item.type == "int" and not 0 < value < 2**31:
            raise FormatError(f"{item.name} is {value}", path=path)
    return config


def _rope(read: _Reader, head_dim: int, pairing: Pairing) -> Rope:
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


def _vocab_size(read: _Reader) -> int:
    tokens = read.metadata.get("tokenizer.ggml.tokens")
    stated = read.count("vocab_size", 0)
    if tokens is None and not stated:
        raise FormatError("neither a vocabulary nor a vocab_size", path=read.path)
    return stated or len(tokens)  # type: ignore[arg-type]


class _Reader:
    """Typed access to metadata under a prefix."""

    def __init__(self, metadata: Mapping[str, Any], path: object) -> None:
        self.metadata, self.path, self.prefix = metadata, path, ""

    @property
    def where(self) -> str:
        return f"{self.path}: " if self.path else ""

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self.metadata

    def _get(self, key: str, default: Any, kinds: tuple[type, ...], what: str) -> Any:
        full = self.prefix + key
        if full not in self.metadata:
            if default is None:
                raise FormatError(f"metadata lacks {full!r}", path=self.path)
            return default
        value = self.metadata[full]
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise FormatError(
                f"metadata {full!r} should be {what}, it is {type(value).__name__}: "
                f"{str(value)[:60]}",
                path=self.path,
            )
        return value

    def text(self, key: str, default: str | None = None) -> str:
        return str(self._get(key, default, (str,), "a string"))

    def count(self, key: str, default: int | None = None) -> int:
        value = int(self._get(key, default, (int,), "an integer"))
        if value < 0:
            raise FormatError(f"metadata {self.prefix + key!r} is {value}", path=self.path)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = float(self._get(key, default, (int, float), "a number"))
        if value != value or abs(value) == float("inf"):
            raise FormatError(f"metadata {self.prefix + key!r} is {value}", path=self.path)
        return value

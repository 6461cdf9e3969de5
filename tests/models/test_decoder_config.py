"""Configurations from metadata: every key is understood or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from tilewright.errors import FormatError, UnsupportedError
from tilewright.models.config import config_from_metadata


def llama(**changes: Any) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.context_length": 128,
        "llama.embedding_length": 64,
        "llama.block_count": 5,
        "llama.feed_forward_length": 172,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.tokens": ["a"] * 512,
    }
    for key, value in changes.items():
        full = key.replace("__", ".")
        full = full if full.startswith(("general", "tokenizer")) else f"llama.{full}"
        if value is None:
            del meta[full]
        else:
            meta[full] = value
    return meta


def test_a_llama() -> None:
    config = config_from_metadata(llama())
    assert (config.dim, config.n_heads, config.n_kv_heads, config.head_dim) == (64, 8, 4, 8)
    assert config.vocab_size == 512
    assert config.rope is not None
    assert (config.rope.dims, config.rope.base, config.rope.pairing) == (8, 10000.0, "interleaved")
    assert "8 heads (4 kv) x 8" in config.summary()


@pytest.mark.parametrize(
    ("changes", "scaling", "factor"),
    [
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}, "linear", 4.0),
        ({"rope__scale_linear": 2.0}, "linear", 2.0),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, "none", 1.0),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 8.0}, "yarn", 8.0),
    ],
)
def test_rope_scaling(changes: dict[str, Any], scaling: str, factor: float) -> None:
    rope = config_from_metadata(llama(**changes)).rope
    assert rope is not None
    assert (rope.scaling, rope.factor) == (scaling, factor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general__architecture": "lama"}, "'lama' is not supported .*nearest.*'llama'"),
        ({"attention__clamp_kqv": 8.0}, "llama.attention.clamp_kqv"),
        ({"expert_count": 8}, "mixture of 8 experts"),
        ({"rope__scaling__type": "longrope"}, "longrope"),
        ({"attention__sliding_window": 4096}, "sliding-window"),
    ],
)
def test_unsupported_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        config_from_metadata(llama(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_count": None}, "lacks 'llama.block_count'"),
        ({"block_count": "5"}, "should be an integer, it is str"),
        ({"block_count": True}, "should be an integer, it is bool"),
        ({"block_count": 0}, "n_layers is 0"),
        ({"attention__head_count_kv": 3}, "8 heads cannot share 3"),
        ({"attention__head_count": 0}, "0 heads"),
        ({"attention__head_count": 7, "attention__head_count_kv": 7}, "do not divide"),
        ({"embedding_length": -64}, "is -64"),
        ({"rope__dimension_count": 3}, "3 rotary dimensions"),
        ({"rope__dimension_count": 64}, "64 rotary dimensions in heads of 8"),
        ({"rope__freq_base": 0.0}, "frequency base is 0.0"),
        ({"rope__freq_base": float("nan")}, "is nan"),
        ({"attention__layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon"),
        ({"tokenizer__ggml__tokens": None}, "neither a vocabulary"),
        ({"general__architecture": None}, "lacks 'general.architecture'"),
    ],
)
def test_malformed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        config_from_metadata(llama(**changes))

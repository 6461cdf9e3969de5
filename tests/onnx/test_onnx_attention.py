"""Attention and rotary embeddings against the standard's own cases and NumPy."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("onnx")

from tests.onnx.cases import node_cases, operators_of, run_case
from tests.onnx.oracle import ours, single

CHOSEN = (
    "attention_(3d|4d)$|gqa_with_past|causal_with_past|softcap|qk_matmul_bias|sliding|"
    "window|nonpad|diff_heads_sizes_attn|fp16|fully_masked|padded_kv|rotary|flex|causal_conv|"
    "linear_attention"
)
OPERATORS = {
    "Attention", "RotaryEmbedding", "FlexAttention", "CausalConvWithState", "LinearAttention",
}  # fmt: skip


def _chosen():
    return [
        name
        for name, case in node_cases().items()
        if operators_of(case) & OPERATORS and "expanded" not in name and re.search(CHOSEN, name)
    ]


@pytest.mark.parametrize("name", _chosen())
def test_cases_of_the_standard(name):
    run_case(node_cases()[name])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def reference(q, k, v, bias=0.0, softcap=0.0):
    groups = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x.astype(np.float64), groups, 1) for x in (k, v))
    s = q.astype(np.float64) @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if softcap:
        s = softcap * np.tanh(s / softcap)
    s = s + bias
    top = s.max(-1, keepdims=True)
    e = np.exp(s - np.where(np.isinf(top), 0, top))
    total = e.sum(-1, keepdims=True)
    return e / np.where(total == 0, 1, total) @ v


@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_growing_caches_windows_and_caps(softcap):
    """What takes flash attention (no cap) and what takes the scores agree with the formula."""
    q, k, v = normal(2, 4, 5, 8), normal(2, 2, 5, 8, seed=1), normal(2, 2, 5, 8, seed=2)
    pk, pv = normal(2, 2, 7, 8, seed=3), normal(2, 2, 7, 8, seed=4)
    feeds = {"q": q, "k": k, "v": v, "m": None, "pk": pk, "pv": pv}
    model = single(
        "Attention", feeds, ["y", "k2", "v2"], opset=25, is_causal=1, left_window_size=3,
        softcap=softcap,
    )  # fmt: skip
    got = ours(model, feeds)
    keys, values = np.concatenate([pk, k], 2), np.concatenate([pv, v], 2)
    at, j = np.arange(5)[:, None] + 7, np.arange(12)[None]
    bias = np.where((j <= at) & (j >= at - 3), 0, -np.inf)
    np.testing.assert_allclose(got["y"], reference(q, keys, values, bias, softcap), rtol=1e-4,
                               atol=1e-5)  # fmt: skip
    np.testing.assert_array_equal(got["k2"], keys)
    np.testing.assert_array_equal(got["v2"], values)

"""Rotary positions, attention layers and transformers against formulas and PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.nn.torch_twins import check_twin, close, torch

from tilewright import asarray, nn
from tilewright.dtypes import bf16, f64
from tilewright.errors import ShapeError
from tilewright.nn import functional as F
from tilewright.ops.rope import rope_frequencies, rope_reference, rope_tables

tn, TF = torch.nn, torch.nn.functional


def x(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary", [8, 16])
def test_rope_turns_as_the_reference(interleaved: bool, rotary: int) -> None:
    q = x(2, 3, 10, 16)
    layer = nn.RotaryEmbedding(rotary, 32, interleaved=interleaved)
    cos, sin = rope_tables(32, rope_frequencies(rotary))
    positions = np.arange(5, 15)
    got = layer(asarray(q), 5).numpy()
    for b in range(2):
        want = rope_reference(q[b].transpose(1, 0, 2), positions, cos, sin, interleaved)
        np.testing.assert_allclose(got[b].transpose(1, 0, 2), want, atol=1e-6)
    shuffled = np.random.default_rng(1).permutation(32)[:10]
    got = layer(asarray(q), asarray(shuffled)).numpy()
    want = rope_reference(q[0].transpose(1, 0, 2), shuffled, cos, sin, interleaved)
    np.testing.assert_allclose(got[0].transpose(1, 0, 2), want, atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_product_of_rotated_rows_depends_on_the_distance_only(interleaved: bool) -> None:
    layer = nn.RotaryEmbedding(64, 5000, interleaved=interleaved)
    q, k = (asarray(np.broadcast_to(x(64, seed=s), (1, 1, 1, 64)).copy()) for s in (1, 2))

    def product(i: int, j: int) -> float:
        return float((layer(q, i) * layer(k, j)).sum().item())

    for distance in (0, 1, 17, 900):
        found = [product(i + distance, i) for i in (0, 3, 1000, 4000)]
        assert np.ptp(found) < 2e-5, (distance, found)
    assert abs(product(5, 0) - product(0, 0)) > 1e-3


def test_rope_gradient_turns_back() -> None:
    q = asarray(x(1, 2, 6, 8))
    q.requires_grad = True
    layer = nn.RotaryEmbedding(8, 6, interleaved=True)
    g = x(1, 2, 6, 8, seed=1)
    turned = layer(q)
    turned.backward(asarray(g))
    assert q.grad is not None
    np.testing.assert_allclose(layer(q.grad).numpy(), g, atol=1e-6)
    np.testing.assert_allclose(
        np.linalg.norm(turned.numpy(), axis=-1), np.linalg.norm(q.numpy(), axis=-1), rtol=1e-5
    )


def test_rope_keeps_dtypes_and_refuses_what_does_not_fit() -> None:
    layer = nn.RotaryEmbedding(8, 6)
    assert layer(asarray(x(1, 1, 4, 8)).astype(bf16)).dtype is bf16
    assert layer(asarray(x(1, 1, 4, 8)).astype(f64)).dtype is f64
    with pytest.raises(ShapeError, match="positions 3 to 6"):
        layer(asarray(x(1, 1, 4, 8)), 3)
    with pytest.raises(ShapeError, match="tables"):
        F.rope(asarray(x(4, 4)), asarray(x(4, 3)), asarray(x(4, 3)))


class TorchAttention(tn.Module):  # type: ignore[misc, name-defined]
    """llama's attention as Hugging Face writes it."""

    def __init__(self, width: int, heads: int, kv_heads: int, interleaved: bool) -> None:
        super().__init__()
        d = width // heads
        self.heads, self.kv_heads, self.interleaved = heads, kv_heads, interleaved
        self.q_proj = tn.Linear(width, heads * d, bias=False)
        self.k_proj = tn.Linear(width, kv_heads * d, bias=False)
        self.v_proj = tn.Linear(width, kv_heads * d, bias=False)
        self.o_proj = tn.Linear(heads * d, width, bias=False)

    def turn(self, t: Any) -> Any:
        d = t.shape[-1]
        angles = torch.outer(
            torch.arange(t.shape[2], dtype=torch.float64),
            10000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d),
        )
        c, s = angles.cos().float(), angles.sin().float()
        if self.interleaved:
            a, b = t[..., 0::2], t[..., 1::2]
            return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)
        a, b = t.chunk(2, -1)
        return torch.cat([a * c - b * s, a * s + b * c], -1)

    def forward(self, x: Any) -> Any:
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.heads, -1).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.kv_heads, -1).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv_heads, -1).transpose(1, 2)
        q, k = self.turn(q), self.turn(k)
        y = TF.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_with_rotary_positions_and_grouped_heads(
    interleaved: bool, kv_heads: int
) -> None:
    rotary = nn.RotaryEmbedding(8, 16, interleaved=interleaved)
    ours = nn.Attention(32, 4, kv_heads, rotary=rotary)
    check_twin(ours, TorchAttention(32, 4, kv_heads, interleaved), x(2, 11, 32))


class TorchLlama(tn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()

        def block() -> Any:
            mlp = {
                "gate_proj": tn.Linear(32, 48, bias=False),
                "up_proj": tn.Linear(32, 48, bias=False),
                "down_proj": tn.Linear(48, 32, bias=False),
            }
            return tn.ModuleDict(
                {
                    "self_attn": TorchAttention(32, 4, 2, False),
                    "mlp": tn.ModuleDict(mlp),
                    "input_layernorm": tn.RMSNorm(32, 1e-5),
                    "post_attention_layernorm": tn.RMSNorm(32, 1e-5),
                }
            )

        self.model = tn.ModuleDict(
            {
                "embed_tokens": tn.Embedding(19, 32),
                "layers": tn.ModuleList([block() for _ in range(2)]),
                "norm": tn.RMSNorm(32, 1e-5),
            }
        )
        self.lm_head = tn.Linear(32, 19, bias=False)

    def forward(self, ids: Any) -> Any:
        h = self.model["embed_tokens"](ids)
        for b in self.model["layers"]:
            h = h + b["self_attn"](b["input_layernorm"](h))
            m, n = b["mlp"], b["post_attention_layernorm"](h)
            h = h + m["down_proj"](TF.silu(m["gate_proj"](n)) * m["up_proj"](n))
        return self.lm_head(self.model["norm"](h))


def test_llama_has_hugging_faces_names_and_numbers() -> None:
    ids = np.random.default_rng(0).integers(0, 19, (2, 12))
    ours = nn.Llama(nn.LlamaConfig(19, 16, 2, 4, 2, 32, 48))
    check_twin(ours, TorchLlama(), ids)


class TorchGPT(tn.Module):  # type: ignore[misc, name-defined]
    """nanoGPT's modules; the output layer is the embedding."""

    def __init__(self, vocab: int = 19, steps: int = 12, layers: int = 2) -> None:
        super().__init__()
        c = 32

        def block() -> Any:
            return tn.ModuleDict(
                {
                    "ln_1": tn.LayerNorm(c),
                    "attn": tn.ModuleDict(
                        {"c_attn": tn.Linear(c, 3 * c), "c_proj": tn.Linear(c, c)}
                    ),
                    "ln_2": tn.LayerNorm(c),
                    "mlp": tn.ModuleDict(
                        {"c_fc": tn.Linear(c, 4 * c), "c_proj": tn.Linear(4 * c, c)}
                    ),
                }
            )

        self.transformer = tn.ModuleDict(
            {
                "wte": tn.Embedding(vocab, c),
                "wpe": tn.Embedding(steps, c),
                "h": tn.ModuleList([block() for _ in range(layers)]),
                "ln_f": tn.LayerNorm(c),
            }
        )
        self.lm_head = tn.Linear(c, vocab, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, ids: Any) -> Any:
        t = self.transformer
        h = t["wte"](ids) + t["wpe"](torch.arange(ids.shape[1]))
        for b in t["h"]:
            qkv = b["attn"]["c_attn"](b["ln_1"](h))
            q, k, v = (z.view(*h.shape[:2], 4, 8).transpose(1, 2) for z in qkv.split(32, dim=2))
            y = TF.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + b["attn"]["c_proj"](y.transpose(1, 2).reshape(h.shape))
            h = h + b["mlp"]["c_proj"](TF.gelu(b["mlp"]["c_fc"](b["ln_2"](h))))
        return self.lm_head(t["ln_f"](h))


def test_gpt_has_nanogpts_names_and_numbers() -> None:
    torch.manual_seed(0)
    ids = np.random.default_rng(0).integers(0, 19, (2, 9))
    ours = nn.GPT(nn.GPTConfig(19, 12, 2, 4, 32))
    assert ours.lm_head.weight is ours.transformer.wte.weight
    theirs = TorchGPT()
    with torch.no_grad():
        theirs.lm_head.weight.mul_(0.3)
    check_twin(ours, theirs, ids)


def test_gpt_starts_with_the_entropy_of_its_vocabulary() -> None:
    ids = asarray(np.random.default_rng(0).integers(0, 65, (4, 32)))
    next_ids = asarray(np.random.default_rng(1).integers(0, 65, (4, 32)))
    model = nn.GPT(nn.GPTConfig(65, 32, 2, 4, 64))
    loss = F.cross_entropy(model(ids), next_ids).item()
    assert abs(loss - np.log(65)) < 0.1
    with pytest.raises(ShapeError, match="33 tokens"):
        model(asarray(np.zeros((1, 33), np.int64)))


class TorchViT(tn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        c = 16

        def block() -> Any:
            return tn.ModuleDict(
                {
                    "norm1": tn.LayerNorm(c, 1e-6),
                    "attn": tn.ModuleDict({"qkv": tn.Linear(c, 3 * c), "proj": tn.Linear(c, c)}),
                    "norm2": tn.LayerNorm(c, 1e-6),
                    "mlp": tn.ModuleDict({"fc1": tn.Linear(c, 24), "fc2": tn.Linear(24, c)}),
                }
            )

        self.cls_token = tn.Parameter(torch.randn(1, 1, c))
        self.pos_embed = tn.Parameter(torch.randn(1, 17, c))
        self.patch_embed = tn.ModuleDict({"proj": tn.Conv2d(1, c, 2, stride=2)})
        self.blocks = tn.ModuleList([block() for _ in range(2)])
        self.norm = tn.LayerNorm(c, 1e-6)
        self.head = tn.Linear(c, 10)

    def forward(self, images: Any) -> Any:
        h = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        h = torch.cat([self.cls_token.expand(len(h), -1, -1), h], 1) + self.pos_embed
        for b in self.blocks:
            qkv = b["attn"]["qkv"](b["norm1"](h))
            q, k, v = (z.reshape(*h.shape[:2], 2, 8).transpose(1, 2) for z in qkv.split(16, dim=2))
            y = TF.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h.shape)
            h = h + b["attn"]["proj"](y)
            h = h + b["mlp"]["fc2"](TF.gelu(b["mlp"]["fc1"](b["norm2"](h))))
        return self.head(self.norm(h)[:, 0])


def test_vit_has_timms_names_and_numbers() -> None:
    torch.manual_seed(0)
    config = nn.ViTConfig(8, 2, 1, 10, n_layer=2, n_head=2, n_embd=16, hidden=24)
    check_twin(nn.ViT(config), TorchViT(), x(3, 1, 8, 8))


def test_attention_masks() -> None:
    q, k, v = (asarray(x(2, 4, 5, 8, seed=s)) for s in range(3))
    seen = np.random.default_rng(5).random((2, 1, 5, 5)) < 0.7
    seen[..., 0] = True
    got = F.attention(q, k, v, asarray(seen), scale=0.3)
    peers = [torch.from_numpy(np.array(t.numpy())) for t in (q, k, v)]
    want = TF.scaled_dot_product_attention(*peers, attn_mask=torch.from_numpy(seen), scale=0.3)
    close(got, want)
    turned = F.attention(q, k, v, asarray(seen), scale=0.3, layout="bthd")
    np.testing.assert_array_equal(turned.numpy().transpose(0, 2, 1, 3), got.numpy())

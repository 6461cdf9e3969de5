"""Transformers that recipes train: GPT-2's, llama's, and the vision transformer.

State dicts have the names of nanoGPT (``transformer.wte``, ``transformer.h.N.attn.c_attn``, ...,
weights as (out, in)), of Hugging Face's llama (``model.layers.N.self_attn.q_proj``, ...) and of
timm's ViT (``blocks.N.attn.qkv``, ...).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tilewright.errors import ShapeError
from tilewright.nn import functional as F
from tilewright.nn import init
from tilewright.nn.attention import Attention, FusedAttention
from tilewright.nn.convolution import Conv2d
from tilewright.nn.feedforward import MLP, SwiGLU
from tilewright.nn.layers import Embedding, LayerNorm, Linear, RMSNorm
from tilewright.nn.module import Module, ModuleList, Parameter
from tilewright.nn.rotary import RotaryEmbedding
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import zeros
from tilewright.tensor.manipulation import broadcast_to, concat

__all__ = [
    "GPT",
    "GPTBlock",
    "GPTConfig",
    "Llama",
    "LlamaBlock",
    "LlamaConfig",
    "ViT",
    "ViTBlock",
    "ViTConfig",
]


# GPT-2


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a :class:`GPT`; ``dropout``: of embeddings, attention weights and branches."""

    vocab_size: int
    block_size: int = 256
    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384
    dropout: float = 0.0
    bias: bool = True
    tied: bool = True
    activation: str = "gelu"


class GPTBlock(Module):
    """``x + attn(ln_1(x))``, then ``x + mlp(ln_2(x))``."""

    def __init__(self, config: GPTConfig) -> None:
        width = config.n_embd
        self.ln_1 = LayerNorm(width, bias=config.bias)
        p = config.dropout
        self.attn = FusedAttention(width, config.n_head, config.bias, p, weight_dropout=p)
        self.ln_2 = LayerNorm(width, bias=config.bias)
        self.mlp = MLP(width, 4 * width, config.bias, config.activation, config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class _GPTBody(Module):
    def __init__(self, config: GPTConfig) -> None:
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.block_size, config.n_embd)
        self.h = ModuleList(GPTBlock(config) for _ in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, bias=config.bias)
        self.dropout = config.dropout

    def forward(self, ids: Tensor) -> Tensor:
        steps, places = ids.shape[-1], self.wpe.weight
        if steps > places.shape[0]:
            raise ShapeError(f"GPT: {steps} tokens, there are {places.shape[0]} positions")
        x = self.wte(ids) + (places if steps == places.shape[0] else places[:steps])
        x = F.dropout(x, self.dropout, self.training)
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


class GPT(Module):
    """GPT-2 as nanoGPT has it: ids (B, T) -> logits (B, T, vocab).

    Weights are normal with deviation 0.02, the last of each residual branch over
    ``sqrt(2 n_layer)``; biases zero.
    """

    def __init__(self, config: GPTConfig) -> None:
        self.config = config
        self.transformer = _GPTBody(config)
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.transformer.wte.weight
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):
                init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))
            elif p.ndim == 2:
                init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                init.zeros_(p)

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm_head(self.transformer(ids))


# llama


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a :class:`Llama`; ``n_kv_head`` None is ``n_head``."""

    vocab_size: int
    block_size: int = 256
    n_layer: int = 6
    n_head: int = 6
    n_kv_head: int | None = None
    n_embd: int = 384
    hidden: int = 1024
    rope_base: float = 10000.0
    interleaved: bool = False
    norm_eps: float = 1e-5
    tied: bool = False


class LlamaBlock(Module):
    """``x + self_attn(input_layernorm(x))``, then ``x + mlp(post_attention_layernorm(x))``."""

    def __init__(self, config: LlamaConfig, rotary: RotaryEmbedding) -> None:
        width = config.n_embd
        self.self_attn = Attention(width, config.n_head, config.n_kv_head, rotary=rotary)
        self.mlp = SwiGLU(width, config.hidden)
        self.input_layernorm = RMSNorm(width, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(width, config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class _LlamaBody(Module):
    def __init__(self, config: LlamaConfig) -> None:
        rotary = RotaryEmbedding(
            config.n_embd // config.n_head,
            config.block_size,
            config.rope_base,
            interleaved=config.interleaved,
        )
        self.embed_tokens = Embedding(config.vocab_size, config.n_embd)
        self.layers = ModuleList(LlamaBlock(config, rotary) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.n_embd, config.norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Llama(Module):
    """llama: ids (B, T) -> logits (B, T, vocab); weights normal with deviation 0.02."""

    def __init__(self, config: LlamaConfig) -> None:
        self.config = config
        self.model = _LlamaBody(config)
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        small = 0.02 / math.sqrt(2 * config.n_layer)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                init.normal_(p, std=small if last else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm_head(self.model(ids))


# ViT


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a :class:`ViT`."""

    image_size: int = 28
    patch_size: int = 4
    channels: int = 1
    classes: int = 10
    n_layer: int = 6
    n_head: int = 4
    n_embd: int = 64
    hidden: int = 128
    dropout: float = 0.0


class ViTBlock(Module):
    """``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``."""

    def __init__(self, config: ViTConfig) -> None:
        width, p = config.n_embd, config.dropout
        self.norm1 = LayerNorm(width, 1e-6)
        self.attn = FusedAttention(
            width, config.n_head, dropout=p, causal=False, names=("qkv", "proj")
        )
        self.norm2 = LayerNorm(width, 1e-6)
        self.mlp = MLP(width, config.hidden, dropout=p, names=("fc1", "fc2"))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _PatchEmbed(Module):
    def __init__(self, config: ViTConfig) -> None:
        size = config.patch_size
        self.proj = Conv2d(config.channels, config.n_embd, size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).permute(0, 2, 1)


class ViT(Module):
    """Vision transformer (Dosovitskiy et al. 2021): images (B, C, H, W) -> logits (B, classes)."""

    def __init__(self, config: ViTConfig) -> None:
        if config.image_size % config.patch_size:
            raise ShapeError(
                f"ViT: patches of {config.patch_size} do not cut images of {config.image_size}"
            )
        patches = (config.image_size // config.patch_size) ** 2
        width = config.n_embd
        self.config = config
        self.cls_token = Parameter(init.normal_(zeros((1, 1, width)), std=1e-6))
        self.pos_embed = Parameter(init.trunc_normal_(zeros((1, patches + 1, width)), std=0.02))
        self.patch_embed = _PatchEmbed(config)
        self.blocks = ModuleList(ViTBlock(config) for _ in range(config.n_layer))
        self.norm = LayerNorm(width, 1e-6)
        self.head = Linear(width, config.classes)
        for module in self.blocks.modules():
            if isinstance(module, Linear):
                init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        first = broadcast_to(self.cls_token, (x.shape[0], 1, x.shape[2])).astype(x.dtype)
        x = concat([first, x], axis=1) + self.pos_embed
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])

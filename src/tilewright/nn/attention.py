"""Attention layers: PyTorch's, GPT-2's and llama's."""

from __future__ import annotations

from tilewright.errors import ShapeError
from tilewright.nn import functional as F
from tilewright.nn import init
from tilewright.nn.layers import Linear
from tilewright.nn.module import Module, Parameter
from tilewright.nn.rotary import RotaryEmbedding
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import empty, zeros

__all__ = ["Attention", "FusedAttention", "MultiheadAttention"]


def _heads(width: int, heads: int, what: str) -> int:
    if heads < 1 or width % heads:
        raise ShapeError(f"{what}: {heads} heads do not cut a width of {width}")
    return width // heads


def _by_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, heads * D) seen as (B, heads, T, D)."""
    batch, steps, width = x.shape
    return x.reshape((batch, steps, heads, width // heads)).permute(0, 2, 1, 3)


class MultiheadAttention(Module):
    """PyTorch's ``MultiheadAttention(embed_dim, num_heads, batch_first=True)``.

    Parameters ``in_proj_weight`` (3 E, E), ``in_proj_bias``, ``out_proj.weight``,
    ``out_proj.bias``. ``dropout``: of attention weights, while training.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, bias: bool = True, dropout: float = 0.0
    ) -> None:
        _heads(embed_dim, num_heads, "MultiheadAttention")
        self.in_proj_weight = Parameter(init.xavier_uniform_(empty((3 * embed_dim, embed_dim))))
        self.in_proj_bias = Parameter(zeros((3 * embed_dim,))) if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias)
        if self.out_proj.bias is not None:
            init.zeros_(self.out_proj.bias)
        self.heads, self.dropout = num_heads, dropout

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """query (B, T, E); key and value (B, S, E), default the query. -> (B, T, E).

        ``mask``: bool (True: may be seen, unlike PyTorch's) or float (added).
        """
        batch, steps, width = query.shape
        p = self.dropout if self.training else 0.0
        if key is None:
            qkv = F.linear(query, self.in_proj_weight, self.in_proj_bias)
            packed = qkv.reshape((batch, steps, 3 * self.heads, width // self.heads))
            y = F.attention_packed(packed, self.heads, mask, causal, dropout_p=p)
        else:
            value = key if value is None else value
            bias = self.in_proj_bias
            parts = []
            for i, x in enumerate((query, key, value)):
                rows = slice(i * width, (i + 1) * width)
                own = None if bias is None else bias[rows]
                parts.append(_by_heads(F.linear(x, self.in_proj_weight[rows], own), self.heads))
            q, k, v = parts
            y = F.attention(q, k, v, mask, causal, layout="bthd", dropout_p=p)
        return self.out_proj(y.reshape((batch, steps, width)))


class FusedAttention(Module):
    """Self-attention with one projection to queries, keys and values, as in GPT-2 and ViT.

    Parameters ``c_attn`` (3 E, E) and ``c_proj``, as nanoGPT names them; ``names`` gives others.
    While training, ``dropout`` is that of the result, ``weight_dropout`` of attention weights.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        bias: bool = True,
        dropout: float = 0.0,
        causal: bool = True,
        names: tuple[str, str] = ("c_attn", "c_proj"),
        weight_dropout: float = 0.0,
    ) -> None:
        _heads(width, heads, "FusedAttention")
        self.heads, self.causal, self.names = heads, causal, names
        self.dropout, self.weight_dropout = dropout, weight_dropout
        setattr(self, names[0], Linear(width, 3 * width, bias))
        setattr(self, names[1], Linear(width, width, bias))

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, width = x.shape
        qkv = getattr(self, self.names[0])(x)
        qkv = qkv.reshape((batch, steps, 3 * self.heads, width // self.heads))
        p = self.weight_dropout if self.training else 0.0
        y = F.attention_packed(qkv, self.heads, causal=self.causal, dropout_p=p)
        y = getattr(self, self.names[1])(y.reshape((batch, steps, width)))
        return F.dropout(y, self.dropout, self.training)


class Attention(Module):
    """llama's attention: grouped key and value heads, rotary positions.

    Parameters ``q_proj``, ``k_proj``, ``v_proj``, ``o_proj``, as Hugging Face names them.

    Args:
        kv_heads: heads of keys and values, which divides ``heads``; default ``heads``.
        head_dim: default ``width / heads``.
        rotary: turns queries and keys; None leaves positions to others. It is not a part of this
            module: layers share one.
        bias: of q, k and v; ``out_bias`` of o.
        dropout: of attention weights, while training.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        rotary: RotaryEmbedding | None = None,
        bias: bool = False,
        out_bias: bool = False,
        causal: bool = True,
        dropout: float = 0.0,
    ) -> None:
        head_dim = _heads(width, heads, "Attention") if head_dim is None else head_dim
        kv_heads = heads if kv_heads is None else kv_heads
        _heads(heads, kv_heads, "Attention: key and value")
        self.heads, self.kv_heads, self.causal = heads, kv_heads, causal
        self.dropout = dropout
        self.q_proj = Linear(width, heads * head_dim, bias)
        self.k_proj = Linear(width, kv_heads * head_dim, bias)
        self.v_proj = Linear(width, kv_heads * head_dim, bias)
        self.o_proj = Linear(heads * head_dim, width, out_bias)
        self._rotary = rotary

    def forward(self, x: Tensor, mask: Tensor | None = None, positions: Tensor | int = 0) -> Tensor:
        """x (B, T, width) -> (B, T, width); ``positions`` as in :class:`RotaryEmbedding`."""
        q, k = self._turned(x, positions)
        v = _by_heads(self.v_proj(x), self.kv_heads)
        p = self.dropout if self.training else 0.0
        y = F.attention(q, k, v, mask, self.causal, layout="bthd", dropout_p=p)
        return self.o_proj(y.reshape((x.shape[0], x.shape[1], -1)))

    def _turned(self, x: Tensor, positions: Tensor | int) -> tuple[Tensor, Tensor]:
        """Queries and keys, by heads, at their positions."""
        rotary, layers = self._rotary, (self.q_proj, self.k_proj)
        counts = (self.heads, self.kv_heads)
        if rotary is None:
            q, k = (_by_heads(layer(x), n) for layer, n in zip(layers, counts))
            return q, k
        halves = all(type(layer) is Linear for layer in layers) and rotary.interleaved
        if not halves or rotary.rotary_dim * self.heads != self.q_proj.weight.shape[0]:
            q, k = (rotary(_by_heads(layer(x), n), positions) for layer, n in zip(layers, counts))
            return q, k
        # Scores do not depend on the order of dimensions that q and k share. With the weights' rows
        # in the order of halves there is no walking in steps of two over the activations.
        found = []
        for layer, n in zip(layers, counts):
            bias = None if layer.bias is None else _halved(layer.bias, n)
            y = _by_heads(F.linear(x, _halved(layer.weight, n), bias), n)
            found.append(rotary(y, positions, interleaved=False))
        return found[0], found[1]


def _halved(x: Tensor, heads: int) -> Tensor:
    """Rows (heads * (P, 2), ...) in the order heads * (2, P)."""
    cut = x.reshape((heads, -1, 2, *x.shape[1:]))
    return cut.permute(0, 2, 1, *range(3, cut.ndim)).reshape(x.shape)

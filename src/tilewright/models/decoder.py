"""Decoder-only transformers: llama, qwen2 and GPT-2, one forward pass driven by the config.

Shapes: T tokens of a step (a ragged batch of sequences), D features, V vocabulary, R rows whose
logits are wanted. Weights keep their GGUF names. Building the graph reads no weight: a missing
tensor, a left-over one or a wrong shape is found from the header alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.graph import Graph, Node
from tilewright.layers import (
    Step,
    WeightBook,
    attention,
    embedding,
    layer_norm,
    linear,
    rms_norm,
)
from tilewright.models.config import DecoderConfig
from tilewright.ops.elementwise import add, gelu, mul, silu
from tilewright.ops.movement import columns, take_rows

__all__ = ["build_decoder"]


def build_decoder(config: DecoderConfig, weights: WeightBook, step: Step) -> Graph:
    """The graph of one step: token ids in, ``logits`` (R, V) out; keys and values are state."""
    model = _Decoder(config, weights, step)
    x = model.embed()  # (T, D)
    for layer in range(config.n_layers):
        x = model.block(x, layer)
    x = take_rows(x, step.output_rows)  # (R, D)
    x = model.norm(x, "output_norm")
    logits = linear(x, model.unembedding(), None)  # (R, V)
    weights.finish()
    return Graph({"logits": logits})


@dataclass(frozen=True)
class _Decoder:
    config: DecoderConfig
    weights: WeightBook
    step: Step

    def embed(self) -> Node:
        """Token (and learned position) embeddings."""
        cfg = self.config
        table = self.weights.table("token_embd.weight", (cfg.vocab_size, cfg.dim))
        x = embedding(self.step.ids, table)
        if cfg.rope is None:
            positions = self.weights.table("position_embd.weight", (cfg.context_length, cfg.dim))
            x = add(x, embedding(self.step.positions, positions))
        return x

    def norm(self, x: Node, name: str) -> Node:
        """The architecture's norm with the weights called ``name``."""
        cfg = self.config
        weight = self.weights.vector(f"{name}.weight", cfg.dim)
        if cfg.norm == "rms":
            return rms_norm(x, weight, cfg.norm_eps)
        return layer_norm(x, weight, self.weights.vector(f"{name}.bias", cfg.dim), cfg.norm_eps)

    def project(self, x: Node, name: str, n_out: int, n_in: int) -> Node:
        """``x @ W.T + b``; the bias if the file has one."""
        weight = self.weights.matrix(f"{name}.weight", (n_out, n_in))
        return linear(x, weight, self.weights.optional_vector(f"{name}.bias", n_out))

    def block(self, x: Node, layer: int) -> Node:
        """One layer: attention and MLP, each on a normalised copy, each added to the stream."""
        name = f"blk.{layer}"
        x = add(x, self.attention(self.norm(x, f"{name}.attn_norm"), layer))
        return add(x, self.mlp(self.norm(x, f"{name}.ffn_norm"), name))

    def attention(self, x: Node, layer: int) -> Node:
        cfg, name = self.config, f"blk.{layer}"
        q_dim, kv_dim = cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
        if f"{name}.attn_qkv.weight" in self.weights:
            qkv = self.project(x, f"{name}.attn_qkv", q_dim + 2 * kv_dim, cfg.dim)
            q = columns(qkv, 0, q_dim)
            k = columns(qkv, q_dim, q_dim + kv_dim)
            v = columns(qkv, q_dim + kv_dim, q_dim + 2 * kv_dim)
        else:
            q = self.project(x, f"{name}.attn_q", q_dim, cfg.dim)
            k = self.project(x, f"{name}.attn_k", kv_dim, cfg.dim)
            v = self.project(x, f"{name}.attn_v", kv_dim, cfg.dim)
        heads = (cfg.n_heads, cfg.n_kv_heads, cfg.head_dim)
        mixed = attention(q, k, v, layer, heads, self.step)  # (T, q_dim)
        return self.project(mixed, f"{name}.attn_output", cfg.dim, q_dim)

    def mlp(self, x: Node, name: str) -> Node:
        cfg = self.config
        up = self.project(x, f"{name}.ffn_up", cfg.ffn_dim, cfg.dim)
        if cfg.mlp == "swiglu":
            gate = self.project(x, f"{name}.ffn_gate", cfg.ffn_dim, cfg.dim)
            hidden = mul(silu(gate), up)
        else:
            hidden = gelu(up)
        return self.project(hidden, f"{name}.ffn_down", cfg.dim, cfg.ffn_dim)

    def unembedding(self) -> Node:
        """The output matrix; tied to the embeddings when the file has none of its own."""
        name = "output.weight" if "output.weight" in self.weights else "token_embd.weight"
        return self.weights.matrix(name, (self.config.vocab_size, self.config.dim))

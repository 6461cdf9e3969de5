"""The inputs of one step: a ragged batch over a paged KV cache, or over recurrent state.

A step takes T tokens of any number of sequences. Each token has a position and a sequence; a
sequence's page table says which pages of the cache hold its keys and values. One prompt, one next
token, and fifty users' mixed work are the same program with other numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tilewright.dtypes import f32, i32
from tilewright.graph import Dim, Node, Size, input_node, state_node, weight_node
from tilewright.layers.rope import Rope
from tilewright.ops.kvcache import PAGE
from tilewright.ops.rope import rope_frequencies, rope_tables, yarn_frequencies

__all__ = ["Step", "StepLimits"]


@dataclass(frozen=True)
class StepLimits:
    """Upper bounds that size every buffer.

    Attributes:
        context: tokens of one sequence, prompt and answer together.
        tokens: tokens of one step (a longer prompt is fed in chunks).
        sequences: sequences alive at once.
        outputs: rows of logits of one step.
        pages: pages of the KV cache, shared by all sequences.
    """

    context: int
    tokens: int
    sequences: int
    outputs: int
    pages: int

    @property
    def pages_per_sequence(self) -> int:
        return -(-self.context // PAGE)


@dataclass(frozen=True, eq=False)
class Step:
    """Input and state leaves of a step's graph."""

    limits: StepLimits
    rope: Rope | None
    rope_factors: np.ndarray | None = None

    @cached_property
    def n_tokens(self) -> Size:
        return Dim("tokens", self.limits.tokens)

    @cached_property
    def ids(self) -> Node:
        """(T,) token ids."""
        return input_node("ids", (self.n_tokens,), i32)

    @cached_property
    def positions(self) -> Node:
        """(T,) position of each token in its sequence."""
        return input_node("positions", (self.n_tokens,), i32)

    @cached_property
    def sequences(self) -> Node:
        """(T,) row of the page table for each token."""
        return input_node("sequences", (self.n_tokens,), i32)

    @cached_property
    def tiles(self) -> Node:
        """(tiles, 3): sequence, first token row, number of tokens of each attention tile."""
        return input_node("tiles", (Dim("tiles", self.limits.tokens), 3), i32)

    @cached_property
    def page_table(self) -> Node:
        """(sequences, pages per sequence) page numbers."""
        shape = (self.limits.sequences, self.limits.pages_per_sequence)
        return input_node("page_table", shape, i32)

    @cached_property
    def read_slots(self) -> Node:
        """(T,) slot of the recurrent state before each token; -1: it is the first of its text."""
        return input_node("read_slots", (self.n_tokens,), i32)

    @cached_property
    def write_slots(self) -> Node:
        """(T,) slot of the recurrent state after each token."""
        return input_node("write_slots", (self.n_tokens,), i32)

    @cached_property
    def output_rows(self) -> Node:
        """(R,) token rows whose logits are wanted."""
        return input_node("output_rows", (Dim("outputs", self.limits.outputs),), i32)

    @cached_property
    def rope_tables(self) -> tuple[Node, Node]:
        """Cosines and sines, (context, rotary dims / 2) each, computed in float64."""
        assert self.rope is not None
        rope = self.rope
        magnitude = 1.0
        if rope.scaling == "yarn":
            frequencies = yarn_frequencies(
                rope.dims,
                rope.base,
                rope.factor,
                rope.original_context,
                rope.beta_fast,
                rope.beta_slow,
            )
            # the attention factor of the YaRN paper, section 3.4
            magnitude = rope.attention_factor * (0.1 * math.log(rope.factor) + 1.0)
        else:
            frequencies = rope_frequencies(
                rope.dims, rope.base, scale=rope.factor, factors=self.rope_factors
            )
        cos, sin = rope_tables(self.limits.context, frequencies, magnitude)
        return (
            weight_node("rope_cos", cos.shape, f32, cos),
            weight_node("rope_sin", sin.shape, f32, sin),
        )

    def cache(self, layer: int, kv_heads: int, head_dim: int) -> tuple[Node, Node]:
        """The layer's keys (pages, kv_heads, head_dim, PAGE), values (.., PAGE, head_dim)."""
        pages = self.limits.pages
        return (
            state_node(f"keys.{layer}", (pages, kv_heads, head_dim, PAGE), f32),
            state_node(f"values.{layer}", (pages, kv_heads, PAGE, head_dim), f32),
        )

    def recurrent(self, what: str, layer: int, shape: tuple[int, ...]) -> Node:
        """A layer's recurrent state, (slots, *shape): two slots per sequence, of which a step reads
        one and writes the other."""
        return state_node(f"{what}.{layer}", (2 * self.limits.sequences, *shape), f32)

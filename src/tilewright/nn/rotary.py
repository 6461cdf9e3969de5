"""Rotary position embedding (Su et al. 2021), in both of its pairings.

Pair i of a head turns by the angle ``position * base^(-2i / rotary_dim)``. ``interleaved`` pairs
the dimensions (2i, 2i + 1), as the paper and Meta's llama; otherwise (i, i + rotary_dim / 2), as
GPT-NeoX and Hugging Face. Angles are made in float64, their cosines and sines kept in f32.
"""

from __future__ import annotations

from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.nn.module import Module
from tilewright.ops import elementwise as ew
from tilewright.ops import views
from tilewright.ops.rope import rope_frequencies, rope_tables
from tilewright.tensor.core import Tensor, apply
from tilewright.tensor.creation import asarray
from tilewright.tensor.indexing import take
from tilewright.tensor.manipulation import concat

__all__ = ["RotaryEmbedding", "rope"]


def rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """x (..., D) turned by the angles whose cosines and sines are (..., P) f32, P pairs.

    The tables broadcast against the axes of x before the last. Dimensions past 2 P pass unchanged.
    Computed in f32 (f64 for f64); the result has the dtype of x.
    """
    pairs, width = cos.shape[-1], x.shape[-1]
    if cos.shape != sin.shape or 2 * pairs > width:
        raise ShapeError(
            f"rope: x {x.shape} with tables {cos.shape} and {sin.shape}: two of one shape, of "
            f"at most {width // 2} pairs"
        )
    if 2 * pairs < width:
        turned = rope(x[..., : 2 * pairs], cos, sin, interleaved)
        return concat([turned, x[..., 2 * pairs :]], axis=-1)
    axis = x.ndim if interleaved else x.ndim - 1  # which of the two axes (2, P) or (P, 2) is 2

    def build(x: Node, c: Node, s: Node) -> Node:
        wide = c if x.dtype.bits == 16 else x
        cut = (*x.shape[:-1], pairs, 2) if interleaved else (*x.shape[:-1], 2, pairs)
        pair = ew.cast(views.reshape(x, cut), wide.dtype)
        # (a, b) -> (a c - b s, b c + a s): the pair times c, plus the exchanged pair times (-s, s)
        both = (*c.shape[:-1], pairs, 1) if interleaved else (*c.shape[:-1], 1, pairs)
        c, s = (views.reshape(ew.cast(t, wide.dtype), both) for t in (c, s))
        signed = views.concat([ew.neg(s), s], len(both) - 1 if interleaved else len(both) - 2)
        turned = ew.add(ew.mul(pair, c), ew.mul(views.flip(pair, (axis,)), signed))
        return ew.cast(views.reshape(turned, x.shape), x.dtype)

    return apply(build, x, cos, sin)


class RotaryEmbedding(Module):
    """Turns queries and keys by their positions.

    Args:
        rotary_dim: dimensions of a head that turn, even.
        positions: how many positions there are.
        base, scale: of the frequencies: ``(base^(-2i / rotary_dim)) / scale``.
        interleaved: the pairing.

    The tables are made from these and not saved.
    """

    def __init__(
        self,
        rotary_dim: int,
        positions: int,
        base: float = 10000.0,
        scale: float = 1.0,
        interleaved: bool = False,
    ) -> None:
        cos, sin = rope_tables(positions, rope_frequencies(rotary_dim, base, scale=scale))
        self.positions, self.interleaved = positions, interleaved
        self.rotary_dim = rotary_dim
        self._cos, self._sin = asarray(cos), asarray(sin)

    def forward(
        self, x: Tensor, positions: Tensor | int = 0, interleaved: bool | None = None
    ) -> Tensor:
        """x (batch, heads, T, head_dim); ``positions``: of the first row, or (T,) integers.

        ``interleaved``: another pairing than the module's.
        """
        steps = x.shape[-2]
        if isinstance(positions, Tensor):
            cos, sin = (take(t, positions, axis=0) for t in (self._cos, self._sin))
        else:
            if not 0 <= positions <= self.positions - steps:
                raise ShapeError(
                    f"rope: positions {positions} to {positions + steps - 1}, the tables have "
                    f"{self.positions}"
                )
            cos, sin = (t[positions : positions + steps] for t in (self._cos, self._sin))
        return rope(x, cos, sin, self.interleaved if interleaved is None else interleaved)

"""llama from text: RMSNorm, SwiGLU, rotary positions, grouped queries."""

from __future__ import annotations

from tilewright.nn.transformer import Llama, LlamaConfig

__all__ = ["make_llama"]


def make_llama(
    vocab_size: int,
    context: int = 256,
    layers: int = 6,
    heads: int = 6,
    kv_heads: int | None = None,
    width: int = 384,
    hidden: int | None = None,
    tied: bool = True,
) -> Llama:
    """A llama; ``hidden`` defaults to 8/3 of the width, rounded up to a multiple of 32.

    Queries and keys turn in pairs (2i, 2i + 1), as llama.cpp's files have them.
    """
    if layers < 1:
        raise ValueError(f"layers is 1 at least, got {layers}")
    if heads < 1 or width % heads or width // heads % 2:
        raise ValueError(f"{heads} heads do not cut a width of {width} into pairs to turn")
    if hidden is None:
        hidden = -(-8 * width // 3 // 32) * 32
    return Llama(
        LlamaConfig(
            vocab_size=vocab_size,
            block_size=context,
            n_layer=layers,
            n_head=heads,
            n_kv_head=kv_heads,
            n_embd=width,
            hidden=hidden,
            interleaved=True,
            tied=tied,
        )
    )

"""GPT-2 from text, as nanoGPT trains it."""

from __future__ import annotations

from tilewright.nn.transformer import GPT, GPTConfig

__all__ = ["make_gpt"]


def make_gpt(
    vocab_size: int,
    context: int = 256,
    layers: int = 6,
    heads: int = 6,
    width: int = 384,
    dropout: float = 0.2,
    bias: bool = False,
) -> GPT:
    """A GPT-2 with nanoGPT's defaults for Shakespeare by characters.

    Its GELU is GPT-2's own, the tanh form, so that model files mean what was trained.
    """
    if layers < 1:
        raise ValueError(f"layers is 1 at least, got {layers}")
    return GPT(
        GPTConfig(
            vocab_size=vocab_size,
            block_size=context,
            n_layer=layers,
            n_head=heads,
            n_embd=width,
            dropout=dropout,
            bias=bias,
            activation="gelu_tanh",
        )
    )

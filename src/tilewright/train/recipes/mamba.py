"""Mamba from text: a language model of selective state spaces."""

from __future__ import annotations

from tilewright.nn.mamba import MambaConfig, MambaLM

__all__ = ["make_mamba"]


def make_mamba(vocab_size: int, layers: int = 6, width: int = 256, state: int = 16) -> MambaLM:
    """A Mamba language model; ``state``: numbers that each channel remembers."""
    if layers < 1:
        raise ValueError(f"layers is 1 at least, got {layers}")
    return MambaLM(MambaConfig(vocab_size=vocab_size, d_model=width, n_layer=layers, d_state=state))

"""What a rotary position embedding needs to know (Su et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Pairing", "Rope"]

Pairing = Literal["interleaved", "half"]


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021).

    Attributes:
        dims: how many of a head's dimensions rotate.
        base: frequency base; angle i is ``position * base ** (-2 i / dims)``.
        pairing: ``interleaved`` pairs 2i with 2i+1, ``half`` pairs i with i + dims/2.
        scaling: ``none``, ``linear`` (positions divided by factor) or ``yarn`` (Peng et al. 2023).
        factor: context extension factor.
        original_context: trained context, for yarn.
        attention_factor, beta_fast, beta_slow: yarn's other constants.
    """

    dims: int
    base: float = 10000.0
    pairing: Pairing = "interleaved"
    scaling: Literal["none", "linear", "yarn"] = "none"
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0

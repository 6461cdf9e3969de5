"""How far logits are from the oracle's, as numbers that tests compare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Errors:
    """Relative to the oracle: RMS of the difference / RMS, greatest difference / greatest value."""

    rms: float
    max: float

    def __str__(self) -> str:
        return f"rms {self.rms:.2e}, max {self.max:.2e}"


def errors(got: NDArray, wanted: NDArray[np.float64]) -> Errors:
    """Compare (tokens, vocab) arrays; a shape mismatch or a NaN is an assertion error."""
    assert got.shape == wanted.shape, f"got logits {got.shape}, wanted {wanted.shape}"
    assert np.isfinite(got).all(), "logits contain NaN or infinity"
    difference = got.astype(np.float64) - wanted
    return Errors(
        float(np.sqrt(np.mean(difference**2) / np.mean(wanted**2))),
        float(np.abs(difference).max() / np.abs(wanted).max()),
    )

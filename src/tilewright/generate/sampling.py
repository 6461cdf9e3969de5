"""From logits to the next token: penalties, top-k, top-p, min-p, temperature, and a draw.

The filters come in llama.cpp's order, each seeing what the one before it left, and top-p and
min-p judge probabilities before the temperature is applied. Everything after the logits is
computed in float64, ties go to the lowest id, and the draw of step ``i`` depends on the seed and
``i`` alone, so the same logits give the same tokens anywhere.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.errors import ShapeError, TilewrightError

__all__ = ["Sampler", "SamplingParams"]

_FEW = 512  # top-p without top-k: how much of the distribution is sorted at first
_ROW = 64  # top-k: scores are looked at in rows of this many first


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next token. The defaults are llama.cpp's.

    ``temperature`` 0 takes the most likely token (greedy). ``top_k`` 0, ``top_p`` 1, ``min_p`` 0,
    ``repetition_penalty`` 1 and the other penalties 0 switch the step off. Penalties look at the
    last ``penalty_window`` tokens (-1: all, 0: none): ``repetition_penalty`` divides a positive
    logit of a token that occurred and multiplies a negative one (Keskar et al., CTRL, 2019);
    ``presence_penalty`` is subtracted once, ``frequency_penalty`` once for each occurrence.
    ``seed`` None draws a fresh one. Raises `ValueError` for a value out of range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        def need(good: bool, name: str, wanted: str) -> None:
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)!r}, wanted {wanted}")

        finite = math.isfinite
        need(finite(self.temperature) and self.temperature >= 0, "temperature", "at least 0")
        need(self.top_k >= 0, "top_k", "at least 0 (0: no limit)")
        need(0 < self.top_p <= 1, "top_p", "more than 0 and at most 1 (1: off)")
        need(0 <= self.min_p <= 1, "min_p", "0 to 1 (0: off)")
        need(
            finite(self.repetition_penalty) and self.repetition_penalty > 0,
            "repetition_penalty",
            "more than 0 (1: off)",
        )
        need(finite(self.presence_penalty), "presence_penalty", "a finite number")
        need(finite(self.frequency_penalty), "frequency_penalty", "a finite number")
        need(self.penalty_window >= -1, "penalty_window", "at least -1 (-1: the whole text)")
        need(self.seed is None or 0 <= self.seed < 1 << 64, "seed", "0 to 2**64 - 1, or None")


class Sampler:
    """Chooses tokens for one sequence; ``step`` counts them.

    Two samplers with the same parameters and seed give the same tokens for the same logits.
    """

    def __init__(self, params: SamplingParams, vocab_size: int) -> None:
        self.params = params
        self.vocab_size = vocab_size
        self.seed = int.from_bytes(os.urandom(8)) if params.seed is None else params.seed
        """The seed in use, so that a run with ``seed=None`` can be repeated."""
        self.step = 0

    def sample(self, logits: npt.NDArray[np.float32], history: Sequence[int] = ()) -> int:
        """The next token's id.

        ``logits``: (vocab,) float32, not changed; -inf forbids a token. ``history``: the ids so
        far, prompt included, which only the penalties look at. Raises `ShapeError` for another
        shape, `TilewrightError` if a logit is NaN or +inf or all are -inf.
        """
        step = self.step
        self.step += 1
        scores = self._penalised(logits, history)
        if self.params.temperature == 0 or self.params.top_k == 1:
            return int(np.argmax(scores))
        ids, probabilities = self._candidates(scores)
        cumulative = np.cumsum(probabilities)
        index = int(np.searchsorted(cumulative, self._uniform(step) * cumulative[-1], "right"))
        return int(ids[min(index, len(ids) - 1)])

    def distribution(
        self, logits: npt.NDArray[np.float32], history: Sequence[int] = ()
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The tokens that `sample` can return and their probabilities, the most likely first."""
        scores = self._penalised(logits, history)
        if self.params.temperature == 0:
            return np.array([np.argmax(scores)]), np.ones(1)
        ids, probabilities = self._candidates(scores)
        order = np.lexsort((ids, -scores[ids]))
        return ids[order], probabilities[order]

    def _penalised(
        self, logits: npt.NDArray[np.float32], history: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        if logits.shape != (self.vocab_size,):
            raise ShapeError(
                f"sample: logits have shape {logits.shape}, wanted ({self.vocab_size},)"
            )
        p = self.params
        if p.penalty_window and (
            p.repetition_penalty != 1 or p.presence_penalty or p.frequency_penalty
        ):
            logits = self._with_penalties(logits, history)
        # max() propagates NaN, so one pass finds everything that makes probabilities meaningless
        highest = float(logits.max())
        if not math.isfinite(highest):
            if math.isnan(highest):
                bad = int(np.flatnonzero(np.isnan(logits))[0])
                what = f"logits are NaN ({int(np.isnan(logits).sum())} of {logits.size}, the first "
                what += f"for token {bad}); the model's weights or activations overflowed"
            elif highest > 0:
                what = f"the logit of token {int(np.argmax(logits))} is +inf"
            else:
                what = "every logit is -inf: no token is allowed"
            raise TilewrightError(f"cannot sample: {what}")
        return logits

    def _with_penalties(
        self, logits: npt.NDArray[np.float32], history: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        p = self.params
        recent = history if p.penalty_window < 0 else history[-p.penalty_window :]
        ids, counts = np.unique(np.asarray(recent, np.int64), return_counts=True)
        if not ids.size:
            return logits
        if ids[0] < 0 or ids[-1] >= self.vocab_size:
            bad = int(ids[0] if ids[0] < 0 else ids[-1])
            raise ValueError(
                f"token id {bad} in the history is out of range for a vocabulary "
                f"of {self.vocab_size}"
            )
        chosen = logits[ids].astype(np.float64)
        penalty = p.repetition_penalty
        chosen = np.where(chosen > 0, chosen / penalty, chosen * penalty)
        chosen -= counts * p.frequency_penalty + p.presence_penalty
        out = logits.copy()
        out[ids] = chosen
        return out

    def _candidates(
        self, scores: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """What the filters leave, in a fixed order, with probabilities at the temperature."""
        p = self.params
        n = scores.size
        k = min(p.top_k or n, n)
        ids = _largest(scores, k) if k < n else None  # ascending ids; None: all
        kept = (scores if ids is None else scores[ids]).astype(np.float64)
        kept -= kept.max()
        weights = np.exp(kept)
        # The total of what top-k left: top-p and min-p are both cuts in the sorted order, so they
        # may be applied in either order as long as top-p's probabilities are taken from here.
        total = weights.sum()
        allowed = np.flatnonzero(weights >= p.min_p) if p.min_p else np.flatnonzero(kept > -np.inf)
        order = _head(kept, weights, allowed, p.top_p * total) if p.top_p < 1 else allowed
        with np.errstate(over="ignore"):  # a tiny temperature: -inf, probability 0, is right
            out = np.exp(kept[order] / p.temperature)
        out /= out.sum()
        return (order if ids is None else ids[order]), out

    def _uniform(self, step: int) -> float:
        """A number in [0, 1) for this step, with 53 random bits."""
        return float(philox(self.seed, step) >> 11) * 2.0**-53


def philox(key: int, counter: int) -> int:
    """64 random bits: the first word of Philox-4x64-10, a counter-based generator.

    Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011). Written out because loading
    NumPy's takes 30 ms, and one number a step is all that is wanted.
    """
    mask = (1 << 64) - 1
    k0, k1 = key & mask, key >> 64
    a, b, c, d = counter & mask, counter >> 64, 0, 0
    for _ in range(10):
        x, y = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
        a, b, c, d = (y >> 64) ^ b ^ k0, y & mask, (x >> 64) ^ d ^ k1, x & mask
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return a


def _largest(scores: npt.NDArray[Any], k: int) -> npt.NDArray[np.int64]:
    """Ascending positions of the k highest scores (k < size); of equal scores the lowest ones."""
    n = scores.size
    rows = n // _ROW
    if k <= rows // 4:
        # k rows reach the k-th highest row maximum, so k scores do: whatever is below it is out.
        # Partitioning the few that remain costs far less than partitioning all.
        maxima = scores[: rows * _ROW].reshape(rows, _ROW).max(axis=1)
        among = np.flatnonzero(scores >= np.partition(maxima, rows - k)[rows - k])
        return among[_exactly(scores[among], k)]
    return _exactly(scores, k)


def _exactly(scores: npt.NDArray[Any], k: int) -> npt.NDArray[np.int64]:
    threshold = np.partition(scores, scores.size - k)[scores.size - k]
    above = np.flatnonzero(scores > threshold)
    equal = np.flatnonzero(scores == threshold)[: k - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _head(
    scores: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    among: npt.NDArray[np.int64],
    needed: float,
) -> npt.NDArray[np.int64]:
    """Positions from ``among`` (ascending) by falling score, until their weights sum to ``needed``.

    Sorts no more than it must: as a rule a few hundred tokens have nearly all of the probability.
    """
    for few in (_FEW, 16 * _FEW):
        if len(among) > 4 * few:
            head = among[_largest(scores[among], few)]
            # the sum is taken in another order below; leave room for its rounding
            if weights[head].sum() > needed * (1 + 1e-9):
                among = head
    order = among[np.argsort(-scores[among], kind="stable")]
    reached = np.cumsum(weights[order])
    return order[: int(np.searchsorted(reached, needed, "left")) + 1]

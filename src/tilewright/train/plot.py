"""Loss curves as PNG pictures, from a run's record, without a plotting library."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tilewright.errors import FormatError
from tilewright.train.canvas import Canvas, Color
from tilewright.train.progress import short_count
from tilewright.train.record import read_record, series

__all__ = ["Curve", "nice_ticks", "plot_curves", "plot_record", "smooth"]

_COLORS: Final[tuple[Color, ...]] = ((31, 119, 180), (230, 110, 10), (44, 150, 44), (170, 60, 160))
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 24, 44, 56
_DENSE: Final = 60
"""Curves of more points than this get a smoothed line over the faint raw one."""


@dataclass(frozen=True)
class Curve:
    """Values over steps, of equal length; values that are not finite leave gaps."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


def plot_record(
    record: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    keys: Mapping[str, str] | None = None,
    title: str = "",
) -> None:
    """Draw a record's losses. ``keys``: name of each curve and its key in the record; default
    ``{"train": "loss", "val": "val_loss"}``.

    Raises:
        FormatError: the record is damaged, or has no finite value under any of the keys.
        OSError: the disk said no.
    """
    entries = read_record(record)
    keys = {"train": "loss", "val": "val_loss"} if keys is None else keys
    curves = [Curve(name, *series(entries, key)) for name, key in keys.items()]
    if not any(math.isfinite(v) for curve in curves for v in curve.values):
        wanted = ", ".join(map(repr, keys.values()))
        raise FormatError(f"no entry has a finite value of {wanted}", path=record)
    plot_curves(path, curves, title=title)


def plot_curves(
    path: str | os.PathLike[str],
    curves: Sequence[Curve],
    *,
    title: str = "",
    y_label: str = "loss",
    width: int = 1000,
    height: int = 600,
) -> None:
    """Draw curves over steps into a PNG file, written atomically.

    A curve of many points is drawn twice: faintly as it is, and smoothed. One of few points has a
    dot at each.

    Raises:
        ValueError: a curve of unequal lengths, or nothing finite to draw.
        OSError: the disk said no.
    """
    drawn = []
    for curve in curves:
        x, y = np.asarray(curve.steps, np.float64), np.asarray(curve.values, np.float64)
        if x.shape != y.shape or x.ndim != 1:
            raise ValueError(f"curve {curve.name!r} has {x.shape} steps and {y.shape} values")
        if np.isfinite(y).any():
            drawn.append((curve.name, x, y))
    if not drawn:
        raise ValueError("no curve has a finite value")
    x_ticks = nice_ticks(
        min(x.min() for _, x, _ in drawn), max(x.max() for _, x, _ in drawn), 8, whole=True
    )
    finite = np.concatenate([y[np.isfinite(y)] for _, _, y in drawn])
    y_ticks = nice_ticks(float(finite.min()), float(finite.max()), 7)

    canvas = Canvas(width, height)
    right, bottom = width - _RIGHT, height - _BOTTOM
    # steps reach from edge to edge, values from the lowest tick to the highest
    x_low, x_high = min(x.min() for _, x, _ in drawn), max(x.max() for _, x, _ in drawn)
    if x_low == x_high:
        x_low, x_high = x_ticks[0], x_ticks[-1]
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Points ``(n, 2)`` on the canvas."""
        across = _LEFT + (x - x_low) / (x_high - x_low) * (right - _LEFT)
        down = bottom - (y - y_low) / (y_high - y_low) * (bottom - _TOP)
        return np.stack([across, down], 1)

    for tick in y_ticks:
        down = round(place(np.array([x_low]), np.array([tick]))[0, 1])
        canvas.rectangle(_LEFT, down, right, down + 1, (226, 226, 226))
        canvas.text(_LEFT - 10, down, _tick_text(tick, y_ticks), anchor="right")
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            across = round(place(np.array([tick]), np.array([y_low]))[0, 0])
            canvas.rectangle(across, _TOP, across + 1, bottom, (240, 240, 240))
            canvas.rectangle(across, bottom, across + 1, bottom + 6, (90, 90, 90))
            canvas.text(across, bottom + 18, short_count(tick), anchor="middle")
    canvas.rectangle(_LEFT - 1, _TOP, _LEFT, bottom, (90, 90, 90))
    canvas.rectangle(_LEFT - 1, bottom, right, bottom + 1, (90, 90, 90))
    canvas.text((_LEFT + right) / 2, height - 14, "step", anchor="middle")
    canvas.text(_LEFT, _TOP - 14, y_label)
    canvas.text((_LEFT + right) / 2, 14, title, (20, 20, 20), anchor="middle")

    for index, (_, x, y) in enumerate(drawn):
        color = _COLORS[index % len(_COLORS)]
        if len(x) > _DENSE:
            canvas.polyline(_thin(place(x, y), right - _LEFT), color, width=1, opacity=0.3)
            line = smooth(y, len(y) / 200)
            canvas.polyline(_thin(place(x, line), right - _LEFT, ends=False), color, width=2.5)
        else:
            points = place(x, y)
            canvas.polyline(points, color, width=2.5)
            for point in points:
                canvas.polyline([tuple(point)], color, width=7)
    _legend(canvas, drawn, right)
    canvas.save(path)


def _legend(
    canvas: Canvas, drawn: Sequence[tuple[str, np.ndarray, np.ndarray]], right: int
) -> None:
    """Name and last value of each curve, in the corner where losses are seldom."""
    lines = []
    for name, _, y in drawn:
        last = smooth(y, len(y) / 200) if len(y) > _DENSE else y
        lines.append(f"{name} {last[np.isfinite(last)][-1]:.4g}")
    left = right - max(map(canvas.text_width, lines)) - 12
    for index, line in enumerate(lines):
        down = _TOP + 16 + 22 * index
        color = _COLORS[index % len(_COLORS)]
        canvas.rectangle(left - 36, down - 2, left - 10, down + 2, color)
        canvas.text(left, down, line)


def smooth(values: np.ndarray, window: float) -> np.ndarray:
    """Average over about ``window`` values to each side, weights falling exponentially.

    It looks both ways, so it does not lag behind as a running average does. Values that are not
    finite stay as they are and count for nothing.
    """
    decay = 1 - 1 / max(window, 1.0)
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    sums, weights = np.where(finite, values, 0.0), finite.astype(np.float64)
    out = _decaying(sums, decay) + _decaying(sums[::-1], decay)[::-1] - sums
    over = _decaying(weights, decay) + _decaying(weights[::-1], decay)[::-1] - weights
    return np.where(finite, out / np.where(finite, over, 1.0), values)


def _decaying(values: np.ndarray, decay: float) -> np.ndarray:
    """y[i] = decay * y[i - 1] + values[i]."""
    total, out = 0.0, []
    for value in values.tolist():
        total = decay * total + value
        out.append(total)
    return np.array(out)


def nice_ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """About ``count`` multiples of 1, 2 or 5 times a power of ten, from below ``low`` to above
    ``high``; ``whole``: integers only. Always at least two."""
    if low == high:
        room = 1.0 if whole else abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    if whole:
        step = max(round(step), 1)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, max(last, first + 1) + 1)]


def _tick_text(tick: float, ticks: Sequence[float]) -> str:
    """As many digits as it takes to tell neighbours apart."""
    step = ticks[1] - ticks[0]
    if max(abs(t) for t in ticks) >= 1e5 or step < 1e-4:
        return f"{tick:.3g}"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{tick + 0.0:.{digits}f}"


def _thin(points: np.ndarray, columns: int, *, ends: bool = True) -> np.ndarray:
    """No more points than the picture can show: per pixel column the lowest and the highest
    (``ends``), or the last."""
    if len(points) <= 2 * columns:
        return points
    keep = []
    for part in np.array_split(np.arange(len(points)), columns):
        values = points[part, 1]
        if not np.isfinite(values).any():
            keep.append(part[:1])
        elif ends:
            keep.append(np.unique([part[np.nanargmin(values)], part[np.nanargmax(values)]]))
        else:
            keep.append(part[-1:])
    return points[np.concatenate(keep)]

"""A small picture: lines with smooth edges, rectangles, text, and a PNG file at the end."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from tilewright.formats.atomic import atomic_file

__all__ = ["Canvas", "Color", "encode_png"]

Color = tuple[int, int, int]

# The 5 x 7 letters of character displays: ASCII 32..126, five columns each, lowest bit on top.
_FONT: Final = np.frombuffer(
    bytes.fromhex(
        "0000000000 00005f0000 0007000700 147f147f14 242a7f2a12 2313086462 3649562050 0008070300"
        "001c224100 0041221c00 2a1c7f1c2a 08083e0808 0080703000 0808080808 0000606000 2010080402"
        "3e5149453e 00427f4000 7249494946 2141494d33 1814127f10 2745454539 3c4a494931 4121110907"
        "3649494936 464949291e 0000140000 0040340000 0008142241 1414141414 0041221408 0201590906"
        "3e415d594e 7c1211127c 7f49494936 3e41414122 7f4141413e 7f49494941 7f09090901 3e41415173"
        "7f0808087f 00417f4100 2040413f01 7f08142241 7f40404040 7f021c027f 7f0408107f 3e4141413e"
        "7f09090906 3e4151215e 7f09192946 2649494932 03017f0103 3f4040403f 1f2040201f 3f4038403f"
        "6314081463 0304780403 6159494d43 007f414141 0204081020 004141417f 0402010204 4040404040"
        "0003070800 2054547840 7f28444438 3844444428 384444287f 3854545418 00087e0902 18a4a49c78"
        "7f08040478 00447d4000 2040403d00 7f10284400 00417f4000 7c04780478 7c08040478 3844444438"
        "fc18242418 18242418fc 7c08040408 4854545424 04043f4424 3c4040207c 1c2040201c 3c4030403c"
        "4428102844 4c9090907c 4464544c44 0008364100 0000770000 0041360800 0201020402"
    ),
    np.uint8,
).reshape(95, 5)
_ADVANCE: Final = 6
_HEIGHT: Final = 8


class Canvas:
    """Pixels of RGB, white at first; (0, 0) is the top left corner, y runs down.

    Attributes:
        pixels: float32 ``(height, width, 3)``, 0 to 255.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.pixels = np.full((height, width, 3), 255, np.float32)

    def rectangle(self, x0: int, y0: int, x1: int, y1: int, color: Color) -> None:
        """Fill the pixels x0 <= x < x1, y0 <= y < y1, as far as they are on the canvas."""
        self.pixels[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = color

    def polyline(
        self,
        points: Sequence[tuple[float, float]] | np.ndarray,
        color: Color,
        *,
        width: float = 2.0,
        opacity: float = 1.0,
    ) -> None:
        """Connect the points; a single one becomes a dot. Where a line crosses itself it does not
        get darker. Points that are not finite break the line."""
        points = np.asarray(points, np.float64).reshape(-1, 2)
        finite = np.isfinite(points).all(1)
        if not finite.any():
            return
        cover = np.zeros((self.height, self.width), np.float32)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], finite, [False]]).astype(int)))
        for start, stop in zip(edges[::2], edges[1::2]):
            run = points[start:stop]
            for a, b in zip(run, run[1:] if len(run) > 1 else run):
                self._cover_segment(cover, a, b, width / 2)
        low = np.maximum(np.floor(points[finite].min(0) - width), 0).astype(int)
        high = np.maximum(np.ceil(points[finite].max(0) + width) + 1, 0).astype(int)
        self._blend(low[0], low[1], cover[low[1] : high[1], low[0] : high[0]] * opacity, color)

    def _cover_segment(self, cover: np.ndarray, a: np.ndarray, b: np.ndarray, half: float) -> None:
        """Raise ``cover`` to how much of each pixel the segment a-b, ``half`` thick, hides."""
        reach = half + 1
        x0, y0 = np.floor(np.minimum(a, b) - reach).astype(int)
        x1, y1 = np.ceil(np.maximum(a, b) + reach).astype(int) + 1
        x0, x1 = max(x0, 0), min(x1, self.width)
        y0, y1 = max(y0, 0), min(y1, self.height)
        if x0 >= x1 or y0 >= y1:
            return
        px = np.arange(x0, x1)[None, :] + 0.5 - a[0]
        py = np.arange(y0, y1)[:, None] + 0.5 - a[1]
        d = b - a
        length2 = float(d @ d)
        t = np.clip((px * d[0] + py * d[1]) / length2, 0, 1) if length2 else 0.0
        distance = np.hypot(px - t * d[0], py - t * d[1])
        part = cover[y0:y1, x0:x1]
        np.maximum(part, np.clip(half + 0.5 - distance, 0, 1), out=part)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        color: Color = (60, 60, 60),
        *,
        scale: int = 2,
        anchor: str = "left",
    ) -> None:
        """Write ASCII text with its vertical middle at ``y``; other characters become ``?``.

        ``anchor``: whether ``x`` is the ``left``, ``middle`` or ``right`` of it.
        """
        codes = [ord(c) - 32 if " " <= c <= "~" else ord("?") - 32 for c in text]
        if not codes:
            return
        columns = np.zeros((len(codes) * _ADVANCE, _HEIGHT), np.float32)
        for i, code in enumerate(codes):
            bits = (_FONT[code][:, None] >> np.arange(_HEIGHT)) & 1
            columns[i * _ADVANCE : i * _ADVANCE + 5] = bits
        mask = np.kron(columns.T, np.ones((scale, scale), np.float32))
        width = mask.shape[1] - scale
        left = round(x - {"left": 0.0, "middle": width / 2, "right": width}[anchor])
        top = round(y - 7 * scale / 2)
        x0, y0 = max(left, 0), max(top, 0)
        part = mask[y0 - top :, x0 - left :][: max(self.height - y0, 0), : max(self.width - x0, 0)]
        self._blend(x0, y0, part, color)

    @staticmethod
    def text_width(text: str, scale: int = 2) -> int:
        """Pixels that `text` takes."""
        return max(len(text) * _ADVANCE - 1, 0) * scale

    def _blend(self, x: int, y: int, cover: np.ndarray, color: Color) -> None:
        """Mix ``color`` in, as far as ``cover`` hides what lies below (x, y)."""
        part = self.pixels[y : y + cover.shape[0], x : x + cover.shape[1]]
        part += cover[:, :, None] * (np.array(color, np.float32) - part)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG file, atomically. Raises `OSError` when the disk says no."""
        data = encode_png(np.rint(self.pixels).astype(np.uint8))
        with atomic_file(path) as file:
            file.write(data)


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG file (ISO/IEC 15948) of uint8 pixels, ``(height, width, 3)`` RGB."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row begins with its filter, 0: none
    rows[:, 1:] = pixels.reshape(height, -1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 6))
        + chunk(b"IEND", b"")
    )

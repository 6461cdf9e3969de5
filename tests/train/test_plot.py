"""Loss curves: the picture shows what the record says, and any viewer can open it."""

from __future__ import annotations

import io
import math
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from tilewright.errors import FormatError
from tilewright.train.canvas import Canvas, encode_png
from tilewright.train.plot import Curve, nice_ticks, plot_curves, plot_record, smooth
from tilewright.train.record import Record

BLUE, ORANGE = (31, 119, 180), (230, 110, 10)


def decode_png(data: bytes) -> np.ndarray:
    """A strict reader for the one kind of PNG that is written here."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        assert zlib.crc32(kind + body) == int.from_bytes(
            data[at + 8 + size : at + 12 + size], "big"
        )
        chunks[kind] = body
        at += 12 + size
    width, height = (int.from_bytes(chunks[b"IHDR"][i : i + 4], "big") for i in (0, 4))
    assert chunks[b"IHDR"][8:] == bytes([8, 2, 0, 0, 0])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    assert chunks[b"IEND"] == b""
    return rows[:, 1:].reshape(height, width, 3)


def has(pixels: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return (pixels == np.array(color)).all(-1)


def test_png_round_trip() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (13, 7, 3), dtype=np.uint8)
    assert np.array_equal(decode_png(encode_png(pixels)), pixels)


def test_a_peer_reads_the_same_pixels() -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (13, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(image.open(io.BytesIO(encode_png(pixels)))), pixels)


def test_text_and_lines_are_cut_at_the_edge() -> None:
    canvas = Canvas(40, 20)
    canvas.text(-20, 10, "Wide text that leaves", (0, 0, 0))
    canvas.text(35, -2, "7", (0, 0, 0))
    canvas.text(100, 100, "gone", (0, 0, 0))
    canvas.polyline([(-100, -100), (200, 50)], (0, 0, 0))
    canvas.polyline([(math.nan, 3), (math.nan, 5)], (0, 0, 0))
    assert np.isfinite(canvas.pixels).all()
    assert canvas.pixels.min() == 0
    assert canvas.pixels.max() == 255


def test_letters_are_where_they_should_be() -> None:
    canvas = Canvas(11, 7)
    canvas.text(0, 3.5, "1L", (0, 0, 0), scale=1)
    rows = ["".join("#" if p < 128 else "." for p in row) for row in canvas.pixels[:, :, 0]]
    assert rows == [
        "..#...#....",
        ".##...#....",
        "..#...#....",
        "..#...#....",
        "..#...#....",
        "..#...#....",
        ".###..#####",
    ]


def test_a_line_covers_what_lies_on_it() -> None:
    canvas = Canvas(30, 30)
    canvas.polyline([(5, 15), (25, 15)], (0, 0, 0), width=4)
    dark = canvas.pixels[:, 15, 0] < 128
    assert np.flatnonzero(dark).tolist() == [13, 14, 15, 16]
    canvas = Canvas(30, 30)
    canvas.polyline([(5, 15), (25, 15), (5, 15)], (0, 0, 0), width=4, opacity=0.5)
    assert canvas.pixels.min() == 127.5  # crossing itself it does not get darker


def test_the_curve_passes_through_its_points(tmp_path: Path) -> None:
    """Few points: the lowest tick is at the bottom of the frame, the highest at its top."""
    plot_curves(tmp_path / "a.png", [Curve("a", [0, 50, 100], [0.0, 5.0, 10.0])])
    blue = has(decode_png((tmp_path / "a.png").read_bytes()), BLUE)
    left, right, top, bottom = 90, 976, 44, 544
    assert blue[bottom - 2, left + 2]
    assert blue[(top + bottom) // 2, (left + right) // 2]
    assert blue[top + 2, right - 2]
    assert not blue[top + 60, left + 60]


def test_a_record_is_drawn(tmp_path: Path) -> None:
    with Record(tmp_path / "r.jsonl") as record:
        for step in range(1, 301):
            loss = math.nan if step == 150 else 4 / step**0.3
            record.log(step, loss=loss)
            if step % 50 == 0:
                record.log(step, val_loss=4.4 / step**0.3)
    plot_record(tmp_path / "r.jsonl", tmp_path / "r.png", title="a run")
    pixels = decode_png((tmp_path / "r.png").read_bytes())
    assert pixels.shape == (600, 1000, 3)
    assert has(pixels, BLUE)[:, 100:900].sum() > 500
    assert has(pixels, ORANGE)[:, 100:900].sum() > 500
    assert sorted(os.listdir(tmp_path)) == ["r.jsonl", "r.png"]


def test_nothing_to_draw(tmp_path: Path) -> None:
    with Record(tmp_path / "r.jsonl") as record:
        record.log(1, loss=math.inf)
    with pytest.raises(FormatError, match="no entry has a finite value"):
        plot_record(tmp_path / "r.jsonl", tmp_path / "r.png")
    with pytest.raises(ValueError, match="no curve"):
        plot_curves(tmp_path / "r.png", [])
    with pytest.raises(ValueError, match=r"\(1,\) steps and \(2,\) values"):
        plot_curves(tmp_path / "r.png", [Curve("a", [1], [1, 2])])
    assert not (tmp_path / "r.png").exists()


@pytest.mark.parametrize(
    "values", [[2.0], [0.0, 0.0], [1e-9, 2e-9], [-3e8, 5e12], [1.0, math.nan, 1.0000001]]
)
def test_odd_ranges(values: list[float], tmp_path: Path) -> None:
    plot_curves(tmp_path / "a.png", [Curve("a", list(range(len(values))), values)])
    assert has(decode_png((tmp_path / "a.png").read_bytes()), BLUE).any()


def test_ticks() -> None:
    assert nice_ticks(0.3, 9.7, 5) == [0, 2, 4, 6, 8, 10]
    assert nice_ticks(0, 3, 8, whole=True) == [0, 1, 2, 3]
    assert nice_ticks(7, 7, 8, whole=True) == [6, 7, 8]
    for low, high in ((1.0, 1.0), (0, 1e-12), (-5, 1e6)):
        ticks = nice_ticks(low, high, 7)
        assert ticks[0] <= low
        assert ticks[-1] >= high
        assert 2 <= len(ticks) <= 12


def test_smoothing_keeps_straight_lines_and_forgets_noise() -> None:
    flat = np.full(200, 3.0)
    flat[20] = math.nan
    out = smooth(flat, 10)
    assert math.isnan(out[20])
    assert np.allclose(np.delete(out, 20), 3)
    slope = np.arange(500.0)
    assert np.allclose(smooth(slope, 10)[150:-150], slope[150:-150])  # no lag
    noise = np.random.default_rng(0).standard_normal(5000)
    assert smooth(noise, 50).std() < 0.15

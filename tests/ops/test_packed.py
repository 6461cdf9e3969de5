from __future__ import annotations

import gguf
import numpy as np
import pytest
from kernel_calls import file_rows

from tilewright.errors import ShapeError, UnsupportedError
from tilewright.ops.packed import PANEL, block_layout, pack, packed_formats, raw_rows

FORMATS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q6_K")


def dequantize(raw: np.ndarray, type: str) -> np.ndarray:
    return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[type])


@pytest.mark.parametrize("type", FORMATS)
@pytest.mark.parametrize("n", [1, 31, 32, 100])
@pytest.mark.parametrize("k", [256, 768])
def test_unpacks_to_ggmls_values(type: str, n: int, k: int) -> None:
    raw = file_rows(np.random.default_rng(n + k), type, n, k)
    matrix = pack([(n, lambda a, b: raw[a:b])], type, k)
    assert matrix.format in packed_formats()
    assert matrix.numpy().tobytes() == dequantize(raw, type).tobytes()


@pytest.mark.parametrize("type", FORMATS)
def test_stacks_sources_and_pads_with_zeros(type: str) -> None:
    rng = np.random.default_rng(1)
    parts = [file_rows(rng, type, n, 256) for n in (40, 7, 64, 1)]
    sources = [(len(p), lambda a, b, p=p: p[a:b]) for p in parts]
    matrix = pack(sources, type, 256)
    assert matrix.n == 112
    assert matrix.numpy().tobytes() == dequantize(np.concatenate(parts), type).tobytes()
    for plane in matrix.planes.values():
        last = plane.numpy()[-1]
        assert last.shape[-1] == PANEL
        assert not last[..., 112 % PANEL :].any() or matrix.format == "q8_0"


@pytest.mark.parametrize("type", FORMATS)
def test_small_k(type: str) -> None:
    block, _ = block_layout(type)
    k = max(block, 32)
    raw = file_rows(np.random.default_rng(2), type, 5, k)
    matrix = pack([(5, lambda a, b: raw[a:b])], type, k)
    assert matrix.numpy().tobytes() == dequantize(raw, type).tobytes()


@pytest.mark.parametrize("type", FORMATS)
def test_packed_size_stays_near_the_files(type: str) -> None:
    raw = file_rows(np.random.default_rng(3), type, 64, 1024)
    assert pack([(64, lambda a, b: raw[a:b])], type, 1024).nbytes <= 1.06 * raw.nbytes


def test_reads_in_pieces() -> None:
    raw = file_rows(np.random.default_rng(4), "Q8_0", 4096, 2048)
    largest = 0

    def read(start: int, stop: int) -> np.ndarray:
        nonlocal largest
        largest = max(largest, stop - start)
        return raw[start:stop]

    matrix = pack([(4096, read)], "Q8_0", 2048)
    assert largest * raw.shape[1] <= 2 << 20
    assert matrix.numpy().tobytes() == dequantize(raw, "Q8_0").tobytes()


def test_read_only_rows_stay_untouched() -> None:
    raw = file_rows(np.random.default_rng(5), "Q8_0", 32, 64)
    before = raw.copy()
    raw.flags.writeable = False
    pack([(32, lambda a, b: raw[a:b])], "Q8_0", 64)
    assert np.array_equal(raw, before)


def test_other_types_keep_their_rows() -> None:
    raw = file_rows(np.random.default_rng(6), "Q5_K", 10, 512)
    matrix = pack([(10, lambda a, b: raw[a:b])], "Q5_K", 512)
    assert not matrix.is_packed
    assert np.array_equal(matrix.planes["raw"].numpy(), raw)
    table = raw_rows(
        [(6, lambda a, b: raw[a:b]), (4, lambda a, b: raw[6 + a : 6 + b])], "q5_k", 512
    )
    assert np.array_equal(table.planes["raw"].numpy(), raw)
    assert table.nbytes == raw.nbytes


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(UnsupportedError, match="IQ1_S"):
        pack([], "IQ1_S", 256)
    with pytest.raises(ShapeError, match="100 values"):
        pack([], "Q8_0", 100)
    with pytest.raises(ShapeError, match=r"rows 0:4.*wants uint8\(4, 34\)"):
        pack([(4, lambda a, b: np.zeros((b - a, 33), np.uint8))], "Q8_0", 32)

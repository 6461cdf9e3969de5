"""Writing GGUF: what is written reads back, here, in the gguf package and in llama.cpp's ggml."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tilewright.errors import FormatError, ShapeError, UnsupportedError
from tilewright.formats.gguf import (
    GGMLType,
    MetadataType,
    MetadataValue,
    TensorSource,
    ValueType,
    can_quantize,
    dequantize,
    open_gguf,
    quantize,
    tensor_from_array,
    tensor_from_raw,
    tensor_from_rows,
    write_gguf,
)

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Zoë 🦔",
    "empty": "",
    "block_count": 5,
    "negative": -7,
    "large": 1 << 40,
    "large_negative": -(1 << 40),
    "eps": 1e-5,
    "flag": True,
    "np.scalar": np.uint16(9),
    "np.float": np.float64(0.1),
    "tokens": ["<unk>", "<s>", "▁a", b"bytes", ""],
    "scores": np.array([0.5, -1.0, 2.0], np.float32),
    "types": [2, 3, 1],
    "wide": [1, 1 << 33],
    "floats": [1, 0.5],
    "bools": [True, False],
    "nested": [[1, 2], [3]],
    "typed": MetadataValue(3, ValueType.UINT64),
    "typed_array": MetadataValue([1, 2], MetadataType(ValueType.ARRAY, ValueType.UINT8)),
    "typed_empty": MetadataValue([], MetadataType(ValueType.ARRAY, ValueType.STRING)),
}
TYPES = {
    "general.architecture": "STRING", "general.name": "STRING", "empty": "STRING",
    "block_count": "UINT32", "negative": "INT32", "large": "UINT64", "large_negative": "INT64",
    "eps": "FLOAT32", "flag": "BOOL", "np.scalar": "UINT16", "np.float": "FLOAT64",
    "tokens": "ARRAY[STRING]", "scores": "ARRAY[FLOAT32]", "types": "ARRAY[INT32]",
    "wide": "ARRAY[INT64]", "floats": "ARRAY[FLOAT32]", "bools": "ARRAY[BOOL]",
    "nested": "ARRAY[ARRAY]", "typed": "UINT64", "typed_array": "ARRAY[UINT8]",
    "typed_empty": "ARRAY[STRING]",
}  # fmt: skip


def plain(value: Any) -> Any:
    """A metadata value as plain Python."""
    if isinstance(value, MetadataValue):
        return plain(value.value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


def test_metadata_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    assert write_gguf(path, METADATA, {}) == [str(path)]
    with open_gguf(path) as opened:
        assert {key: str(t) for key, t in opened.metadata_types.items()} == TYPES
        for key, value in METADATA.items():
            wanted = plain(value)
            if TYPES[key] == "FLOAT32":
                wanted = float(np.float32(wanted))
            assert plain(opened.metadata[key]) == wanted, key
        copy = {k: MetadataValue(v, opened.metadata_types[k]) for k, v in opened.metadata.items()}
    again = tmp_path / "again.gguf"
    write_gguf(again, copy, {})
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "NoneType"),
        ({"a": 1}, "dict"),
        (1 << 64, "64-bit"),
        ([], "no item type"),
        ([1, "a"], "different types"),
        ([True, 1], "different types"),
        (np.zeros((2, 2)), "one axis"),
        (np.zeros(2, np.complex64), "complex64"),
        ("\ud800", "surrogates"),
        (b"\xff", "invalid start byte"),
        (MetadataValue(300, ValueType.UINT8), "out of range for UINT8"),
        (MetadataValue(-1, ValueType.UINT64), "out of range for UINT64"),
        (MetadataValue(0.5, ValueType.INT32), "wants integers"),
        (MetadataValue(1, ValueType.BOOL), "BOOL"),
        (MetadataValue(1, ValueType.STRING), "a string is wanted, got int"),
        (MetadataValue("a", ValueType.FLOAT32), "wants numbers"),
        (MetadataValue(1e300, ValueType.FLOAT32), "out of range for FLOAT32"),
        ([[[[[1]]]]], "4 deep"),
    ],
)
def test_metadata_that_gguf_cannot_store(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(FormatError, match=rf"'some\.key'.*{message}"):
        write_gguf(tmp_path / "m.gguf", {"some.key": value}, {})
    assert list(tmp_path.iterdir()) == []


def test_keys_that_gguf_cannot_store(tmp_path: Path) -> None:
    for key in ("", "k" * 65536):
        with pytest.raises(FormatError, match=f"{len(key)} bytes"):
            write_gguf(tmp_path / "m.gguf", {key: 1}, {})


def random_tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "f32": rng.standard_normal((3, 5)).astype(np.float32),
        "f16": rng.standard_normal((2, 3, 4)).astype(np.float16),
        "f64": rng.standard_normal(7),
        "i8": rng.integers(-128, 128, (1, 2, 3, 5), dtype=np.int8),
        "i16": rng.integers(-128, 128, 3, dtype=np.int16),
        "i32": rng.integers(-128, 128, (1, 1), dtype=np.int32),
        "i64": rng.integers(-128, 128, 1, dtype=np.int64),
        "transposed": rng.standard_normal((4, 6)).astype(np.float32).T,
        "big_endian": rng.standard_normal((4, 6)).astype(">f4"),
    }


@pytest.mark.parametrize("alignment", [None, 1, 8, 32, 256, 4096])
def test_tensors_round_trip_and_read_in_the_gguf_package(
    tmp_path: Path, alignment: int | None
) -> None:
    arrays = random_tensors()
    path = tmp_path / "m.gguf"
    write_gguf(path, {"general.architecture": "x"}, arrays, alignment=alignment)
    theirs = {t.name: t for t in gguf.GGUFReader(path).tensors}
    with open_gguf(path) as ours:
        assert ours.alignment == alignment or (alignment is None and ours.alignment == 32)
        assert ("general.alignment" in ours.metadata) == (alignment not in (None, 32))
        for name, array in arrays.items():
            info = ours.tensors[name]
            assert info.offset % ours.alignment == 0
            assert info.shape == array.shape == theirs[name].data.shape
            assert np.array_equal(ours.read_raw(name).view(f"<{array.dtype.str[1:]}"), array)
            assert np.array_equal(theirs[name].data, array)


def test_quantised_tensors_in_all_three_ways(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((6, 512)).astype(np.float32)
    types = [type_ for type_ in GGMLType if can_quantize(type_)]
    assert len(types) == 15
    path = tmp_path / "m.gguf"
    for make in (
        lambda t: tensor_from_array(t.name, values.reshape(2, 3, 512), t),
        lambda t: tensor_from_raw(t.name, quantize(values, t), (2, 3, 512), t),
        lambda t: tensor_from_rows(t.name, (2, 3, 512), t, lambda a, b: values[a:b]),
    ):
        write_gguf(path, {}, [make(type_) for type_ in types])
        theirs = {t.name: t for t in gguf.GGUFReader(path).tensors}
        with open_gguf(path) as opened:
            for type_ in types:
                raw = quantize(values, type_)
                info = opened.tensors[type_.name]
                assert (info.shape, info.type) == ((2, 3, 512), type_)
                assert np.array_equal(opened.read_raw(type_.name).reshape(6, -1), raw)
                wanted = dequantize(raw, type_).reshape(2, 3, 512)
                assert np.array_equal(opened.dequantize(type_.name), wanted)
                assert theirs[type_.name].data.tobytes() == raw.tobytes()


def test_llama_cpp_accepts_the_file(tmp_path: Path, ggml: Any) -> None:
    import ctypes

    class Params(ctypes.Structure):
        _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))

    path = tmp_path / "m.gguf"
    names = ["f32", "f16", "i8", "transposed"]
    arrays = {name: random_tensors()[name] for name in names}
    # ggml knows neither nested nor empty arrays.
    metadata = {k: v for k, v in METADATA.items() if k not in ("nested", "typed_empty")}
    write_gguf(path, metadata, arrays, alignment=64)
    ggml.gguf_init_from_file.restype = ctypes.c_void_p
    ggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, Params]
    for function in ("gguf_get_n_tensors", "gguf_get_n_kv"):
        getattr(ggml, function).argtypes = [ctypes.c_void_p]
        getattr(ggml, function).restype = ctypes.c_int64
    context = ggml.gguf_init_from_file(os.fsencode(path), Params(True, None))
    assert context
    assert ggml.gguf_get_n_tensors(context) == len(arrays)
    assert ggml.gguf_get_n_kv(context) == len(metadata) + 1
    ggml.gguf_free.argtypes = [ctypes.c_void_p]
    ggml.gguf_free(context)


def test_tensors_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    values = np.zeros((2, 48), np.float32)
    with pytest.raises(ShapeError, match=r"'a'.*48 values does not divide into Q8_0 blocks of 32"):
        tensor_from_array("a", values, GGMLType.Q8_0)
    with pytest.raises(UnsupportedError, match=r"'a'.*complex64"):
        tensor_from_array("a", values.astype(np.complex64))
    with pytest.raises(UnsupportedError, match=r"'a'.*IQ2_XS"):
        tensor_from_array("a", values, GGMLType.IQ2_XS)
    with pytest.raises(UnsupportedError, match=r"'a'.*Q4_0_4_4 is no longer written"):
        tensor_from_raw("a", np.zeros(18, np.uint8), (32,), GGMLType.Q4_0_4_4)
    with pytest.raises(ShapeError, match=r"at most 4 dims, all of them positive"):
        write_gguf(path, {}, {"a": np.zeros((1, 1, 1, 1, 1), np.float32)})
    with pytest.raises(ShapeError, match=r"at most 4 dims, all of them positive"):
        write_gguf(path, {}, {"a": np.zeros((3, 0), np.float32)})
    with pytest.raises(ShapeError, match="wants 68 bytes"):
        tensor_from_raw("a", np.zeros(67, np.uint8), (2, 32), GGMLType.Q8_0)
    for name in ("", "x" * 64):
        with pytest.raises(FormatError, match=f"{len(name)} bytes"):
            write_gguf(path, {}, {name: values})
    with pytest.raises(FormatError, match="'a': is given twice"):
        write_gguf(path, {}, [tensor_from_array("a", values)] * 2)
    for alignment in (0, -8, 12, 1 << 32):
        with pytest.raises(FormatError, match="power of two"):
            write_gguf(path, {}, {}, alignment=alignment)
    with pytest.raises(FormatError, match=r"general\.alignment says 64"):
        write_gguf(path, {"general.alignment": 64}, {}, alignment=32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("given", "amount"), [(0, "only 0"), (63, "only 63"), (65, "more")])
def test_a_source_that_gives_the_wrong_amount(tmp_path: Path, given: int, amount: str) -> None:
    source = TensorSource("a", (16,), GGMLType.F32, lambda: [np.zeros(given, np.uint8)])
    with pytest.raises(FormatError, match=rf"tensor 'a': F32 \(16,\) takes 64 .* gave {amount}"):
        write_gguf(tmp_path / "m.gguf", {}, [source])
    assert list(tmp_path.iterdir()) == []


def test_a_failing_source_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, {"version": 1}, {"a": np.zeros(4, np.float32)})

    def fail() -> Iterator[np.ndarray]:
        yield np.zeros(8, np.uint8)
        raise RuntimeError("the source broke")

    for options in ({}, {"max_shard_tensors": 1}):
        good = tensor_from_array("a", np.zeros(4, np.float32))
        with pytest.raises(RuntimeError, match="the source broke"):
            write_gguf(path, {}, [good, TensorSource("b", (4,), GGMLType.F32, fail)], **options)
        assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
        with open_gguf(path) as opened:
            assert opened.metadata == {"version": 1}


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, old[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_gguf(tmp_path / "m.gguf", {}, {"a": np.zeros(1 << 20, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_gguf(tmp_path / "m.gguf", {}, {})
    assert (tmp_path / "m.gguf").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"max_shard_tensors": 4}, [4, 3]),
        ({"max_shard_tensors": 7}, [7]),
        ({"max_shard_bytes": 640}, [2, 1, 1, 1, 1, 1]),
        ({"max_shard_bytes": 1}, [1] * 7),
        ({"max_shard_bytes": 1 << 20, "max_shard_tensors": 6}, [6, 1]),
    ],
)
def test_splitting(tmp_path: Path, options: dict[str, int], sizes: list[int]) -> None:
    arrays = {f"t{i}": np.full((i + 1, 32), i, np.float32) for i in range(7)}
    paths = write_gguf(tmp_path / "m.gguf", {"k": 1}, arrays, alignment=64, **options)
    assert sorted(paths) == sorted(str(p) for p in tmp_path.iterdir())
    assert [len(gguf.GGUFReader(path).tensors) for path in paths] == sizes
    with open_gguf(paths[-1]) as opened:
        assert [info.shard for info in opened.tensors.values()] == [
            shard for shard, size in enumerate(sizes) for _ in range(size)
        ]
        for name, array in arrays.items():
            assert np.array_equal(opened.dequantize(name), array)


DIE_HALF_WAY = """
import os, signal, sys
import numpy as np
from tilewright.formats.gguf import GGMLType, TensorSource, write_gguf
def chunks():
    yield np.zeros(1 << 20, np.uint8)
    os.kill(os.getpid(), signal.SIGKILL)
source = TensorSource("a", (1 << 19,), GGMLType.F32, chunks)
write_gguf(sys.argv[1], {"version": 2}, [source])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize("old_file", [False, True])
def test_killed_in_the_middle_of_a_write(tmp_path: Path, old_file: bool) -> None:
    path = tmp_path / "m.gguf"
    if old_file:
        write_gguf(path, {"version": 1}, {})
    command = [sys.executable, "-c", DIE_HALF_WAY, str(path)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert path.exists() == old_file
    left = [p for p in tmp_path.iterdir() if p != path]
    assert len(left) == 1
    assert left[0].name.startswith(".m.gguf.")
    assert left[0].suffix == ".tmp"
    if old_file:
        with open_gguf(path) as opened:
            assert opened.metadata == {"version": 1}
    write_gguf(path, {"version": 3}, {})  # what was left does not disturb the next write
    with open_gguf(path) as opened:
        assert opened.metadata == {"version": 3}


WRITE_FOREVER = """
import itertools, sys
import numpy as np
from tilewright.formats.gguf import write_gguf
for n in itertools.count():
    arrays = {f"t{i}": np.full((i + 1, 1024), n, np.float32) for i in range(9)}
    write_gguf(sys.argv[1], {"n": n}, arrays, max_shard_tensors=int(sys.argv[2]))
    print(n, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize("per_shard", [9, 4])
def test_killed_at_any_moment(tmp_path: Path, per_shard: int) -> None:
    """A writer that rewrites a model over and over is killed: the model is whole, or refused."""
    path = tmp_path / "m.gguf"
    final = path if per_shard == 9 else tmp_path / "m-00001-of-00003.gguf"
    delays = np.random.default_rng(per_shard).uniform(0, 0.02, 6)
    whole = 0
    for delay in delays:
        command = [sys.executable, "-c", WRITE_FOREVER, str(path), str(per_shard)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "0\n"
            time.sleep(delay)
            process.kill()
        if per_shard != 9:
            try:
                opened = open_gguf(final)
            except (FormatError, FileNotFoundError):
                continue  # shards were missing
        else:
            opened = open_gguf(final)
        with opened:
            n = opened.metadata["n"]
            for i in range(9):
                values = opened.dequantize(f"t{i}")
                assert values.shape == (i + 1, 1024)
                assert (values == n).all()
        whole += 1
    assert whole


def test_two_writers_of_one_path(tmp_path: Path) -> None:
    """Each writes its own temporary file; the last to finish wins, whole."""
    path = tmp_path / "m.gguf"

    def inner() -> Iterator[np.ndarray]:
        write_gguf(path, {"who": "inner"}, {"b": np.ones(5, np.float32)})
        yield np.zeros(16, np.uint8)

    write_gguf(path, {"who": "outer"}, [TensorSource("a", (4,), GGMLType.F32, inner)])
    with open_gguf(path) as opened:
        assert opened.metadata["who"] == "outer"
        assert list(opened.tensors) == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_tensors_are_streamed(tmp_path: Path) -> None:
    """Rows are asked for once, in order, a few megabytes at a time."""
    asked: list[tuple[int, int]] = []

    def rows(start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return np.full((stop - start, 2048), start, np.float32)

    source = tensor_from_rows("a", (40, 100, 2048), GGMLType.Q8_0, rows)
    write_gguf(tmp_path / "m.gguf", {}, [source])
    assert asked[0][0] == 0
    assert asked[-1][1] == 4000
    assert all(a[1] == b[0] for a, b in itertools.pairwise(asked))
    assert max(stop - start for start, stop in asked) * 2048 * 4 <= 4 << 20
    with open_gguf(tmp_path / "m.gguf") as opened:
        for start, stop in asked:
            assert np.allclose(opened.dequantize_rows("a", start, stop), start, rtol=1e-3)
    wrong = tensor_from_rows("a", (4, 32), GGMLType.F32, lambda a, b: np.zeros((4, 31)))
    with pytest.raises(ShapeError, match=r"rows\(0, 4\) should give the shape \(4, 32\)"):
        write_gguf(tmp_path / "m.gguf", {}, [wrong])

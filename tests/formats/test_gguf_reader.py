"""Reading GGUF: real files against the gguf package, rows, split models."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tilewright.errors import FormatError, ShapeError, UnsupportedError
from tilewright.formats.gguf import (
    GGMLType,
    MetadataValue,
    TensorSource,
    ValueType,
    header,
    open_gguf,
    write_gguf,
)


def test_types_are_those_of_the_gguf_package() -> None:
    for theirs in gguf.GGMLQuantizationType:
        ours = GGMLType[theirs.name]
        assert ours == int(theirs)
        if ours is not GGMLType.Q8_1:  # the package still has the size of its first version
            assert (ours.block_size, ours.type_size) == gguf.GGML_QUANT_SIZES[theirs]
        assert not ours.layout.removed
    known = {int(theirs) for theirs in gguf.GGMLQuantizationType}
    assert {int(ours) for ours in GGMLType if not ours.layout.removed} == known
    assert {t.name: int(t) for t in ValueType} == {t.name: int(t) for t in gguf.GGUFValueType}


def test_block_sizes_are_ggmls(ggml: ctypes.CDLL) -> None:
    for type_ in GGMLType:
        if not type_.layout.removed:
            assert ggml.ggml_blck_size(int(type_)) == type_.block_size, type_
            assert ggml.ggml_type_size(int(type_)) == type_.type_size, type_


REAL_FILES = [
    "gguf/llama-2-tiny-random.gguf",
    "gguf/stories260K-f32.gguf",
    "gguf/stories260K-q8_0.gguf",
    "gguf/stories260K-q4_0.gguf",
    "gguf-vocab/ggml-vocab-gpt-2.gguf",
    "gguf-vocab/ggml-vocab-llama-spm.gguf",
]


def same_value(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, np.ndarray):
        return bool(np.array_equal(ours, np.array(theirs, ours.dtype)))
    return type(ours) is type(theirs) and ours == theirs


@pytest.mark.parametrize("name", REAL_FILES)
def test_real_files_read_as_the_gguf_package_reads_them(assets: Path, name: str) -> None:
    theirs = gguf.GGUFReader(assets / name)
    with open_gguf(assets / name) as ours:
        fields = {k: f for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
        assert list(ours.metadata) == list(fields)
        for key, field in fields.items():
            assert same_value(ours.metadata[key], field.contents()), key
            types = [ours.metadata_types[key].type, ours.metadata_types[key].item]
            assert [int(t) for t in types if t is not None] == [int(t) for t in field.types[:2]]
        assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
        for tensor in theirs.tensors:
            info = ours.tensors[tensor.name]
            assert info.shape == tuple(reversed(tensor.shape.tolist()))
            assert info.type == int(tensor.tensor_type)
            assert info.offset == tensor.data_offset
            assert info.nbytes == tensor.n_bytes
            assert info.n_elements == tensor.n_elements
            assert ours.read_raw(info.name).tobytes() == tensor.data.tobytes()
            wanted = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(ours.dequantize(info.name), wanted)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small file with 1 to 4 axes and three types."""
    rng = np.random.default_rng(0)
    tensors = {
        "one": rng.standard_normal(96).astype(np.float32),
        "two": rng.standard_normal((5, 64)).astype(np.float16),
        "four": rng.integers(-9, 9, (2, 3, 4, 5), dtype=np.int32),
        "scalar": np.array(2.5, np.float32),
    }
    path = tmp_path / "model.gguf"
    write_gguf(path, {"general.architecture": "test", "n": 1}, tensors)
    return path


def test_reading_rows(model: Path) -> None:
    with open_gguf(model) as opened:
        two = opened.dequantize("two")
        assert opened.read_raw("two").shape == (5, 128)
        assert opened.read_raw("four").shape == (2, 3, 4, 20)
        assert opened.read_raw("scalar").view(np.float32).tolist() == [2.5]
        assert opened.dequantize("scalar").shape == ()
        rows = opened.read_rows("two", 1, 4)
        assert np.array_equal(rows.view(np.float16), two[1:4].astype(np.float16))
        assert np.array_equal(opened.dequantize_rows("two", 1, 4), two[1:4])
        assert opened.read_rows("four", 7, 9).shape == (2, 20)
        assert opened.read_rows("two", 2, 2).shape == (0, 128)
        out = np.empty((3, 128), np.uint8)
        assert np.shares_memory(opened.read_rows("two", 1, 4, out), out)
        assert np.array_equal(out, rows)
        starts, chunks = [], []
        for start, chunk in opened.iter_rows("two", chunk_bytes=300):
            starts.append(start)
            chunks.append(chunk.copy())
        assert starts == [0, 2, 4]
        assert np.array_equal(np.concatenate(chunks), opened.read_raw("two"))


def test_reading_what_is_not_there(model: Path) -> None:
    with open_gguf(model) as opened:
        with pytest.raises(KeyError, match="no tensor 'three'"):
            opened.read_raw("three")
        for start, stop in ((-1, 2), (3, 2), (0, 6)):
            with pytest.raises(ShapeError, match="0:5 exist"):
                opened.read_rows("two", start, stop)
            with pytest.raises(ShapeError, match="0:5 exist"):
                opened.dequantize_rows("two", start, stop)
        for out in (np.empty((3, 127), np.uint8), np.empty((2, 128), np.int8)):
            with pytest.raises(ShapeError, match=r"shape \(2, 128\)"):
                opened.read_rows("two", 0, 2, out)
    with pytest.raises(FileNotFoundError):
        open_gguf(model.with_name("other.gguf"))
    with pytest.raises(FormatError, match="not a regular file"):
        open_gguf(model.parent)


def test_a_file_that_shrinks_after_opening(model: Path) -> None:
    with open_gguf(model) as opened:
        os.truncate(model, opened.tensors["four"].offset + 3)
        assert opened.read_raw("two").shape == (5, 128)
        with pytest.raises(FormatError, match=r"ended 477 bytes early.*shortened"):
            opened.read_raw("four")


def test_reading_without_preadv(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    with open_gguf(model) as opened:
        wanted = {name: opened.dequantize(name) for name in opened.tensors}
    monkeypatch.delattr(os, "preadv")
    with open_gguf(model) as opened:
        for name, values in wanted.items():
            assert np.array_equal(opened.dequantize(name), values)


def test_a_header_longer_than_the_reading_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind of value crosses the window's edge somewhere."""
    rng = np.random.default_rng(1)
    words = ["ü" * int(n) for n in rng.integers(0, 40, 500)]
    metadata = {
        "words": words,
        "numbers": rng.standard_normal(100),
        "bools": rng.integers(0, 2, 77).astype(bool),
        "nested": [["a", "bc"], ["d"]],
        **{f"key{i}": i for i in range(200)},
        "text": "x" * 1000,
    }
    tensors = {f"t{i}": np.full((i + 1, 3), i, np.float32) for i in range(50)}
    path = tmp_path / "model.gguf"
    write_gguf(path, metadata, tensors)
    for window in (1, 7, 64, 1000):
        monkeypatch.setattr(header, "_WINDOW", window)
        with open_gguf(path) as opened:
            assert opened.metadata["words"] == words
            assert np.array_equal(opened.metadata["numbers"], metadata["numbers"])
            assert np.array_equal(opened.metadata["bools"], metadata["bools"])
            assert opened.metadata["nested"] == [["a", "bc"], ["d"]]
            assert [opened.metadata[f"key{i}"] for i in range(200)] == list(range(200))
            assert opened.metadata["text"] == "x" * 1000
            for name, array in tensors.items():
                assert np.array_equal(opened.dequantize(name), array)


def unreadable(type_: GGMLType, path: Path) -> None:
    """A file with one tensor of a type that the writer refuses or that cannot be dequantised."""
    source = TensorSource("blk.0.w", (2, type_.block_size), GGMLType.I8, list)
    object.__setattr__(source, "type", type_)
    raw = np.arange(source.nbytes, dtype=np.uint8)
    object.__setattr__(source, "chunks", lambda: [raw])
    write_gguf(path, {}, [source])


@pytest.mark.parametrize("type_", [GGMLType.IQ2_XXS, GGMLType.Q1_0, GGMLType.Q4_0_4_4])
def test_unsupported_types_open_and_name_themselves(tmp_path: Path, type_: GGMLType) -> None:
    path = tmp_path / "model.gguf"
    unreadable(type_, path)
    with open_gguf(path) as opened:
        assert opened.tensors["blk.0.w"].type is type_
        assert opened.read_raw("blk.0.w").shape == (2, type_.type_size)
        with pytest.raises(UnsupportedError, match=rf"'blk.0.w': ggml type {type_.name}\b"):
            opened.dequantize("blk.0.w")


TENSORS = {f"t{i}": np.full((i + 1, 32), i, np.float32) for i in range(7)}


def split_model(folder: Path, **options: Any) -> list[Path]:
    options = options or {"max_shard_tensors": 3}
    metadata = {"general.architecture": "test", "tokens": ["a", "b"]}
    return [Path(p) for p in write_gguf(folder / "m.gguf", metadata, TENSORS, **options)]


@pytest.mark.parametrize("opened_shard", [0, 1, 2])
def test_any_shard_opens_the_whole_model(tmp_path: Path, opened_shard: int) -> None:
    paths = split_model(tmp_path)
    assert [p.name for p in paths] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    with open_gguf(paths[opened_shard]) as opened:
        assert opened.paths == [str(p) for p in paths]
        assert opened.metadata["tokens"] == ["a", "b"]
        assert list(opened.tensors) == list(TENSORS)
        assert [info.shard for info in opened.tensors.values()] == [0, 0, 0, 1, 1, 1, 2]
        for name, array in TENSORS.items():
            assert np.array_equal(opened.dequantize(name), array)
        assert opened.nbytes == sum(p.stat().st_size for p in paths)


def test_a_shard_opens_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = split_model(tmp_path)
    monkeypatch.chdir(tmp_path)
    with open_gguf(paths[1].name) as opened:
        assert len(opened.tensors) == 7


def test_shards_written_by_the_gguf_package(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "test", split_max_tensors=2)
    for name, array in TENSORS.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_gguf(tmp_path / "m-00003-of-00004.gguf") as opened:
        assert opened.metadata["general.architecture"] == "test"
        for name, array in TENSORS.items():
            assert np.array_equal(opened.dequantize(name), array)


def test_missing_and_misnamed_shards(tmp_path: Path) -> None:
    paths = split_model(tmp_path)
    paths[1].rename(tmp_path / "aside")
    with pytest.raises(FormatError, match=r"1 of the model's 3 shards .*: m-00002-of-00003.gguf"):
        open_gguf(paths[0])
    (tmp_path / "aside").rename(tmp_path / "m.gguf")
    with pytest.raises(FormatError, match=r"should end in -00002-of-00003\.gguf"):
        open_gguf(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").rename(tmp_path / "m-00004-of-00003.gguf")
    with pytest.raises(FormatError, match=r"name says shard 4, .* says shard 2"):
        open_gguf(tmp_path / "m-00004-of-00003.gguf")


def write_shard(path: Path, tensors: dict[str, np.ndarray], **split: Any) -> None:
    metadata = {f"split.{key.replace('_', '.')}": value for key, value in split.items()}
    write_gguf(path, metadata, tensors)


def test_shards_that_contradict_each_other(tmp_path: Path) -> None:
    def shard(number: int, names: str, **changes: Any) -> None:
        values = {"no": number, "count": 2, "tensors_count": 4, **changes}
        tensors = {name: np.zeros(8, np.float32) for name in names}
        write_shard(tmp_path / f"m-0000{number + 1}-of-00002.gguf", tensors, **values)

    first = tmp_path / "m-00001-of-00002.gguf"
    shard(0, "ab")
    shard(1, "cd")
    open_gguf(first).close()
    shard(1, "cd", no=0)
    with pytest.raises(FormatError, match=r"00002-of.*split.no is 0, the other shards say 1"):
        open_gguf(first)
    shard(1, "cd", count=3)
    with pytest.raises(FormatError, match=r"split\.count is 3"):
        open_gguf(first)
    shard(1, "cd", tensors_count=5)
    with pytest.raises(FormatError, match=r"split\.tensors\.count is 5"):
        open_gguf(first)
    shard(1, "cb")
    with pytest.raises(FormatError, match=r"tensor 'b': is also in .*00001-of-00002"):
        open_gguf(first)
    shard(1, "c")
    with pytest.raises(FormatError, match=r"3 tensors together, split\.tensors\.count says 4"):
        open_gguf(first)
    shard(1, "cd", count="two")
    with pytest.raises(FormatError, match=r"split\.count must be a non-negative integer"):
        open_gguf(first)
    metadata = {"split.no": 1, "split.count": 2, "split.tensors.count": 4, "other": 1}
    tensors = {name: np.zeros(8, np.float32) for name in "cd"}
    write_gguf(tmp_path / "m-00002-of-00002.gguf", metadata, tensors)
    with pytest.raises(FormatError, match="'other' differs"):
        open_gguf(first)
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(b"GGUF")
    with pytest.raises(FormatError, match=r"00002-of-00002\.gguf.*the version needs 4 bytes"):
        open_gguf(first)


def test_a_split_of_one_needs_no_special_name(tmp_path: Path) -> None:
    path = tmp_path / "whole.gguf"
    write_shard(path, {"a": np.zeros(3, np.float32)}, no=0, count=1, tensors_count=1)
    with open_gguf(path) as opened:
        assert list(opened.tensors) == ["a"]


MEASURE = """
import sys
from tilewright.formats.gguf import open_gguf
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
start = peak()
with open_gguf(sys.argv[1]) as model:
    kept = [model.read_raw(name) for name in model.tensors]
    raw_peak = peak() - start
    del kept
    total = 0.0
    for name in model.tensors:
        for first, rows in model.iter_rows(name):
            total += float(rows[0, 0])
    stream_peak = peak() - start
print(raw_peak, stream_peak)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to measure with")
def test_reading_takes_the_memory_of_what_is_read(tmp_path: Path) -> None:
    """What is read counts once: the file itself is never in the process's memory too."""
    path = tmp_path / "big.gguf"
    tensors = {f"t{i}": np.zeros((4096, 1024), np.float32) for i in range(8)}
    write_gguf(path, {"k": MetadataValue(1, ValueType.UINT8)}, tensors)
    size = path.stat().st_size
    command = [sys.executable, "-c", MEASURE, str(path)]
    raw_peak, _ = map(int, subprocess.check_output(command, text=True).split())
    assert size <= raw_peak + (1 << 20)
    assert raw_peak <= size + (16 << 20)
    streaming = MEASURE.replace("[model.read_raw(name) for name in model.tensors]", "[]")
    command = [sys.executable, "-c", streaming, str(path)]
    _, stream_peak = map(int, subprocess.check_output(command, text=True).split())
    assert stream_peak <= 16 << 20

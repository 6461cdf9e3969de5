"""safetensors: round trips, the format's own library as peer, and files that lie."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright import dtypes
from tilewright.errors import FormatError, ShapeError, UnsupportedError
from tilewright.formats.safetensors import open_safetensors, read_safetensors, write_safetensors


def samples() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((3, 4))
    arrays: dict[str, Any] = {
        d.name: values.astype(d.storage) for d in dtypes.ALL if d is not dtypes.bf16
    }
    arrays["bf16"] = (dtypes.from_float32(values.astype(np.float32)), dtypes.bf16)
    arrays["scalar"] = np.float32(2.5)
    arrays["empty"] = np.zeros((0, 3), np.int32)
    arrays["strided"] = np.arange(24, dtype=np.int16).reshape(4, 6)[::-2, 1::2].T
    arrays["big-endian"] = np.arange(5, dtype=">i4")
    return arrays


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    arrays = samples()
    write_safetensors(path, arrays, {"who": "é", "empty": ""})
    with open_safetensors(path) as file:
        assert file.metadata == {"who": "é", "empty": ""}
        assert file.tensors.keys() == arrays.keys()
        for name, wanted in arrays.items():
            array = wanted[0] if isinstance(wanted, tuple) else np.asarray(wanted)
            got = file.read(name)
            assert got.dtype == array.dtype.newbyteorder("=")
            assert got.shape == array.shape
            assert np.array_equal(got, array)
            assert b"".join(c.tobytes() for c in file.raw_chunks(name)) == got.tobytes()
            assert file.tensors[name].offset % file.tensors[name].dtype.nbytes == 0
        assert file.tensors["bf16"].dtype is dtypes.bf16
        with pytest.raises(KeyError, match="no tensor 'nil'"):
            file.read("nil")
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_bytes_do_not_depend_on_order(tmp_path: Path) -> None:
    arrays = samples()
    write_safetensors(tmp_path / "a", arrays)
    write_safetensors(tmp_path / "b", dict(reversed(arrays.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_formats_own_library_agrees(tmp_path: Path) -> None:
    peer = pytest.importorskip("safetensors.numpy")
    torch = pytest.importorskip("torch")
    peer_torch = pytest.importorskip("safetensors.torch")
    arrays = samples()
    write_safetensors(tmp_path / "ours", arrays, {"a": "b"})
    theirs = peer_torch.load_file(tmp_path / "ours")
    assert theirs.keys() == arrays.keys()
    for name, wanted in arrays.items():
        if name == "bf16":
            assert theirs[name].dtype == torch.bfloat16
            assert np.array_equal(theirs[name].view(torch.uint16).numpy(), wanted[0])
        else:
            assert np.array_equal(theirs[name].numpy(), np.asarray(wanted))
    plain = {k: np.ascontiguousarray(v) for k, v in arrays.items() if k not in ("bf16", "scalar")}
    plain["big-endian"] = plain["big-endian"].astype(np.int32)
    peer.save_file(plain, tmp_path / "theirs", {"c": "d"})
    ours = read_safetensors(tmp_path / "theirs")
    assert ours.keys() == plain.keys()
    for name in plain:
        assert ours[name].dtype == plain[name].dtype
        assert np.array_equal(ours[name], plain[name])


def test_a_real_file(assets: Path) -> None:
    path = assets / "onnx" / "mnist-burn" / "mnist.safetensors"
    found = read_safetensors(path)
    assert len(found) == 20
    assert sum(a.nbytes for a in found.values()) < path.stat().st_size


def test_empty_file_of_tensors(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a", {})
    assert read_safetensors(tmp_path / "a") == {}


LIES = {
    "empty": (b"", "has 0 bytes"),
    "short": (b"\x01\0\0", "has 3 bytes"),
    "length": (raw({}, length=1 << 60), "says that its header has"),
    "length beyond": (raw({}, length=100), "says that its header has 100 bytes"),
    "no brace": (raw(b"[1]"), "does not begin"),
    "no JSON": (raw(b'{"a": }'), "not JSON"),
    "no UTF-8": (raw(b'{"\xff": 1}'), "not UTF-8"),
    "deep": (raw(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "not sensible JSON"),
    "digits": (raw(b'{"a":' + b"9" * 10_000 + b"}"), "not sensible JSON"),
    "twice": (raw(b'{"a": 1, "a": 2}'), "'a' twice"),
    "metadata": (raw({"__metadata__": {"a": 1}}), "not a table of texts"),
    "metadata list": (raw({"__metadata__": []}), "not a table of texts"),
    "entry": (raw({"a": 3}), "should have 'dtype'"),
    "extra key": (raw({"a": {**entry(), "more": 1}}, bytes(8)), "should have 'dtype'"),
    "dtype": (raw({"a": entry("F33")}, bytes(8)), "unknown dtype 'F33'"),
    "dtype list": (raw({"a": {**entry(), "dtype": []}}, bytes(8)), "unknown dtype"),
    "negative": (raw({"a": entry(shape=(-2,))}, bytes(8)), "not a list of"),
    "float size": (raw({"a": entry(shape=(2.0,))}, bytes(8)), "not a list of"),
    "bool size": (raw({"a": entry(shape=(True, 2))}, bytes(8)), "not a list of"),
    "dims": (raw({"a": entry(shape=(1,) * 65 + (2,))}, bytes(8)), "not a list of"),
    "offsets": (raw({"a": entry(offsets=(0, 8, 8))}, bytes(8)), "not two offsets"),
    "backwards": (raw({"a": entry(offsets=(8, 0))}, bytes(8)), "not within"),
    "outside": (raw({"a": entry(offsets=(0, 8))}, bytes(7)), "not within"),
    "size": (raw({"a": entry(shape=(3,))}, bytes(8)), "takes 12 bytes, it has 8"),
    "overflow": (raw({"a": entry(shape=(1 << 62, 4))}, bytes(8)), "takes"),
    "part of a byte": (raw({"a": entry("F4", (3,), (0, 1))}, bytes(1)), "takes 1 bytes"),
    "overlap": (raw({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "overlaps"),
    "hole": (raw({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)), "leaves a hole"),
    "hole first": (raw({"a": entry(offsets=(4, 12))}, bytes(12)), "leaves a hole"),
    "more": (raw({"a": entry()}, bytes(9)), "1 bytes follow"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_found(lie: str, tmp_path: Path) -> None:
    content, message = LIES[lie]
    path = tmp_path / "lie.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as found:
        open_safetensors(path)
    assert str(path) in str(found.value)


def test_foreign_dtypes_are_listed_but_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(
        raw({"a": entry("F8_E4M3", (8,)), "b": entry("F32", (1,), (8, 12))}, bytes(12))
    )
    with open_safetensors(path) as file:
        assert file.read("b") == 0
        with pytest.raises(UnsupportedError, match="'a' is F8_E4M3"):
            file.read("a")


def test_a_bool_is_zero_or_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(raw({"a": entry("BOOL", (3,), (0, 3))}, b"\0\x01\x02"))
    with open_safetensors(path) as file, pytest.raises(FormatError, match="BOOL is 2"):
        file.read("a")


def test_a_file_that_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_safetensors(path, {"a": np.zeros(100)})
    with open_safetensors(path) as file:
        os.truncate(path, 200)
        with pytest.raises(FormatError, match="ended"):
            file.read("a")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_gives_format_errors_only(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "a"
    write_safetensors(path, {"a": np.arange(6.0).reshape(2, 3), "b": np.array([True])}, {"k": "v"})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(FormatError, UnsupportedError):
        read_safetensors(path)


@pytest.mark.parametrize(
    ("tensors", "metadata", "error"),
    [
        ({"a": np.zeros(2, np.complex64)}, None, UnsupportedError),
        ({"a": np.array(["text"])}, None, UnsupportedError),
        ({"__metadata__": np.zeros(2)}, None, FormatError),
        ({"\ud800": np.zeros(2)}, None, FormatError),
        ({"a": (np.zeros(2, np.float32), dtypes.bf16)}, None, ShapeError),
        ({"a": np.zeros(2)}, {"n": 3}, FormatError),
    ],
)
def test_what_cannot_be_stored(
    tensors: Any, metadata: Any, error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error):
        write_safetensors(tmp_path / "a", tensors, metadata)
    assert not os.listdir(tmp_path)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: the system refuses half way."""
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": np.arange(10)})
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, old[1]))
    try:
        with pytest.raises(OSError, match=r"a\.safetensors"):
            write_safetensors(path, {"a": np.zeros(1 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert np.array_equal(read_safetensors(path)["a"], np.arange(10))


def shard(folder: Path, weight_map: dict[str, Any] | None = None) -> Path:
    """A model in two files and its index."""
    write_safetensors(folder / "m-1.safetensors", {"a": np.arange(3), "b": np.ones(2)}, {"x": "1"})
    write_safetensors(folder / "m-2.safetensors", {"c": np.zeros((2, 2), np.float16)}, {"y": "2"})
    if weight_map is None:
        weight_map = {"c": "m-2.safetensors", "a": "m-1.safetensors", "b": "m-1.safetensors"}
    path = folder / "m.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": weight_map}))
    return path


def test_a_model_in_several_files(tmp_path: Path) -> None:
    path = shard(tmp_path)
    found = read_safetensors(path)
    assert found.keys() == {"a", "b", "c"}
    assert found["a"].tolist() == [0, 1, 2]
    assert found["c"].shape == (2, 2)
    with open_safetensors(path) as file:
        assert [os.path.basename(p) for p in file.paths] == ["m-1.safetensors", "m-2.safetensors"]
        assert file.metadata == {"x": "1", "y": "2"}
        assert file.tensors["c"].shard == 1


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "m-1.safetensors"}, "m-1.safetensors, tensor 'b'.* has it nowhere"),
        ({"a": "m-1.safetensors", "b": "m-2.safetensors"}, "'b'.* has it in m-2.safetensors"),
        (
            {"a": "m-1.safetensors", "b": "m-1.safetensors", "z": "m-1.safetensors"},
            "tensor 'z': is not in m-1.safetensors",
        ),
        ({"a": "../m-1.safetensors"}, "is no plain name"),
        ({"a": 3}, "is no plain name"),
        ({}, "has no 'weight_map'"),
        ([], "has no 'weight_map'"),
    ],
)
def test_an_index_that_lies(weight_map: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        open_safetensors(shard(tmp_path, weight_map))
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    with pytest.raises(FormatError, match="is not JSON"):
        open_safetensors(bad)
    with pytest.raises(FileNotFoundError):
        open_safetensors(shard(tmp_path, {"a": "nil.safetensors"}))

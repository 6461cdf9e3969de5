"""Files that data come from: right when they are whole, a clear refusal when they are not."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.data import (
    Batches,
    ImageFolder,
    encode_text,
    load_mnist,
    open_tokens,
    read_fasta,
    read_idx,
    read_image,
    read_npy,
    read_npz,
    read_text,
    split,
    tokenize_files,
    tokenize_texts,
    write_tokens,
)
from tilewright.errors import FormatError, ShapeError
from tilewright.tokenizers import from_gguf, from_metadata
from tilewright.tokenizers.pretokenizers import find_pretokenizer, pretokenizer_names
from tilewright.tokenizers.train import train_bpe


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    header = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


# ---------------------------------------------------------------------------------------- FASTA


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


FASTA = """
;old comment
>sp|P1|A_X first one
MKV
llG*

>rev_2 decoy
AAA\r
>
M-*K
>3 ü
  ACD\x20\x20
"""


@pytest.mark.parametrize("name", ["a.fasta", "a.fasta.gz"])
def test_fasta(name: str, tmp_path: Path) -> None:
    records = list(read_fasta(write(tmp_path / name, FASTA)))
    assert [r.sequence for r in records] == ["MKVLLG", "AAA", "M-*K", "ACD"]
    assert [r.identifier for r in records] == ["sp|P1|A_X", "rev_2", "", "3"]
    assert [r.line for r in records] == [3, 7, 9, 11]
    assert records[3].header == "3 ü"
    kept = read_fasta(tmp_path / name, skip=("rev_", "3"))
    assert [r.sequence for r in kept] == ["MKVLLG", "M-*K"]
    assert len(list(read_fasta(tmp_path / name, skip="rev_"))) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no record"),
        ("\n\n;only\n", "no record"),
        ("MKV\n>a\nMKV\n", "line 1: wanted a header line"),
        ('{"json": 1}', "line 1: wanted a header line"),
        (">a\n>b\nMKV\n", "line 1: the record has no sequence"),
        (">a\nMKV\n>b\n*\n", "line 3: the record has no sequence"),
        (">a\nMKV\n>b", "line 3: the record has no sequence"),
        (">a\nMKV\n MK1V\n", "line 3, column 4: '1' is no residue"),
        (">a\nM K\n", "line 2, column 2: ' ' is no residue"),
        (b">a\nM\xffK\n", "line 2, column 2"),
        (b">a\xff\nMK\n", "line 1: the header is not UTF-8"),
        (b">a\nM\0K\n", "line 2, column 2"),
    ],
)
def test_bad_fasta_names_the_line(content: str | bytes, message: str, tmp_path: Path) -> None:
    for name in ("a.fasta", "a.gz"):
        path = write(tmp_path / name, content)
        with pytest.raises(FormatError, match=message) as found:
            list(read_fasta(path))
        assert str(path) in str(found.value)


def test_damaged_gzip(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gz", ">a\n" + "MKV\n" * 10_000)
    good = path.read_bytes()
    for bad in (good[:-9], good[:20], good[:-6] + b"\0" + good[-5:], good[:30] + b"\xff" * 9):
        path.write_bytes(bad)
        with pytest.raises(FormatError, match="damaged gzip data"):
            list(read_fasta(path))
        with pytest.raises(FormatError, match="damaged gzip data"):
            read_text(path)


def test_real_fasta(assets: Path) -> None:
    counts = {
        "interproscan-5k.fasta": 5000,
        "prokka-sprot-Viruses.faa": 4450,
        "pyhmmer-938293.faa": 2100,
        "ecoli-K12-target-decoy.fasta": 4136,
    }
    for name, count in counts.items():
        records = list(read_fasta(assets / "protein" / name, skip="rev_"))
        assert len(records) == count
        assert {c for r in records for c in r.sequence} <= set("ACDEFGHIKLMNPQRSTVWYXUBZ")


# ----------------------------------------------------------------------------------------- text


def test_text_is_read_exactly(tmp_path: Path) -> None:
    text = "Zeile\r\n\rü\u2028\n"
    for name in ("a.txt", "a.gz"):
        assert read_text(write(tmp_path / name, b"\xef\xbb\xbf" + text.encode())) == text


def test_text_that_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a", b"ab\ncd\xff\n")
    with pytest.raises(FormatError, match=r"at byte 5: line 2 is not UTF-8: byte 0xFF"):
        read_text(path)
    with pytest.raises(FormatError, match="not a regular file"):
        read_text(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "nil")


# ---------------------------------------------------------------------------------------- tokens


class Bytes:
    """A tokenizer: a byte is a token."""

    vocab_size = 256
    add_space_prefix = False

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        assert not add_special
        return list(text.encode())


def test_token_files(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", "one\n" * 200_000), write(tmp_path / "b.gz", "é")
    count = tokenize_files([first, second], Bytes(), tmp_path / "t.npy", separator=0)
    tokens = open_tokens(tmp_path / "t.npy", vocab_size=256)
    assert isinstance(tokens, np.memmap)
    assert tokens.dtype == np.uint16
    assert bytes(tokens.tolist()) == b"one\n" * 200_000 + b"\0" + "é".encode() + b"\0"
    assert count == len(tokens)
    assert np.array_equal(np.load(tmp_path / "t.npy"), tokens)  # anybody can read it
    training, validation = split(tokens, 0.25)
    assert len(training) + len(validation) == len(tokens)
    assert abs(len(validation) / len(tokens) - 0.25) < 1e-3
    with pytest.raises(ValueError, match="fraction"):
        split(tokens, 1.0)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_token_files_of_sequences(tmp_path: Path) -> None:
    sequences = (r.sequence for r in read_fasta(write(tmp_path / "a.fasta", FASTA)))
    assert tokenize_texts(sequences, Bytes(), tmp_path / "t.npy", separator=1) == 20
    assert bytes(open_tokens(tmp_path / "t.npy").tolist()) == b"MKVLLG\1AAA\1M-*K\1ACD\1"


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    write_tokens(tmp_path / "t.npy", [np.array([65_536, 3]), np.array([1], np.uint8)], 70_000)
    assert open_tokens(tmp_path / "t.npy").tolist() == [65_536, 3, 1]
    write_tokens(tmp_path / "t.npy", [], 7)
    assert open_tokens(tmp_path / "t.npy", 7).shape == (0,)
    np.array([1, 2, 300], np.uint16).tofile(tmp_path / "nano.bin")
    assert open_tokens(tmp_path / "nano.bin").tolist() == [1, 2, 300]


def test_a_bad_file_writes_nothing(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "a", "fine"), write(tmp_path / "b", b"\xff")
    with pytest.raises(FormatError, match="not UTF-8"):
        tokenize_files([good, bad], Bytes(), tmp_path / "t.npy")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    for wrong in (np.array([256]), np.array([-1]), np.array([1.0]), np.array([[1]])):
        with pytest.raises(ShapeError):
            write_tokens(tmp_path / "t.npy", [wrong], 256)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


GOOD_TOKENS = npy(np.arange(10, dtype=np.uint16))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no NumPy array"),
        (b"\x93NUMPY\x01\x00\xff\xff", "is no NumPy array"),
        (GOOD_TOKENS[:-1], "take 148 bytes, the file has 147"),
        (GOOD_TOKENS + b"\0", "the file has 149"),
        (GOOD_TOKENS.replace(b"(10,)", b"(99,)"), "99 tokens"),
        (GOOD_TOKENS.replace(b"(10,)", b"(-1,)"), "shape"),
        (GOOD_TOKENS.replace(b"(10,)", b"(1.,)"), "NumPy array|shape"),
        (GOOD_TOKENS.replace(b"(10,)", b"exit("), "is no NumPy array"),
        (GOOD_TOKENS.replace(b"'<u2'", b"'|O' "), "Python objects"),
        (GOOD_TOKENS.replace(b"'<u2'", b"'<f2'"), "1-D integers"),
        (npy(np.zeros((2, 5), np.uint16)), "1-D integers"),
        (npy(np.array([1, 2, 9, 10], np.uint16)), r"at byte 134: token 3 is 10"),
    ],
)
def test_damaged_token_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.npy", content)
    with pytest.raises(FormatError, match=message):
        open_tokens(path, vocab_size=10)


def test_text_encoded_in_pieces_is_the_same(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (assets / "text" / "tinyshakespeare.txt").read_text()[:60_000]
    text += "\n\n \nx\n\n\ty \n z\r\n" * 20 + "word" * 500 + "don't\n123\n\n456!\n\n?"
    for name, size in (("gpt-2", 500), ("starcoder", 100), ("llama-spm", 500)):
        tokenizer = from_gguf(assets / "gguf-vocab" / f"ggml-vocab-{name}.gguf")
        monkeypatch.setattr("tilewright.data.tokens._PIECE_CHARS", size)
        ids = encode_text(tokenizer, text)
        assert ids.dtype == np.uint16
        assert ids.tolist() == tokenizer.encode(text, False, False)
    assert encode_text(tokenizer, "").shape == (0,)
    metadata = train_bpe([text], 600)
    monkeypatch.setattr("tilewright.data.tokens._PIECE_CHARS", 50)
    text = text[-8000:]
    for pre in {find_pretokenizer(name): name for name in pretokenizer_names()}.values():
        tokenizer = from_metadata({**metadata, "tokenizer.ggml.pre": pre})
        assert encode_text(tokenizer, text).tolist() == tokenizer.encode(text, False, False), pre


# ---------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(8, "u1"), (9, "i1"), (0xB, "i2"), (0xC, "i4"), (0xD, "f4"), (0xE, "f8")],
)
@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_idx(kind: int, dtype: str, name: str, tmp_path: Path) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    found = read_idx(write(tmp_path / name, idx(array, kind)))
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        (b"\0\0\x08", "too short"),
        (b"\0\0\x08\x02\0\0\0\x01", "too short"),
        (b"PNG.....", "too short|begins with"),
        (b"\0\0\x07\x01\0\0\0\x01a", "begins with 00 00 07 01"),
        (b"\0\0\x08\x00", "begins with"),
        (idx(np.zeros(9, np.uint8))[:-1], "ends early.*takes 17 bytes, it has 16"),
        (idx(np.zeros(9, np.uint8)) + b"\0", "bytes follow"),
        (b"\0\0\x0e\x04" + b"\xff" * 16 + bytes(100), "claims"),
    ],
)
def test_damaged_idx(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        read_idx(write(tmp_path / "a", content))


def test_npy_and_npz(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "a": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big": np.arange(3, dtype=">f4"),
        "none": np.zeros((0, 2), np.int8),
        "single": np.array(3, np.int16),
        "large": np.arange(300_000),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        found = read_npz(tmp_path / "a.npz")
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            np.save(tmp_path / "a.npy", array)
            for got in (found[name], read_npy(tmp_path / "a.npy")):
                assert got.shape == array.shape
                assert got.dtype == array.dtype.newbyteorder("=")
                assert np.array_equal(got, array)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([{}], object))
    with pytest.raises(FormatError, match=r"a\.npy.*Python objects"):
        read_npz(tmp_path / "a.npz")


def test_archives_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", GOOD_TOKENS.replace(b"(10,)", b"(9**9,)"[:5]))
    with pytest.raises(FormatError):
        read_npz(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(FormatError, match=r"a\.npz\[readme\.txt\].* is no NumPy array"):
        read_npz(path)
    path.write_bytes(b"PK nothing")
    with pytest.raises(FormatError, match="damaged archive"):
        read_npz(path)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_archives_give_format_errors_only(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    path = folder / "a.npz"
    np.savez_compressed(path, a=np.arange(20), b=np.zeros((2, 2)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(FormatError):
        read_npz(path)


# ----------------------------------------------------------------------------------------- MNIST


def test_mnist(assets: Path) -> None:
    training, test = load_mnist(assets / "mnist")
    for part in (training, test):
        assert len(part) == 10_000
        assert part.images.shape == (10_000, 28, 28)
        assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int32)
        assert np.bincount(part.labels, minlength=10).min() > 800
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_mnist_that_does_not_fit_together(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 28, 28), np.uint8), np.zeros(4, np.uint8)

    def lay(part: str, x: np.ndarray, y: np.ndarray) -> None:
        write(tmp_path / f"{part}-images-idx3-ubyte.gz", idx(x))
        write(tmp_path / f"{part}-labels-idx1-ubyte", idx(y))

    with pytest.raises(FormatError, match="no train-images-idx3-ubyte"):
        load_mnist(tmp_path)
    lay("train", images, labels)
    with pytest.raises(FormatError, match="no t10k-images-idx3-ubyte"):
        load_mnist(tmp_path)
    lay("t10k", images, labels)
    assert len(load_mnist(tmp_path)[1]) == 4
    for x, y, message in (
        (images, labels[:3], "4 images, but labels of shape"),
        (images[0], labels, "wanted uint8 images"),
        (images, labels + np.uint8(10), "label 0 is 10"),
    ):
        lay("t10k", x, y)
        with pytest.raises(FormatError, match=message):
            load_mnist(tmp_path)


# ---------------------------------------------------------------------------------------- images


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    for label, value in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (tmp_path / label).mkdir()
        for i in range(3):
            image.new("RGB", (20 + i, 10), value).save(tmp_path / label / f"{i}.png")
    (tmp_path / "red" / "notes.txt").write_text("no image")
    return tmp_path


def test_images_by_folder(image_folder: Path) -> None:
    folder = ImageFolder(image_folder, size=(8, 6))
    assert folder.classes == ["blue", "red"]
    assert folder.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(folder) == 6
    loader = Batches({"x": folder.images, "y": folder.labels}, 4, seed=1)
    batch = next(loader)
    assert batch["x"].shape == (4, 8, 6, 3)
    assert batch["x"].dtype == np.uint8
    assert np.array_equal(batch["x"][:, 0, 0, 0] == 255, batch["y"] == 1)
    again = Batches({"x": folder.images, "y": folder.labels}, 4, seed=1)
    again.restore(loader.state())
    assert np.array_equal(next(again)["y"], next(loader)["y"])


def test_reading_one_image(image_folder: Path, assets: Path) -> None:
    assert read_image(image_folder / "red" / "0.png").shape == (10, 20, 3)
    assert read_image(image_folder / "red" / "0.png", mode="L", size=(4, 4)).shape == (4, 4)
    cat = read_image(assets / "images" / "chelsea_cat.png")
    assert cat.shape == (300, 451, 3)
    assert 50 < cat.mean() < 200


def test_images_that_are_none(image_folder: Path) -> None:
    path = image_folder / "red" / "0.png"
    good = path.read_bytes()
    path.write_bytes(good[:40])
    with pytest.raises(FormatError, match="is no image that can be read"):
        read_image(path)
    path.write_bytes(b"GIF89a nonsense")
    with pytest.raises(FormatError, match=r"red/0\.png.*is no image"):
        ImageFolder(image_folder, size=(4, 4))
    huge = good[:16] + struct.pack(">II", 12_000, 12_000) + good[24:]
    path.write_bytes(huge[:29] + struct.pack(">I", zlib.crc32(huge[12:29])) + huge[33:])
    with pytest.raises(FormatError, match=r"claims 12000 x 12000 pixels"):
        read_image(path)
    with pytest.raises(FormatError, match="no images"):
        ImageFolder(image_folder / "red", size=(4, 4))

"""Damaged and hostile GGUF files: each ends in FormatError or loads, soon and in little memory.

The files go through a process of their own, which measures itself: at most 2 seconds for each and
200 MB in all, and no exception but FormatError.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tilewright.formats.gguf import GGMLType, open_gguf, tensor_from_array, write_gguf

WORKER = """
import json, os, sys, time
import numpy as np
from tilewright.errors import FormatError
from tilewright.formats.gguf import can_dequantize, open_gguf

def status(field):
    try:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))
    except FileNotFoundError:
        return 0

def touch(path):
    with open_gguf(path) as model:
        repr(model.metadata), repr(model.tensors)
        for name, info in list(model.tensors.items())[:100]:
            if info.n_elements < 1 << 16:
                model.read_raw(name)
                if can_dequantize(info.type):
                    model.dequantize(name)

try:
    import resource
    limit = status("VmSize") + (200 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
except ImportError:
    pass
for path in sys.argv[1:] or map(str.strip, sys.stdin):
    start = time.perf_counter()
    try:
        touch(path)
        outcome = "loads"
    except FormatError as error:
        outcome = str(error)
        assert error.path in outcome and len(outcome) < 1000, outcome
    except BaseException as error:
        outcome = f"CRASH {type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    print(json.dumps([path, outcome, seconds, status("VmHWM")]), flush=True)
"""


def outcomes(paths: list[Path]) -> dict[str, str]:
    """What opening and reading each file came to, by file name; limits are checked here."""
    run = subprocess.run(
        [sys.executable, "-c", WORKER],
        input="\n".join(map(str, paths)),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    results = {}
    for line in run.stdout.splitlines():
        path, outcome, seconds, peak = json.loads(line)
        assert not outcome.startswith("CRASH"), (path, outcome)
        assert seconds < 2, (path, outcome, seconds)
        assert peak < 200_000_000, (path, outcome, peak)
        results[Path(path).name] = outcome
    assert len(results) == len(paths)
    return results


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small but complete model file: every kind of value, several tensor types."""
    rng = np.random.default_rng(0)
    metadata = {
        "general.architecture": "llama",
        "general.alignment": 32,
        "llama.block_count": 2,
        "llama.eps": 1e-5,
        "flag": True,
        "tokenizer.ggml.tokens": [f"token{i}" for i in range(40)] + ["ü", "🦔"],
        "tokenizer.ggml.scores": rng.standard_normal(42).astype(np.float32),
        "nested": [[1, 2], [3]],
        "bools": [True, False],
    }
    types = [GGMLType.F32, GGMLType.F16, GGMLType.Q8_0, GGMLType.Q4_0, GGMLType.Q6_K, GGMLType.Q4_K]
    tensors = [
        tensor_from_array(f"blk.{i}.weight", rng.standard_normal((3, 256)).astype(np.float32), t)
        for i, t in enumerate(types)
    ]
    path = tmp_path_factory.mktemp("good") / "good.gguf"
    write_gguf(path, metadata, tensors)
    return path.read_bytes()


def header_size(data: bytes, folder: Path) -> int:
    (folder / "whole").write_bytes(data)
    with open_gguf(folder / "whole") as opened:
        return next(iter(opened.tensors.values())).offset


def test_truncation_at_every_region(good: bytes, tmp_path: Path) -> None:
    """100 offsets, most of them in the header."""
    header = header_size(good, tmp_path)
    lengths = {0, 1, 3, 4, 7, 8, 15, 16, 23, 24, header - 1, header, header + 1, len(good) - 33}
    lengths |= set(np.linspace(25, header - 2, 100 - 20 - len(lengths)).astype(int).tolist())
    lengths |= set(np.linspace(header + 2, len(good) - 34, 100 - len(lengths)).astype(int).tolist())
    assert len(lengths) >= 95
    paths = []
    for length in sorted(lengths):
        paths.append(tmp_path / f"{length:06d}")
        paths[-1].write_bytes(good[:length])
    for name, outcome in outcomes(paths).items():
        assert outcome != "loads", name


def test_bit_flips(good: bytes, tmp_path: Path) -> None:
    """1,000 single bits: 700 in the header, 300 anywhere."""
    header = header_size(good, tmp_path)
    rng = np.random.default_rng(1)
    bits = np.concatenate([rng.integers(0, 8 * header, 700), rng.integers(0, 8 * len(good), 300)])
    paths = []
    for number, bit in enumerate(bits.tolist()):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        paths.append(tmp_path / f"{number:04d}")
        paths[-1].write_bytes(damaged)
    results = outcomes(paths)
    refused = [name for name, outcome in results.items() if outcome != "loads"]
    # Flips in tensor data, in text and in numbers load; those in structure do not.
    assert 150 < len(refused) < 850
    assert all(results[f"{n:04d}"] == "loads" for n, bit in enumerate(bits) if bit >= 8 * header)


def test_many_bytes_replaced(good: bytes, tmp_path: Path) -> None:
    """200 headers with runs of random bytes, of 0xFF and of zeros."""
    header = header_size(good, tmp_path)
    rng = np.random.default_rng(2)
    paths = []
    for number in range(200):
        damaged = bytearray(good)
        start = int(rng.integers(4, header))
        stop = min(header, start + int(rng.integers(1, 64)))
        kind = number % 3
        run = rng.bytes(stop - start) if kind == 0 else bytes([0xFF * (kind - 1)]) * (stop - start)
        damaged[start:stop] = run
        paths.append(tmp_path / f"{number:03d}")
        paths[-1].write_bytes(damaged)
    outcomes(paths)


# ------------------------------------------------------------------------------- crafted headers

U32_MAX, U64_MAX = (1 << 32) - 1, (1 << 64) - 1
UINT8, UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, FLOAT64 = 0, 4, 6, 7, 8, 9, 10, 12


def u32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def u64(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def text(data: bytes | str, length: int | None = None) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return u64(len(data) if length is None else length) + data


def entry(key: bytes | str, type_: int, value: bytes) -> bytes:
    return text(key) + u32(type_) + value


def tensor(
    name: bytes | str, dims: tuple[int, ...] = (32,), type_: int = 0, offset: int = 0
) -> bytes:
    return text(name) + u32(len(dims)) + u64(*dims) + u32(type_) + u64(offset)


def gguf_file(
    entries: list[bytes] = [],  # noqa: B006
    tensors: list[bytes] = [],  # noqa: B006
    data: int = 0,
    *,
    version: int = 3,
    kv_count: int | None = None,
    tensor_count: int | None = None,
    tail: bytes = b"",
    alignment: int = 32,
) -> bytes:
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(entries) if kv_count is None else kv_count,
    )
    header = b"GGUF" + u32(version) + u64(*counts) + b"".join(entries) + b"".join(tensors) + tail
    return header + bytes(-len(header) % alignment if data else 0) + bytes(data)


ONE = entry("one", UINT32, u32(1))
ALIGN = "general.alignment"
NEST = 1_000_000


def array(item: int, count: int, data: bytes = b"") -> bytes:
    return u32(item) + u64(count) + data


# name: (file, part of the message)
CRAFTED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "magic only": (b"GGUF", "the version needs 4 bytes"),
    "other magic": (b"ggml" + gguf_file()[4:], "not a GGUF file"),
    "text file": (b"Once upon a time there was a file", "not a GGUF file"),
    "version 0": (gguf_file(version=0), "unknown GGUF version 0"),
    "version 1": (gguf_file(version=1), "version 1 is not supported"),
    "version 4": (gguf_file(version=4), "unknown GGUF version 4"),
    "big-endian": (gguf_file(version=3 << 24), "big-endian"),
    "no counts": (b"GGUF" + u32(3), "the tensor count needs 8 bytes"),
    "kv count 2^64-1": (gguf_file([ONE], kv_count=U64_MAX), "metadata entries needs"),
    "kv count 2^63": (gguf_file([ONE], kv_count=1 << 63), "metadata entries needs"),
    "kv count one too many": (gguf_file([ONE], kv_count=2), "2 metadata entries needs 28 bytes"),
    "tensor count 2^64-1": (gguf_file([ONE], tensor_count=U64_MAX), "tensors needs"),
    "tensor count one too many": (
        gguf_file([], [tensor("a")], tensor_count=2, tail=text("b" * 9)),
        "the tensor info needs 4 bytes",
    ),
    "key of 2^63 bytes": (gguf_file([text(b"k", 1 << 63) + bytes(16)]), "at most 65535"),
    "key of 2^64-1 bytes": (gguf_file([text(b"k", U64_MAX) + bytes(16)]), "at most 65535"),
    "key past the end": (gguf_file([text(b"k", 1000) + bytes(16)]), "needs 1000 bytes"),
    "key too long": (gguf_file([entry("k" * 65536, UINT8, b"1")]), "at most 65535"),
    "empty key": (gguf_file([entry("", UINT32, u32(1))]), "empty key"),
    "key of bad UTF-8": (gguf_file([entry(b"a\xffb", UINT8, b"1")]), "not valid UTF-8"),
    "duplicate key": (gguf_file([ONE, ONE]), "'one' is given twice"),
    "value type 13": (gguf_file([entry("k", 13, u64(0))]), "value type 13"),
    "value type 2^32-1": (gguf_file([entry("k", U32_MAX, u64(0))]), "value type 4294967295"),
    "number past the end": (gguf_file([entry("k", UINT64, u32(1))]), "'k' needs 8 bytes"),
    "bool 2": (gguf_file([entry("k", BOOL, b"\2")]), "bool with the value 2"),
    "bool array with 255": (
        gguf_file([entry("k", ARRAY, array(BOOL, 3, b"\0\1\xff"))]),
        "item 2 is not a bool: 255",
    ),
    "string of 2^63 bytes": (gguf_file([entry("k", STRING, text(b"", 1 << 63))]), "needs"),
    "string of 2^64-1 bytes": (gguf_file([entry("k", STRING, text(b"", U64_MAX))]), "needs"),
    "string past the end": (gguf_file([entry("k", STRING, text("ab", 3))]), "needs 3 bytes"),
    "string of bad UTF-8": (gguf_file([entry("k", STRING, text(b"ab\xc3("))]), "byte 2 of 4"),
    "string of an encoded surrogate": (
        gguf_file([entry("k", STRING, text(b"\xed\xa0\x80"))]),
        "not valid UTF-8",
    ),
    "string of overlong UTF-8": (
        gguf_file([entry("k", STRING, text(b"\xc0\x80"))]),
        "not valid UTF-8",
    ),
    "array without a header": (gguf_file([entry("k", ARRAY, u32(UINT8))]), "'k' needs 8 bytes"),
    "array of type 13": (gguf_file([entry("k", ARRAY, array(13, 1, u64(0)))]), "value type 13"),
    "array of 2^64-1": (gguf_file([entry("k", ARRAY, array(UINT8, U64_MAX))]), "needs"),
    "array of 2^61 doubles": (gguf_file([entry("k", ARRAY, array(FLOAT64, 1 << 61))]), "needs"),
    "array past the end": (
        gguf_file([entry("k", ARRAY, array(FLOAT32, 5, bytes(19)))]),
        "needs 20 bytes",
    ),
    "strings 2^64-1": (gguf_file([entry("k", ARRAY, array(STRING, U64_MAX))]), "needs"),
    "strings past the end": (
        gguf_file([entry("k", ARRAY, array(STRING, 2, text("abc") + text("a", 9)))]),
        "'k' needs 9 bytes",
    ),
    "strings with one of 2^63": (
        gguf_file([entry("k", ARRAY, array(STRING, 2, text("abc") + text("a", 1 << 63)))]),
        "needs 9223372036854775808 bytes",
    ),
    "strings of bad UTF-8": (
        gguf_file([entry("k", ARRAY, array(STRING, 2, text("abc") + text(b"\x80")))]),
        "item 1 is not valid UTF-8",
    ),
    "nested a million deep": (
        gguf_file([entry("k", ARRAY, array(ARRAY, 1) * NEST)]),
        "nests arrays deeper than 4",
    ),
    "arrays 2^60": (gguf_file([entry("k", ARRAY, array(ARRAY, 1 << 60))]), "needs"),
    "a million empty arrays": (
        gguf_file([entry("k", ARRAY, array(ARRAY, NEST, array(UINT8, 0) * NEST))]),
        "more than 128 MiB",
    ),
    "three million empty strings": (
        gguf_file([entry("k", ARRAY, array(STRING, 3 * NEST, bytes(24 * NEST)))]),
        "more than 128 MiB",
    ),
    "alignment 0": (gguf_file([entry(ALIGN, UINT32, u32(0))]), "power of two, it is 0"),
    "alignment 24": (gguf_file([entry(ALIGN, UINT32, u32(24))]), "power of two, it is 24"),
    "alignment of another type": (
        gguf_file([entry(ALIGN, UINT64, u64(32))]),
        "must be a UINT32, it is a UINT64",
    ),
    "alignment is a string": (
        gguf_file([entry(ALIGN, STRING, text("32"))]),
        "must be a UINT32, it is a STRING",
    ),
    "alignment 2^31": (
        gguf_file([entry(ALIGN, UINT32, u32(1 << 31))], [tensor("a")], 128),
        "the file ends",
    ),
    "name of 2^63 bytes": (
        gguf_file([], [text(b"a", 1 << 63) + bytes(40)], 128),
        "at most 65535",
    ),
    "name of bad UTF-8": (gguf_file([], [tensor(b"\xfe")], 128), "not valid UTF-8"),
    "empty name": (gguf_file([], [tensor("")], 128), "empty name"),
    "duplicate name": (
        gguf_file([], [tensor("a"), tensor("a", offset=128)], 256),
        "'a' is given twice",
    ),
    "5 dims": (gguf_file([], [tensor("a", (1, 1, 1, 1, 32))], 128), "has 5 dims"),
    "2^32-1 dims": (
        gguf_file([], [text("a") + u32(U32_MAX) + u64(1) + u32(0) + u64(0)], 128),
        "has 4294967295 dims",
    ),
    "a dim of 0": (gguf_file([], [tensor("a", (32, 0))], 128), "no dim may be zero"),
    "a dim of 2^64-1": (gguf_file([], [tensor("a", (U64_MAX,))], 128), "more than 2"),
    "dims whose product is 2^64": (
        gguf_file([], [tensor("a", (1 << 32, 1 << 32))], 128),
        "more than 2",
    ),
    "dims whose product wraps to 32": (
        gguf_file([], [tensor("a", (1 << 62, 2, 2, 32 + 1))], 128),
        "more than 2",
    ),
    "a tensor of 2^62 values": (
        gguf_file([], [tensor("a", (1 << 31, 1 << 31))], 128),
        "the file ends",
    ),
    "type 42": (gguf_file([], [tensor("a", type_=42)], 128), "ggml type 42, which is unknown"),
    "type 2^32-1": (gguf_file([], [tensor("a", type_=U32_MAX)], 128), "ggml type 4294967295"),
    "half a block": (gguf_file([], [tensor("a", (48,), 8)], 128), "Q8_0 blocks of 32"),
    "a row shorter than a block": (
        gguf_file([], [tensor("a", (128, 2), 12)], 288),
        "Q4_K blocks of 256",
    ),
    "a tensor past the end": (gguf_file([], [tensor("a", (33,))], 128), "the file ends"),
    "an offset past the end": (
        gguf_file([], [tensor("a"), tensor("b", offset=1 << 20)], 256),
        "leaves a gap",
    ),
    "an offset of 2^64-32": (
        gguf_file([], [tensor("a", offset=U64_MAX - 31)], 128),
        "leaves a gap",
    ),
    "an offset out of line": (
        gguf_file([], [tensor("a"), tensor("b", offset=130)], 300),
        "not a multiple of 32",
    ),
    "the same offset twice": (gguf_file([], [tensor("a"), tensor("b")], 256), "overlaps 'a'"),
    "offsets that overlap": (
        gguf_file([], [tensor("a", (64,)), tensor("b", offset=128)], 512),
        "overlaps 'a'",
    ),
    "a gap": (gguf_file([], [tensor("a"), tensor("b", offset=256)], 512), "leaves a gap"),
    "data that starts late": (gguf_file([], [tensor("a", offset=32)], 160), "leaves a gap"),
    "bytes behind the last tensor": (gguf_file([], [tensor("a")], 4096), "belong to no tensor"),
    "split of a negative number": (
        gguf_file([entry("split.count", 5, struct.pack("<i", -2))]),
        "non-negative",
    ),
    "split of a string": (gguf_file([entry("split.count", STRING, text("2"))]), "non-negative"),
    "split without a number": (gguf_file([entry("split.count", 2, b"\2\0")]), "missing"),
    "split of 65535": (
        gguf_file([entry("split.count", UINT32, u32(65535)), entry("split.no", 2, b"\0\0")]),
        "-00001-of-65535.gguf",
    ),
    "split of 2^32-1": (
        gguf_file([entry("split.count", UINT32, u32(U32_MAX)), entry("split.no", 2, b"\0\0")]),
        "shard 1 of 4294967295",
    ),
}


def test_crafted_headers(tmp_path: Path) -> None:
    assert len(CRAFTED) > 50
    paths = []
    for name, (data, _) in CRAFTED.items():
        paths.append(tmp_path / re.sub(r"\W+", "_", name))
        paths[-1].write_bytes(data)
    results = list(outcomes(paths).values())
    wrong = {
        name: outcome
        for (name, (_, message)), outcome in zip(CRAFTED.items(), results)
        if message not in outcome
    }
    assert not wrong


LEGAL = {
    "no entries": gguf_file(),
    "version 2": gguf_file([ONE], version=2),
    "no dims": gguf_file([], [tensor("a", ())], 32),
    "tensors out of order": gguf_file([], [tensor("a", offset=128), tensor("b")], 256),
    "last padding missing": gguf_file([], [tensor("a", (33,))], 132),
    "alignment 1": gguf_file([entry(ALIGN, UINT32, u32(1))], [tensor("a")], 128, alignment=1),
    "alignment 2^31 and no tensor": gguf_file([entry(ALIGN, UINT32, u32(1 << 31))]),
    "empty arrays": gguf_file(
        [entry("a", ARRAY, array(STRING, 0)), entry("b", ARRAY, array(FLOAT32, 0))]
    ),
    "arrays 4 deep": gguf_file([entry("k", ARRAY, array(ARRAY, 1) * 3 + array(UINT8, 1, b"1"))]),
    "nul in text": gguf_file([entry("k\0", STRING, text("a\0b"))]),
}


def test_unusual_but_legal_files(tmp_path: Path) -> None:
    paths = []
    for name, data in LEGAL.items():
        paths.append(tmp_path / re.sub(r"\W+", "_", name))
        paths[-1].write_bytes(data)
    assert set(outcomes(paths).values()) == {"loads"}


def sparse(path: Path, header: bytes, size: int) -> Path:
    """A file of ``size`` bytes, all zero after ``header``, that takes no room on the disk."""
    path.write_bytes(header)
    os.truncate(path, size)
    if path.stat().st_blocks * 512 > 1 << 20:
        pytest.skip("the file system has no sparse files")
    return path


def test_huge_files_that_claim_huge_headers(tmp_path: Path) -> None:
    """Counts that fit the file's size still do not make the reader allocate or read on."""
    size = 64 << 30
    count = 1 << 32
    headers = {
        "strings": gguf_file([entry("k", ARRAY, array(STRING, count))]),
        "numbers": gguf_file([entry("k", ARRAY, array(FLOAT32, count))]),
        "bools": gguf_file([entry("k", ARRAY, array(BOOL, count))]),
        "arrays": gguf_file([entry("k", ARRAY, array(ARRAY, count))]),
        "string": gguf_file([entry("k", STRING, text(b"", count))]),
        "one_string": gguf_file([entry("k", ARRAY, array(STRING, 2, text(b"", count)))]),
        "entries": gguf_file(kv_count=count),
        "tensors": gguf_file(tensor_count=count >> 1),
        "trailing": gguf_file([], [tensor("a")], 128),
    }
    paths = [sparse(tmp_path / name, header, size) for name, header in headers.items()]
    for name, outcome in outcomes(paths).items():
        assert "more than 128 MiB" in outcome or "belong to no tensor" in outcome, (name, outcome)


def test_a_header_as_large_as_is_accepted(tmp_path: Path) -> None:
    """Just within the limit: it loads, in time and in memory."""
    words = b"".join(text(f"wörd{i % 100000:05d}"[: i % 11]) for i in range(1 << 20))
    strings = 72 * (1 << 20) + 4 * (len(words) - (8 << 20))
    numbers = bytes(((128 << 20) - strings - 16384) // 4 * 4)
    paths = [tmp_path / name for name in ("strings_and_numbers", "numbers", "entries", "tensors")]
    paths[0].write_bytes(
        gguf_file(
            [
                entry("words", ARRAY, array(STRING, 1 << 20, words)),
                entry("numbers", ARRAY, array(FLOAT32, len(numbers) // 4, numbers)),
            ]
        )
    )
    numbers = bytes((128 << 20) - 16384)
    paths[1].write_bytes(
        gguf_file([entry("numbers", ARRAY, array(FLOAT32, len(numbers) // 4, numbers))])
    )
    many = 60_000
    paths[2].write_bytes(gguf_file([entry(f"k{i}", UINT8, b"1") for i in range(many)]))
    infos = [tensor(f"t{i}", (8,), GGMLType.I8, 32 * i) for i in range(many)]
    paths[3].write_bytes(gguf_file([], infos, 32 * many))
    assert set(outcomes(paths).values()) == {"loads"}


def test_flipped_bits_of_a_real_model(assets: Path, tmp_path: Path) -> None:
    good = (assets / "gguf" / "stories260K-q8_0.gguf").read_bytes()
    header = header_size(good, tmp_path)
    rng = np.random.default_rng(3)

    def damaged() -> Iterator[Path]:
        for number, bit in enumerate(rng.integers(0, 8 * header, 100).tolist()):
            data = bytearray(good)
            data[bit // 8] ^= 1 << bit % 8
            path = tmp_path / f"{number:03d}"
            path.write_bytes(data)
            yield path

    outcomes(list(damaged()))

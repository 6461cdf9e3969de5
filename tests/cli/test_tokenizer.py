"""``tilewright tokenizer`` as a user sees it."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tilewright.cli import build

TEXT = "the cat sat on the mat\n" * 50 + "é" * 30
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """(status, stdout, stderr) of a command in this process."""

    def call(*args: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        with pytest.raises(SystemExit) as end:
            build()(["tokenizer", *map(str, args)], prog_name="tilewright")
        out, err = capsys.readouterr()
        status = end.value.code or 0
        assert isinstance(status, int)
        return status, out, err

    return call


@pytest.fixture
def trained(run: Run, tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    status, _, err = run("train", tmp_path / "text.txt", "--merges", 10, "-o", tmp_path / "t.json")
    assert status == 0, err
    return tmp_path / "t.json"


def test_train_encode_decode(run: Run, trained: Path) -> None:
    status, out, _ = run("encode", trained, "the cat é")
    assert status == 0
    ids = out.split()
    assert len(ids) < 9
    assert run("decode", trained, *ids)[1] == "the cat é"
    assert run("decode", trained, stdin=f"[{', '.join(ids)}]\n".encode())[1] == "the cat é"
    assert run("encode", trained, stdin="the cat é".encode())[1] == out
    pieces = run("encode", trained, "the cat", "--pieces")[1].splitlines()
    assert pieces[0].split("\t")[1] == "'the'"
    assert "\tb'\\xe2'\n" in run("encode", trained, "→", "--pieces")[1]
    assert run("encode", trained, "<|endoftext|>", "--special")[1] == "0\n"
    assert run("decode", trained, 0, 65, "--skip-special")[1] == run("decode", trained, 65)[1]


def test_what_training_reports(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abab")
    status, out, err = run("train", tmp_path / "a.txt", "--vocab", 300, "-o", tmp_path / "t.json")
    assert (status, out) == (0, "")
    assert "t.json: 259 tokens, 2 merges, in " in err
    assert "note: the texts have no more pairs; 300 tokens were wanted" in err
    args = ("train", tmp_path / "a.txt", "--characters", "--special", "", "-q")
    assert run(*args, "-o", tmp_path / "c.json") == (0, "", "")
    assert run("export", tmp_path / "c.json", tmp_path / "c.gguf") == (0, "", "")
    assert run("export", tmp_path / "c.gguf", tmp_path / "again.gguf") == (0, "", "")
    for file in ("c.json", "c.gguf", "again.gguf"):
        assert run("show", tmp_path / file, "--all")[1] == "0\t'a'\n1\t'b'\n"


def test_show(run: Run, trained: Path) -> None:
    out = run("show", trained)[1]
    assert "byte-level BPE, gpt-2, 267 tokens" in out
    assert "ends texts    0 '<|endoftext|>'" in out
    lines = run("show", trained, "--all")[1].splitlines()
    assert len(lines) == 267
    assert "b'\\xc3'" in "\n".join(lines)


def test_export_to_gguf_and_back(run: Run, trained: Path) -> None:
    gguf, back = trained.with_name("t.gguf"), trained.with_name("back.json")
    assert run("export", trained, gguf) == (0, "", "")
    assert run("export", gguf, back) == (0, "", "")
    assert back.read_bytes() == trained.read_bytes()
    assert run("encode", gguf, "the mat")[1] == run("encode", trained, "the mat")[1]


def test_fasta(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.fasta").write_text(">1\nMKVMKV\n>rev_1\nVVVV\n")
    out = tmp_path / "t.json"
    args = ("train", tmp_path / "a.fasta", "--fasta", "--merges", 2, "-o", out)
    assert run(*args, "--skip", "rev_")[0] == 0
    assert json.loads(out.read_text())["model"]["merges"] == [["K", "V"], ["M", "KV"]]
    (tmp_path / "a.fasta").write_text(">1\nMKV\n>2\nMK5\n")
    status, _, err = run(*args)
    assert status == 1
    assert err.startswith(
        f"tilewright: {tmp_path / 'a.fasta'}: line 4, column 3: '5' is no residue"
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("train", "{d}/nil.txt", "-o", "{d}/t"), "nil.txt: No such file"),
        (("train", "{d}/a", "-o", "{d}/nil/t"), "No such directory to write to"),
        (("train", "{d}/a", "-o", "{d}/t", "--vocab", "3"), "the smallest is 257"),
        (("train", "{d}/a", "-o", "{d}/t", "--vocab", "3", "--merges", "3"), "exclude each other"),
        (("train", "{d}/a", "-o", "{d}/t", "--skip", "x"), "add --fasta"),
        (("train", "{d}/a", "-o", "{d}/t", "--characters", "--vocab", "9"), "--characters"),
        (("train", "{d}/empty", "-o", "{d}/t"), "there is no text"),
        (("train", "{d}/bad", "-o", "{d}/t"), "bad, at byte 1: line 1 is not UTF-8"),
        (("encode", "{d}/a", "x"), "a: is not JSON"),
        (("encode", "{d}/empty", "x"), "empty: is not JSON"),
        (("show", "{d}/gguf"), "gguf, at byte 4"),
    ],
)
def test_one_line_says_what_is_wrong(
    args: tuple[str, ...], message: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("some text")
    (tmp_path / "empty").touch()
    (tmp_path / "bad").write_bytes(b"a\xff")
    (tmp_path / "gguf").write_bytes(b"GGUF")
    before = sorted(os.listdir(tmp_path))
    status, out, err = run(*(a.format(d=tmp_path) for a in args))
    assert (status, out) == (1, "")
    assert message in err
    assert err.startswith("tilewright: ")
    assert err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == before


def test_ids_that_are_none(run: Run, trained: Path) -> None:
    assert run("decode", trained, "12", "x")[2] == "tilewright: 'x' is no token id\n"
    assert "token id 999 is out of range" in run("decode", trained, "999")[2]
    assert "standard input is not UTF-8" in run("encode", trained, stdin=b"\xff")[2]


def test_a_full_disk_leaves_the_old_file(run: Run, trained: Path) -> None:
    """A limit on file sizes stands for the full disk: the system refuses half way."""
    before = trained.read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        status, _, err = run(
            "train", trained.parent / "text.txt", "--merges", 20, "-o", trained, "-q"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert status == 1
    assert err == f"tilewright: {trained}: File too large\n"
    assert trained.read_bytes() == before
    assert sorted(os.listdir(trained.parent)) == ["t.json", "text.txt"]


def test_in_a_process_of_its_own(trained: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tilewright", "tokenizer", "encode", str(trained), "the cat"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) < 7

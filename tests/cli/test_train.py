"""``tilewright train`` as a user sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.reference import builders

import tilewright
from tilewright.cli import build
from tilewright.train.checkpoint import list_checkpoints
from tilewright.train.record import read_record

TEXT = "the cat sat on the mat, and the dog lay by the door.\n" * 60
SMALL = ("--layers", 1, "--width", 32, "--context", 16, "--batch", 4, "--warmup", 2)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """(status, stdout, stderr) of a command in this process."""
    monkeypatch.setenv("TILEWRIGHT_THREADS", "2")  # and what --threads sets is undone

    def call(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            build()(["train", *map(str, args)], prog_name="tilewright")
        out, err = capsys.readouterr()
        status = end.value.code or 0
        assert isinstance(status, int)
        return status, out, err

    return call


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_gpt_from_text_to_a_file_that_runs(run: Run, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    steps = ("--steps", 8, "--eval-every", 4, "--checkpoint-every", 4, "--sample", 10)
    made = ("gpt", "--data", text, "--out", out, *SMALL, "--heads", 2, *steps)
    status, said, err = run(*made, "--threads", 1)
    assert status == 0, err
    assert "val_loss" in said.splitlines()[-1]
    assert "step 8: val_loss" in err
    assert "parameters; 20 tokens in the vocabulary" in err
    assert f"wrote {out / 'model.gguf'}" in err
    for name in ("run.json", "record.jsonl", "loss.png", "tokenizer.json", "model.safetensors"):
        assert (out / name).stat().st_size > 0
    assert json.loads((out / "config.json").read_text())["model_type"] == "gpt2"
    model = tilewright.load(out / "model.gguf")
    assert len(list(model.generate("the", 5, seed=1))) > 0

    status, _, err = run(*made)
    assert status == 1
    assert err == f"tilewright: {out} holds a run already: --resume it, or choose another folder\n"

    # what is not given is as the run began; the data may be gone
    text.unlink()
    status, said, err = run("gpt", "--resume", "--out", out, "--steps", 12, "--sample", 0)
    assert status == 0, err
    assert [e["step"] for e in read_record(out / "record.jsonl")] == list(range(1, 13))
    assert json.loads((out / "run.json").read_text())["settings"]["width"] == 32
    # what a model of other sizes asks for is refused and forgotten
    status, _, err = run("gpt", "--resume", "--out", out, "--width", 64, "--steps", 20)
    assert status == 1
    assert "the model wants" in err
    assert json.loads((out / "run.json").read_text())["settings"]["width"] == 32
    status, _, err = run("gpt", "--resume", "--out", out, "--steps", 13, "--sample", 0)
    assert status == 0, err

    status, _, err = run("llama", "--resume", "--out", out)
    assert status == 1
    assert "holds a run of `train gpt`, not of `train llama`" in err


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_other_language_models(kind: str, run: Run, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    size = ("--heads", 4, "--kv-heads", 2) if kind == "llama" else ("--state", 4)
    steps = ("--steps", 4, "--eval-every", 0, "--sample", 5, "--prompt", "the", "-q")
    status, said, err = run(kind, "--data", text, "--out", out, *SMALL, *size, *steps)
    assert status == 0, err
    assert said.startswith("the")
    assert (out / "model.safetensors").exists()
    assert (out / "model.gguf").exists()
    assert "step 1" not in err


def test_mnist_and_autoencoder(run: Run, assets: Path, tmp_path: Path) -> None:
    import numpy as np

    from tilewright.data import load_mnist

    for name, part in zip(("train", "t10k"), load_mnist(assets / "mnist")):
        np.savez(tmp_path / f"{name}.npz", images=part.images[:100], labels=part.labels[:100])
    shared = ("--data", tmp_path, "--batch", 20, "--epochs", 1, "--width", 4, "-q")
    status, said, err = run("mnist", *shared, "--out", tmp_path / "digits")
    assert status == 0, err
    assert "test_accuracy 0." in said
    status, said, err = run("mnist", "--resume", "--epochs", 2, "-q", "--out", tmp_path / "digits")
    assert status == 0, err
    record = read_record(tmp_path / "digits" / "record.jsonl")
    assert [e["step"] for e in record] == list(range(1, 11))
    status, said, err = run("autoencoder", *shared, "--latent", 4, "--out", tmp_path / "ae")
    assert status == 0, err
    assert "test_loss 0." in said
    assert (tmp_path / "ae" / "reconstructions.png").read_bytes()[:4] == b"\x89PNG"


def test_lora_and_merge(run: Run, text: Path, tmp_path: Path) -> None:
    shape = builders.Shape(n_layers=1, n_embd=64, n_heads=4, n_ff=96, n_ctx=32)
    model = builders.write(tmp_path / "m.gguf", shape, "q8_0")
    out, merged = tmp_path / "run", tmp_path / "merged.gguf"
    steps = ("--steps", 4, "--context", 16, "--batch", 4, "--rank", 2, "-q")
    status, said, err = run("lora", model, "--data", text, "--out", out, *steps)
    assert status == 0, err
    assert "val_loss" in said
    settings = json.loads((out / "adapter_config.json").read_text())
    assert (settings["r"], settings["target_modules"]) == (2, ["q_proj", "v_proj"])
    status, said, err = run("lora", model, "--resume", "--out", out, "--steps", 6, "-q")
    assert status == 0, err
    assert len(read_record(out / "record.jsonl")) == 6
    status, _, err = run("merge", model, out, "--out", merged, "--type", "same")
    assert status == 0, err
    assert err == f"wrote {merged}: 2 matrices changed\n"
    assert len(list(tilewright.load(merged).generate("the", 3, seed=1))) > 0
    for name, wanted in [
        (tmp_path / "merged.bin", "the name should end in .gguf or .safetensors"),
        (tmp_path / "no" / "m.gguf", "No such directory to write to"),
    ]:
        status, _, err = run("merge", model, out, "--out", name)
        assert status == 1
        assert wanted in err
    status, _, err = run("merge", model, out, "--out", merged, "--type", "f99")
    assert status == 1
    assert "type 'f99' is unknown" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--data is missing"),
        (("--data", "nothing.txt"), "nothing.txt: No such file or directory"),
        (("--data", "{text}", "--context", 999_999), "too few for a window of 999999"),
        (("--data", "{text}", "--tokenizer", "words"), "tokenizer 'words' is unknown"),
        (("--data", "{text}", "--tokenizer", "{text}"), "text.txt: is not JSON"),
        (("--data", "{text}", "--precision", "f8"), "precision is f32 or bf16, got 'f8'"),
        (("--data", "{bad}"), "at byte 3"),
        (("--data", "{text}", "--heads", 5), "5 heads do not cut a width of 384"),
        (("--resume",), "holds no run to resume"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: tuple[object, ...], message: str, run: Run, text: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"abc\xff" * 1000)
    given = [str(a).format(text=text, bad=bad) for a in arguments]
    status, _, err = run("gpt", "--out", tmp_path / "run", *given)
    assert status == 1
    assert message in err
    assert len([line for line in err.splitlines() if line.startswith("tilewright:")]) == 1
    assert "Traceback" not in err
    # nothing is left that would be taken for a run: the corrected command works
    assert not (tmp_path / "run" / "run.json").exists()


def test_wrong_usage(run: Run, tmp_path: Path) -> None:
    assert run("gpt")[0] == 2
    assert run("gpt", "--out", tmp_path, "--layers", 0)[0] == 2
    assert run("mnist", "--out", tmp_path / "r", "--data", tmp_path)[0] == 1


def test_ctrl_c_saves_and_resumes(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-W", "error", "-m", "tilewright", "train", "gpt"]
    size = [*map(str, SMALL), "--heads", "2", "--eval-every", "0", "--sample", "0"]
    process = subprocess.Popen(
        [*command, "--data", str(text), "--out", str(out), "--steps", "100000", *size],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TILEWRIGHT_THREADS": "1"},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping after this step" in err
    stopped = int(err.split("stopped at step ")[1].split(";")[0])
    assert list_checkpoints(out / "checkpoints")[-1][0] == stopped
    assert err.endswith("interrupted\n")
    assert not (out / "model.gguf").exists()

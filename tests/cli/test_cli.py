"""The command line as a user sees it, in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.reference import builders

RUN = [sys.executable, "-m", "tilewright"]


def call(*args: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [*RUN, *args], input=stdin, capture_output=True, text=True, timeout=120
    )
    if check:
        assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.write_llama(tmp_path_factory.mktemp("cli") / "m.gguf", "q8_0")


def test_run_prints_the_prompt_and_its_continuation() -> None:
    """Without a file the shipped model answers."""
    result = call("run", "-p", "The old man", "-n", "12", "--temp", "0")
    assert result.stdout.startswith("The old man")
    assert len(result.stdout) > len("The old man") + 10
    assert "tokens" in result.stderr


def test_run_json_is_reproducible_by_seed(model: Path) -> None:
    outs = [
        json.loads(call("run", str(model), "-p", "abc", "-n", "8", "-s", seed, "--json").stdout)
        for seed in ("7", "7", "8")
    ]
    assert outs[0]["ids"] == outs[1]["ids"] != outs[2]["ids"]
    assert outs[0]["tokens"] == len(outs[0]["ids"]) <= 8
    assert outs[0]["reason"] in ("length", "eos")


def test_prompt_loop_reads_lines_and_ends_with_the_input(model: Path) -> None:
    result = call("run", str(model), "-n", "4", "--temp", "0", "--json", stdin="a b\n\nc\n")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(answers) == 2


def test_context_limit_is_a_reason(model: Path) -> None:
    out = call("run", str(model), "-p", "a", "-c", "16", "-n", "100", "--temp", "0", "--json")
    report = json.loads(out.stdout)
    assert report["reason"] in ("context", "eos")
    if report["reason"] == "context":
        assert report["prompt_tokens"] + report["tokens"] <= 17


def test_too_long_a_prompt_is_refused_with_numbers(model: Path) -> None:
    result = call("run", str(model), "-p", "a " * 50, "-c", "16", check=False)
    assert result.returncode == 1
    assert "room for 16" in result.stderr
    assert "Traceback" not in result.stderr


def test_inspect(model: Path) -> None:
    text = call("inspect", str(model)).stdout
    assert "general.architecture" in text
    assert "blk.0.attn_q.weight" in text
    assert "memory plan" in text
    report = json.loads(call("inspect", str(model), "--json").stdout)
    assert report["types"]["Q8_0"]["tensors"] > 0
    assert report["plan"]["weights"] > 0
    assert report["problem"] is None


def test_inspect_says_why_a_file_cannot_run(tmp_path: Path) -> None:
    from tilewright.formats.gguf import write_gguf

    path = tmp_path / "odd.gguf"
    write_gguf(path, {"general.architecture": "mystery"}, {})
    result = call("inspect", str(path))
    assert "cannot be run" in result.stdout
    assert "mystery" in result.stdout


def test_bench_reports_rates_and_shares(model: Path) -> None:
    report = json.loads(
        call("bench", str(model), "-p", "32", "-n", "8", "-t", "2", "-r", "2", "--json").stdout
    )
    for key in ("prefill_tokens_per_s", "decode_tokens_per_s"):
        assert 0 < report[key]["min"] <= report[key]["median"] <= report[key]["max"]
    assert report["bytes_per_token"] > 0
    assert 0 < report["decode_share_of_bandwidth"]
    assert 0 < report["prefill_share_of_int8_peak"]


def test_doctor_finds_a_working_installation() -> None:
    report = json.loads(call("doctor", "--json").stdout)
    assert report["problems"] == []
    assert report["default model"] == "runs"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "missing.gguf"], "missing.gguf"),
        (["run", "-p", "a", "--temp", "-1"], "temperature"),
        (["run", "-p", "a", "--top-p", "2"], "top_p"),
        (["inspect", __file__], "GGUF"),
    ],
)
def test_errors_are_one_line_and_status_1(args: list[str], message: str) -> None:
    result = call(*args, check=False)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_usage_errors_have_status_2() -> None:
    assert call("run", "--no-such-flag", check=False).returncode == 2


def test_interrupt_ends_the_answer_and_leaves_quietly(model: Path) -> None:
    command = [*RUN, "run", str(model), "-p", "a", "-n", "100000", "--temp", "2", "--top-k", "0"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    assert process.stdout is not None
    process.stdout.read(1)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert "Traceback" not in err
    # an end-of-text token may come first; then there was nothing to interrupt
    assert process.returncode == 130 or "[eos]" in err or "[context]" in err


def test_version() -> None:
    import tilewright

    assert call("--version").stdout.strip() == f"tilewright {tilewright.__version__}"

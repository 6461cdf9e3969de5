"""The command line as a user sees it, in processes of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from tests.reference import builders

from tilewright.cli import build
from tilewright.cli.common import guarded
from tilewright.errors import FormatError
from tilewright.formats.gguf import open_gguf, tensor_from_raw, write_gguf

RUN = [sys.executable, "-m", "tilewright"]


def call(
    *args: str | bytes, stdin: str = "", check: bool = True, **env: str
) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [*RUN, *args],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        env={**os.environ, **env},
    )
    if check:
        assert result.returncode == 0, result.stderr
    return result


Here = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Here:
    """Like `call`, but in this process: quicker, and enough where no process is at stake."""

    def run(*args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        with pytest.raises(SystemExit) as end:
            build()(list(args), prog_name="tilewright")
        out, err = capsys.readouterr()
        status = end.value.code or 0
        assert isinstance(status, int)
        assert status == 0 or not check, err
        return subprocess.CompletedProcess(args, status, out, err)

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.write_llama(tmp_path_factory.mktemp("cli") / "m.gguf", "q8_0")


@pytest.fixture(scope="module")
def chat_model(model: Path) -> Path:
    """The model with a chat template that shows what it was given."""
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    path = model.parent / "chat.gguf"
    with open_gguf(model) as file:
        tensors = [
            tensor_from_raw(name, file.read_raw(name), info.shape, info.type)
            for name, info in file.tensors.items()
        ]
        write_gguf(path, {**file.metadata, "tokenizer.chat_template": template}, tensors)
    return path


def test_run_prints_the_prompt_and_its_continuation() -> None:
    """Without a file the shipped model answers."""
    result = call("run", "-p", "The old man", "-n", "12", "--temp", "0")
    assert result.stdout.startswith("The old man")
    assert len(result.stdout) > len("The old man") + 10
    assert "tokens" in result.stderr


def test_run_json_is_reproducible_by_seed(model: Path, here: Here) -> None:
    outs = [
        json.loads(here("run", str(model), "-p", "abc", "-n", "8", "-s", seed, "--json").stdout)
        for seed in ("7", "7", "8")
    ]
    assert outs[0]["ids"] == outs[1]["ids"] != outs[2]["ids"]
    assert outs[0]["tokens"] == len(outs[0]["ids"]) <= 8
    assert outs[0]["reason"] in ("length", "eos")


def test_prompt_loop_reads_lines_and_ends_with_the_input(model: Path) -> None:
    result = call("run", str(model), "-n", "4", "--temp", "0", "--json", stdin="a b\n\nc\n")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(answers) == 2


def test_context_limit_is_a_reason(model: Path, here: Here) -> None:
    out = here("run", str(model), "-p", "a", "-c", "16", "-n", "100", "--temp", "0", "--json")
    report = json.loads(out.stdout)
    assert report["reason"] in ("context", "eos")
    if report["reason"] == "context":
        assert report["prompt_tokens"] + report["tokens"] <= 17


def test_too_long_a_prompt_is_refused_with_numbers(model: Path, here: Here) -> None:
    result = here("run", str(model), "-p", "a " * 50, "-c", "16", check=False)
    assert result.returncode == 1
    assert "room for 16" in result.stderr
    assert "Traceback" not in result.stderr


def test_inspect(model: Path, here: Here) -> None:
    text = here("inspect", str(model)).stdout
    assert "general.architecture" in text
    assert "blk.0.attn_q.weight" in text
    assert "memory plan" in text
    report = json.loads(here("inspect", str(model), "--json").stdout)
    assert report["types"]["Q8_0"]["tensors"] > 0
    assert report["plan"]["weights"] > 0
    assert report["problem"] is None


def test_inspect_says_why_a_file_cannot_run(tmp_path: Path, here: Here) -> None:
    path = tmp_path / "odd.gguf"
    write_gguf(path, {"general.architecture": "mystery"}, {})
    result = here("inspect", str(path))
    assert "cannot be run" in result.stdout
    assert "mystery" in result.stdout


def test_bench_reports_rates_and_shares(model: Path) -> None:
    report = json.loads(
        call("bench", str(model), "-p", "32", "-n", "8", "-t", "2", "-r", "2", "--json").stdout
    )
    for key in ("prefill_tokens_per_s", "decode_tokens_per_s"):
        assert 0 < report[key]["min"] <= report[key]["median"] <= report[key]["max"]
    assert report["bytes_per_token"] > 0
    assert report["decode_share_of_bandwidth"] > 0
    assert report["prefill_share_of_int8_peak"] > 0


def test_doctor_finds_a_working_installation(here: Here) -> None:
    report = json.loads(here("doctor", "--json").stdout)
    assert report["problems"] == []
    assert report["default model"] == "runs"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "missing.gguf"], "missing.gguf: No such file or directory"),
        (["inspect", "missing.gguf"], "missing.gguf: No such file or directory"),
        (["run", "-p", "a", "--temp", "-1"], "temperature is -1.0, wanted at least 0"),
        (["run", "-p", "a", "--temp", "nan"], "temperature is nan, wanted at least 0"),
        (["run", "-p", "a", "--top-k", "-1"], "top_k is -1"),
        (["run", "-p", "a", "--top-p", "2"], "top_p is 2.0"),
        (["run", "-p", "a", "--stop", ""], "--stop is empty"),
        (["run", "-p", "caf\udce9"], "the prompt is not UTF-8: byte 0xe9 after 'caf'"),
        (["inspect", __file__], "not a GGUF file: it starts with"),
        (["inspect", "."], ".: is not a regular file"),
        (["run", "-p", "a", "-t", "100000"], "threads"),
    ],
)
def test_errors_are_one_line_and_status_1(args: list[str], message: str, here: Here) -> None:
    result = here(*args, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("tilewright: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_empty_file_is_called_empty(tmp_path: Path, here: Here) -> None:
    path = tmp_path / "empty.gguf"
    path.touch()
    result = here("run", str(path), check=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "not a GGUF file: it is empty" in result.stderr


@pytest.mark.parametrize("args", [["run", "--no-such-flag"], ["walk"], ["run", "-t", "0"], []])
def test_usage_errors_have_status_2(args: list[str], here: Here) -> None:
    result = here(*args, check=False)
    assert result.returncode == 2
    assert "Usage: tilewright" in result.stderr + result.stdout


@pytest.mark.parametrize("command", ["run", "inspect", "bench", "doctor"])
def test_help_describes_every_option_in_plain_text(command: str, here: Here) -> None:
    text = here(command, "--help").stdout
    assert "\x1b" not in text
    options = text[text.index("Options:") :].splitlines()[1:]
    assert options
    starts = [i for i, line in enumerate(options) if re.match(r"  -", line)]
    for i in starts:  # the text stands on the option's line or below it
        described = re.search(r"\s{2,}[A-Z0-9]", options[i][2:])
        assert described or options[i + 1].startswith("    "), options[i]


def test_only_expected_errors_become_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def failing(error: BaseException) -> Callable[[], None]:
        def command() -> None:
            raise error

        return guarded(command)

    for expected in (FormatError("bad"), ValueError("bad"), FileNotFoundError(2, "bad", "f")):
        with pytest.raises(typer.Exit) as end:
            failing(expected)()
        assert end.value.exit_code == 1
        assert capsys.readouterr().err in ("tilewright: bad\n", "tilewright: f: bad\n")
    with pytest.raises(typer.Exit) as end:
        failing(KeyboardInterrupt())()
    assert end.value.exit_code == 130
    for bug in (RuntimeError("x"), KeyError("x"), AssertionError(), TypeError("x")):
        with pytest.raises(type(bug)):
            failing(bug)()


def test_text_of_any_language(model: Path) -> None:
    prompt = "naïve 日本語 🙂"
    result = call("run", str(model), "-p", prompt, "-n", "3", "--temp", "0")
    assert result.stdout.startswith(prompt)
    out = call("run", str(model), "-p", prompt, "-n", "3", "--temp", "0", "--json").stdout
    assert json.loads(out)["prompt"] == prompt
    plain = call("run", str(model), "-p", prompt, "-n", "0", PYTHONIOENCODING="ascii:strict")
    assert plain.stdout == "na\\xefve \\u65e5\\u672c\\u8a9e \\U0001f642\n"


def test_no_tokens_leave_the_prompt(model: Path, here: Here) -> None:
    assert here("run", str(model), "-p", "hello", "-n", "0").stdout == "hello\n"
    report = json.loads(here("run", str(model), "-p", "hello", "-n", "0", "--json").stdout)
    assert (report["tokens"], report["text"], report["reason"]) == (0, "", "length")


def test_minus_one_goes_on_to_the_end(model: Path, here: Here) -> None:
    args = ["-p", "a", "-n", "-1", "-c", "40", "--temp", "0", "--json"]
    report = json.loads(here("run", str(model), *args).stdout)
    assert report["reason"] in ("context", "eos")


def test_a_context_beyond_the_model_is_noted(model: Path, here: Here) -> None:
    result = here("run", str(model), "-p", "a", "-n", "1", "-c", "100000")
    assert "note: a context of 100000 tokens was asked for; the model ends at 256" in result.stderr


def test_a_warning_is_one_line(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = str(tmp_path / "file" / "cache")
    result = call("run", str(model), "-p", "a", "-n", "1", TILEWRIGHT_CACHE=cache)
    lines = result.stderr.splitlines()
    assert any(line.startswith("tilewright: warning: cannot keep compiled") for line in lines)
    assert ".py" not in result.stderr


def test_the_loop_begins_anew_when_the_context_is_full(model: Path) -> None:
    args = ["run", str(model), "-n", "-1", "-c", "24", "--temp", "0", "--json"]
    result = call(*args, stdin="a b c\na b c\n")
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    if first["reason"] == "context":
        assert "the context is full; a new conversation begins" in result.stderr
        assert second["ids"] == first["ids"]
    result = call(*args, stdin="a b c " * 20 + "\n", check=False)
    assert result.returncode == 1
    assert "the context has room for 24" in result.stderr


def test_the_loop_uses_the_chat_template(chat_model: Path, model: Path) -> None:
    args = ["-n", "4", "--temp", "0", "--json"]
    lines = call("run", str(chat_model), *args, stdin="hi\nyou\n").stdout.splitlines()
    chat = [json.loads(line) for line in lines]
    assert [answer["prompt"] for answer in chat] == ["hi", "you"]
    plain = json.loads(call("run", str(model), *args, stdin="hi\n").stdout)
    assert chat[0]["prompt_tokens"] > plain["prompt_tokens"]


def test_a_chat_template_without_jinja_is_refused_before_the_first_prompt(chat_model: Path) -> None:
    program = (
        "import sys; sys.modules['jinja2'] = None\n"
        "from tilewright.cli import main; sys.argv = ['tilewright', *sys.argv[1:]]; main()"
    )
    command = [sys.executable, "-c", program, "run", str(chat_model)]
    result = subprocess.run(command, input="", capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "pip install 'tilewright[chat]'" in result.stderr
    assert "Traceback" not in result.stderr
    result = subprocess.run([*command, "-p", "a", "-n", "1"], capture_output=True, timeout=60)
    assert result.returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="POSIX pipes and devices")
@pytest.mark.parametrize(
    ("ending", "status", "said"),
    [
        ("| head -c 3", -signal.SIGPIPE, ""),
        ("> /dev/full", 1, "tilewright: No space left on device\n"),
        (">&-", 0, ""),
    ],
)
def test_output_that_cannot_be_written(model: Path, ending: str, status: int, said: str) -> None:
    command = f"{sys.executable} -m tilewright run {model} -p abc -n 100000 --temp 0 {ending}"
    script = f"set -o pipefail; {command}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert result.returncode == (status if status >= 0 else 128 - status)
    errors = [line for line in result.stderr.splitlines(True) if line.startswith("tilewright:")]
    assert "".join(errors) == said
    assert "Traceback" not in result.stderr


def test_inspect_every_asset(assets: Path, here: Here) -> None:
    """Whatever the model, its header is shown, and what forbids running it is said."""
    paths = sorted([*assets.glob("gguf/*.gguf"), *assets.glob("gguf-vocab/*.gguf")])
    assert len(paths) >= 8
    for path in paths:
        report = json.loads(here("inspect", str(path), "--json").stdout)
        assert report["metadata"]["general.architecture"]
        assert bool(report["plan"]) is (report["problem"] is None) is ("vocab" not in path.name)
        text = here("inspect", str(path)).stdout
        assert ("memory plan: weights" in text) is bool(report["plan"])


def test_version() -> None:
    import tilewright

    assert call("--version").stdout.strip() == f"tilewright {tilewright.__version__}"

"""The commands on a terminal: Ctrl-C, Ctrl-D, and how the terminal is left."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from tests.reference import builders

from tilewright.formats.gguf import open_gguf, write_gguf

termios = pytest.importorskip("termios", reason="POSIX terminals")

# The child makes the terminal its controlling one, so that Ctrl-C becomes a signal.
LAUNCH = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, '-m', 'tilewright', *sys.argv[1:]])"
)


class Terminal:
    """A command on a pseudo-terminal of its own."""

    def __init__(self, *args: str) -> None:
        self.leader, self.follower = os.openpty()
        self.before = termios.tcgetattr(self.follower)
        command = [sys.executable, "-c", LAUNCH, *args]
        env = {**os.environ, "TERM": "xterm"}
        self.process = subprocess.Popen(
            command,
            stdin=self.follower,
            stdout=self.follower,
            stderr=self.follower,
            start_new_session=True,
            env=env,
        )
        self.shown = ""

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Everything shown since the last call, up to and with ``text``."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            self._read(end, repr(text))
        head, _, self.shown = self.shown.partition(text)
        return head + text

    def wait_for_more(self, characters: int, seconds: float = 60) -> None:
        """Until so many characters have been shown since the last wait."""
        end = time.monotonic() + seconds
        while len(self.shown) < characters:
            self._read(end, f"{characters} characters")

    def _read(self, end: float, wanted: str) -> None:
        ready = select.select([self.leader], [], [], max(end - time.monotonic(), 0))[0]
        assert ready, f"no {wanted} in ...{self.shown[-300:]!r}"
        self.shown += os.read(self.leader, 1 << 16).decode("utf-8", "replace")

    def press(self, keys: str) -> None:
        os.write(self.leader, keys.encode())

    def status(self) -> int:
        """The exit status; the terminal has to be as it was."""
        code = self.process.wait(60)
        assert termios.tcgetattr(self.follower) == self.before
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.leader)
        os.close(self.follower)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a run that takes minutes: a long context, and a model that does not end."""
    folder = tmp_path_factory.mktemp("terminal")
    with open_gguf(builders.write_llama(folder / "ends.gguf", "f32", n_ctx=1 << 16)) as file:
        tensors = {name: file.dequantize(name) for name in file.tensors}
        tensors["output.weight"][2] = 0  # the end of text never has the largest logit
        path = folder / "endless.gguf"
        write_gguf(path, file.metadata, tensors)
    return ["run", str(path), "-n", "-1", "-c", "60000", "--temp", "0", "-t", "1"]


@pytest.fixture
def terminal(endless: list[str]) -> Iterator[Terminal]:
    opened = Terminal(*endless)
    yield opened
    opened.close()


def test_ctrl_c_ends_the_answer_then_the_loop(terminal: Terminal) -> None:
    terminal.wait_for("> ")
    for _ in range(2):
        terminal.press("some words\n")
        terminal.wait_for("some words")
        terminal.wait_for_more(40)
        terminal.press("\x03")
        terminal.wait_for("[interrupted]")
        terminal.wait_for("> ")
    # readline shows the prompt some microseconds before it waits: a signal that falls in between
    # is seen at the next key only, in any program
    time.sleep(0.3)
    terminal.press("\x03")
    assert "Traceback" not in terminal.wait_for("interrupted")
    assert terminal.status() == 130


def test_ctrl_d_ends_the_loop(terminal: Terminal) -> None:
    terminal.wait_for("> ")
    terminal.press("\n   \n\x04")
    assert terminal.status() == 0


def test_ctrl_c_ends_a_run_with_a_prompt(endless: list[str]) -> None:
    terminal = Terminal(*endless, "-p", "some words")
    try:
        terminal.wait_for("some words")
        terminal.wait_for_more(40)
        terminal.press("\x03")
        assert "Traceback" not in terminal.wait_for("[interrupted]")
        assert terminal.status() == 130
    finally:
        terminal.close()


def test_nothing_but_text_without_a_terminal(endless: list[str]) -> None:
    """Progress and colours are for terminals: a file gets neither."""
    command = [sys.executable, "-m", "tilewright", *endless[:2], "-p", "a", "-n", "3"]
    env = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert result.returncode == 0
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", result.stderr)

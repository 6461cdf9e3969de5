"""Everything that the documents show runs and prints what they say."""

from __future__ import annotations

import io
import re
import shutil
import sys
from pathlib import Path

import pytest
from tests.docs.blocks import blocks_of, run_commands, run_document

from tilewright.generate.model import DEFAULT_MODEL

DOCUMENTS = {
    "README.md": 6,
    "docs/architecture.md": 1,
    "docs/heart.md": 7,
    "docs/kernels.md": 12,
    "docs/onnx.md": 7,
    "docs/tensors.md": 10,
    "docs/training.md": 22,
}
COMMANDS = {"docs/onnx.md", "docs/training.md"}


def prose(path: Path) -> str:
    """A document without its code."""
    return re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a document's programs; ``model.gguf`` is in it."""
    shutil.copy(DEFAULT_MODEL, tmp_path / "model.gguf")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_programs_run(name: str, project: Path, folder: Path) -> None:
    count = run_document(project / name, folder, commands=name in COMMANDS)
    assert count >= DOCUMENTS[name]


def test_commands_of_the_readme_run(
    project: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert run_commands(project / "README.md") >= 6


@pytest.mark.parametrize("name", [*DOCUMENTS, "CONTRIBUTING.md"])
def test_links_lead_somewhere(name: str, project: Path) -> None:
    path = project / name
    text = re.sub(r"`[^`]*`", "", prose(path))
    titles = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    anchors = {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if file.startswith("http"):
            continue
        assert (path.parent / file).exists() if file else anchor in anchors, target


@pytest.mark.parametrize("name", [*DOCUMENTS, "CONTRIBUTING.md"])
def test_paths_that_are_named_exist(name: str, project: Path) -> None:
    """`src/...`, `tests/...` and paths inside the package, in backticks."""
    text = prose(project / name)
    roots = ("", "src", "src/tilewright")
    for path in re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", text):
        assert any((project / root / path).exists() for root in roots), path


def test_the_architecture_names_every_room(project: Path) -> None:
    text = (project / "docs" / "architecture.md").read_text("utf-8")
    source = project / "src" / "tilewright"
    rooms = {p.parent.name for p in source.glob("*/*.py") if p.name != "__init__.py"}
    assert len(rooms) > 10
    for room in sorted(rooms):
        assert f"`{room}/" in text, f"docs/architecture.md does not mention {room}"


def test_blocks_and_their_outputs_are_found() -> None:
    text = "a\n```python\nprint(1)\n```\n```output\n1\n```\n\n```sh\ntilewright x\n```\n"
    first, second = blocks_of(text)
    assert (first.text, first.line, first.output) == ("print(1)\n", 3, "1\n")
    assert (second.language, second.output) == ("sh", None)

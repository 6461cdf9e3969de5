"""The shape of the house: which way imports go, what stays outside, how long a module may be."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "tilewright"
MODULES = sorted(SOURCE.rglob("*.py"))
MAX_LINES = 600

# Peers are measured against in tests, benchmarks and tools; the engine itself never needs one.
PEERS = {
    "torch",
    "onnxruntime",
    "gguf",
    "llama_cpp",
    "transformers",
    "sentencepiece",
    "jax",
    "tensorflow",
}

# Slow to import and not needed by every program, so they are imported where they are used.
LAZY = ["llvmlite", "tokenizers", "typer"]


def name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def imported_packages(source: str) -> set[str]:
    """Top-level packages that `source` imports absolutely, in functions and conditions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_imported_packages_sees_every_form() -> None:
    source = (
        "import a.b as c\nfrom d.e import f\nfrom . import gguf\ndef g():\n    from h import i\n"
    )
    assert imported_packages(source) == {"a", "d", "h"}


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter with the contracts of `root/pyproject.toml`, packages in `root` first."""
    program = (
        "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(no_cache=True))"
    )
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def test_imports_keep_to_the_layers(project: Path) -> None:
    result = lint_imports(project)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_new_import_upwards_is_caught(project: Path, tmp_path: Path) -> None:
    """The contracts bite: wrong imports added to a copy of the package break them."""
    package = tmp_path / "tilewright"
    for path in MODULES:
        target = package / path.relative_to(SOURCE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text("utf-8"), "utf-8")
    (package / "lang" / "wrong.py").write_text("from tilewright import graph\n")
    (package / "formats" / "wrong.py").write_text("def f():\n    import tilewright.models\n")
    (tmp_path / "pyproject.toml").write_text(
        (project / "pyproject.toml").read_text("utf-8"), "utf-8"
    )
    result = lint_imports(tmp_path)
    assert result.returncode != 0
    assert "tilewright.lang.wrong -> tilewright.graph" in result.stdout
    assert "tilewright.formats.wrong -> tilewright.models" in result.stdout


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_module_needs_no_peer(path: Path) -> None:
    assert not imported_packages(path.read_text("utf-8")) & PEERS


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_module_can_be_read_in_one_sitting(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= MAX_LINES, f"{name(path)} has {lines} lines; split it where a reader would"


def test_import_is_lean() -> None:
    """`import tilewright` loads no heavy library and takes at most 0.25 s of processor time."""
    program = (
        "import json, sys, time; begin = time.process_time(); import tilewright; "
        "spent = time.process_time() - begin; print(json.dumps([spent, sorted(sys.modules)]))"
    )
    times = []
    for _ in range(5):
        output = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        spent, modules = json.loads(output)
        loaded = {m.partition(".")[0] for m in modules}
        assert not loaded & {*LAZY, *PEERS}
        times.append(spent)
    assert min(times) < 0.25, f"import tilewright took {min(times):.2f} s of processor time"

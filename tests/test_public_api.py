"""The public names: all there, all documented, none by accident."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import tilewright
from tilewright.tensor import api

NAMES = dir(tilewright)


@pytest.mark.parametrize("name", NAMES)
def test_name_resolves(name: str) -> None:
    assert getattr(tilewright, name) is getattr(tilewright, name)


def test_dir_has_all_and_the_standard() -> None:
    """The functions of the Array API standard are offered, but ``import *`` does not bring them."""
    assert dir(tilewright) == sorted({*tilewright.__all__, *api.names()})
    standard = {name for listed in api.STANDARD.values() for name in listed.split()}
    assert not standard & set(tilewright.__all__)
    assert len(tilewright.__all__) == len(set(tilewright.__all__))


def test_all_agrees_with_the_imports_that_type_checkers_see(project: Path) -> None:
    """What `__init__.py` imports, under `if TYPE_CHECKING` too, is public, and nothing else."""
    tree = ast.parse((project / "src" / "tilewright" / "__init__.py").read_text("utf-8"))
    found = {"__version__"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tilewright"):
            found |= {alias.asname or alias.name for alias in node.names}
    assert found == set(NAMES) - set(api.CONSTANTS)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        tilewright.lode  # noqa: B018


def test_every_error_is_a_tilewright_error() -> None:
    names = [n for n in tilewright.__all__ if n.endswith("Error")]
    assert len(names) >= 8
    for name in names:
        error = getattr(tilewright, name)
        assert issubclass(error, tilewright.TilewrightError)
        tree = inspect.getdoc(inspect.getmodule(error))
        assert name in tree, f"{name} is missing from the tree in the docstring"


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("__version__", *api.CONSTANTS)])
def test_name_is_documented(name: str) -> None:
    value = getattr(tilewright, name)
    assert inspect.getdoc(value), f"tilewright.{name} has no docstring"
    if inspect.isclass(value):
        public = {n: m for n, m in vars(value).items() if not n.startswith("_")}
        for method, member in public.items():
            if inspect.isfunction(member) or isinstance(member, property | classmethod):
                assert inspect.getdoc(member), f"tilewright.{name}.{method} has no docstring"


def test_version_is_that_of_the_distribution() -> None:
    assert tilewright.__version__ == metadata.version("tilewright")


def test_star_import() -> None:
    program = "from tilewright import *; print(sorted(n for n in dir() if not n.startswith('__')))"
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert ast.literal_eval(output) == sorted(set(tilewright.__all__) - {"__version__"})

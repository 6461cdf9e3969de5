"""The worked examples of CONTRIBUTING.md: each adds something, and it works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs.blocks import run_document

from tilewright.models.config import ARCHITECTURES
from tilewright.onnx import registry
from tilewright.onnx.export import writer
from tilewright.ops import dequant, packed, table


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in; what the examples register is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(table, "_OPS", dict(table._OPS))
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    tables = [ARCHITECTURES, dequant.BLOCKS, packed.BLOCK_SIZES, writer.TABLE]
    before = [dict(entries) for entries in tables]
    yield tmp_path
    for entries, old in zip(tables, before):
        assert isinstance(entries, dict)
        entries.clear()
        entries.update(old)


def test_worked_examples(project: Path, scratch: Path) -> None:
    """In order, in one namespace: the op of the second example runs the kernel of the first."""
    pytest.importorskip("gguf")
    pytest.importorskip("onnx")
    assert "mish" not in table.names()
    assert "starcoder2" not in ARCHITECTURES
    assert run_document(project / "CONTRIBUTING.md", scratch) >= 20
    assert {"mish", "softmax"} <= set(table.names())

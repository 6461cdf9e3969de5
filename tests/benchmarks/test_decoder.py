"""The decoder benchmark runs end to end on a small model, and its arithmetic holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.common import spread, table, write_report
from benchmarks.decoder_vs_llamacpp import Work, bytes_per_token, measure
from tests.reference import builders


def test_both_engines_are_measured_in_turns(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    path = builders.write_llama(tmp_path / "m.gguf", "q8_0")
    result = measure(path, ["tilewright", "llama.cpp"], 2, Work(64, 16, 8), rounds=3)
    for engine in ("tilewright", "llama.cpp"):
        figures = result[engine]
        for phase in ("prefill_tokens_per_s", "decode_tokens_per_s"):
            assert 0 < figures[phase].min <= figures[phase].median <= figures[phase].max
            assert figures[phase].n == 3
        assert figures["peak_rss"] > path.stat().st_size
    assert result["ratio"]["prefill"].n == 3


@pytest.mark.parametrize("tied", [True, False])
def test_a_decode_step_reads_the_unembedding_once(tied: bool, tmp_path: Path) -> None:
    """Whether it is the embedding's own table or a second one."""
    shape = builders.LLAMA
    path = builders.write_llama(tmp_path / "m.gguf", tied=tied)
    kv = shape.n_kv_heads * shape.head_dim
    layer = 2 * shape.n_embd * (shape.n_embd + kv) + 3 * shape.n_embd * shape.n_ff
    values = shape.n_layers * (layer + 2 * shape.n_embd) + shape.n_embd
    values += shape.n_vocab * shape.n_embd
    assert bytes_per_token(path) == 4 * values


def test_figures_print_and_go_into_json(tmp_path: Path) -> None:
    figures = spread([3.0, 1.0, 2.0])
    assert str(figures) == "2 [1..3]"
    assert table(["a", "b"], [["1", "22"]]) == "| a | b  |\n|---|----|\n| 1 | 22 |"
    write_report(str(tmp_path / "r.json"), {"speed": figures})
    wanted = {"speed": {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}}
    assert json.loads((tmp_path / "r.json").read_text()) == wanted

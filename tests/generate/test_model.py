"""Loading, generating, and the ways both can fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.reference import builders

import tilewright
from tilewright.errors import (
    ContextLengthError,
    FormatError,
    OutOfMemoryError,
    TilewrightError,
    UnsupportedError,
)
from tilewright.formats.gguf import open_gguf, tensor_from_raw, write_gguf
from tilewright.generate.engine import Work
from tilewright.generate.model import Model
from tilewright.generate.session import Conversation


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.write_llama(tmp_path_factory.mktemp("gen") / "m.gguf", "q8_0")


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return tilewright.load(path, threads=2, context=256)


def test_pieces_join_to_the_decoded_ids(model: Model) -> None:
    prompt = model.tokenizer.encode("once")
    run = model.generate(prompt, max_tokens=40, temperature=1.0, seed=3)
    pieces = list(run)
    assert run.reason in ("length", "eos")
    whole = model.tokenizer.decode(prompt + run.ids, skip_special=True)
    assert whole.endswith("".join(pieces))
    assert run.timings.prompt_tokens == len(prompt)


def test_seed_fixes_the_text(model: Model) -> None:
    texts = ["".join(model.generate("x", 20, seed=s)) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_greedy_follows_the_logits(model: Model) -> None:
    ids = [1, 5, 9]
    run = model.generate(ids, max_tokens=6, temperature=0)
    list(run)
    for token in run.ids:
        assert token == int(np.argmax(model.logits(ids)[-1]))
        ids.append(token)


def test_a_stop_string_ends_the_text_before_it(model: Model) -> None:
    text = "".join(model.generate([1, 5], 60, seed=11, temperature=1.0))
    assert len(text) > 6
    stop = text[4:6]
    run = model.generate([1, 5], 60, seed=11, temperature=1.0, stop=stop)
    assert "".join(run) == text[: text.index(stop)]
    assert run.reason == "stop"


def test_the_context_limit_is_a_reason_not_an_error(path: Path) -> None:
    model = tilewright.load(path, threads=1, context=12)
    run = model.generate([1, 2, 3], temperature=0)
    list(run)
    assert run.reason in ("context", "eos")
    assert len(run.ids) + 3 <= 13
    with pytest.raises(ContextLengthError, match="13 tokens, the context has room for 12"):
        model.generate([1] * 13)


def test_an_abandoned_generation_gives_its_cache_back(model: Model) -> None:
    for _ in range(5):
        run = model.generate([1, 2], 50, temperature=1.0, seed=1)
        next(run)
        run.close()
    assert np.isfinite(model.logits([1, 2])).all()


def test_two_generations_interleave(model: Model) -> None:
    def fresh(seed: int) -> tilewright.Generation:
        return model.generate([1, 2], 12, temperature=1.0, seed=seed)

    alone = [list(fresh(s)) for s in (1, 2)]
    a, b = fresh(1), fresh(2)
    got: tuple[list[str], list[str]] = ([], [])
    for _ in range(40):
        for run, pieces in zip((a, b), got):
            piece = next(run, None)
            if piece is not None:
                pieces.append(piece)
    assert list(got) == alone


def test_wrong_ids_are_refused_and_nothing_changes(model: Model) -> None:
    sequence = model.engine.open()
    for bad in (-1, model.config.vocab_size):
        with pytest.raises(TilewrightError, match=f"token id {bad} is outside"):
            model.engine.step([Work(sequence, [bad])])
    assert sequence.length == 0
    model.engine.close(sequence)
    with pytest.raises(ValueError, match="wants \\(tokens,\\)"):
        model.logits(np.zeros((2, 2), np.int32))
    assert model.logits([]).shape == (0, model.config.vocab_size)


def test_a_conversation_reuses_what_is_in_the_cache(model: Model) -> None:
    talk = Conversation(model)
    first = talk.say("hello there", max_tokens=5, temperature=0)
    list(first)
    second = talk.say("and more", max_tokens=5, temperature=0)
    list(second)
    assert second.timings.prompt_tokens < first.timings.prompt_tokens + 12
    talk.close()
    ids = model.tokenizer.encode("hello there")
    ids = [*ids, *first.ids, *model.tokenizer.encode("and more", add_special=False)]
    fresh = model.generate(ids, 5, temperature=0)
    list(fresh)
    assert fresh.ids == second.ids


def rewrite(path: Path, target: Path, drop: str = "", rename: tuple[str, str] = ("", "")) -> Path:
    """A copy of a model with one tensor dropped or renamed."""
    with open_gguf(path) as file:
        tensors = []
        for name, info in file.tensors.items():
            if name != drop:
                new = rename[1] if name == rename[0] else name
                tensors.append(tensor_from_raw(new, file.read_raw(name), info.shape, info.type))
        write_gguf(target, dict(file.metadata), tensors)
    return target


def test_a_missing_tensor_is_named(path: Path, tmp_path: Path) -> None:
    broken = rewrite(path, tmp_path / "m.gguf", drop="blk.1.ffn_up.weight")
    with pytest.raises(FormatError, match=r"blk\.1\.ffn_up\.weight.*missing"):
        tilewright.load(broken)


def test_a_left_over_tensor_is_named(path: Path, tmp_path: Path) -> None:
    broken = rewrite(path, tmp_path / "m.gguf", rename=("output.weight", "extra.weight"))
    with pytest.raises(FormatError, match=r"not part of this architecture: extra\.weight"):
        tilewright.load(broken)


def test_unknown_architecture_is_found_in_the_header(tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    write_gguf(target, {"general.architecture": "rwkv"}, {})
    with pytest.raises(UnsupportedError, match="'rwkv' is not supported"):
        tilewright.load(target)


def test_too_large_a_plan_is_refused_with_numbers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewright.generate.model.available_bytes", lambda: 1000)
    with pytest.raises(OutOfMemoryError, match=r"needs .* MB \(weights .* are available"):
        tilewright.load(path)


def test_slow_types_are_noted_once(tmp_path: Path) -> None:
    path = builders.write_llama(tmp_path / "m.gguf", "q5_0")
    notes = tilewright.load(path).notes
    assert len(notes) == 1
    assert "Q5_0" in notes[0]


def test_rows_past_the_tokenizer_are_never_drawn(tmp_path: Path) -> None:
    """A padded vocabulary: the 12 rows without a token have by far the largest logits."""
    whole = builders.write_llama(tmp_path / "whole.gguf", "f32")
    kept = 500
    with open_gguf(whole) as file:
        metadata = dict(file.metadata)
        for key in ("tokens", "scores", "token_type"):
            metadata[f"tokenizer.ggml.{key}"] = metadata[f"tokenizer.ggml.{key}"][:kept]
        tensors = {name: file.dequantize(name) for name in file.tensors}
    tensors["output.weight"][kept:] *= 1000
    path = tmp_path / "padded.gguf"
    write_gguf(path, metadata, tensors)

    model = tilewright.load(path, threads=1, context=64)
    prompt = model.tokenizer.encode("a")
    last = model.logits(prompt)[-1]
    assert last.shape == (512,)
    assert np.argmax(last) >= kept
    greedy = model.generate(prompt, 1, temperature=0)
    list(greedy)
    assert greedy.ids in ([int(np.argmax(last[:kept]))], [])  # none: the end of text
    # an id of the padding may be fed, and the penalties, which look at the prompt, do not mind
    drawn = model.generate([*prompt, 511], 20, temperature=1.5, seed=1, repetition_penalty=1.2)
    list(drawn)
    assert drawn.ids
    assert max(drawn.ids) < kept

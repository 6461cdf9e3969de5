"""Mamba from a file: the module that was trained, llama.cpp, and the promises of every decoder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tests.reference import peer

import tilewright as tw
from tilewright.errors import FormatError, UnsupportedError
from tilewright.formats.gguf import GGMLType, open_gguf, write_gguf
from tilewright.generate.engine import Work
from tilewright.generate.model import DEFAULT_MODEL
from tilewright.generate.session import Conversation
from tilewright.models.load import model_config
from tilewright.models.mamba import MambaConfig
from tilewright.nn.mamba import MambaConfig as ModuleConfig
from tilewright.nn.mamba import MambaLM
from tilewright.train.recipes.decoders import read_config, read_decoder
from tilewright.train.recipes.export import export_mamba

IDS = [1, 5, 99, 7, 300, 42, 42, 8, 200, 3, 17]


@pytest.fixture(scope="module")
def tokenizer() -> dict[str, object]:
    with open_gguf(DEFAULT_MODEL) as file:
        return {k: v for k, v in file.metadata.items() if k.startswith("tokenizer.")}


@pytest.fixture(scope="module")
def module(tokenizer: dict[str, object]) -> MambaLM:
    tw.random.seed(0)
    vocab = len(tokenizer["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    made = MambaLM(ModuleConfig(vocab, d_model=40, n_layer=3, d_state=6))
    rng = np.random.default_rng(0)
    for name, p in made.named_parameters():  # a state that matters, and nothing at its start
        scale = (
            0.3 if name.endswith(("A_log", "D", "bias", "norm.weight", "norm_f.weight")) else 0.1
        )
        p.assign(p + tw.asarray(rng.standard_normal(p.shape, np.float32) * scale))
    made.eval()
    return made


@pytest.fixture(scope="module")
def path(
    module: MambaLM, tokenizer: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("mamba")
    export_mamba(module, tokenizer, folder, "test")
    return folder / "model.gguf"


@pytest.fixture(scope="module")
def want(path: Path) -> np.ndarray:
    return tw.load(path, threads=1).logits(IDS)


def test_the_logits_are_those_of_the_module(module: MambaLM, want: np.ndarray) -> None:
    own = module(tw.asarray(np.array([IDS]))).numpy()[0]
    np.testing.assert_allclose(want, own, rtol=2e-4, atol=2e-4)
    assert np.abs(want[1:] - want[:-1]).max() > 1  # they say something


@pytest.mark.skipif(not find_spec("llama_cpp"), reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("type_", [GGMLType.F32, GGMLType.Q8_0])
def test_llama_cpp_says_the_same(
    module: MambaLM, tokenizer: dict[str, object], tmp_path: Path, type_: GGMLType
) -> None:
    if type_ is GGMLType.Q8_0:  # whole blocks of 32
        tw.random.seed(1)
        vocab = module.config.vocab_size
        module = MambaLM(ModuleConfig(vocab, d_model=512, n_layer=1))
    export_mamba(module, tokenizer, tmp_path, "test", type_)
    ours = tw.load(tmp_path / "model.gguf").logits(IDS)
    theirs = peer.logits(tmp_path / "model.gguf", IDS)
    tolerance = 1e-3 if type_ is GGMLType.F32 else 3e-2
    assert np.abs(ours - theirs).max() < tolerance * np.abs(theirs).max()
    if type_ is GGMLType.F32:
        np.testing.assert_array_equal(ours.argmax(1), theirs.argmax(1))


@pytest.mark.parametrize("options", [{"threads": 2}, {"threads": 3, "fuse": False}])
def test_same_bits_for_threads_and_fusion(
    path: Path, want: np.ndarray, options: dict[str, int]
) -> None:
    np.testing.assert_array_equal(tw.load(path, **options).logits(IDS), want)


@pytest.mark.parametrize("cuts", [[1] * 11, [4, 7], [3, 0, 3, 5]])
def test_same_bits_however_a_text_is_cut_and_whoever_rides_along(
    path: Path, want: np.ndarray, cuts: list[int]
) -> None:
    model = tw.load(path, max_sequences=3)
    first, other = model.engine.open(), model.engine.open()
    got, at = [], 0
    for i, n in enumerate(cuts):
        part = IDS[at : at + n]
        works = [Work(first, part, len(part))]
        if i % 2 == 0:
            works.append(Work(other, [7, i], 0))
        got.append(model.engine.step(works)[: len(part)].copy())
        at += n
    np.testing.assert_array_equal(np.concatenate(got), want)
    model.engine.close(first)
    again = model.engine.open()  # a row that was used before begins with nothing
    assert again.row == first.row or first.row == -1
    np.testing.assert_array_equal(model.engine.step([Work(again, IDS, len(IDS))]), want)


def test_a_step_that_was_interrupted_can_be_made_again(path: Path, want: np.ndarray) -> None:
    engine = tw.load(path).engine
    sequence = engine.open()
    engine.step([Work(sequence, IDS[:4])])
    run, calls = engine.program.run, []

    def interrupted(dims: dict[str, int]) -> None:
        run(dims)
        calls.append(dims)
        raise KeyboardInterrupt

    engine.program.run = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.step([Work(sequence, IDS[4:], 7)])
    engine.program.run = run  # type: ignore[method-assign]
    assert calls
    assert sequence.length == 4
    np.testing.assert_array_equal(engine.step([Work(sequence, IDS[4:], 7)]), want[4:])


def test_what_cannot_be_forgotten_in_part_is_forgotten(path: Path, want: np.ndarray) -> None:
    engine = tw.load(path).engine
    sequence = engine.open()
    engine.step([Work(sequence, IDS)])
    assert engine.truncate(sequence, len(IDS)) == len(IDS)
    assert engine.truncate(sequence, 3) == 0
    np.testing.assert_array_equal(engine.step([Work(sequence, IDS, len(IDS))]), want)


def test_conversations_and_generation_work(path: Path) -> None:
    model = tw.load(path)
    text = "".join(model.generate("Once", 12, seed=1))
    assert text == "".join(model.generate("Once", 12, seed=1))
    talk = Conversation(model)
    first = "".join(talk.say("Once", max_tokens=5, seed=1))
    second = "".join(talk.say(" and", max_tokens=5, seed=2))
    ids = talk._cached + talk._last.ids  # type: ignore[union-attr]
    assert first != second
    assert talk._sequence.length in (len(ids), len(ids) - 1)
    talk.close()


def test_memory_does_not_grow_with_the_context(path: Path) -> None:
    small, large = (tw.load(path, context=c).plan["state"] for c in (32, 4096))
    assert small == large
    config = tw.load(path).config
    assert isinstance(config, MambaConfig)
    assert config.memory_bytes(1) == config.memory_bytes(9999) == 4 * 3 * 80 * (6 + 3)
    assert "80 channels x 6 states" in config.summary()


def test_adapters_are_refused(path: Path) -> None:
    with pytest.raises(UnsupportedError, match="a Mamba has no attention to adapt"):
        read_decoder(path)
    with pytest.raises(UnsupportedError, match="a Mamba has no attention to adapt"):
        read_config(path)


def test_files_that_lie_are_refused(path: Path, tmp_path: Path) -> None:
    with open_gguf(path) as file:
        metadata = dict(file.metadata)
        tensors = {name: file.dequantize(name) for name in file.tensors}
    for key, value, kind, message in (
        ("mamba.ssm.dt_b_c_rms", True, UnsupportedError, "dt_b_c_rms"),
        ("mamba.ssm.group_count", 1, UnsupportedError, "does not understand.*group_count"),
        ("mamba.ssm.conv_kernel", 1, FormatError, "a convolution over 1 input"),
        ("mamba.ssm.state_size", 0, FormatError, "state is 0"),
        ("mamba.attention.head_count", 4, UnsupportedError, "head_count 4"),
    ):
        with pytest.raises(kind, match=message):
            model_config(metadata | {key: value})
    with pytest.raises(FormatError, match=r"metadata lacks 'mamba.ssm.inner_size'"):
        model_config({k: v for k, v in metadata.items() if "inner_size" not in k})
    with pytest.raises(UnsupportedError, match=r"'mamba2' is not supported.*mamba, qwen2.*'mamba'"):
        model_config(metadata | {"general.architecture": "mamba2"})
    write_gguf(
        tmp_path / "a.gguf", metadata, {n: t for n, t in tensors.items() if n != "blk.1.ssm_a"}
    )
    with pytest.raises(FormatError, match=r"blk.1.ssm_a.*missing"):
        tw.load(tmp_path / "a.gguf")
    tensors["blk.0.ssm_d"] = tensors["blk.0.ssm_d"][:-1]
    write_gguf(tmp_path / "b.gguf", metadata, tensors)
    with pytest.raises(FormatError, match=r"ssm_d.*shape is \(79,\)"):
        tw.load(tmp_path / "b.gguf")

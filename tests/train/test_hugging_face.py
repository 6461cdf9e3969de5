"""Exports and adapters beside Hugging Face's transformers and PEFT, where these are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright
from tilewright.tensor import random
from tilewright.tensor.creation import asarray
from tilewright.tensor.modes import no_grad
from tilewright.train.recipes.export import export_decoder
from tilewright.train.recipes.gpt import make_gpt
from tilewright.train.recipes.language import LanguageOptions
from tilewright.train.recipes.llama import make_llama
from tilewright.train.recipes.lora import merge, train_lora
from tilewright.train.recipes.text import prepare_text

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

TEXT = "the cat sat on the mat, and the dog lay by the door.\n" * 60
IDS = np.arange(16, dtype=np.int32)[None]


def ours(module: Any) -> np.ndarray:
    with no_grad():
        found = module.eval()(asarray(IDS)).numpy()
    assert isinstance(found, np.ndarray)
    return found


def theirs(module: Any) -> np.ndarray:
    found = module(torch.from_numpy(IDS).long()).logits.detach().numpy()
    assert isinstance(found, np.ndarray)
    return found


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_transformers_and_peft_load_what_is_written(kind: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    folder = tmp_path / "model"
    text = prepare_text([tmp_path / "text.txt"], "bpe:300", folder, context=16)
    random.seed(1)
    sizes = {"context": 16, "layers": 2, "heads": 4, "width": 64}
    if kind == "gpt":
        module: Any = make_gpt(text.vocab_size, **sizes)
    else:
        module = make_llama(text.vocab_size, **sizes, kv_heads=2)
    export_decoder(module, text.metadata, folder, "cats")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    np.testing.assert_allclose(theirs(model), ours(module), atol=3e-6)
    assert model.config.eos_token_id == text.tokenizer.eos_id
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("the cat sat") == text.tokenizer.encode("the cat sat")

    peft = pytest.importorskip("peft")
    options = LanguageOptions(context=16, batch=4, steps=5, lr=1e-2, warmup=1)
    tuned, _ = train_lora(
        folder / "model.gguf",
        [tmp_path / "text.txt"],
        options,
        tmp_path / "lora",
        rank=4,
        targets=["all"],
        quiet=True,
    )
    adapted = peft.PeftModel.from_pretrained(model, str(tmp_path / "lora"))
    np.testing.assert_allclose(theirs(adapted), ours(tuned), atol=3e-6)
    adapted.save_pretrained(str(tmp_path / "theirs"))
    merge(folder, tmp_path / "theirs", tmp_path / "merged.gguf")
    merged = tilewright.load(tmp_path / "merged.gguf").logits(IDS[0])
    np.testing.assert_allclose(merged, ours(tuned)[0], atol=3e-6)

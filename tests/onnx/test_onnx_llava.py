"""LLaVA-OneVision from three exported graphs, beside transformers' own greedy decoding."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from tilewright.cli import build
from tilewright.errors import FormatError, UnsupportedError
from tilewright.generate.sampling import SamplingParams
from tilewright.onnx.pipelines.images import Preprocess, read_config
from tilewright.tokenizers import from_json
from tilewright.tokenizers.json_file import write_json
from tilewright.tokenizers.train import train_bpe

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("ml_dtypes")
pytest.importorskip("PIL")
pytest.importorskip("jinja2")
from tilewright.onnx.pipelines.llava import LlavaOneVision  # noqa: E402

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
LAYERS = 2


def small_model():
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    torch.manual_seed(0)
    text = Qwen2Config(
        vocab_size=290, hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    config = LlavaOnevisionConfig(text_config=text, vision_config=vision, image_token_index=3)
    model = LlavaOnevisionForConditionalGeneration(config).eval().float()
    model.set_attn_implementation("eager")
    with torch.no_grad():  # logits that are far apart, so that rounding decides nothing
        model.lm_head.weight.normal_(0, 1)
    return model


def export(model, folder):
    """The three graphs, as exports of the real model have them."""
    from transformers import DynamicCache

    class Part(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.whole = model  # its weights are this module's

    class Vision(Part):
        def forward(self, pixel_values):
            hidden = model.model.vision_tower(pixel_values, output_hidden_states=True)
            return model.model.multi_modal_projector(
                hidden.hidden_states[model.config.vision_feature_layer]
            )

    class Embed(Part):
        def forward(self, input_ids):
            return model.get_input_embeddings()(input_ids)

    class Decoder(Part):
        def forward(self, inputs_embeds, attention_mask, position_ids, *past):
            cache = DynamicCache()
            for i in range(LAYERS):
                cache.update(past[2 * i], past[2 * i + 1], i)
            out = model.model.language_model(
                inputs_embeds=inputs_embeds, attention_mask=attention_mask,
                position_ids=position_ids, past_key_values=cache, use_cache=True,
            )  # fmt: skip
            layers = out.past_key_values.layers
            return (
                model.lm_head(out.last_hidden_state),
                *(t for layer in layers for t in (layer.keys, layer.values)),
            )

    def write(module, name, inputs, given, outputs, axes):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module, given, str(folder / f"{name}.onnx"), input_names=inputs,
                output_names=outputs, dynamic_axes=axes, dynamo=False,
            )  # fmt: skip

    batch, length = {0: "batch_size"}, {0: "batch_size", 1: "sequence_length"}
    write(
        Vision(), "vision_encoder", ["pixel_values"], (torch.randn(1, 3, 28, 28),),
        ["image_features"], {"pixel_values": batch},
    )  # fmt: skip
    ids = torch.zeros(1, 3, dtype=torch.long)
    write(Embed(), "embed_tokens", ["input_ids"], (ids,), ["inputs_embeds"], {"input_ids": length})
    pasts = [f"past_key_values.{i}.{k}" for i in range(LAYERS) for k in ("key", "value")]
    given = (
        torch.randn(1, 3, 32), torch.ones(1, 8, dtype=torch.long), torch.arange(5, 8)[None],
        *(torch.randn(1, 2, 5, 8) for _ in pasts),
    )  # fmt: skip
    axes = {
        "inputs_embeds": length,
        "attention_mask": {0: "batch_size", 1: "total_sequence_length"},
        "position_ids": length,
        **{name: {0: "batch_size", 2: "past_sequence_length"} for name in pasts},
    }
    write(
        Decoder(), "decoder_model_merged",
        ["inputs_embeds", "attention_mask", "position_ids", *pasts], given,
        ["logits", *(p.replace("past_key_values", "present") for p in pasts)], axes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("llava")
    (path / "onnx").mkdir()
    export(model, path / "onnx")
    texts = ["what is in the picture? a cat is in it."]
    write_json(path / "tokenizer.json", train_bpe(texts, 280, special=SPECIAL))
    (path / "config.json").write_text(json.dumps({"image_token_index": 3}))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2]}))
    steps = {
        "size": {"height": 28, "width": 28}, "resample": 3, "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5], "do_rescale": True, "rescale_factor": 1 / 255,
    }  # fmt: skip
    (path / "preprocessor_config.json").write_text(json.dumps(steps))
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "p.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_tokens_are_those_of_transformers(model, folder, picture):
    llava = LlavaOneVision(folder, threads=2)
    ids, vocab = llava.prompt_ids("what is it?"), llava.tokenizer.vocab_size
    assert vocab == 280  # the model's table has ten rows more
    assert ids.count(3) == 1
    pixels = torch.from_numpy(read_config(folder / "preprocessor_config.json")(picture))
    with torch.no_grad():
        hidden = model.model.vision_tower(pixels, output_hidden_states=True)
        seen = model.model.multi_modal_projector(
            hidden.hidden_states[model.config.vision_feature_layer]
        )
        rows = model.get_input_embeddings()(torch.tensor([ids]))
        at = ids.index(3)
        rows = torch.cat([rows[:, :at], seen, rows[:, at + 1 :]], 1)
        mask = torch.ones(rows.shape[:2], dtype=torch.long)
        want = model.generate(
            inputs_embeds=rows, attention_mask=mask, max_new_tokens=24, do_sample=False,
            eos_token_id=2, pad_token_id=0, suppress_tokens=list(range(vocab, 290)),
        )[0].tolist()  # fmt: skip
    np.testing.assert_allclose(llava.features(picture), seen[0].numpy(), rtol=1e-4, atol=1e-5)
    got = list(llava.tokens(picture, "what is it?", max_tokens=24))
    assert got == [t for t in want if t != 2]
    assert len(set(got)) > 3
    assert llava.decoder.length >= len(ids) - 1 + 4 + len(got) - 1
    # another question begins anew, and the first has the same answer again
    list(llava.tokens(picture, "a cat", max_tokens=5))
    assert list(llava.tokens(picture, "what is it?", max_tokens=24)) == got
    text = "".join(llava.answer(picture, "what is it?", max_tokens=24))
    assert text == from_json(folder / "tokenizer.json").decode(got, skip_special=True)


def test_the_command(folder, picture, capsys):
    def see(*args):
        with pytest.raises(SystemExit) as end:
            build()(["see", *map(str, args)], prog_name="tilewright")
        return end.value.code or 0, *capsys.readouterr()

    status, out, err = see(folder, picture, "-p", "what is it?", "-n", 6, "-t", 1)
    assert status == 0, err
    llava = LlavaOneVision(folder, threads=1)
    assert out == "".join(llava.answer(picture, "what is it?", 6)) + "\n"
    status, out, _ = see(folder, picture, "-n", 6, "--temp", 1, "-s", 3)
    params = SamplingParams(temperature=1, seed=3)
    assert out == "".join(llava.answer(picture, "Describe this image.", 6, params)) + "\n"
    status, _, err = see(folder / "nothing", picture)
    assert (status, err.count("\n")) == (1, 1)
    assert "is no folder" in err
    status, _, err = see(folder, folder / "config.json")
    assert status == 1
    assert "is no image" in err


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(FormatError, match=r"holds no vision_encoder\.onnx"):
        LlavaOneVision(tmp_path)
    with pytest.raises(FormatError, match=r"no vision_encoder_fp16\.onnx; there are vision_enc"):
        LlavaOneVision(folder, variant="_fp16")
    for name in ("vision_encoder", "embed_tokens", "decoder_model_merged"):
        (tmp_path / f"{name}.onnx").write_bytes((folder / "onnx" / f"{name}.onnx").read_bytes())
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    llava = LlavaOneVision(tmp_path)  # everything else has a default
    assert llava.steps == Preprocess(size=(384, 384), resample="bicubic", mean=(0.5,), std=(0.5,))
    with pytest.raises(FormatError, match="has the image token 151646 0 times"):
        llava.prompt_ids("what?")
    (tmp_path / "config.json").write_text('{"image_token_index": "three"}')
    with pytest.raises(FormatError, match="special tokens have numbers"):
        LlavaOneVision(tmp_path)
    strange = onnx.load(tmp_path / "decoder_model_merged.onnx")
    strange.graph.input.append(onnx.helper.make_tensor_value_info("extra", 1, [1]))
    (tmp_path / "config.json").unlink()
    onnx.save(strange, tmp_path / "decoder_model_merged.onnx")
    with pytest.raises(UnsupportedError, match="the decoder wants 'extra'"):
        LlavaOneVision(tmp_path)

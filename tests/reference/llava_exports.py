"""LLaVA-OneVision as its three ONNX graphs, with random weights, and the network itself.

The graphs have the names, inputs and outputs of the published export (``vision_encoder``,
``embed_tokens``, ``decoder_model_merged``). Needs torch, transformers and onnx.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from pathlib import Path
from typing import Any

__all__ = ["export_llava", "llava_config", "make_llava"]

IMAGE_TOKEN = 151646


def llava_config(small: bool = True) -> Any:
    """The configuration: of the 0.5B network, or of one of the same structure that is tiny."""
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    if small:
        vision = SiglipVisionConfig(
            hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            image_size=56, patch_size=14, vision_use_head=False,
        )  # fmt: skip
        text = Qwen2Config(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=600, max_position_embeddings=512,
            tie_word_embeddings=True, rope_theta=1e6, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        token, grid = 599, [[56, 56], [56, 112], [112, 56], [112, 112]]
    else:
        vision = SiglipVisionConfig(
            hidden_size=1152, intermediate_size=4304, num_hidden_layers=26,
            num_attention_heads=16, image_size=384, patch_size=14, vision_use_head=False,
        )  # fmt: skip
        text = Qwen2Config(
            hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
            num_key_value_heads=2, vocab_size=152000, max_position_embeddings=32768,
            tie_word_embeddings=True, rope_theta=1e6, bos_token_id=151643, eos_token_id=151645,
        )  # fmt: skip
        token, grid = IMAGE_TOKEN, [[384, 384 * n] for n in range(1, 7)]
    return LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_token_index=token, image_token_id=token,
        image_grid_pinpoints=grid, vision_feature_layer=-1, tie_word_embeddings=True,
        vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip


def make_llava(small: bool = True) -> Any:
    """The network, random weights from seed 0."""
    import torch
    from transformers import LlavaOnevisionForConditionalGeneration

    torch.manual_seed(0)
    config = llava_config(small)
    for part in (config, config.text_config, config.vision_config):
        part._attn_implementation = "eager"
    net = LlavaOnevisionForConditionalGeneration(config).eval()
    with torch.no_grad():  # sharper than a fresh network: greedy choices that are no coin tosses
        for p in net.parameters():
            if p.ndim > 1 and small:
                p.mul_(3)
    return net


def export_llava(folder: Path, small: bool = True, net: Any = None, opset: int = 17) -> Any:
    """Write the three graphs and ``config.json`` into ``folder``; returns the network."""
    import torch
    from transformers import DynamicCache

    net = make_llava(small) if net is None else net
    config = net.config
    text = config.text_config
    folder.mkdir(parents=True, exist_ok=True)

    class Vision(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = net.model.vision_tower
            self.projector = net.model.multi_modal_projector

        def forward(self, pixel_values: Any) -> Any:
            out = self.tower(pixel_values, output_hidden_states=True)
            return self.projector(out.hidden_states[config.vision_feature_layer])

    class Embed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = net.get_input_embeddings()

        def forward(self, input_ids: Any) -> Any:
            return self.table(input_ids)

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.head = net.model.language_model, net.lm_head

        def forward(self, embeds: Any, mask: Any, positions: Any, *past: Any) -> Any:
            cache = DynamicCache()
            for i in range(text.num_hidden_layers):
                cache.update(past[2 * i], past[2 * i + 1], i)
            out = self.model(
                inputs_embeds=embeds, attention_mask=mask, position_ids=positions,
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
            flat = [t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)]
            return (self.head(out.last_hidden_state), *flat)

    n, head = config.vision_config.image_size, text.hidden_size // text.num_attention_heads
    kinds = [(i, k) for i in range(text.num_hidden_layers) for k in ("key", "value")]
    past_names = [f"past_key_values.{i}.{k}" for i, k in kinds]
    past = [torch.zeros(1, text.num_key_value_heads, 5, head) for _ in kinds]
    embeds, mask = torch.zeros(1, 3, text.hidden_size), torch.ones(1, 8, dtype=torch.long)
    jobs = {
        "vision_encoder": (
            Vision(), (torch.zeros(2, 3, n, n),), ["pixel_values"], ["image_features"],
            {"pixel_values": {0: "tiles"}},
        ),
        "embed_tokens": (
            Embed(), (torch.zeros(1, 3, dtype=torch.long),), ["input_ids"], ["inputs_embeds"],
            {"input_ids": {0: "batch", 1: "sequence"}},
        ),
        "decoder_model_merged": (
            Decoder(), (embeds, mask, torch.arange(5, 8)[None], *past),
            ["inputs_embeds", "attention_mask", "position_ids", *past_names],
            ["logits", *(f"present.{i}.{k}" for i, k in kinds)],
            {
                "inputs_embeds": {0: "batch", 1: "sequence"},
                "attention_mask": {0: "batch", 1: "total"},
                "position_ids": {0: "batch", 1: "sequence"},
                **{name: {0: "batch", 2: "past"} for name in past_names},
            },
        ),
    }  # fmt: skip
    for name, (module, args, inputs, outputs, axes) in jobs.items():
        path = folder / f"{name}.onnx"
        if path.exists():
            continue
        part = path.with_suffix(".part")
        quiet = contextlib.redirect_stdout(io.StringIO())
        with warnings.catch_warnings(), torch.no_grad(), quiet:
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module, args, str(part), input_names=inputs, output_names=outputs,
                dynamic_axes=axes, opset_version=opset, dynamo=False,
            )  # fmt: skip
        part.rename(path)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    return net

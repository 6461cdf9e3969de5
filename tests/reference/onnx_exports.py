"""ONNX files as people have them: exports of torch and transformers networks, random weights.

Each network is named; ``export(name, folder)`` writes it once and returns its path. Sizes are those
of the real networks unless the name ends in ``-small``. Needs torch, transformers and onnx.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["NETWORKS", "export", "feeds"]


_TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}


def _vit(half: bool = False, small: bool = False) -> Any:
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    sizes = _TINY | {"image_size": 32, "patch_size": 8} if small else {}
    config = ViTConfig(num_labels=1000 if not small else 10, layer_norm_eps=1e-6, **sizes)
    config._attn_implementation = "eager"
    net = ViTForImageClassification(config)
    n = config.image_size
    x = torch.zeros(1, 3, n, n)
    if half:
        net, x = net.half(), x.half()
    return _only(net, "logits"), (x,), ["pixel_values"], ["logits"], {"pixel_values": {0: "batch"}}


def _resnet(small: bool = False) -> Any:
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]} if small else {}
    net = ResNetForImageClassification(ResNetConfig(num_labels=10 if small else 1000, **sizes))
    _give_statistics(net)
    n = 32 if small else 224
    x = torch.zeros(1, 3, n, n)
    return _only(net, "logits"), (x,), ["pixel_values"], ["logits"], {"pixel_values": {0: "batch"}}


def _mobilenet(small: bool = False) -> Any:
    import torch
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(num_labels=10 if small else 1000, tf_padding=False,
                               depth_multiplier=0.35 if small else 1.0)  # fmt: skip
    net = MobileNetV2ForImageClassification(config)
    _give_statistics(net)
    n = 64 if small else 224
    x = torch.zeros(1, 3, n, n)
    return _only(net, "logits"), (x,), ["pixel_values"], ["logits"], {"pixel_values": {0: "batch"}}


def _bert(small: bool = False) -> Any:
    import torch
    from transformers import BertConfig, BertModel

    sizes = _TINY | {"vocab_size": 500} if small else {}
    config = BertConfig(**sizes)
    config._attn_implementation = "eager"
    net = BertModel(config, add_pooling_layer=False)
    ids = torch.zeros(1, 16, dtype=torch.long)
    mask, kinds = torch.ones_like(ids), torch.zeros_like(ids)
    axes = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask", "types")}

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, input_ids: Any, attention_mask: Any, types: Any) -> Any:
            out = self.net(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=types)
            return out.last_hidden_state

    return Wrapped(), (ids, mask, kinds), list(axes), ["last_hidden_state"], axes


def _gpt2(small: bool = False) -> Any:
    """GPT-2 with past keys and values among its inputs and outputs."""
    import torch
    from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

    tiny = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 500, "n_positions": 64}
    config = GPT2Config(**tiny if small else {})
    config._attn_implementation = "eager"
    net = GPT2LMHeadModel(config)
    head = config.n_embd // config.n_head

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(
            self, input_ids: Any, attention_mask: Any, position_ids: Any, *past: Any
        ) -> Any:
            cache = DynamicCache()
            for i in range(config.n_layer):
                cache.update(past[2 * i], past[2 * i + 1], i)
            out = self.net(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
            flat = [t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)]
            return (out.logits, *flat)

    past = [torch.zeros(1, config.n_head, 5, head) for _ in range(2 * config.n_layer)]
    kinds = [(i, k) for i in range(config.n_layer) for k in ("key", "value")]
    names = [f"past_key_values.{i}.{k}" for i, k in kinds]
    presents = [f"present.{i}.{k}" for i, k in kinds]
    ids = torch.zeros(1, 3, dtype=torch.long)
    args = (ids, torch.ones(1, 8, dtype=torch.long), torch.arange(5, 8)[None], *past)
    axes: dict[str, dict[int, str]] = {
        "input_ids": {0: "batch", 1: "sequence"},
        "attention_mask": {0: "batch", 1: "total"},
        "position_ids": {0: "batch", 1: "sequence"},
        **{name: {0: "batch", 2: "past"} for name in names},
    }
    return Wrapped(), args, list(axes), ["logits", *presents], axes


def _only(net: Any, name: str) -> Any:
    import torch

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Any) -> Any:
            return getattr(self.net(x), name)

    return Wrapped()


def _give_statistics(net: Any) -> None:
    """Batch norms that do something: fresh ones have mean 0 and variance 1."""
    import torch

    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.uniform_(module.bias, -0.1, 0.1)


NETWORKS: Mapping[str, Callable[[], Any]] = {
    "vit": _vit,
    "vit-fp16": lambda: _vit(half=True),
    "resnet50": _resnet,
    "mobilenet": _mobilenet,
    "bert": _bert,
    "gpt2": _gpt2,
    "vit-small": lambda: _vit(small=True),
    "vit-fp16-small": lambda: _vit(half=True, small=True),
    "resnet-small": lambda: _resnet(small=True),
    "mobilenet-small": lambda: _mobilenet(small=True),
    "bert-small": lambda: _bert(small=True),
    "gpt2-small": lambda: _gpt2(small=True),
}


def export(name: str, folder: str | Path, *, dynamo: bool = False, opset: int = 17) -> Path:
    """Write network ``name`` into ``folder`` unless it is there; returns the file's path."""
    import torch

    path = Path(folder) / f"{name}{'-dynamo' if dynamo else ''}-{opset}.onnx"
    if path.exists():
        return path
    torch.manual_seed(0)
    net, args, inputs, outputs, axes = NETWORKS[name]()
    part = path.with_suffix(".part")
    kwargs: dict[str, Any] = {"dynamic_axes": axes} if not dynamo else {"external_data": False}
    quiet = contextlib.redirect_stdout(io.StringIO())
    with (
        warnings.catch_warnings(),
        torch.no_grad(),
        quiet,
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(), args, str(part), input_names=inputs, output_names=outputs,
            opset_version=opset, dynamo=dynamo, **kwargs,
        )  # fmt: skip
    part.rename(path)
    return path


def feeds(session: Any, seed: int = 0, **sizes: int) -> dict[str, np.ndarray]:
    """Random inputs for a session (ours): ``sizes`` are the symbolic ones; ids below 500."""
    rng = np.random.default_rng(seed)
    made = {}
    for spec in session.inputs:
        shape = tuple(n if isinstance(n, int) else sizes.get(n or "", 1) for n in spec.shape)
        if "mask" in spec.name:
            made[spec.name] = np.ones(shape, spec.dtype)
        elif spec.name == "position_ids":
            made[spec.name] = np.broadcast_to(
                np.arange(shape[1]) + sizes.get("past", 0), shape
            ).astype(spec.dtype)
        elif spec.dtype.startswith("int"):
            high = 2 if spec.name == "types" else 500
            made[spec.name] = rng.integers(0, high, shape).astype(spec.dtype)
        else:
            made[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    return made

"""Trained modules as files: safetensors for all, GGUF for decoders."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from tilewright.formats.atomic import atomic_file
from tilewright.formats.gguf import GGMLType, tensor_from_array, write_gguf
from tilewright.formats.safetensors import write_safetensors
from tilewright.models.config import DecoderConfig, config_from_metadata
from tilewright.nn.mamba import MambaLM
from tilewright.nn.module import Module
from tilewright.nn.transformer import GPT, Llama
from tilewright.train.loop import tensors_of
from tilewright.train.recipes.decoders import (
    DecoderWeights,
    decoder_metadata,
    expected_shapes,
    from_hugging_face,
    hugging_face_name,
    write_decoder_gguf,
    write_decoder_safetensors,
)

__all__ = ["decoder_weights", "export_decoder", "export_mamba", "export_module"]


def decoder_weights(module: GPT | Llama, tokenizer: Mapping[str, Any], name: str) -> DecoderWeights:
    """A trained module as a decoder file wants it; ``tokenizer`` is GGUF metadata.

    Biases that a GPT has not are zeros in files, which ask for them.
    """
    config = _gpt_config(module) if isinstance(module, GPT) else _llama_config(module)
    metadata = {**decoder_metadata(config, name), **tokenizer}
    state = {
        key: np.asarray(value, np.float32) for key, value in tensors_of(module.state_dict()).items()
    }
    present = dict.fromkeys([] if module.config.tied else ["output.weight"])
    if isinstance(module, GPT):
        layers = range(config.n_layers)
        kinds = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
        present |= dict.fromkeys(f"blk.{i}.{kind}.bias" for i in layers for kind in kinds)
    tensors = {}
    for own, shape in expected_shapes(config, present).items():
        stored = state.get(hugging_face_name(config.architecture, own))
        if stored is None:
            stored = np.zeros(shape, np.float32)
        elif isinstance(module, Llama) and not module.config.interleaved:
            stored = from_hugging_face(config, own, stored)
        tensors[own] = np.ascontiguousarray(stored)
    return DecoderWeights(config_from_metadata(metadata), metadata, tensors)


def _gpt_config(module: GPT) -> DecoderConfig:
    own = module.config
    if own.activation != "gelu_tanh":
        raise ValueError(f"GPT-2's files mean gelu_tanh, the module has {own.activation}")
    return DecoderConfig(
        architecture="gpt2",
        vocab_size=own.vocab_size,
        context_length=own.block_size,
        dim=own.n_embd,
        n_layers=own.n_layer,
        n_heads=own.n_head,
        n_kv_heads=own.n_head,
        head_dim=own.n_embd // own.n_head,
        ffn_dim=4 * own.n_embd,
        norm="layer",
        norm_eps=1e-5,
        mlp="gelu",
        rope=None,
    )


def _llama_config(module: Llama) -> DecoderConfig:
    from tilewright.layers.rope import Rope

    own = module.config
    head = own.n_embd // own.n_head
    return DecoderConfig(
        architecture="llama",
        vocab_size=own.vocab_size,
        context_length=own.block_size,
        dim=own.n_embd,
        n_layers=own.n_layer,
        n_heads=own.n_head,
        n_kv_heads=own.n_kv_head or own.n_head,
        head_dim=head,
        ffn_dim=own.hidden,
        norm="rms",
        norm_eps=own.norm_eps,
        mlp="swiglu",
        rope=Rope(head, own.rope_base, "interleaved"),
    )


def export_decoder(
    module: GPT | Llama,
    tokenizer: Mapping[str, Any],
    folder: str | os.PathLike[str],
    name: str,
    type_: GGMLType = GGMLType.F32,
) -> list[str]:
    """``model.gguf``, and ``model.safetensors`` with ``config.json``; returns the paths."""
    weights = decoder_weights(module, tokenizer, name)
    gguf, tensors = (os.path.join(folder, f"model.{kind}") for kind in ("gguf", "safetensors"))
    write_decoder_gguf(gguf, weights, type_)
    write_decoder_safetensors(tensors, weights)
    return [gguf, tensors]


# what llama.cpp's own conversion says of a model that has no limit
_ENDLESS: Final = 1 << 20
_MAMBA: Final = {
    "norm.weight": "attn_norm.weight",
    "mixer.in_proj.weight": "ssm_in.weight",
    "mixer.conv1d.weight": "ssm_conv1d.weight",
    "mixer.conv1d.bias": "ssm_conv1d.bias",
    "mixer.x_proj.weight": "ssm_x.weight",
    "mixer.dt_proj.weight": "ssm_dt.weight",
    "mixer.dt_proj.bias": "ssm_dt.bias",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.out_proj.weight": "ssm_out.weight",
}
# llama.cpp reads these as float32 only
_EXACT: Final = frozenset({"ssm_conv1d.weight", "ssm_a"})


def export_mamba(
    module: MambaLM,
    tokenizer: Mapping[str, Any],
    folder: str | os.PathLike[str],
    name: str,
    type_: GGMLType = GGMLType.F32,
) -> list[str]:
    """``model.gguf`` with llama.cpp's names, ``model.safetensors`` with those of ``mamba_ssm``,
    ``config.json``; returns the paths of the weights."""
    own = module.config
    state = {k: np.asarray(v, np.float32) for k, v in tensors_of(module.state_dict()).items()}
    tensors = {
        "token_embd.weight": state["backbone.embedding.weight"],
        "output_norm.weight": state["backbone.norm_f.weight"],
    }
    for i in range(own.n_layer):
        for theirs, stem in _MAMBA.items():
            array = state[f"backbone.layers.{i}.{theirs}"]
            if stem == "ssm_a":
                array = -np.exp(array)
            elif stem == "ssm_conv1d.weight":
                array = array.reshape(array.shape[0], -1)
            tensors[f"blk.{i}.{stem}"] = array
    rank = module.backbone.layers[0].mixer.dt_rank
    keys = {
        "context_length": _ENDLESS,
        "embedding_length": own.d_model,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "block_count": own.n_layer,
        "vocab_size": own.vocab_size,
        "ssm.conv_kernel": own.d_conv,
        "ssm.inner_size": own.expand * own.d_model,
        "ssm.state_size": own.d_state,
        "ssm.time_step_rank": rank,
        "ssm.dt_b_c_rms": False,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    metadata = {
        "general.architecture": "mamba",
        "general.name": name,
        "general.file_type": 0,
        **{f"mamba.{key}": value for key, value in keys.items()},
        **tokenizer,
    }
    sources = [
        tensor_from_array(
            key,
            np.ascontiguousarray(array, np.float32),
            type_ if array.ndim == 2 and key.split(".", 2)[-1] not in _EXACT else None,
        )
        for key, array in tensors.items()
    ]
    gguf = os.path.join(folder, "model.gguf")
    write_gguf(gguf, metadata, sources)
    return [gguf, *export_module(module, folder, {"model_type": "mamba", **asdict(own)})]


def export_module(
    module: Module, folder: str | os.PathLike[str], config: Mapping[str, Any]
) -> list[str]:
    """``model.safetensors`` with the module's own names, and ``config.json``; returns the path."""
    path = os.path.join(folder, "model.safetensors")
    write_safetensors(path, tensors_of(module.state_dict()), {"format": "pt"})
    with atomic_file(os.path.join(folder, "config.json")) as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())
    return [path]

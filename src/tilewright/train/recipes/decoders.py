"""Decoders as files: GGUF (llama.cpp's names and layout) and safetensors (Hugging Face's).

In between stands :class:`DecoderWeights`, in GGUF's terms. What differs in Hugging Face's files:
names; GPT-2's matrices are transposed; rows of llama's query and key matrices are in another order,
because GGUF's llama turns the pairs (2i, 2i + 1) and Hugging Face's (i, i + d / 2).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from tilewright.errors import FormatError, UnsupportedError
from tilewright.formats.atomic import atomic_file
from tilewright.formats.gguf import GGMLType, open_gguf, tensor_from_array, write_gguf
from tilewright.formats.safetensors import open_safetensors, write_safetensors
from tilewright.models.config import DecoderConfig, config_from_metadata
from tilewright.models.mamba import ARCHITECTURE as MAMBA

__all__ = [
    "DecoderWeights",
    "by_hugging_face",
    "decoder_metadata",
    "from_hugging_face",
    "hugging_face_config",
    "hugging_face_name",
    "metadata_from_hugging_face",
    "read_config",
    "read_decoder",
    "write_decoder_gguf",
    "write_decoder_safetensors",
]

_LLAMA: Final = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GPT2: Final = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "ln_1",
    "ffn_norm": "ln_2",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_NAMES: Final[Mapping[str, dict[str, str]]] = {"llama": _LLAMA, "qwen2": _LLAMA, "gpt2": _GPT2}
_LAYER: Final = {"llama": "model.layers", "qwen2": "model.layers", "gpt2": "transformer.h"}
_GGUF_LAYER: Final = re.compile(r"blk\.(\d+)\.(.+)")
# buffers of old GPT-2 files that are no weights
_MASKS: Final = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias|.*\.rotary_emb\.inv_freq")


@dataclass(frozen=True)
class DecoderWeights:
    """A decoder in memory.

    Attributes:
        config: what it is made of.
        metadata: of the GGUF file, the architecture's own keys included.
        tensors: float32 arrays by their GGUF names, in GGUF's layout.
    """

    config: DecoderConfig
    metadata: dict[str, Any] = field(repr=False)
    tensors: dict[str, np.ndarray] = field(repr=False)


# names and layouts


def hugging_face_name(architecture: str, name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``, and so on.

    Raises `UnsupportedError` for a tensor that Hugging Face's files do not have.
    """
    names = _NAMES[architecture]
    match = _GGUF_LAYER.fullmatch(name)
    stem, _, kind = (match[2] if match else name).rpartition(".")
    if stem not in names or kind not in ("weight", "bias"):
        raise UnsupportedError(f"tensor {name!r} has no counterpart in {architecture} safetensors")
    prefix = f"{_LAYER[architecture]}.{match[1]}." if match else ""
    return f"{prefix}{names[stem]}.{kind}"


def by_hugging_face(config: DecoderConfig, name: str, array: np.ndarray) -> np.ndarray:
    """A tensor in GGUF's layout in Hugging Face's."""
    return _laid_out(config, name, array, _halves_first)


def from_hugging_face(config: DecoderConfig, name: str, array: np.ndarray) -> np.ndarray:
    """A tensor in Hugging Face's layout in GGUF's; ``name`` is that of GGUF."""
    return _laid_out(config, name, array, _pairs_first)


def _laid_out(
    config: DecoderConfig,
    name: str,
    array: np.ndarray,
    reorder: Callable[[np.ndarray, int], np.ndarray],
) -> np.ndarray:
    kind = name.split(".")[-2]
    if config.architecture == "gpt2" and array.ndim == 2 and _GGUF_LAYER.fullmatch(name):
        return array.T
    if config.architecture == "llama" and kind in ("attn_q", "attn_k"):
        return reorder(array, config.n_heads if kind == "attn_q" else config.n_kv_heads)
    return array


def _pairs_first(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows i and i + d/2 of each head become rows 2i and 2i + 1."""
    parts = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return parts.swapaxes(1, 2).reshape(rows.shape)


def _halves_first(rows: np.ndarray, heads: int) -> np.ndarray:
    parts = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return parts.swapaxes(1, 2).reshape(rows.shape)


# metadata


def decoder_metadata(config: DecoderConfig, name: str) -> dict[str, Any]:
    """The GGUF metadata of a decoder, without its tokenizer."""
    if config.norm == "rms":
        eps = {"attention.layer_norm_rms_epsilon": config.norm_eps}
    else:
        eps = {"attention.layer_norm_epsilon": config.norm_eps}
    keys: dict[str, Any] = {
        "context_length": config.context_length,
        "embedding_length": config.dim,
        "block_count": config.n_layers,
        "feed_forward_length": config.ffn_dim,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        **eps,
    }
    if config.head_dim * config.n_heads != config.dim:
        keys |= {
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
        }
    rope = config.rope
    if rope is not None:
        keys |= {"rope.dimension_count": rope.dims, "rope.freq_base": float(rope.base)}
        if rope.scaling == "linear":
            keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope.factor)}
        elif rope.scaling == "yarn":
            keys |= {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": float(rope.factor),
                "rope.scaling.original_context_length": rope.original_context,
            }
    arch = config.architecture
    return {
        "general.architecture": arch,
        "general.name": name,
        "general.file_type": 0,
        **{f"{arch}.{key}": value for key, value in keys.items()},
        f"{arch}.vocab_size": config.vocab_size,
    }


def hugging_face_config(
    config: DecoderConfig, metadata: Mapping[str, Any], *, tied: bool
) -> dict[str, Any]:
    """The ``config.json`` that Hugging Face's transformers want beside the weights.

    ``metadata`` says which tokens begin and end texts.
    """
    ends = {
        f"{role}_token_id": metadata.get(f"tokenizer.ggml.{role}_token_id")
        for role in ("bos", "eos")
    }
    common = {
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        **{key: None if value is None else int(value) for key, value in ends.items()},
    }
    if config.architecture == "gpt2":
        return {
            "architectures": ["GPT2LMHeadModel"],
            **common,
            "n_positions": config.context_length,
            "n_embd": config.dim,
            "n_layer": config.n_layers,
            "n_head": config.n_heads,
            "n_inner": config.ffn_dim,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.norm_eps,
        }
    assert config.rope is not None
    scaling: dict[str, Any] | None = None
    if config.rope.scaling != "none":
        scaling = {"rope_type": config.rope.scaling, "factor": config.rope.factor}
        if config.rope.scaling == "yarn":
            scaling["original_max_position_embeddings"] = config.rope.original_context
    return {
        "architectures": [
            "Qwen2ForCausalLM" if config.architecture == "qwen2" else "LlamaForCausalLM"
        ],
        **common,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.base,
        "rope_scaling": scaling,
    }


def metadata_from_hugging_face(content: Mapping[str, Any], path: object = None) -> dict[str, Any]:
    """GGUF metadata from a ``config.json``; sizes are checked by `config_from_metadata`.

    Raises:
        UnsupportedError: a model type or setting that tilewright does not have.
        FormatError: a setting is missing.
    """
    arch = content.get("model_type")
    if arch not in _NAMES:
        raise UnsupportedError(
            f"{path}: model_type {arch!r:.60} is not supported (supported: {', '.join(_NAMES)})"
        )

    def get(key: str, default: Any = None) -> Any:
        value = content.get(key)
        if value is None and default is None:
            raise FormatError(f"has no {key!r}", path=path)
        return default if value is None else value

    if arch == "gpt2":
        activation = get("activation_function", "gelu_new")
        if activation not in ("gelu_new", "gelu_pytorch_tanh"):
            raise UnsupportedError(f"{path}: activation {activation!r:.40} (supported: gelu_new)")
        width = get("n_embd")
        keys = {
            "context_length": get("n_positions", 1024),
            "embedding_length": width,
            "block_count": get("n_layer"),
            "feed_forward_length": content.get("n_inner") or 4 * width,
            "attention.head_count": get("n_head"),
            "attention.layer_norm_epsilon": float(get("layer_norm_epsilon", 1e-5)),
        }
    else:
        if get("hidden_act", "silu") != "silu":
            raise UnsupportedError(f"{path}: activation {content['hidden_act']!r:.40}")
        if content.get("use_sliding_window"):
            raise UnsupportedError(f"{path}: sliding-window attention is not supported")
        heads = get("num_attention_heads")
        head_dim = content.get("head_dim") or get("hidden_size") // heads
        keys = {
            "context_length": get("max_position_embeddings"),
            "embedding_length": get("hidden_size"),
            "block_count": get("num_hidden_layers"),
            "feed_forward_length": get("intermediate_size"),
            "attention.head_count": heads,
            "attention.head_count_kv": get("num_key_value_heads", heads),
            "attention.key_length": head_dim,
            "attention.value_length": head_dim,
            "attention.layer_norm_rms_epsilon": float(get("rms_norm_eps", 1e-6)),
            "rope.dimension_count": head_dim,
            "rope.freq_base": float(get("rope_theta", 10000.0)),
        }
        scaling = content.get("rope_scaling") or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind == "linear":
            keys |= {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
        elif kind != "default":
            raise UnsupportedError(f"{path}: rope scaling {kind!r:.40} (supported: linear)")
    return {
        "general.architecture": arch,
        **{f"{arch}.{key}": value for key, value in keys.items()},
        f"{arch}.vocab_size": get("vocab_size"),
    }


# files


def read_decoder(path: str | os.PathLike[str]) -> DecoderWeights:
    """A decoder from a GGUF file, or from a folder with ``config.json`` and safetensors.

    Quantised weights are dequantised. Every tensor that the config asks for is there in its shape,
    and no other.

    Raises:
        FormatError, UnsupportedError: what is wrong or not supported.
        OSError: a file cannot be read.
    """
    name = os.fspath(path)
    found = _read_folder(name) if os.path.isdir(name) else _read_gguf(name)
    _check(found, name)
    return found


def read_config(path: str | os.PathLike[str]) -> DecoderConfig:
    """What the decoder in ``path`` is made of; no weight is read. Raises as `read_decoder`."""
    name = os.fspath(path)
    if os.path.isdir(name):
        content, where = _read_settings(name)
        return config_from_metadata(metadata_from_hugging_face(content, where), where)
    with open_gguf(name) as file:
        return _transformer(file.metadata, name)


def _transformer(metadata: Mapping[str, Any], path: str) -> DecoderConfig:
    """The config; a Mamba, which runs but takes no adapters, is refused for what it is."""
    if metadata.get("general.architecture") == MAMBA:
        raise UnsupportedError(
            f"{path}: a Mamba has no attention to adapt: adapters, merging and conversion are for "
            "transformers"
        )
    return config_from_metadata(metadata, path)


def _read_settings(folder: str) -> tuple[dict[str, Any], str]:
    """The folder's ``config.json`` and its path."""
    where = os.path.join(folder, "config.json")
    with open(where, "rb") as file:
        try:
            content = json.load(file)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"is not JSON: {error}", path=where) from None
    if not isinstance(content, dict):
        raise FormatError("is not a table", path=where)
    return content, where


def _read_gguf(path: str) -> DecoderWeights:
    with open_gguf(path) as file:
        config = _transformer(file.metadata, path)
        metadata = dict(file.metadata)
        if metadata.get("tokenizer.ggml.merges") == []:
            metadata["tokenizer.ggml.merges"] = np.array([], np.str_)
        return DecoderWeights(config, metadata, {n: file.dequantize(n) for n in file.tensors})


def _read_folder(folder: str) -> DecoderWeights:
    from tilewright.train.recipes.text import read_tokenizer

    content, where = _read_settings(folder)
    metadata = metadata_from_hugging_face(content, where)
    config = config_from_metadata(metadata, where)
    tokenizer = os.path.join(folder, "tokenizer.json")
    if os.path.exists(tokenizer):
        metadata |= read_tokenizer(tokenizer)
    weights = os.path.join(folder, "model.safetensors")
    if not os.path.exists(weights):
        weights += ".index.json"
    tensors = {}
    known = {theirs: stem for stem, theirs in _NAMES[config.architecture].items()}
    with open_safetensors(weights) as stored:
        for name, info in stored.tensors.items():
            if _MASKS.fullmatch(name):
                continue
            full = name
            if config.architecture == "gpt2" and not name.startswith(("transformer.", "lm_head.")):
                full = f"transformer.{name}"
            own = _gguf_name(config.architecture, full, known)
            if own is None:
                raise UnsupportedError(
                    f"{weights}: tensor {name!r} is no part of a {config.architecture} model"
                )
            array = stored.read(name)
            if info.stored == "BF16":
                array = (array.astype(np.uint32) << 16).view(np.float32)
            if own == "output.weight" and content.get("tie_word_embeddings", True):
                continue
            array = from_hugging_face(config, own, array.astype(np.float32, copy=False))
            tensors[own] = np.ascontiguousarray(array)
    return DecoderWeights(config, metadata, tensors)


def _gguf_name(architecture: str, name: str, known: Mapping[str, str]) -> str | None:
    prefix, stem = "", name
    match = re.fullmatch(re.escape(_LAYER[architecture]) + r"\.(\d+)\.(.+)", name)
    if match:
        prefix, stem = f"blk.{match[1]}.", match[2]
    stem, _, kind = stem.rpartition(".")
    return f"{prefix}{known[stem]}.{kind}" if stem in known else None


def _check(found: DecoderWeights, path: str) -> None:
    wanted = expected_shapes(found.config, found.tensors)
    missing = sorted(set(wanted) - set(found.tensors))
    odd = sorted(set(found.tensors) - set(wanted))
    if missing or odd:
        what = "lacks" if missing else "has unknown"
        raise FormatError(f"{what} tensors: {', '.join((missing or odd)[:6])}", path=path)
    for name, shape in wanted.items():
        if found.tensors[name].shape != shape:
            raise FormatError(
                f"has shape {found.tensors[name].shape}, wanted {shape}", path=path, tensor=name
            )


def expected_shapes(
    config: DecoderConfig, present: Mapping[str, Any] = {}
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a decoder; biases and what is optional as far as ``present``."""
    dim, ffn, q = config.dim, config.ffn_dim, config.n_heads * config.head_dim
    kv = config.n_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.vocab_size, dim)}
    if config.rope is None:
        shapes["position_embd.weight"] = (config.context_length, dim)
    layer: dict[str, tuple[int, ...]] = {"attn_norm": (dim,), "ffn_norm": (dim,)}
    if "blk.0.attn_qkv.weight" in present or config.architecture == "gpt2":
        layer["attn_qkv"] = (q + 2 * kv, dim)
    else:
        layer |= {"attn_q": (q, dim), "attn_k": (kv, dim), "attn_v": (kv, dim)}
    layer |= {"attn_output": (dim, q), "ffn_up": (ffn, dim), "ffn_down": (dim, ffn)}
    if config.mlp == "swiglu":
        layer["ffn_gate"] = (ffn, dim)
    stems = {f"blk.{i}.{k}": s for i in range(config.n_layers) for k, s in layer.items()}
    stems["output_norm"] = (dim,)
    for stem, shape in stems.items():
        shapes[f"{stem}.weight"] = shape
        must = config.norm == "layer" and stem.endswith("_norm")
        if must or f"{stem}.bias" in present:
            shapes[f"{stem}.bias"] = shape[:1]
    if "output.weight" in present:
        shapes["output.weight"] = (config.vocab_size, dim)
    if "rope_freqs.weight" in present and config.rope is not None:
        shapes["rope_freqs.weight"] = (config.rope.dims // 2,)
    return shapes


def write_decoder_gguf(
    path: str | os.PathLike[str], weights: DecoderWeights, type_: GGMLType = GGMLType.F32
) -> None:
    """A GGUF file, atomically; matrices as ``type_``, vectors and positions as float32."""
    sources = [
        tensor_from_array(
            name,
            np.ascontiguousarray(array, np.float32),
            type_ if array.ndim == 2 and name != "position_embd.weight" else None,
        )
        for name, array in weights.tensors.items()
    ]
    write_gguf(path, weights.metadata, sources)


def write_decoder_safetensors(path: str | os.PathLike[str], weights: DecoderWeights) -> None:
    """Weights as Hugging Face names them, and ``config.json`` beside them, each atomically."""
    config = weights.config
    if "rope_freqs.weight" in weights.tensors:
        raise UnsupportedError("a model with rope_freqs goes into a GGUF file only")
    tensors = {
        hugging_face_name(config.architecture, name): by_hugging_face(config, name, array)
        for name, array in weights.tensors.items()
    }
    write_safetensors(path, tensors, {"format": "pt"})
    content = hugging_face_config(
        config, weights.metadata, tied="output.weight" not in weights.tensors
    )
    with atomic_file(os.path.join(os.path.dirname(os.fspath(path)), "config.json")) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())

"""A decoder whose weights are frozen and whose matrices have low-rank adapters.

LoRA (Hu et al. 2021): each chosen matrix W gets ``W + (alpha / rank) B A`` with A (rank, in) and
B (out, rank), of which only A and B are trained; B begins as zeros. Adapters are files as PEFT
writes them, in the names and the layout of Hugging Face's models whatever the base is read from.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from tilewright.dtypes import bf16, f32
from tilewright.errors import FormatError, ShapeError, UnsupportedError
from tilewright.formats.atomic import atomic_file
from tilewright.formats.safetensors import open_safetensors, write_safetensors
from tilewright.models.config import DecoderConfig
from tilewright.nn import functional as F
from tilewright.nn.module import Module, Parameter
from tilewright.nn.rotary import rope
from tilewright.ops.rope import rope_frequencies
from tilewright.tensor import random
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import asarray, zeros
from tilewright.train.loop import tensors_of
from tilewright.train.recipes.decoders import (
    DecoderWeights,
    by_hugging_face,
    from_hugging_face,
    hugging_face_name,
)

__all__ = [
    "AdaptedDecoder",
    "Adapter",
    "adapter_arrays",
    "load_adapters",
    "merge_adapters",
    "save_adapters",
    "target_names",
]

_PREFIX: Final = "base_model.model."
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Adapter(Module):
    """``lora_A`` (rank, in), uniform as PyTorch's linear layers are, and ``lora_B`` (out, rank)."""

    def __init__(self, n_in: int, n_out: int, rank: int) -> None:
        bound = 1 / math.sqrt(n_in)
        self.lora_A = Parameter(random.uniform((rank, n_in), low=-bound, high=bound))
        self.lora_B = Parameter(zeros((n_out, rank)))


class Adapters(Module):
    """Adapters by the GGUF names of their matrices, less ``.weight``."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], rank: int) -> None:
        for name, (n_out, n_in) in shapes.items():
            setattr(self, name, Adapter(n_in, n_out, rank))


class AdaptedDecoder(Module):
    """A frozen decoder with adapters: ids (B, T) -> logits (B, T, vocab).

    Args:
        weights: of the base; kept as float32, or with ``half`` as bfloat16.
        rank, alpha: of the adapters.
        targets: which matrices; see :func:`target_names`.
        dropout: of what goes into adapters.

    Attributes:
        adapters: the only part with parameters.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        rank: int,
        alpha: float,
        targets: Sequence[str] = (),
        dropout: float = 0.0,
        half: bool = False,
    ) -> None:
        if rank < 1:
            raise ShapeError(f"LoRA: rank is 1 at least, got {rank}")
        self.config, self.rank, self.alpha, self.dropout = weights.config, rank, alpha, dropout
        chosen = target_names(weights, targets)
        shapes = {name: weights.tensors[f"{name}.weight"].shape for name in chosen}
        self.adapters = Adapters(shapes, rank)
        self._base = {}
        for name, array in weights.tensors.items():
            tensor = asarray(array)
            narrow = half and array.ndim == 2
            self._base[name] = tensor.astype(bf16).realize() if narrow else tensor
        self._cos, self._sin = self._tables(weights)

    def _tables(self, weights: DecoderWeights) -> tuple[Tensor | None, Tensor | None]:
        turning = self.config.rope
        if turning is None:
            return None, None
        if turning.scaling == "yarn":
            raise UnsupportedError("fine-tuning with YaRN positions is not supported")
        frequencies = rope_frequencies(
            turning.dims,
            turning.base,
            scale=turning.factor,
            factors=weights.tensors.get("rope_freqs.weight"),
        )
        angles = np.outer(np.arange(self.config.context_length, dtype=np.float64), frequencies)
        cos, sin = (np.asarray(fn(angles), np.float32) for fn in (np.cos, np.sin))
        return asarray(cos), asarray(sin)

    def forward(self, ids: Tensor) -> Tensor:
        cfg, steps = self.config, ids.shape[1]
        if steps > cfg.context_length:
            raise ShapeError(f"{steps} tokens, the model has {cfg.context_length} positions")
        x = F.embedding(ids, self._base["token_embd.weight"]).astype(f32)
        if cfg.rope is None:
            x = x + self._base["position_embd.weight"][:steps].astype(f32)
        for layer in range(cfg.n_layers):
            name = f"blk.{layer}"
            x = x + self._attention(self._norm(x, f"{name}.attn_norm"), name)
            x = x + self._mlp(self._norm(x, f"{name}.ffn_norm"), name)
        x = self._norm(x, "output_norm")
        name = "output" if "output.weight" in self._base else "token_embd"
        return self._project(x, name)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight = self._base[f"{name}.weight"]
        if self.config.norm == "rms":
            return F.rms_norm(x, weight, self.config.norm_eps)
        return F.layer_norm(x, weight, self._base[f"{name}.bias"], self.config.norm_eps)

    def _project(self, x: Tensor, name: str) -> Tensor:
        weight = self._base[f"{name}.weight"]
        y = F.linear(x.astype(weight.dtype, copy=False), weight).astype(f32, copy=False)
        bias = self._base.get(f"{name}.bias")
        if bias is not None:
            y = y + bias
        adapter = getattr(self.adapters, name, None)
        if adapter is None:
            return y
        x = F.dropout(x, self.dropout, self.training)
        low = F.linear(F.linear(x, adapter.lora_A), adapter.lora_B)
        return y + low.astype(f32, copy=False) * (self.alpha / self.rank)

    def _attention(self, x: Tensor, name: str) -> Tensor:
        cfg = self.config
        batch, steps, _ = x.shape
        q_dim, kv_dim = cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
        if f"{name}.attn_qkv.weight" in self._base:
            both = self._project(x, f"{name}.attn_qkv")
            parts = [both[..., :q_dim], both[..., q_dim : q_dim + kv_dim], both[..., -kv_dim:]]
        else:
            parts = [self._project(x, f"{name}.attn_{kind}") for kind in "qkv"]
        heads = (cfg.n_heads, cfg.n_kv_heads, cfg.n_kv_heads)
        q, k, v = (
            part.reshape((batch, steps, n, cfg.head_dim)).permute(0, 2, 1, 3)
            for part, n in zip(parts, heads)
        )
        if cfg.rope is not None and self._cos is not None and self._sin is not None:
            cos, sin = self._cos[:steps], self._sin[:steps]
            interleaved = cfg.rope.pairing == "interleaved"
            q, k = rope(q, cos, sin, interleaved), rope(k, cos, sin, interleaved)
        mixed = F.attention(q, k, v, causal=True, layout="bthd")
        return self._project(
            mixed.reshape((batch, steps, q_dim)).astype(f32, copy=False), f"{name}.attn_output"
        )

    def _mlp(self, x: Tensor, name: str) -> Tensor:
        up = self._project(x, f"{name}.ffn_up")
        if self.config.mlp == "swiglu":
            hidden = F.silu(self._project(x, f"{name}.ffn_gate")) * up
        else:
            hidden = F.gelu(up, approximate="tanh")
        return self._project(hidden, f"{name}.ffn_down")


def target_names(weights: DecoderWeights, targets: Sequence[str]) -> list[str]:
    """The matrices of all layers that ``targets`` name, less ``.weight``, in the file's order.

    A target is a name as PEFT has it (``q_proj``, ``c_attn``, ``down_proj``), ``attention`` for
    those of the attention, or ``all``; none: queries and values (GPT-2: all three in one).

    Raises `UnsupportedError` for a name that no matrix has.
    """
    arch = weights.config.architecture
    matrices = {
        name.removesuffix(".weight"): hugging_face_name(arch, name).split(".")[3:-1]
        for name, array in weights.tensors.items()
        if name.startswith("blk.") and array.ndim == 2
    }
    wanted = set(targets) or {"c_attn" if arch == "gpt2" else "q_proj"} | (
        set() if arch == "gpt2" else {"v_proj"}
    )
    chosen = []
    known = {"all", "attention"}
    for name, (where, last) in matrices.items():
        known |= {last, f"{where}.{last}"}
        if wanted & {"all", last, f"{where}.{last}"} or (
            "attention" in wanted and where in ("attn", "self_attn")
        ):
            chosen.append(name)
    if wanted - known:
        raise UnsupportedError(
            f"no matrix is called {', '.join(sorted(wanted - known))}; there are "
            f"{', '.join(sorted(known))}"
        )
    return chosen


# files


def save_adapters(
    folder: str | os.PathLike[str],
    adapters: Mapping[str, tuple[np.ndarray, np.ndarray]],
    config: DecoderConfig,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    base: str = "",
) -> list[str]:
    """``adapter_model.safetensors`` and ``adapter_config.json``, as PEFT reads them.

    ``adapters``: (A, B) float32 by GGUF names, in GGUF's layout.
    """
    arch = config.architecture
    tensors, modules = {}, set()
    for name, (a, b) in adapters.items():
        module = hugging_face_name(arch, f"{name}.weight").removesuffix(".weight")
        modules.add(module.rsplit(".", 1)[1] if arch != "gpt2" else ".".join(module.split(".")[3:]))
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(a, np.float32)
        rows = b if arch == "gpt2" else by_hugging_face(config, f"{name}.weight", b)
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(rows, np.float32)
    weights, settings = os.path.join(folder, _WEIGHTS), os.path.join(folder, _CONFIG)
    write_safetensors(weights, tensors, {"format": "pt"})
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": sorted(modules),
        "bias": "none",
        "fan_in_fan_out": arch == "gpt2",
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }
    with atomic_file(settings) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    return [weights, settings]


def load_adapters(
    folder: str | os.PathLike[str], weights: DecoderWeights
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], float]:
    """((A, B) by GGUF names in GGUF's layout, the factor ``alpha / rank``).

    Raises:
        FormatError: the files are damaged, or of another model.
        UnsupportedError: an adapter of another kind.
        OSError: they cannot be read.
    """
    where, path = os.path.join(folder, _CONFIG), os.path.join(folder, _WEIGHTS)
    try:
        with open(where, "rb") as file:
            content = json.load(file)
        rank, alpha = int(content["r"]), float(content["lora_alpha"])
        odd = [
            k for k in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern") if content.get(k)
        ]
        kind = content.get("peft_type")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"does not describe an adapter: {error}", path=where) from None
    if kind != "LORA" or odd or rank < 1:
        raise UnsupportedError(f"{where}: only plain LoRA is supported, this has {odd or kind}")
    config = weights.config
    theirs = {
        _PREFIX + hugging_face_name(config.architecture, name).removesuffix(".weight"): name
        for name, array in weights.tensors.items()
        if name.startswith("blk.") and array.ndim == 2
    }
    found: dict[str, dict[str, np.ndarray]] = {}
    with open_safetensors(path) as stored:
        for name, info in stored.tensors.items():
            module, _, part = name.removesuffix(".weight").rpartition(".")
            own = theirs.get(module)
            if own is None or part not in ("lora_A", "lora_B"):
                raise FormatError("is not a part of the model", path=path, tensor=name)
            array = stored.read(name)
            if info.stored == "BF16":
                array = (array.astype(np.uint32) << 16).view(np.float32)
            array = array.astype(np.float32, copy=False)
            n_out, n_in = weights.tensors[own].shape
            wanted = (rank, n_in) if part == "lora_A" else (n_out, rank)
            if array.shape != wanted:
                raise FormatError(
                    f"has shape {array.shape}, wanted {wanted}", path=path, tensor=name
                )
            if part == "lora_B" and config.architecture != "gpt2":
                array = from_hugging_face(config, own, array)
            found.setdefault(own.removesuffix(".weight"), {})[part] = array
    for name, parts in found.items():
        if len(parts) != 2:
            raise FormatError(f"{name} has one half of an adapter only", path=path)
    return {n: (p["lora_A"], p["lora_B"]) for n, p in found.items()}, alpha / rank


def merge_adapters(
    weights: DecoderWeights,
    adapters: Mapping[str, tuple[np.ndarray, np.ndarray]],
    factor: float,
) -> DecoderWeights:
    """The base with ``W + factor * B A`` in place of each adapted matrix."""
    tensors = dict(weights.tensors)
    for name, (a, b) in adapters.items():
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + np.float32(factor) * (b @ a)
    return DecoderWeights(weights.config, weights.metadata, tensors)


def adapter_arrays(module: AdaptedDecoder) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(A, B) of a trained module, by GGUF names."""
    found = {k: np.asarray(v) for k, v in tensors_of(module.adapters.state_dict()).items()}
    names = [k.removesuffix(".lora_A") for k in found if k.endswith(".lora_A")]
    return {n: (found[f"{n}.lora_A"], found[f"{n}.lora_B"]) for n in names}

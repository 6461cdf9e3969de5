"""Float64 NumPy forward pass of llama-family and GPT-2 models read from GGUF files.

The oracle for parity tests. It shares no code with ``src/``: weights come through the ``gguf``
package (``gguf.quants.dequantize`` gives the float32 values that a file means) and every operation
after that is float64. Slow and plain on purpose; read it next to the papers:

- RMSNorm: Zhang & Sennrich 2019; LayerNorm: Ba et al. 2016
- RoPE: Su et al. 2021 (interleaved pairing); GPT-NeoX (half-split pairing); linear scaling:
  Chen et al. 2023; YaRN: Peng et al. 2023; per-frequency factors: Llama 3.1
- SwiGLU: Shazeer 2020; grouped-query attention: Ainslie et al. 2023; GPT-2: Radford et al. 2019
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Taps = dict[str, F64]

# RoPE pairing by GGUF architecture: interleaved pairs (2i, 2i+1), half-split pairs (i, i + d/2).
ROPE_PAIRING = {"llama": "interleaved", "qwen2": "half-split"}


@dataclass(frozen=True)
class GgufModel:
    """A GGUF file: metadata as Python values, tensors dequantised on request."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Any]

    @property
    def arch(self) -> str:
        return str(self.metadata["general.architecture"])

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> F64:
        """The tensor in float64, shape outermost first: a matrix is (outputs, inputs)."""
        tensor = self.tensors[name]
        shape = tuple(int(n) for n in reversed(tensor.shape))
        return dequantize(tensor.data, tensor.tensor_type).reshape(shape)

    def get(self, key: str, default: Any = None) -> Any:
        """The metadata value of ``<architecture>.<key>``."""
        return self.metadata.get(f"{self.arch}.{key}", default)


def dequantize(data: NDArray[Any], kind: gguf.GGMLQuantizationType) -> F64:
    """The float32 values that stored bytes mean, widened to float64."""
    if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        return np.asarray(data, np.float64)
    return gguf.quants.dequantize(data, kind).astype(np.float64)


def read(path: str | Path) -> GgufModel:
    """Open a GGUF file through the ``gguf`` package; tensors stay mapped until asked for."""
    reader = gguf.GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    return GgufModel(Path(path), metadata, {t.name: t for t in reader.tensors})


def logits(
    model: GgufModel | str | Path, token_ids: Sequence[int], taps: Taps | None = None
) -> F64:
    """Logits of every position of one sequence that starts at position 0.

    Args:
        model: a model from :func:`read`, or a path.
        token_ids: (tokens,) ids.
        taps: when given, filled with intermediate tensors by name (``embedding``, ``blk.0.q``,
            ``blk.0.attention``, ``blk.0.out``, ``final_norm``, ...).

    Returns:
        (tokens, vocab) float64.
    """
    if not isinstance(model, GgufModel):
        model = read(model)
    architectures: dict[str, Callable[[GgufModel, Sequence[int], Taps], F64]] = {
        "llama": llama,
        "qwen2": llama,
        "gpt2": gpt2,
    }
    return architectures[model.arch](model, token_ids, {} if taps is None else taps)


def llama(model: GgufModel, token_ids: Sequence[int], taps: Taps) -> F64:
    """llama, mistral, qwen2: RMSNorm, RoPE, grouped-query attention, SwiGLU."""
    eps = float(model.get("attention.layer_norm_rms_epsilon"))
    n_heads = int(model.get("attention.head_count"))
    n_kv_heads = int(model.get("attention.head_count_kv", n_heads))
    head_dim = int(model.get("attention.key_length", model.get("embedding_length") // n_heads))
    positions = np.arange(len(token_ids))
    cos, sin = rope_tables(model, positions, int(model.get("rope.dimension_count", head_dim)))
    pairing = ROPE_PAIRING[model.arch]

    x = embed(model, token_ids)  # (tokens, embedding)
    taps["embedding"] = x
    for i in range(int(model.get("block_count"))):
        name = f"blk.{i}"
        h = rms_norm(x, model[f"{name}.attn_norm.weight"], eps)
        taps[f"{name}.attn_norm"] = h
        q = linear(model, f"{name}.attn_q", h).reshape(-1, n_heads, head_dim)
        k = linear(model, f"{name}.attn_k", h).reshape(-1, n_kv_heads, head_dim)
        v = linear(model, f"{name}.attn_v", h).reshape(-1, n_kv_heads, head_dim)
        q, k = rotate(q, cos, sin, pairing), rotate(k, cos, sin, pairing)
        taps[f"{name}.q"], taps[f"{name}.k"], taps[f"{name}.v"] = q, k, v
        a = causal_attention(q, k, v)
        taps[f"{name}.attention"] = a
        x = x + linear(model, f"{name}.attn_output", a)
        h = rms_norm(x, model[f"{name}.ffn_norm.weight"], eps)
        taps[f"{name}.ffn_norm"] = h
        gated = silu(linear(model, f"{name}.ffn_gate", h)) * linear(model, f"{name}.ffn_up", h)
        x = x + linear(model, f"{name}.ffn_down", gated)
        taps[f"{name}.out"] = x
    x = rms_norm(x, model["output_norm.weight"], eps)
    taps["final_norm"] = x
    return unembed(model, x)


def gpt2(model: GgufModel, token_ids: Sequence[int], taps: Taps) -> F64:
    """GPT-2: LayerNorm, learned positions, fused biased qkv, tanh-GELU."""
    eps = float(model.get("attention.layer_norm_epsilon"))
    n_heads = int(model.get("attention.head_count"))
    x = embed(model, token_ids) + model["position_embd.weight"][: len(token_ids)]
    taps["embedding"] = x
    for i in range(int(model.get("block_count"))):
        name = f"blk.{i}"
        h = layer_norm(x, model[f"{name}.attn_norm.weight"], model[f"{name}.attn_norm.bias"], eps)
        taps[f"{name}.attn_norm"] = h
        qkv = linear(model, f"{name}.attn_qkv", h)
        q, k, v = (part.reshape(len(h), n_heads, -1) for part in np.split(qkv, 3, axis=-1))
        taps[f"{name}.q"], taps[f"{name}.k"], taps[f"{name}.v"] = q, k, v
        a = causal_attention(q, k, v)
        taps[f"{name}.attention"] = a
        x = x + linear(model, f"{name}.attn_output", a)
        h = layer_norm(x, model[f"{name}.ffn_norm.weight"], model[f"{name}.ffn_norm.bias"], eps)
        taps[f"{name}.ffn_norm"] = h
        x = x + linear(model, f"{name}.ffn_down", gelu_tanh(linear(model, f"{name}.ffn_up", h)))
        taps[f"{name}.out"] = x
    x = layer_norm(x, model["output_norm.weight"], model["output_norm.bias"], eps)
    taps["final_norm"] = x
    return unembed(model, x)


def embed(model: GgufModel, token_ids: Sequence[int]) -> F64:
    """(tokens,) -> (tokens, embedding), dequantising only the rows looked up."""
    tensor = model.tensors["token_embd.weight"]
    return dequantize(tensor.data[np.asarray(token_ids)], tensor.tensor_type)


def unembed(model: GgufModel, x: F64) -> F64:
    """(tokens, embedding) -> (tokens, vocab); without ``output`` the embedding is tied."""
    return x @ model["output.weight" if "output.weight" in model else "token_embd.weight"].T


def linear(model: GgufModel, name: str, x: F64) -> F64:
    """x @ W.T + b; (tokens, inputs) -> (tokens, outputs)."""
    y = x @ model[f"{name}.weight"].T
    return y + model[f"{name}.bias"] if f"{name}.bias" in model else y


def rms_norm(x: F64, weight: F64, eps: float) -> F64:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def layer_norm(x: F64, weight: F64, bias: F64, eps: float) -> F64:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + eps) * weight + bias


def silu(x: F64) -> F64:
    return x / (1.0 + np.exp(-x))


def gelu_tanh(x: F64) -> F64:
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x: F64) -> F64:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def causal_attention(q: F64, k: F64, v: F64) -> F64:
    """q (tokens, heads, d), k and v (tokens, kv_heads, d) -> (tokens, heads * d).

    Query head h reads key/value head h // (heads / kv_heads).
    """
    tokens, n_heads, head_dim = q.shape
    group = n_heads // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k, optimize=True) / np.sqrt(head_dim)
    scores = np.where(np.tril(np.ones((tokens, tokens), bool)), scores, -np.inf)
    return np.einsum("hqk,khd->qhd", softmax(scores), v, optimize=True).reshape(tokens, -1)


def rotate(x: F64, cos: F64, sin: F64, pairing: str) -> F64:
    """Rotate (tokens, heads, d) by tables (tokens, rotated / 2); dims past ``rotated`` pass."""
    half = cos.shape[-1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    out = x.copy()
    if pairing == "interleaved":
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    elif pairing == "half-split":
        first, second = slice(0, half), slice(half, 2 * half)
    else:
        raise ValueError(f"RoPE pairing {pairing!r}: wanted 'interleaved' or 'half-split'")
    a, b = x[..., first], x[..., second]
    out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
    return out


def rope_tables(model: GgufModel, positions: NDArray[Any], rotated: int) -> tuple[F64, F64]:
    """cos and sin, each (tokens, rotated / 2), with the file's frequency scaling applied."""
    base = float(model.get("rope.freq_base", 10000.0))
    index = np.arange(rotated // 2)
    frequency = base ** (-2.0 * index / rotated)
    if "rope_freqs.weight" in model:
        frequency = frequency / model["rope_freqs.weight"]
    kind = model.get("rope.scaling.type", "linear")
    factor = float(model.get("rope.scaling.factor", model.get("rope.scale_linear", 1.0)) or 1.0)
    magnitude = float(model.get("rope.scaling.attn_factor", 1.0))
    if kind == "linear":
        frequency = frequency / factor
    elif kind == "yarn":
        context = int(model.get("rope.scaling.original_context_length"))
        fast = float(model.get("rope.scaling.yarn_beta_fast", 32.0))
        slow = float(model.get("rope.scaling.yarn_beta_slow", 1.0))
        ramp = 1.0 - yarn_ramp(index, rotated, base, context, fast, slow)
        frequency = frequency / factor * (1.0 - ramp) + frequency * ramp
        magnitude *= 1.0 + 0.1 * np.log(factor)
    elif kind != "none":
        raise ValueError(f"rope.scaling.type {kind!r}: wanted 'none', 'linear' or 'yarn'")
    angle = positions[:, None] * frequency  # (tokens, rotated / 2)
    return np.cos(angle) * magnitude, np.sin(angle) * magnitude


def yarn_ramp(
    index: NDArray[Any], rotated: int, base: float, context: int, fast: float, slow: float
) -> F64:
    """0 for dims that turn over ``fast`` times within ``context``, 1 for under ``slow`` times."""

    def dim(turns: float) -> float:
        return rotated * np.log(context / (turns * 2 * np.pi)) / (2 * np.log(base))

    low = max(0.0, np.floor(dim(fast)))
    high = min(rotated - 1.0, np.ceil(dim(slow)))
    return np.clip((index - low) / max(0.001, high - low), 0.0, 1.0)

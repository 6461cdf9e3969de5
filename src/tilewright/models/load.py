"""From an opened GGUF file to a graph: configuration, weights by name, the step's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tilewright.errors import UnsupportedError
from tilewright.formats.gguf import GGUFFile
from tilewright.graph import Graph
from tilewright.layers import Step, StepLimits, WeightBook
from tilewright.models.config import ARCHITECTURES, DecoderConfig, config_from_metadata
from tilewright.models.decoder import build_decoder
from tilewright.models.mamba import ARCHITECTURE as MAMBA
from tilewright.models.mamba import MambaConfig, build_mamba, mamba_config
from tilewright.models.metadata import architecture_of, unsupported_architecture
from tilewright.ops.packed import block_layout, packed_formats
from tilewright.ops.weights import FileWeight

__all__ = ["LoadedGraph", "ModelConfig", "load_graph", "model_config", "slow_types"]

ModelConfig = DecoderConfig | MambaConfig


@dataclass(frozen=True)
class LoadedGraph:
    """A model's step, not yet compiled; no weight has been read."""

    config: ModelConfig
    graph: Graph
    step: Step


def model_config(metadata: Mapping[str, Any], path: object = None) -> ModelConfig:
    """The config of the model that ``metadata`` describes, of any family.

    Raises:
        UnsupportedError: an architecture, key or setting that there is no code for.
        FormatError: a key is missing, of the wrong type, or inconsistent with another.
    """
    name = architecture_of(metadata, path)
    if name == MAMBA:
        return mamba_config(metadata, path)
    if name not in ARCHITECTURES:
        raise unsupported_architecture(name, {*ARCHITECTURES, MAMBA}, path)
    return config_from_metadata(metadata, path)


def load_graph(
    file: GGUFFile, limits: StepLimits, config: ModelConfig | None = None
) -> LoadedGraph:
    """Build the step's graph from a file's header.

    Raises :class:`UnsupportedError` for an architecture, key or tensor type that has no code, and
    :class:`FormatError` for tensors that are missing, left over or of the wrong shape.
    """
    config = config or model_config(file.metadata, file.path)
    tensors = _weights(file)
    book = WeightBook(tensors, file.path)
    if isinstance(config, MambaConfig):
        step = Step(limits, None)
        return LoadedGraph(config, build_mamba(config, book, step), step)
    factors = None
    if config.rope is not None and "rope_freqs.weight" in book:
        book.vector("rope_freqs.weight", config.rope.dims // 2)
        factors = tensors["rope_freqs.weight"].numpy()
    step = Step(limits, config.rope, factors)
    return LoadedGraph(config, build_decoder(config, book, step), step)


def slow_types(file: GGUFFile) -> dict[str, int]:
    """Matrix types of the file that have no kernels of their own, with their tensor counts."""
    counts: dict[str, int] = {}
    for info in file.tensors.values():
        if len(info.shape) == 2 and info.type.name.lower() not in packed_formats():
            counts[info.type.name] = counts.get(info.type.name, 0) + 1
    return counts


def _weights(file: GGUFFile) -> dict[str, FileWeight]:
    weights = {}
    for name, info in file.tensors.items():
        kind = info.type.name
        try:
            block_layout(kind)
        except UnsupportedError as error:
            raise UnsupportedError(f"{file.path}: tensor {name!r}: {error}") from None
        weights[name] = FileWeight(
            name,
            tuple(info.shape),
            kind,
            partial(file.read_rows, name),
            partial(file.dequantize, name),
        )
    return weights

"""From an opened GGUF file to a graph: configuration, weights by name, the step's inputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tilewright.errors import UnsupportedError
from tilewright.formats.gguf import GGUFFile
from tilewright.graph import Graph
from tilewright.layers import Step, StepLimits, WeightBook
from tilewright.models.config import DecoderConfig, config_from_metadata
from tilewright.models.decoder import build_decoder
from tilewright.ops.packed import block_layout, packed_formats
from tilewright.ops.weights import FileWeight

__all__ = ["LoadedGraph", "load_graph", "slow_types"]


@dataclass(frozen=True)
class LoadedGraph:
    """A model's step, not yet compiled; no weight has been read."""

    config: DecoderConfig
    graph: Graph
    step: Step


def load_graph(
    file: GGUFFile, limits: StepLimits, config: DecoderConfig | None = None
) -> LoadedGraph:
    """Build the step's graph from a file's header.

    Raises :class:`UnsupportedError` for an architecture, key or tensor type that has no code, and
    :class:`FormatError` for tensors that are missing, left over or of the wrong shape.
    """
    config = config or config_from_metadata(file.metadata, file.path)
    tensors = _weights(file)
    book = WeightBook(tensors, file.path)
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

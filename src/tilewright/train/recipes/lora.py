"""LoRA: fine-tune a decoder by low-rank adapters, and merge adapters into model files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.errors import FormatError, UnsupportedError
from tilewright.formats.gguf import (
    GGMLType,
    MetadataValue,
    TensorSource,
    can_quantize,
    open_gguf,
    tensor_from_array,
    tensor_from_raw,
    write_gguf,
)
from tilewright.tensor import random
from tilewright.tokenizers.json_file import write_json
from tilewright.train.recipes.adapters import (
    AdaptedDecoder,
    adapter_arrays,
    load_adapters,
    merge_adapters,
    save_adapters,
)
from tilewright.train.recipes.decoders import (
    read_decoder,
    write_decoder_gguf,
    write_decoder_safetensors,
)
from tilewright.train.recipes.language import LanguageOptions, train_language_model
from tilewright.train.recipes.text import prepare_text, reopen_text

__all__ = ["merge", "train_lora"]


def train_lora(
    model: str | os.PathLike[str],
    data: Sequence[str | os.PathLike[str]],
    options: LanguageOptions,
    folder: str | os.PathLike[str],
    *,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] = (),
    dropout: float = 0.0,
    fraction: float = 0.1,
    fasta: bool = False,
    resume: bool = False,
    quiet: bool = False,
    describe: Mapping[str, Any] | None = None,
) -> tuple[AdaptedDecoder, dict[str, float]]:
    """Fine-tune the decoder in ``model`` (a GGUF file or a folder of Hugging Face's) on text.

    Its weights are read once (as bfloat16 for ``precision="bf16"``) and stay; adapters go into
    ``folder`` as PEFT writes them. Returns the module and the last losses.

    Raises:
        FormatError, UnsupportedError, OSError: the model, or the text, is not what it should be.
        TrainingError: too little text, or the run cannot go on.
    """
    weights = read_decoder(model)
    tokenizer = {k: v for k, v in weights.metadata.items() if k.startswith("tokenizer.")}
    if not tokenizer:
        raise FormatError("has no tokenizer, so there is no reading text for it", path=model)
    if options.context > weights.config.context_length:
        raise ValueError(
            f"a context of {options.context}, the model has {weights.config.context_length}"
        )
    text = reopen_text(folder, context=options.context, fraction=fraction) if resume else None
    if text is None:
        text = prepare_text(
            data, tokenizer, folder, context=options.context, fraction=fraction, fasta=fasta
        )
    random.seed(options.seed)
    module = AdaptedDecoder(
        weights, rank, alpha, targets, dropout, half=options.precision == "bf16"
    )
    del weights
    results = train_language_model(
        module,
        text,
        options,
        os.fspath(folder),
        resume=resume,
        quiet=quiet,
        describe=describe,
        trained=list(module.adapters.named_parameters()),
        state=module.adapters,
    )
    save_adapters(
        folder,
        adapter_arrays(module),
        module.config,
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        base=os.fspath(model),
    )
    return module, results


def merge(
    model: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    type_: str = "f32",
) -> list[str]:
    """Write the model with the adapter added: ``.gguf`` or ``.safetensors``; returns the names of
    the matrices that changed.

    Args:
        type_: what these are stored as in a GGUF file: ``f32``, ``f16``, ``bf16``, a quantised type
            such as ``q8_0``, or ``same``: as each was. Other tensors of a GGUF file are copied.

    Raises:
        FormatError, UnsupportedError: files that are damaged, do not fit, or are not supported.
        OSError: the disk said no; an old file stays as it was.
    """
    path = os.fspath(out)
    if not path.endswith((".gguf", ".safetensors")):
        raise ValueError(f"{path}: the name should end in .gguf or .safetensors")
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise FileNotFoundError(2, "No such directory to write to", os.path.dirname(path))
    weights = read_decoder(model)
    adapters, factor = load_adapters(adapter, weights)
    merged = merge_adapters(weights, adapters, factor)
    changed = [f"{name}.weight" for name in adapters]
    if path.endswith(".safetensors"):
        write_decoder_safetensors(path, merged)
        _write_tokenizer(os.path.dirname(path), merged.metadata)
    elif os.path.isdir(model):
        write_decoder_gguf(path, merged, _stored_type(type_, GGMLType.F32))
    else:
        _copy_gguf(model, path, {n: merged.tensors[n] for n in changed}, type_)
    return changed


def _stored_type(name: str, own: GGMLType) -> GGMLType:
    if name == "same":
        found = own
    else:
        try:
            found = GGMLType[name.upper()]
        except KeyError:
            raise ValueError(f"type {name!r} is unknown; f32, f16, bf16, q8_0, same") from None
    if not can_quantize(found):
        raise UnsupportedError(f"tilewright does not write {found.name}; choose another type")
    return found


def _copy_gguf(
    model: str | os.PathLike[str], path: str, merged: Mapping[str, np.ndarray], type_: str
) -> None:
    """The file again, with some tensors replaced."""
    with open_gguf(model) as file:
        metadata = {
            key: MetadataValue(value, file.metadata_types[key])
            for key, value in file.metadata.items()
            if not key.startswith("split.")
        }
        sources: list[TensorSource] = []
        for name, info in file.tensors.items():
            if name in merged:
                kind = _stored_type(type_, info.type)
                sources.append(tensor_from_array(name, merged[name], kind))
            else:
                sources.append(tensor_from_raw(name, file.read_raw(name), info.shape, info.type))
        write_gguf(path, metadata, sources, alignment=file.alignment)


def _write_tokenizer(folder: str, metadata: Mapping[str, Any]) -> None:
    if any(k.startswith("tokenizer.") for k in metadata):
        try:
            write_json(os.path.join(folder, "tokenizer.json"), metadata)
        except UnsupportedError:  # SentencePiece: its own file belongs there
            return

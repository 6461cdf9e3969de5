"""Runs as commands make them: settings kept in the run's folder, results shown, models exported."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from tilewright.errors import FormatError, TrainingError
from tilewright.formats.atomic import atomic_file
from tilewright.nn.mamba import MambaLM
from tilewright.nn.module import Module
from tilewright.nn.transformer import GPT, Llama
from tilewright.tensor import random
from tilewright.train.checkpoint import best_checkpoint, list_checkpoints, load_checkpoint
from tilewright.train.recipes.autoencoder import run_autoencoder
from tilewright.train.recipes.decoders import read_config
from tilewright.train.recipes.export import export_decoder, export_mamba
from tilewright.train.recipes.gpt import make_gpt
from tilewright.train.recipes.images import ImageOptions
from tilewright.train.recipes.language import LanguageOptions, train_language_model
from tilewright.train.recipes.llama import make_llama
from tilewright.train.recipes.lora import train_lora
from tilewright.train.recipes.mamba import make_mamba
from tilewright.train.recipes.mnist import mnist_options, run_mnist
from tilewright.train.recipes.text import TextData, prepare_text, reopen_text

__all__ = [
    "Before",
    "Show",
    "abandon_run",
    "begin_run",
    "language_options",
    "load_best",
    "look_before",
    "open_text",
    "run_digits",
    "run_gpt",
    "run_llama",
    "run_lora",
    "run_mamba",
    "run_reconstruction",
]

Show = Callable[[str, str], None]
"""Called with what it is (``"sample"``, ``"result"``, ``"note"``) and the text."""

_SETTINGS: Final = "run.json"
# what belongs to a sitting, not to the run
_OF_THE_SITTING: Final = {"out", "resume", "threads", "quiet", "sample", "prompt"}


def begin_run(
    command: str, settings: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a run, kept in its folder as ``run.json``.

    A run that is resumed has those it began with, but for ``given`` ones.

    Raises:
        TrainingError: the folder holds a run and ``resume`` is not set; nothing to resume; the run
            there is another command's.
        OSError: the folder cannot be made or written to.
    """
    folder = os.fspath(settings["out"])
    path = os.path.join(folder, _SETTINGS)
    plain = {k: _plain(v) for k, v in settings.items() if k not in _OF_THE_SITTING}
    found = _read_settings(path)
    if settings["resume"]:
        if found is None:
            raise TrainingError(f"{folder} holds no run to resume: there is no {_SETTINGS}")
        if found["command"] != command:
            raise TrainingError(
                f"{folder} holds a run of `train {found['command']}`, not of `train {command}`"
            )
        chosen = {k: v for k, v in found["settings"].items() if k in plain and k not in given}
        plain |= chosen
    elif _has_begun(folder):
        raise TrainingError(f"{folder} holds a run already: --resume it, or choose another folder")
    os.makedirs(folder, exist_ok=True)
    merged = dict(settings) | plain
    if not settings["resume"]:
        _check_data(merged)
    content = {"command": command, "settings": plain}
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    return merged


def _has_begun(folder: str) -> bool:
    """Whether there is anything to lose: a step was made, not only settings refused."""
    record = os.path.exists(os.path.join(folder, "record.jsonl"))
    return record or bool(list_checkpoints(os.path.join(folder, "checkpoints")))


@dataclass(frozen=True)
class Before:
    """A run's folder before a sitting: its settings, and size and time of its record."""

    folder: str
    settings: bytes | None
    record: tuple[int, int] | None


def look_before(folder: str | os.PathLike[str]) -> Before:
    """What :func:`abandon_run` goes back to."""
    settings = None
    with contextlib.suppress(OSError), open(os.path.join(folder, _SETTINGS), "rb") as file:
        settings = file.read()
    return Before(os.fspath(folder), settings, _stamp(folder))


def abandon_run(before: Before) -> None:
    """After an error: settings that never came to a step of this sitting are not the run's."""
    if _stamp(before.folder) != before.record:
        return
    path = os.path.join(before.folder, _SETTINGS)
    with contextlib.suppress(OSError):
        if before.settings is None:
            os.unlink(path)
        else:
            with atomic_file(path) as file:
                file.write(before.settings)


def _stamp(folder: str | os.PathLike[str]) -> tuple[int, int] | None:
    try:
        found = os.stat(os.path.join(folder, "record.jsonl"))
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _read_settings(path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            content = json.load(file)
        if isinstance(content["command"], str) and isinstance(content["settings"], dict):
            return dict(content)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise FormatError("does not say what the run is; move it away to begin anew", path=path)


def _check_data(settings: Mapping[str, Any]) -> None:
    """Names that are wrong are told before anything is written."""
    data = settings.get("data")
    if not data:
        raise ValueError("--data is missing: what is there to learn from?")
    for name in data if isinstance(data, list) else [data]:
        os.stat(name)


# language models


def language_options(settings: Mapping[str, Any]) -> LanguageOptions:
    """Options from a command's settings."""
    renamed = {"eval_every": "evaluate_every", "eval_batches": "evaluate_batches"}
    known = LanguageOptions.__dataclass_fields__
    chosen = {renamed.get(k, k): v for k, v in settings.items()}
    return LanguageOptions(**{k: v for k, v in chosen.items() if k in known})


def open_text(settings: Mapping[str, Any]) -> TextData:
    """The run's text: that in its folder when it is resumed, else made from the files."""
    context, fraction = settings["context"], settings["validation"]
    if settings["resume"]:
        found = reopen_text(settings["out"], context=context, fraction=fraction)
        if found is not None:
            return found
    return prepare_text(
        settings["data"],
        settings["tokenizer"],
        settings["out"],
        context=context,
        fraction=fraction,
        fasta=settings["fasta"],
    )


def run_gpt(settings: Mapping[str, Any], show: Show) -> dict[str, float]:
    """``tilewright train gpt``."""
    return _run_language("gpt", settings, show)


def run_llama(settings: Mapping[str, Any], show: Show) -> dict[str, float]:
    """``tilewright train llama``."""
    return _run_language("llama", settings, show)


def run_mamba(settings: Mapping[str, Any], show: Show) -> dict[str, float]:
    """``tilewright train mamba``."""
    return _run_language("mamba", settings, show)


def _run_language(kind: str, settings: Mapping[str, Any], show: Show) -> dict[str, float]:
    """Train, export, show a sample; returns the last losses."""
    options = language_options(settings)
    text = open_text(settings)
    folder = os.fspath(settings["out"])
    random.seed(options.seed)
    module = _make(kind, settings, text.vocab_size)
    count = sum(p.size for p in module.parameters())
    show(
        "note",
        f"{kind}: {count:,} parameters; {text.vocab_size} tokens in the vocabulary, "
        f"{len(text.train):,} to train, {len(text.validation):,} to validate",
    )
    results = train_language_model(
        module,
        text,
        options,
        folder,
        resume=settings["resume"],
        quiet=settings["quiet"],
        describe={"command": kind, "settings": _describe(settings)},
    )
    load_best(module, folder, show)
    name = os.path.basename(os.path.abspath(folder))
    if isinstance(module, MambaLM):
        paths = export_mamba(module, text.metadata, folder, name)
    else:
        paths = export_decoder(module, text.metadata, folder, name)
    for path in paths:
        show("note", f"wrote {path}")
    if settings["sample"]:
        show("sample", _sampled(module, folder, settings, text))
    _show_results(results, show)
    return results


def _show_results(results: Mapping[str, float], show: Show) -> None:
    words = "  ".join(f"{key} {value:.4f}" for key, value in results.items())
    if words:
        show("result", words)


def _describe(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _plain(v) for k, v in settings.items() if k not in _OF_THE_SITTING}


def _make(kind: str, settings: Mapping[str, Any], vocab: int) -> GPT | Llama | MambaLM:
    if kind == "mamba":
        return make_mamba(vocab, settings["layers"], settings["width"], settings["state"])
    sizes = {k: settings[k] for k in ("context", "layers", "heads", "width")}
    if kind == "gpt":
        return make_gpt(vocab, **sizes, dropout=settings["dropout"], bias=settings["bias"])
    heads, kv = sizes["heads"], settings["kv_heads"]
    if kv is None:
        kv = heads // 2 if heads % 2 == 0 else heads
    return make_llama(vocab, **sizes, kv_heads=kv, hidden=settings["hidden"])


def load_best(module: Module, folder: str, show: Show) -> None:
    """Give the module the weights of the best checkpoint, if one was measured to be better.

    What is exported is the best model, not what an overfitting one has become.
    """
    checkpoints = os.path.join(folder, "checkpoints")
    path = best_checkpoint(checkpoints)
    there = list_checkpoints(checkpoints)
    if path is None or not there or path == there[-1][1]:
        return
    found = load_checkpoint(path)
    weights = {
        name.removeprefix("model."): array
        for name, array in found.tensors.items()
        if name.startswith("model.")
    }
    module.load_state_dict(weights)
    show("note", f"taking the weights of step {found.step}, whose metric is {found.metric:.4f}")


def _sampled(module: Module, folder: str, settings: Mapping[str, Any], text: TextData) -> str:
    """Text from the model: of a decoder, what `tilewright run` would say of the file."""
    prompt = settings["prompt"]
    if prompt is None:
        prompt = "\n" if "\n" in text.tokenizer.decode(text.train[:4096].tolist()) else ""
    ids = text.tokenizer.encode(prompt) or text.validation[:1].tolist()
    count, seed = settings["sample"], settings["seed"]
    from tilewright.generate.model import load

    model = load(os.path.join(folder, "model.gguf"), context=settings["context"], max_sequences=1)
    pieces = list(model.generate(ids, count, seed=seed))
    return (prompt + "".join(pieces)).strip("\n")


# images


def _image_options(settings: Mapping[str, Any]) -> ImageOptions:
    known = ImageOptions.__dataclass_fields__
    return ImageOptions(**{k: v for k, v in settings.items() if k in known})


def run_digits(settings: Mapping[str, Any], show: Show) -> dict[str, float]:
    """``tilewright train mnist``."""
    defaults = asdict(mnist_options(settings["model"]))
    settings = {k: defaults.get(k) if v is None else v for k, v in settings.items()}
    begin = time.monotonic()
    _, results = run_mnist(
        settings["data"],
        _image_options(settings),
        os.fspath(settings["out"]),
        model=settings["model"],
        width=settings["width"],
        resume=settings["resume"],
        quiet=settings["quiet"],
        describe={"command": "mnist", "settings": _describe(settings)},
    )
    show("note", f"{time.monotonic() - begin:.1f} s")
    _show_results(results, show)
    return results


def run_reconstruction(settings: Mapping[str, Any], show: Show) -> dict[str, float]:
    """``tilewright train autoencoder``."""
    _, results = run_autoencoder(
        settings["data"],
        _image_options(settings),
        os.fspath(settings["out"]),
        **{k: settings[k] for k in ("latent", "width", "size", "resume", "quiet")},
        describe={"command": "autoencoder", "settings": _describe(settings)},
    )
    show("note", f"wrote {os.path.join(settings['out'], 'reconstructions.png')}")
    _show_results(results, show)
    return results


# adapters


def run_lora(settings: Mapping[str, Any], show: Show) -> dict[str, float]:
    """``tilewright train lora``."""
    if settings["context"] is None:
        context = min(256, read_config(settings["model"]).context_length)
        settings = dict(settings) | {"context": context}
    module, results = train_lora(
        settings["model"],
        settings["data"],
        language_options(settings),
        settings["out"],
        rank=settings["rank"],
        alpha=settings["alpha"],
        targets=settings["target"] or (),
        dropout=settings["dropout"],
        fraction=settings["validation"],
        fasta=settings["fasta"],
        resume=settings["resume"],
        quiet=settings["quiet"],
        describe={"command": "lora", "settings": _describe(settings)},
    )
    count = sum(p.size for p in module.adapters.parameters())
    path = os.path.join(settings["out"], "adapter_model.safetensors")
    show("note", f"wrote {path}: {count:,} parameters")
    _show_results(results, show)
    return results

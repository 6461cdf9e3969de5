"""Configurations from GGUF metadata: keys with types, and none that is not understood."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from tilewright.errors import FormatError, UnsupportedError

__all__ = ["MetadataReader", "architecture_of", "unsupported_architecture", "vocab_size"]


def architecture_of(metadata: Mapping[str, Any], path: object = None) -> str:
    """The name under which a model's keys stand."""
    read = MetadataReader(metadata, path, "general")
    return read.text("architecture")


def unsupported_architecture(
    name: str, supported: Collection[str], path: object = None
) -> UnsupportedError:
    """The error of an architecture that there is no code for."""
    near = difflib.get_close_matches(name, supported, n=1)
    hint = f"; the nearest supported one is {near[0]!r}" if near else ""
    where = f"{path}: " if path else ""
    return UnsupportedError(
        f"{where}architecture {name!r} is not supported "
        f"(supported: {', '.join(sorted(supported))}){hint}"
    )


def vocab_size(read: MetadataReader) -> int:
    """Tokens that the model knows."""
    tokens = read.metadata.get("tokenizer.ggml.tokens")
    stated = read.count("vocab_size", 0)
    if tokens is None and not stated:
        raise FormatError("neither a vocabulary nor a vocab_size", path=read.path)
    return stated or len(tokens)  # type: ignore[arg-type]


class MetadataReader:
    """Typed access to the keys of one architecture: those that begin with its name."""

    def __init__(self, metadata: Mapping[str, Any], path: object, architecture: str) -> None:
        self.metadata, self.path, self.prefix = metadata, path, f"{architecture}."

    def refuse_unknown(self, known: Collection[str]) -> None:
        """:class:`UnsupportedError` for keys that may change the result."""
        start = len(self.prefix)
        unknown = sorted(
            k for k in self.metadata if k.startswith(self.prefix) and k[start:] not in known
        )
        if unknown:
            raise UnsupportedError(
                f"{self.where}metadata has keys that this engine does not understand, and they may "
                f"change the result: {', '.join(unknown)}"
            )

    def refuse_sizes(self, config: Any) -> None:
        """:class:`FormatError` for an integer of the dataclass ``config`` that is no size."""
        for item in fields(config):
            value = getattr(config, item.name)
            if item.type == "int" and not 0 < value < 2**31:
                raise FormatError(f"{item.name} is {value}", path=self.path)

    @property
    def where(self) -> str:
        return f"{self.path}: " if self.path else ""

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self.metadata

    def _get(self, key: str, default: Any, kinds: tuple[type, ...], what: str) -> Any:
        full = self.prefix + key
        if full not in self.metadata:
            if default is None:
                raise FormatError(f"metadata lacks {full!r}", path=self.path)
            return default
        value = self.metadata[full]
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise FormatError(
                f"metadata {full!r} should be {what}, it is {type(value).__name__}: "
                f"{str(value)[:60]}",
                path=self.path,
            )
        return value

    def text(self, key: str, default: str | None = None) -> str:
        return str(self._get(key, default, (str,), "a string"))

    def count(self, key: str, default: int | None = None) -> int:
        value = int(self._get(key, default, (int,), "an integer"))
        if value < 0:
            raise FormatError(f"metadata {self.prefix + key!r} is {value}", path=self.path)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = float(self._get(key, default, (int, float), "a number"))
        if value != value or abs(value) == float("inf"):
            raise FormatError(f"metadata {self.prefix + key!r} is {value}", path=self.path)
        return value

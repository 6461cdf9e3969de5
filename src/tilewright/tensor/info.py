"""What the namespace says about itself: ``__array_namespace_info__`` of the standard."""

from __future__ import annotations

import sys
from typing import Any, Final

from tilewright.dtypes import DType
from tilewright.tensor.api import API_VERSION, DTYPES
from tilewright.tensor.data_types import isdtype
from tilewright.tensor.promotion import DEFAULT_FLOAT, DEFAULT_INT

__all__ = ["Info", "__array_namespace_info__", "namespace"]

_VERSIONS: Final = ("2022.12", "2023.12", "2024.12")
_STANDARD: Final = tuple(n for n in DTYPES if n not in ("float16", "bfloat16"))


class Info:
    """Capabilities, devices and dtypes of the namespace.

    There are no complex dtypes; float16 and bfloat16 are there beyond the standard's dtypes.
    """

    def capabilities(self) -> dict[str, Any]:
        """What may be relied on: boolean masks, data-dependent shapes, how many axes (64)."""
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": 64}

    def default_device(self) -> str:
        """The device of a new tensor."""
        return "cpu"

    def devices(self) -> list[str]:
        """All devices."""
        return ["cpu"]

    def default_dtypes(self, *, device: Any = None) -> dict[str, DType]:
        """The dtypes of new tensors by kind."""
        _check(device)
        return {
            "real floating": DEFAULT_FLOAT,
            "integral": DEFAULT_INT,
            "indexing": DEFAULT_INT,
        }

    def dtypes(
        self, *, device: Any = None, kind: str | tuple[str, ...] | None = None
    ) -> dict[str, DType]:
        """The standard's dtypes that there are, of ``kind`` (default all), by name."""
        _check(device)
        return {
            name: DTYPES[name] for name in _STANDARD if kind is None or isdtype(DTYPES[name], kind)
        }


def _check(device: Any) -> None:
    from tilewright.tensor.creation import check_device

    check_device(device)


def __array_namespace_info__() -> Info:
    """What the namespace can do, by the standard's inspection API."""
    return Info()


def namespace(api_version: str | None = None) -> Any:
    """The module with the standard's functions; ``ValueError`` for versions it does not follow."""
    if api_version is not None and api_version not in _VERSIONS:
        raise ValueError(
            f"the namespace follows version {API_VERSION} of the Array API standard, "
            f"not {api_version!r}"
        )
    return sys.modules["tilewright"]

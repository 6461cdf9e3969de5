"""What is done to an image before a model sees it: sizes, scale, mean, order of channels.

The steps are those of ``preprocessor_config.json`` (transformers) and of ``config.json`` with a
``pretrained_cfg`` (timm); :func:`find_config` reads either from beside a model.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from tilewright.data.images import read_image
from tilewright.errors import FormatError, ShapeError, UnsupportedError

__all__ = [
    "NORMALISATIONS", "Preprocess", "find_config", "find_labels", "read_config", "read_labels",
    "resize",
]  # fmt: skip

NORMALISATIONS: Final[Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "none": ((0.0,), (1.0,)),
    "half": ((0.5,), (0.5,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and standard deviation of pixels from 0 to 1, by name."""

_FILTERS: Final = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's order


@dataclass(frozen=True)
class Preprocess:
    """Pixels to a model's input: ``(pixel * scale - mean) / std``.

    Attributes:
        size: (height, width) to scale to, whatever the proportions; None keeps them.
        shortest: instead: the shorter side becomes so long, proportions stay.
        crop: (height, width) of the middle that is taken, after scaling; zeros beyond the image.
        resample: Pillow's filter: ``"nearest"``, ``"bilinear"``, ``"bicubic"``, ``"lanczos"`` ...
        scale: of the pixels, which are 0 to 255.
        mean, std: one number, or one per channel in the order that the model has.
        channels: ``"RGB"``, ``"BGR"``, or ``"L"`` (grey).
        layout: ``"NCHW"`` or ``"NHWC"``; ``"NHW"`` for grey without an axis of channels.
        dtype: of the result, a NumPy name.
    """

    size: tuple[int, int] | None = None
    shortest: int | None = None
    crop: tuple[int, int] | None = None
    resample: str = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channels: str = "RGB"
    layout: str = "NCHW"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for what, value, allowed in (
            ("resample", self.resample, _FILTERS),
            ("channels", self.channels, ("RGB", "BGR", "L")),
            ("layout", self.layout, ("NCHW", "NHWC", "NHW")),
        ):
            if value not in allowed:
                raise UnsupportedError(f"{what} is {value!r}, wants one of {', '.join(allowed)}")
        sizes = [*(self.size or ()), *(self.crop or ())]
        if self.shortest is not None:
            sizes.append(self.shortest)
        if any(not 1 <= n <= 1 << 14 for n in sizes):
            raise ShapeError(f"images are scaled to 1 to {1 << 14} pixels a side, not {sizes}")
        if any(not s or not math.isfinite(s) for s in self.std):
            raise ShapeError(f"std wants numbers that are not zero, got {self.std}")

    def __call__(self, image: str | os.PathLike[str] | np.ndarray) -> np.ndarray:
        """A batch of one from a file, or from uint8 pixels ``(height, width, 3)``."""
        grey = self.channels == "L"
        if isinstance(image, np.ndarray):
            pixels = _checked(image, grey)
        else:
            pixels = read_image(image, mode="L" if grey else "RGB")
        pixels = self._resized(pixels)
        if self.crop is not None:
            pixels = _middle(pixels, self.crop)
        pixels = pixels[..., None] if grey else pixels
        if self.channels == "BGR":
            pixels = pixels[..., ::-1]
        kind = np.dtype(self.dtype)
        if kind.kind in "iu":
            values = pixels.astype(kind)
        else:
            values = pixels.astype(np.float32) * np.float32(self.scale)
            values -= np.array(self.mean, np.float32)
            values /= np.array(self.std, np.float32)
            values = values.astype(kind)
        if self.layout == "NHW":
            values = values[..., 0]
        elif self.layout == "NCHW":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values[None])

    def _resized(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        wanted = self.size
        if self.shortest is not None:  # torchvision's and timm's rounding: towards zero
            short = min(height, width)
            wanted = (
                (self.shortest, int(self.shortest * width / short))
                if height <= width
                else (int(self.shortest * height / short), self.shortest)
            )
        if wanted is None or wanted == (height, width):
            return pixels
        return resize(pixels, wanted, self.resample)

    def to_fit(self, shape: Sequence[int | str | None] | None, dtype: str) -> Preprocess:
        """These steps for an input of a model: layout, channels and sizes as its shape says.

        Sizes that are not set come from the shape: for a square the shorter side is scaled and the
        middle taken, for others the whole image is scaled.
        """
        made = replace(self, dtype=dtype or "float32")
        if shape is None:
            return made
        if len(shape) == 3:
            height, width, made = shape[1], shape[2], replace(made, channels="L", layout="NHW")
        elif len(shape) != 4:
            raise ShapeError(f"an image has 3 or 4 axes, the input has shape {list(shape)}")
        elif shape[3] in (1, 3) and shape[1] not in (1, 3):
            height, width, n, made = *shape[1:], replace(made, layout="NHWC")
            made = replace(made, channels="L") if n == 1 else made
        elif shape[1] in (1, 3, None) or isinstance(shape[1], str):
            height, width = shape[2], shape[3]
            made = replace(made, channels="L") if shape[1] == 1 else made
        else:
            raise ShapeError(f"an image has 1 or 3 channels, the input has shape {list(shape)}")
        if made.channels == "L" and len(made.mean) == 3:
            raise ShapeError(f"{made.mean} is a mean of 3 channels, the model takes grey images")
        if not isinstance(height, int) or not isinstance(width, int):
            return made
        sides = (height, width)
        if made.size is None and made.shortest is None and made.crop is None:
            if height != width:
                return replace(made, size=sides)
            return replace(made, shortest=height, crop=sides)
        if (made.crop or made.size) != sides:
            return replace(made, crop=sides)
        return made

    def __str__(self) -> str:
        parts = [f"{self.channels} {self.layout}"]
        if self.shortest:
            parts.append(f"shorter side {self.shortest} ({self.resample})")
        elif self.size:
            parts.append(f"scaled to {self.size[0]} x {self.size[1]} ({self.resample})")
        if self.crop:
            parts.append(f"middle {self.crop[0]} x {self.crop[1]}")
        if np.dtype(self.dtype).kind not in "iu":
            scale = f"1/{1 / self.scale:.0f}" if 0 < self.scale < 1 else f"{self.scale:g}"
            mean, std = (" ".join(f"{v:g}" for v in vs) for vs in (self.mean, self.std))
            parts.append(f"pixels x {scale}, mean {mean}, std {std}")
        return ", ".join(parts)


def resize(pixels: np.ndarray, size: tuple[int, int], resample: str) -> np.ndarray:
    """uint8 pixels scaled to (height, width) by one of Pillow's filters."""
    try:
        from PIL import Image
    except ImportError:
        raise UnsupportedError(
            "scaling images needs Pillow: pip install 'tilewright[images]'"
        ) from None
    image = Image.fromarray(pixels)
    kind = Image.Resampling(_FILTERS.index(resample))
    return np.asarray(image.resize((size[1], size[0]), kind))


def _checked(pixels: np.ndarray, grey: bool) -> np.ndarray:
    axes = 2 if grey else 3
    if pixels.dtype != np.uint8 or pixels.ndim != axes or (not grey and pixels.shape[2] != 3):
        wants = "(height, width)" if grey else "(height, width, 3)"
        raise ShapeError(f"wants uint8 pixels {wants}, got {pixels.dtype} {pixels.shape}")
    return pixels


def _middle(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of an image, black where it is smaller (as torchvision's CenterCrop rounds)."""
    for axis, wanted in enumerate(size):
        n = pixels.shape[axis]
        if n < wanted:
            before = (wanted - n) // 2
            pads = [(0, 0)] * pixels.ndim
            pads[axis] = (before, wanted - n - before)
            pixels = np.pad(pixels, pads)
        elif n > wanted:
            first = round((n - wanted) / 2)
            pixels = pixels[(slice(None),) * axis + (slice(first, first + wanted),)]
    return pixels


def find_config(model: str | os.PathLike[str]) -> Path | None:
    """The file beside a model (or one folder up) that says how images are prepared."""
    folder = Path(model).resolve().parent
    for place in (folder, folder.parent):
        for name in ("preprocessor_config.json", "config.json"):
            path = place / name
            if path.is_file() and (name.startswith("pre") or _timm(_json(path)) is not None):
                return path
    return None


def read_config(path: str | os.PathLike[str]) -> Preprocess:
    """Steps from a ``preprocessor_config.json`` or timm's ``config.json``.

    Raises:
        FormatError: no JSON, or values of the wrong kind.
        UnsupportedError: a step that is not known.
    """
    config = _json(path)
    try:
        timm = _timm(config)
        return _from_timm(timm) if timm is not None else _from_transformers(config)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FormatError(f"is no configuration of images: {error!r}", path=path) from error


def _json(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        config = json.loads(Path(path).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"is not JSON: {error}", path=path) from error
    if not isinstance(config, dict):
        raise FormatError("is no JSON object", path=path)
    return config


def _timm(config: dict[str, Any]) -> dict[str, Any] | None:
    inner = config.get("pretrained_cfg", config)
    return inner if isinstance(inner, dict) and "input_size" in inner else None


def _from_timm(config: dict[str, Any]) -> Preprocess:
    """timm's evaluation transform: scale the shorter side to size / crop_pct, take the middle."""
    _, height, width = (int(n) for n in config["input_size"])
    share = float(config.get("crop_pct") or 0.875)
    if not 0 < share <= 1:
        raise ValueError(f"crop_pct {share}")
    scaled = (math.floor(height / share), math.floor(width / share))
    squash = config.get("crop_mode", "center") == "squash" or height != width
    return Preprocess(
        size=scaled if squash else None,
        shortest=None if squash else scaled[0],
        crop=(height, width),
        resample=str(config.get("interpolation", "bicubic")),
        mean=tuple(float(v) for v in config.get("mean", (0.0,))),
        std=tuple(float(v) for v in config.get("std", (1.0,))),
    )


def _from_transformers(config: dict[str, Any]) -> Preprocess:
    size, shortest, crop = None, None, None
    given = config.get("size", 224)
    if config.get("do_resize", True):
        if isinstance(given, int):
            size = (given, given)
        elif "shortest_edge" in given:
            shortest = int(given["shortest_edge"])
        else:
            size = (int(given["height"]), int(given["width"]))
    share = config.get("crop_pct")
    if share and shortest and shortest < 384:  # ConvNeXt: scale beyond, then take the middle
        crop, shortest = (shortest, shortest), int(shortest / float(share))
    if config.get("do_center_crop", False):
        sides = config.get("crop_size", given)
        if isinstance(sides, int):
            crop = (sides, sides)
        elif "height" in sides:
            crop = (int(sides["height"]), int(sides["width"]))
        else:
            crop = (int(sides["shortest_edge"]),) * 2
    normalise = config.get("do_normalize", True)
    rescale = config.get("do_rescale", True)
    return Preprocess(
        size=size,
        shortest=shortest,
        crop=crop,
        resample=_FILTERS[int(config.get("resample", 2))],
        scale=float(config.get("rescale_factor", 1 / 255)) if rescale else 1.0,
        mean=_numbers(config.get("image_mean", 0.0)) if normalise else (0.0,),
        std=_numbers(config.get("image_std", 1.0)) if normalise else (1.0,),
    )


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in value) if isinstance(value, list) else (float(value),)


def find_labels(model: str | os.PathLike[str]) -> list[str] | None:
    """Names of classes from a ``config.json`` beside a model: ``id2label``, ``label_names``."""
    path = Path(model).resolve().parent / "config.json"
    if not path.is_file():
        return None
    config = _json(path)
    names = config.get("label_names")
    if isinstance(names, list) and all(isinstance(n, str) for n in names):
        return names
    table = config.get("id2label")
    if isinstance(table, dict) and set(table) == {str(i) for i in range(len(table))}:
        return [str(table[str(i)]) for i in range(len(table))]
    return None


def read_labels(path: str | os.PathLike[str]) -> list[str]:
    """Names of classes, one a line; a leading ``number,`` is left out.

    Raises FormatError when the file is not UTF-8 text.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise FormatError(f"is no text in UTF-8: {error}", path=path) from error
    lines = [line.strip() for line in lines if line.strip()]
    numbered = [line.partition(",") for line in lines]
    if all(a.isdecimal() and int(a) == i for i, (a, _, _) in enumerate(numbered)):
        return [b.strip() for _, _, b in numbered]
    return lines

"""Images from files, on Pillow (``pip install 'tilewright[images]'``)."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from tilewright.errors import FormatError, UnsupportedError

__all__ = ["ImageFolder", "read_image"]

_ENDINGS: Final = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
MAX_PIXELS: Final = 1 << 27
"""An image that claims more is refused before it is decoded."""


def read_image(
    path: str | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    mode: str = "RGB",
) -> np.ndarray:
    """An image as uint8 ``(height, width, channels)``; no last axis for mode ``"L"`` (grey).

    ``size``: (height, width). The middle of the image, as large as has these proportions, is scaled
    to it. Orientation notes of cameras are followed.

    Raises:
        FormatError: not an image, damaged, or unreasonably large.
        UnsupportedError: Pillow is not installed.
        OSError: it cannot be opened.
    """
    return _decode(path, lambda image: _fitted(image, size, mode))


def _fitted(image: Any, size: tuple[int, int] | None, mode: str) -> np.ndarray:
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image).convert(mode)
    if size is not None:
        image = ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
    return np.array(image, np.uint8)


def _decode(path: str | os.PathLike[str], use: Callable[[Any], Any]) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise UnsupportedError(
            "reading images needs Pillow: pip install 'tilewright[images]'"
        ) from None
    name = os.fspath(path)
    with open(name, "rb") as file:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what matters of them is checked below
                with Image.open(file) as image:
                    width, height = image.size
                    if width * height > MAX_PIXELS:
                        raise FormatError(
                            f"claims {width} x {height} pixels, the most accepted is {MAX_PIXELS}",
                            path=name,
                        )
                    return use(image)
        except FormatError:
            raise
        except Exception as error:  # decoders raise nearly anything on damaged files
            raise FormatError(
                f"is no image that can be read: {str(error) or type(error).__name__}",
                path=name,
                offset=file.tell() if not file.closed else None,
            ) from error


class ImageFolder:
    """Images in one folder for each class, decoded when they are asked for.

    ::

        folder = ImageFolder("flowers", size=(64, 64))
        Batches({"image": folder.images, "label": folder.labels}, batch=32)

    Every file's header is read at once, so that a file which is no image is found before training.

    Attributes:
        classes: names of the folders, sorted.
        paths: all files, by class and name.
        labels: int32 ``(n,)``, positions in ``classes``.
        images: takes an int64 array of ``k`` indices, gives uint8 ``(k, height, width, channels)``.

    Raises:
        FormatError: no folder with an image in it, or a file that is no image.
        UnsupportedError: Pillow is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        size: tuple[int, int],
        mode: str = "RGB",
    ) -> None:
        root = os.fspath(path)
        self.classes = sorted(e.name for e in os.scandir(root) if e.is_dir())
        self.paths: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(self.classes):
            folder = os.path.join(root, name)
            for file in sorted(os.listdir(folder)):
                if file.lower().endswith(_ENDINGS):
                    self.paths.append(os.path.join(folder, file))
                    labels.append(label)
        if not self.paths:
            raise FormatError(
                f"no images: wanted a folder for each class with {', '.join(_ENDINGS)} files",
                path=root,
            )
        for file in self.paths:
            _decode(file, lambda image: image.size)
        self.labels = np.array(labels, np.int32)
        self.images = _LazyImages(self.paths, size, mode)

    def __len__(self) -> int:
        return len(self.paths)


class _LazyImages:
    """A sequence of images that behaves like an array where `Batches` needs it."""

    def __init__(self, paths: list[str], size: tuple[int, int], mode: str) -> None:
        self._paths, self._size, self._mode = paths, size, mode

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return np.stack(
            [
                read_image(self._paths[i], size=self._size, mode=self._mode)
                for i in np.asarray(indices).tolist()
            ]
        )

    def fingerprint(self) -> int:
        """Of the names and sizes of the files and how they are read."""
        names = [(os.path.basename(p), os.path.getsize(p)) for p in self._paths]
        return zlib.crc32(repr((names, self._size, self._mode)).encode())

"""The MNIST database of handwritten digits, as it lies in a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from tilewright.errors import FormatError
from tilewright.formats.arrays import read_idx, read_npz

__all__ = ["ImageSet", "load_mnist"]


@dataclass(frozen=True)
class ImageSet:
    """Images and what they show.

    Attributes:
        images: uint8 ``(n, height, width)``, 0 to 255.
        labels: int32 ``(n,)``.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def load_mnist(folder: str | os.PathLike[str]) -> tuple[ImageSet, ImageSet]:
    """(training, test) from a folder with the database's own files or ``.npz`` extracts of them.

    Looked for are ``train-images-idx3-ubyte`` and ``t10k-images-idx3-ubyte`` with their
    ``-labels-idx1-ubyte``, each plain or ``.gz``, and else ``train*.npz`` or ``t10k*.npz`` with
    ``images`` and ``labels``.

    Raises:
        FormatError: files are missing or damaged, or images and labels do not fit each other.
        OSError: a file cannot be read.
    """
    return _read(os.fspath(folder), "train"), _read(os.fspath(folder), "t10k")


def _read(folder: str, part: str) -> ImageSet:
    names = set(os.listdir(folder))

    def find(stem: str) -> str | None:
        return next((os.path.join(folder, n) for n in (stem, stem + ".gz") if n in names), None)

    images, labels = find(f"{part}-images-idx3-ubyte"), find(f"{part}-labels-idx1-ubyte")
    if images and labels:
        return _checked(read_idx(images), read_idx(labels), images)
    for name in sorted(names):
        if name.startswith(part) and name.endswith(".npz"):
            path = os.path.join(folder, name)
            arrays = read_npz(path)
            if not {"images", "labels"} <= arrays.keys():
                raise FormatError(
                    f"has {', '.join(arrays) or 'nothing'}, wanted 'images' and 'labels'", path=path
                )
            return _checked(arrays["images"], arrays["labels"], path)
    raise FormatError(
        f"no {part}-images-idx3-ubyte and {part}-labels-idx1-ubyte (plain or .gz), and no "
        f"{part}*.npz",
        path=folder,
    )


def _checked(images: np.ndarray, labels: np.ndarray, path: str) -> ImageSet:
    if images.dtype != np.uint8 or images.ndim != 3 or labels.dtype.kind not in "iu":
        raise FormatError(
            f"wanted uint8 images (n, height, width) and integer labels, got {images.dtype} "
            f"{images.shape} and {labels.dtype} {labels.shape}",
            path=path,
        )
    if labels.shape != images.shape[:1]:
        raise FormatError(f"{len(images)} images, but labels of shape {labels.shape}", path=path)
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if wrong.size:
        raise FormatError(f"label {wrong[0]} is {labels[wrong[0]]}, wanted 0 to 9", path=path)
    return ImageSet(images, labels.astype(np.int32))

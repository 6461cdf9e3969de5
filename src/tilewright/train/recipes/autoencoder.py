"""A convolutional autoencoder: images through a few numbers and back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tilewright.errors import ShapeError
from tilewright.formats.atomic import atomic_file
from tilewright.nn import functional as F
from tilewright.nn.convolution import Conv2d, ConvTranspose2d
from tilewright.nn.layers import Linear
from tilewright.nn.module import Module
from tilewright.tensor import random
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import asarray
from tilewright.tensor.modes import no_grad
from tilewright.train.canvas import encode_png
from tilewright.train.recipes.export import export_module
from tilewright.train.recipes.images import ImageOptions, mean_over, read_images, train_on_images

__all__ = ["Autoencoder", "run_autoencoder"]


class Autoencoder(Module):
    """Images (N, C, size, size) of 0 to 1 -> the same through ``latent`` numbers each.

    ``encode`` and ``decode`` are its halves. The size is a multiple of 4.
    """

    def __init__(self, channels: int, size: int, latent: int = 32, width: int = 16) -> None:
        if size < 4 or size % 4:
            raise ShapeError(f"Autoencoder: images of {size} pixels; a multiple of 4 is wanted")
        self.size, self.width, small = size, width, size // 4
        self.down1 = Conv2d(channels, width, 3, stride=2, padding=1)
        self.down2 = Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.narrow = Linear(2 * width * small * small, latent)
        self.widen = Linear(latent, 2 * width * small * small)
        self.up2 = ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.up1 = ConvTranspose2d(width, channels, 4, stride=2, padding=1)

    def encode(self, images: Tensor) -> Tensor:
        """(N, C, size, size) -> (N, latent)."""
        h = F.silu(self.down2(F.silu(self.down1(images))))
        return self.narrow(h.flatten(1))

    def decode(self, codes: Tensor) -> Tensor:
        """(N, latent) -> (N, C, size, size)."""
        small = self.size // 4
        h = F.silu(self.widen(codes)).reshape((codes.shape[0], 2 * self.width, small, small))
        return F.sigmoid(self.up1(F.silu(self.up2(h))).astype("f32"))

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))


def _planes(images: np.ndarray) -> np.ndarray:
    """uint8 (n, h, w, c) -> float32 (n, c, h, w) of 0 to 1."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) * np.float32(1 / 255)


def _transform(batch: Any, rng: np.random.Generator) -> tuple[np.ndarray]:
    return (_planes(batch[0]),)


def _loss(module: Module, images: Tensor) -> Tensor:
    return F.mse_loss(module(images), images)


def run_autoencoder(
    data: str | os.PathLike[str],
    options: ImageOptions,
    folder: str,
    *,
    latent: int = 32,
    width: int = 16,
    size: int = 64,
    resume: bool = False,
    quiet: bool = False,
    describe: Mapping[str, Any] | None = None,
) -> tuple[Autoencoder, dict[str, float]]:
    """Train on MNIST or on a folder of images, export, and draw ``reconstructions.png``.

    ``size``: pixels that images of a folder are fitted to; MNIST has its own. Returns the module
    and the last ``loss`` and ``test_loss``, mean squared errors.
    """
    images = read_images(data, size)
    channels, own = images.train.shape[3], images.train.shape[1]
    random.seed(options.seed)
    module = Autoencoder(channels, own, latent, width)

    def batches() -> Iterator[tuple[np.ndarray]]:
        for start in range(0, len(images.test), 500):
            yield (_planes(images.test[start : start + 500]),)

    results = train_on_images(
        module,
        _loss,
        (images.train,),
        _transform,
        options,
        folder,
        evaluate=mean_over(lambda m, x: {"test_loss": _loss(m, x)}, batches),
        resume=resume,
        quiet=quiet,
        describe=describe,
    )
    config = {"channels": channels, "size": own, "latent": latent, "width": width}
    export_module(module, folder, {"model": "autoencoder", **config})
    _draw(module, images.test[:8], os.path.join(folder, "reconstructions.png"))
    return module, results


def _draw(module: Autoencoder, images: np.ndarray, path: str) -> None:
    """Images in the upper row, what the module makes of them in the lower."""
    with no_grad():
        back = module.eval()(asarray(_planes(images))).numpy()
    made = np.rint(back.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    rows = [np.concatenate(list(row), 1) for row in (images, made)]
    picture = np.concatenate(rows, 0)
    picture = np.repeat(np.repeat(picture, 2, 0), 2, 1)
    if picture.shape[2] == 1:
        picture = np.repeat(picture, 3, 2)
    with atomic_file(path) as file:
        file.write(encode_png(picture))

"""Handwritten digits: a small convolutional network, and a small vision transformer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from tilewright.data.mnist import load_mnist
from tilewright.nn import functional as F
from tilewright.nn.convolution import BatchNorm2d, Conv2d, MaxPool2d
from tilewright.nn.layers import Flatten, Linear, ReLU
from tilewright.nn.module import Module, Sequential
from tilewright.nn.transformer import ViT, ViTConfig
from tilewright.tensor import random
from tilewright.tensor.core import Tensor
from tilewright.train.recipes.export import export_module
from tilewright.train.recipes.images import ImageOptions, affine, mean_over, train_on_images

__all__ = ["MEAN", "STD", "make_cnn", "make_vit", "mnist_options", "prepare", "run_mnist"]

MEAN: Final = 0.1307
STD: Final = 0.3081
"""Of MNIST's pixels, 0 to 1."""


def make_cnn(width: int = 16) -> Module:
    """Four 3 x 3 convolutions, each with batch normalisation, and a linear layer.

    Images (N, 1, 28, 28) -> logits (N, 10). ``width``: channels of the first convolution.
    """

    def block(channels_in: int, channels_out: int) -> list[Module]:
        conv = Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        return [conv, BatchNorm2d(channels_out), ReLU()]

    return Sequential(
        *block(1, width),
        MaxPool2d(2),
        *block(width, 2 * width),
        *block(2 * width, 2 * width),
        MaxPool2d(2),
        *block(2 * width, 4 * width),
        MaxPool2d(2),
        Flatten(),
        Linear(4 * width * 9, 10),
    )


def make_vit(layers: int = 4, heads: int = 4, width: int = 64) -> ViT:
    """A vision transformer on patches of 4 x 4 pixels."""
    return ViT(
        ViTConfig(
            image_size=28,
            patch_size=4,
            n_layer=layers,
            n_head=heads,
            n_embd=width,
            hidden=2 * width,
        )
    )


def mnist_options(model: str) -> ImageOptions:
    """What suits ``cnn`` and ``vit``: some two minutes on two cores each."""
    if model not in ("cnn", "vit"):
        raise ValueError(f"model is cnn or vit, got {model!r}")
    if model == "vit":
        return ImageOptions(batch=50, epochs=20, lr=2e-3, clip=1.0)
    return ImageOptions(batch=100, epochs=8, lr=3e-3, clip=1.0)


def prepare(images: np.ndarray) -> np.ndarray:
    """uint8 (n, 28, 28), or floats of 0 to 255 -> float32 (n, 1, 28, 28) of mean 0, deviation 1."""
    scaled = (images.astype(np.float32) * np.float32(1 / 255) - np.float32(MEAN)) / np.float32(STD)
    return scaled[:, None]


def _changed(batch: Any, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    images, labels = batch
    return prepare(affine(images.astype(np.float32), rng)), labels


def _loss(module: Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(module(images), labels)


def _measure(module: Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    logits = module(images).astype("f32")
    right = (logits.argmax(-1) == labels).astype("f32").mean()
    return {"test_loss": F.cross_entropy(logits, labels), "test_accuracy": right}


def run_mnist(
    data: str | os.PathLike[str],
    options: ImageOptions,
    folder: str,
    *,
    model: str = "cnn",
    resume: bool = False,
    quiet: bool = False,
    describe: Mapping[str, Any] | None = None,
    width: int | None = None,
) -> tuple[Module, dict[str, float]]:
    """Train on the folder's training images, measure on its test images, export.

    Returns the module and the last ``loss``, ``test_loss`` and ``test_accuracy``. No decision is
    made by the test images: what is exported are the last weights.
    """
    mnist_options(model)  # says what is wrong with the name
    train, test = load_mnist(data)
    random.seed(options.seed)
    sizes = {} if width is None else {"width": width}
    module = make_cnn(**sizes) if model == "cnn" else make_vit(**sizes)

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(test), 500):
            part = slice(start, start + 500)
            yield prepare(test.images[part]), test.labels[part]

    results = train_on_images(
        module,
        _loss,
        (train.images, train.labels),
        _changed,
        options,
        folder,
        evaluate=mean_over(_measure, batches),
        resume=resume,
        quiet=quiet,
        describe=describe,
    )
    config: dict[str, Any] = {"model": model, "mean": MEAN, "std": STD, "classes": 10}
    config |= asdict(module.config) if isinstance(module, ViT) else {"width": width or 16}
    export_module(module, folder, config)
    return module, results

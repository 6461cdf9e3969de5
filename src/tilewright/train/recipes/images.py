"""What recipes on images share: data, small random changes, the run itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from tilewright.data.images import ImageFolder, read_image
from tilewright.data.loader import Batches
from tilewright.data.mnist import load_mnist
from tilewright.dtypes import bf16
from tilewright.errors import FormatError, TrainingError
from tilewright.nn.module import Module
from tilewright.nn.precision import autocast
from tilewright.optim import AdamW, clip_grad_norm, schedules
from tilewright.tensor.compiled import compile
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import asarray
from tilewright.tensor.modes import no_grad
from tilewright.train.loop import RunOptions, Trainer

__all__ = ["ImageOptions", "Images", "affine", "mean_over", "read_images", "train_on_images"]

_ENDINGS: Final = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True)
class Images:
    """Images to learn from, and others to measure by.

    Attributes:
        train, test: uint8 (n, height, width, channels).
    """

    train: np.ndarray = field(repr=False)
    test: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class ImageOptions:
    """How a model of images is trained: AdamW with one cycle of the learning rate.

    Attributes:
        batch: images of a batch (and a step).
        epochs: how often each image is seen.
        lr: the highest learning rate.
        weight_decay: of matrices and kernels.
        clip: the most that the norm of the gradients may be; 0: no limit.
        precision: ``"f32"``, or ``"bf16"`` for products and convolutions.
        seed: of initial weights, the order of images and changes to them.
    """

    batch: int = 100
    epochs: int = 12
    lr: float = 3e-3
    weight_decay: float = 0.01
    clip: float = 0.0
    precision: str = "f32"
    checkpoint_every: int = 0
    seed: int = 1337

    def __post_init__(self) -> None:
        if self.precision not in ("f32", "bf16"):
            raise ValueError(f"precision is f32 or bf16, got {self.precision!r}")
        if self.batch < 1 or self.epochs < 1:
            raise ValueError(f"batch {self.batch} and epochs {self.epochs} are 1 at least")


def read_images(path: str | os.PathLike[str], size: int) -> Images:
    """MNIST, or all images in a folder (or in folders inside it), fitted to ``size`` squared.

    Of images the last tenth, one at least, is for measuring.

    Raises:
        FormatError: nothing of that kind, or a damaged file; UnsupportedError: Pillow is missing.
        TrainingError: a single image.
    """
    folder = os.fspath(path)
    names = sorted(os.listdir(folder))
    if any(n.startswith(("train", "t10k")) and n.endswith((".npz", "ubyte", ".gz")) for n in names):
        train, test = load_mnist(folder)
        return Images(train.images[..., None], test.images[..., None])
    files = [os.path.join(folder, n) for n in names if n.lower().endswith(_ENDINGS)]
    if files:
        pixels = np.stack([read_image(file, size=(size, size)) for file in files])
    elif any(os.path.isdir(os.path.join(folder, name)) for name in names):
        inside = ImageFolder(folder, size=(size, size))
        order = np.random.Generator(np.random.Philox(0)).permutation(len(inside))
        pixels = inside.images[order]  # or the last tenth would be of one class
    else:
        raise FormatError("holds neither MNIST nor images", path=folder)
    held = max(len(pixels) // 10, 1)
    if len(pixels) <= held:
        raise TrainingError(f"{folder}: one image is not enough to learn from and to measure by")
    return Images(pixels[:-held], pixels[-held:])


def affine(
    images: np.ndarray,
    rng: np.random.Generator,
    *,
    turn: float = 12.0,
    shift: float = 2.0,
    scale: float = 0.1,
) -> np.ndarray:
    """Each image turned, moved and scaled a little, at random.

    images: float32 (n, height, width), zeros around; result: new, bilinearly sampled. ``turn`` in
    degrees, ``shift`` in pixels, ``scale`` relative: the most of each, uniformly drawn.
    """
    n, height, width = images.shape
    angle = np.deg2rad(rng.uniform(-turn, turn, n))
    factor = 1 / rng.uniform(1 - scale, 1 + scale, n)
    move = rng.uniform(-shift, shift, (n, 2))
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    y, x = y.ravel() - (height - 1) / 2, x.ravel() - (width - 1) / 2
    cos, sin = (np.cos(angle) * factor)[:, None], (np.sin(angle) * factor)[:, None]
    from_y = (cos * y - sin * x + move[:, :1] + (height - 1) / 2).astype(np.float32)
    from_x = (sin * y + cos * x + move[:, 1:] + (width - 1) / 2).astype(np.float32)
    padded = np.zeros((n, height + 4, width + 4), np.float32)
    padded[:, 2:-2, 2:-2] = images
    from_y = np.clip(from_y + 2, 0, height + 2)
    from_x = np.clip(from_x + 2, 0, width + 2)
    top, left = from_y.astype(np.int64), from_x.astype(np.int64)
    down, right = from_y - top.astype(np.float32), from_x - left.astype(np.float32)
    flat = padded.reshape(n, -1)
    at = top * (width + 4) + left
    found = [np.take_along_axis(flat, at + step, 1) for step in (0, 1, width + 4, width + 5)]
    upper = found[0] + (found[1] - found[0]) * right
    lower = found[2] + (found[3] - found[2]) * right
    return (upper + (lower - upper) * down).reshape(images.shape)


def mean_over(
    measure: Callable[..., Mapping[str, Tensor]],
    batches: Callable[[], Iterator[tuple[np.ndarray, ...]]],
) -> Callable[[Module], Mapping[str, float]]:
    """A function that gives the means of what ``measure(module, *batch)`` says of batches.

    Batches count by their size.
    """
    compiled: dict[int, Callable[..., Mapping[str, Tensor]]] = {}

    def evaluate(module: Module) -> Mapping[str, float]:
        if id(module) not in compiled:
            compiled[id(module)] = compile(lambda *batch: measure(module, *batch))
        sums: dict[str, float] = {}
        count = 0
        with no_grad():
            for batch in batches():
                count += len(batch[0])
                for key, value in compiled[id(module)](*map(asarray, batch)).items():
                    sums[key] = sums.get(key, 0.0) + float(value.item()) * len(batch[0])
        return {key: value / count for key, value in sums.items()}

    return evaluate


def train_on_images(
    module: Module,
    loss: Callable[..., Tensor],
    arrays: tuple[np.ndarray, ...],
    transform: Callable[[Any, np.random.Generator], Any],
    options: ImageOptions,
    folder: str | None,
    *,
    evaluate: Callable[[Module], Mapping[str, float]],
    resume: bool = False,
    quiet: bool = False,
    describe: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Train for some epochs, measuring after each; returns the last figures.

    Ctrl-C raises `KeyboardInterrupt` once the step is finished and a checkpoint saved.
    """

    def computed(module: Module, *batch: Tensor) -> Tensor:
        computing: AbstractContextManager[None] = nullcontext()
        if options.precision == "bf16":
            computing = autocast(bf16)
        with computing:
            return loss(module, *batch)

    batch = min(options.batch, len(arrays[0]))
    loader = Batches(arrays, batch, seed=options.seed, transform=transform)
    per_epoch = loader.batches_per_epoch
    steps = per_epoch * options.epochs
    optimizer = AdamW(
        list(module.named_parameters()),
        lr=options.lr,
        weight_decay=options.weight_decay,
        decay_vectors=False,
    )
    trainer = Trainer(
        module,
        optimizer,
        computed,
        loader,
        RunOptions(
            folder,
            steps,
            evaluate_every=per_epoch,
            checkpoint_every=options.checkpoint_every or per_epoch,
            keep=2,
            resume=resume,
            quiet=quiet,
            counts="images",
        ),
        schedule=schedules.one_cycle(options.lr, steps),
        clip=(lambda params: clip_grad_norm(params, options.clip)) if options.clip else None,
        evaluate=evaluate,
        describe=describe,
        tokens=lambda batch: len(batch[0]),
    )
    results = trainer.fit()
    if trainer.interrupted:
        raise KeyboardInterrupt
    return results

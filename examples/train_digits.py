"""A small convolutional network on digits: batches, batch normalisation, accuracy.

python examples/train_digits.py [FOLDER WITH MNIST]

Without a folder it draws its own digits, seven segments in noise. The whole recipe, with changes
to the images, checkpoints and a loss curve, is ``tilewright train mnist``.
"""

from __future__ import annotations

import sys

import numpy as np

import tilewright
from tilewright import nn, optim
from tilewright.data import Batches, load_mnist
from tilewright.nn import functional as F

#           (rows, columns) of the seven segments, and the segments of each digit
SEGMENTS = [(4, 9, 4, 19), (4, 9, 14, 9), (4, 19, 14, 19), (14, 9, 14, 19)]
SEGMENTS += [(14, 9, 24, 9), (14, 19, 24, 19), (24, 9, 24, 19)]
DIGITS = ["012456", "25", "02346", "02356", "1235", "01356", "013456", "025", "0123456", "012356"]


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Seven-segment digits, moved about, in noise: uint8 (n, 28, 28) and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count).astype(np.int32)
    images = rng.integers(0, 80, (count, 28, 28))
    for image, label in zip(images, labels):
        dy, dx = rng.integers(-3, 4, 2)
        for segment in DIGITS[label]:
            top, left, down, right = SEGMENTS[int(segment)]
            image[top + dy : down + dy + 2, left + dx : right + dx + 2] += 150
    return np.minimum(images, 255).astype(np.uint8), labels


def main(arguments: list[str]) -> None:
    """Two passes over the training images, then the test."""
    if arguments:
        train, test = ((part.images, part.labels) for part in load_mnist(arguments[0]))
    else:
        train, test = draw(1000, seed=1), draw(200, seed=2)

    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * 9, 10),
    )
    optimizer = optim.AdamW(model.named_parameters(), lr=1e-2)

    def tensor(images: np.ndarray) -> tilewright.Tensor:
        return tilewright.asarray(images[:, None].astype(np.float32) / 255)

    @tilewright.compile
    def step(images: tilewright.Tensor, labels: tilewright.Tensor) -> tilewright.Tensor:
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    batches = Batches(train, 50, seed=1, epochs=2)
    for number, (images, labels) in enumerate(batches, 1):
        loss = step(tensor(images), tilewright.asarray(labels))
        if number % 10 == 0:
            print(f"step {number}: loss {loss.item():.3f}")

    model.eval()
    with tilewright.no_grad():
        answers = [
            model(tensor(test[0][i : i + 100])).argmax(-1).numpy()
            for i in range(0, len(test[0]), 100)
        ]
    print(f"{(np.concatenate(answers) == test[1]).mean():.1%} of the test images are right")


if __name__ == "__main__":
    main(sys.argv[1:])

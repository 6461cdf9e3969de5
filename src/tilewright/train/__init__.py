"""Training runs: the loop, checkpoints, records, progress, curves; recipes are made of them."""

from __future__ import annotations

from tilewright.train.checkpoint import (
    Checkpoint,
    Checkpoints,
    best_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from tilewright.train.loop import RunOptions, Trainer
from tilewright.train.plot import plot_record
from tilewright.train.progress import Progress
from tilewright.train.record import Record, read_record

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "Progress",
    "Record",
    "RunOptions",
    "Trainer",
    "best_checkpoint",
    "latest_checkpoint",
    "list_checkpoints",
    "load_checkpoint",
    "plot_record",
    "read_record",
    "save_checkpoint",
]

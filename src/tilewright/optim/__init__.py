"""Optimisers and what goes with them."""

from tilewright.optim import schedules
from tilewright.optim.averages import EMA
from tilewright.optim.gradients import (
    LossScaler,
    accumulate,
    clip_grad_norm,
    clip_grad_value,
    grad_norm,
)
from tilewright.optim.muon import Muon
from tilewright.optim.optimizer import Optimizer
from tilewright.optim.rules import SGD, Adafactor, Adagrad, Adam, AdamW, Lion, SparseAdam

__all__ = [
    "EMA",
    "SGD",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Lion",
    "LossScaler",
    "Muon",
    "Optimizer",
    "SparseAdam",
    "accumulate",
    "clip_grad_norm",
    "clip_grad_value",
    "grad_norm",
    "schedules",
]

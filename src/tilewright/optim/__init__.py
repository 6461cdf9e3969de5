"""Optimisers and what goes with them."""

from tilewright.optim.optimizer import Optimizer
from tilewright.optim.rules import SGD, Adam, AdamW, Lion

__all__ = ["SGD", "Adam", "AdamW", "Lion", "Optimizer"]

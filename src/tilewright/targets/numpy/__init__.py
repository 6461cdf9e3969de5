"""The interpreter as a target: slow, and the definition of what a kernel means."""

from tilewright.targets.numpy.target import NumPyExecutable, NumPyTarget

__all__ = ["NumPyExecutable", "NumPyTarget"]

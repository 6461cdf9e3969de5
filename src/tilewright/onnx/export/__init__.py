"""tilewright's own graphs as ONNX models. See :func:`save`."""

from tilewright.onnx.export.model import save

__all__ = ["save"]

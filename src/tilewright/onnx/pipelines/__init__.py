"""What is around models: images in, classes, boxes and larger images out."""

from tilewright.onnx.pipelines.images import NORMALISATIONS, Preprocess

__all__ = ["NORMALISATIONS", "Preprocess"]

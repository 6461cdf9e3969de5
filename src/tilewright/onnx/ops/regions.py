"""Regions of images, positions between pixels, boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.errors import FormatError, ShapeError, UnsupportedError
from tilewright.onnx.ops.convolution import Ints, each, pad_pairs
from tilewright.onnx.registry import op
from tilewright.ops import roi, sampling
from tilewright.ops.boxes import non_max_suppression as suppression
from tilewright.tensor.core import Tensor, apply


@op("RoiAlign", since=16)
def roi_align(
    x: Tensor,
    rois: Tensor,
    batch: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """Regions of x (N, C, H, W) in one size, interpolated linearly."""
    if coordinate_transformation_mode not in ("half_pixel", "output_half_pixel"):
        raise UnsupportedError(
            "coordinate_transformation_mode is half_pixel or output_half_pixel, got "
            f"{coordinate_transformation_mode!r}"
        )
    return apply(
        roi.roi_align,
        x,
        rois,
        batch,
        out=(output_height, output_width),
        sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
        mode=mode,
        half_pixel=coordinate_transformation_mode == "half_pixel",
    )


@op("RoiAlign", since=10)
def roi_align_10(
    x: Tensor,
    rois: Tensor,
    batch: Tensor,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """Before version 16 pixels had their centres at whole numbers."""
    return roi_align(
        x,
        rois,
        batch,
        coordinate_transformation_mode="output_half_pixel",
        mode=mode,
        output_height=output_height,
        output_width=output_width,
        sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )


@op("MaxRoiPool")
def max_roi_pool(
    x: Tensor, rois: Tensor, *, pooled_shape: tuple[int, ...], spatial_scale: float = 1.0
) -> Tensor:
    """The largest values in the bins of regions."""
    return apply(roi.max_roi_pool, x, rois, out=tuple(pooled_shape), spatial_scale=spatial_scale)


_MODES = {"bilinear": "linear", "bicubic": "cubic"}


@op("GridSample", since=16)
def grid_sample(
    x: Tensor,
    grid: Tensor,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> Tensor:
    """x at the positions of a grid (before version 20 the modes had other names)."""
    return apply(
        sampling.grid_sample,
        x,
        grid,
        mode=_MODES.get(mode, mode),
        padding_mode=padding_mode,
        align_corners=bool(align_corners),
    )


@op("AffineGrid", since=20, host=(1,))
def affine_grid(theta: Tensor, size: np.ndarray, *, align_corners: int = 0) -> Tensor:
    """Positions for GridSample: theta (N, 2, 3) or (N, 3, 4) of those of an image of ``size``."""
    sizes = [int(n) for n in size[2:]]
    rank = len(sizes)
    if rank not in (2, 3) or tuple(theta.shape[1:]) != (rank, rank + 1):
        raise ShapeError(
            f"theta (N, 2, 3) with 4 sizes or (N, 3, 4) with 5, got {theta.shape} and {list(size)}"
        )
    lines = []
    for n in sizes:
        at = np.arange(n, dtype=np.float64)
        if align_corners:
            lines.append(at * 2 / max(n - 1, 1) - 1 if n > 1 else at * 0)
        else:
            lines.append((2 * at + 1) / n - 1)
    places = np.meshgrid(*lines, indexing="ij")[::-1]  # the last axis comes first
    base = np.stack([*places, np.ones(sizes)], -1).reshape(-1, rank + 1)
    table = Tensor(base.astype(theta.dtype.storage))
    return (table @ theta.mT).reshape((theta.shape[0], *sizes, rank))


@op("DeformConv", since=19)
def deform_conv(
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    offset_group: int = 1,
    pads: Ints = None,
    strides: Ints = None,
) -> Tensor:
    """A convolution whose taps are moved by ``offset``."""
    steps, gaps = each(strides, 2, "strides"), each(dilations, 2, "dilations")
    node = sampling.deform_conv(
        x.node,
        w.node,
        offset.node,
        None if b is None else b.node,
        None if mask is None else mask.node,
        steps,
        pad_pairs("NOTSET", pads, x.shape[2:], w.shape[2:], steps, gaps),
        gaps,
        group,
        offset_group,
    )
    return Tensor(node)


# --- boxes ---------------------------------------------------------------------------------------


@op("NonMaxSuppression", since=10, boundary=True)
def non_max_suppression(
    boxes: np.ndarray,
    scores: np.ndarray,
    most: np.ndarray | None = None,
    iou_threshold: np.ndarray | None = None,
    score_threshold: np.ndarray | None = None,
    *,
    center_point_box: int = 0,
) -> np.ndarray:
    """(image, class, box) of the boxes that are kept, by descending score.

    boxes (N, B, 4), scores (N, classes, B). A box goes when one with a better score (the first of
    equal ones) covers it by more than the threshold.
    """
    if boxes.ndim != 3 or scores.ndim != 3 or boxes.shape[1] != scores.shape[2]:
        raise ShapeError(f"boxes (N, B, 4), scores (N, classes, B): {boxes.shape}, {scores.shape}")
    limit = 0 if most is None else int(most.reshape(-1)[0])
    iou = 0.0 if iou_threshold is None else float(iou_threshold.reshape(-1)[0])
    if not 0 <= iou <= 1:
        raise ShapeError(f"iou_threshold is from 0 to 1, got {iou}")
    least = None if score_threshold is None else float(score_threshold.reshape(-1)[0])
    return suppression(boxes, scores, limit, iou, least, bool(center_point_box))


@op("ImageDecoder", since=20, boundary=True)
def image_decoder(data: np.ndarray, *, pixel_format: str = "RGB") -> np.ndarray:
    """An encoded image (bytes) as (H, W, channels) of bytes, decoded by pillow."""
    import io

    try:
        import PIL.Image
    except ImportError:
        raise UnsupportedError("ImageDecoder wants pillow: pip install pillow") from None
    if pixel_format not in ("RGB", "BGR", "Grayscale"):
        raise UnsupportedError(f"pixel_format is RGB, BGR or Grayscale, got {pixel_format!r}")
    try:
        image: Any = PIL.Image.open(io.BytesIO(data.tobytes()))
        pixels = np.asarray(image.convert("L" if pixel_format == "Grayscale" else "RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise FormatError(f"cannot decode the image: {error}") from error
    if pixel_format == "Grayscale":
        return np.ascontiguousarray(pixels[..., None])
    return np.ascontiguousarray(pixels[..., ::-1] if pixel_format == "BGR" else pixels)

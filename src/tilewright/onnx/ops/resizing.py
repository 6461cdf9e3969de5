"""Images and other arrays in other sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.onnx.registry import op
from tilewright.ops import resize as resizing
from tilewright.tensor.core import Tensor, apply


def _numbers(values: np.ndarray | None) -> list[Any] | None:
    return None if values is None or values.size == 0 else values.tolist()


@op("Resize", since=18, host=(1, 2, 3))
def resize(
    x: Tensor,
    roi: np.ndarray | None = None,
    scales: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
    *,
    antialias: int = 0,
    axes: tuple[int, ...] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """x in another size; the attributes are those of :func:`tilewright.ops.resize.resize`."""
    return apply(
        resizing.resize,
        x,
        scales=_numbers(scales),
        sizes=_numbers(sizes),
        axes=axes,
        mode=mode,
        coordinate_transformation_mode=coordinate_transformation_mode,
        nearest_mode=nearest_mode,
        cubic_coeff_a=cubic_coeff_a,
        exclude_outside=bool(exclude_outside),
        antialias=bool(antialias),
        extrapolation_value=extrapolation_value,
        roi=_numbers(roi),
        keep_aspect_ratio_policy=keep_aspect_ratio_policy,
    )


@op("Resize", since=11, host=(1, 2, 3))
def resize_11(
    x: Tensor,
    roi: np.ndarray | None = None,
    scales: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """Before version 18 all axes were meant; sizes win where both are given."""
    return resize(
        x,
        roi,
        None if sizes is not None and sizes.size else scales,
        sizes,
        coordinate_transformation_mode=coordinate_transformation_mode,
        cubic_coeff_a=cubic_coeff_a,
        exclude_outside=exclude_outside,
        extrapolation_value=extrapolation_value,
        mode=mode,
        nearest_mode=nearest_mode,
    )


def _scaled(x: Tensor, scales: Sequence[float], mode: str) -> Tensor:
    """What Upsample and Resize were before version 11: coordinates by division.

    Nearest neighbours are rounded down where an axis grows, up where it shrinks.
    """
    if len(scales) != x.ndim:
        raise ShapeError(f"{x.ndim} axes want {x.ndim} scales, got {list(scales)}")
    if mode in ("bilinear", "trilinear"):
        mode = "linear"

    def build(node: Node) -> Node:
        for rule in ("floor", "ceil"):
            axes = [i for i, s in enumerate(scales) if s != 1 and (s < 1) == (rule == "ceil")]
            if axes:
                node = resizing.resize(
                    node,
                    [float(scales[i]) for i in axes],
                    axes=axes,
                    mode=mode,
                    coordinate_transformation_mode="asymmetric",
                    nearest_mode=rule,
                )
        return node

    return apply(build, x)


@op("Resize", since=10, host=(1,))
def resize_10(x: Tensor, scales: np.ndarray, *, mode: str = "nearest") -> Tensor:
    """Version 10 had scales alone."""
    return _scaled(x, scales.tolist(), mode)


@op("Upsample", since=9, host=(1,))
def upsample(x: Tensor, scales: np.ndarray, *, mode: str = "nearest") -> Tensor:
    """Resize of old."""
    return _scaled(x, scales.tolist(), mode)


@op("Upsample", since=7)
def upsample_7(x: Tensor, *, scales: tuple[float, ...], mode: str = "nearest") -> Tensor:
    """Before version 9 the scales were an attribute."""
    return _scaled(x, scales, mode)


@op("Upsample", since=1)
def upsample_1(
    x: Tensor, *, height_scale: float, width_scale: float, mode: str = "nearest"
) -> Tensor:
    """Before version 7 there were two scales."""
    return _scaled(x, (1.0, 1.0, height_scale, width_scale), mode)

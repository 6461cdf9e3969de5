"""Operators of neural networks against the standard's own cases, and what those leave out."""

from __future__ import annotations

import re

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.onnx.cases import node_cases, operators_of, run_case  # noqa: E402
from tests.onnx.oracle import agree, ours, single  # noqa: E402

# One or two cases for each path; `python -m tests.onnx.cases --ops Conv,...` runs them all.
CHOSEN = {
    "Conv": "basic_conv_with_padding|conv_with_autopad_same|conv_with_strides_and_asym",
    "ConvTranspose": "convtranspose$|_1d|autopad_same|dilations|group_2$|output_shape|pads",
    "Col2Im": "col2im$|5d|dilations",
    "MaxPool": "1d|2d_ceil$|same_lower|uint8|with_argmax|3d_dilations$",
    "AveragePool": "1d|ceil|same_upper|count_include_pad|3d_dil.*is_0_ceil_mode_is_True",
    "LpPool": "1d|2d_dilations|2d_same_upper",
    "GlobalAveragePool": "globalaveragepool$",
    "GlobalMaxPool": "globalmaxpool$",
    "MaxUnpool": "",
    "BatchNormalization": "example",
    "InstanceNormalization": "example",
    "GroupNormalization": "example",
    "LayerNormalization": "2d_axis0|4d_axis_negative_3|default",
    "RMSNormalization": "3d_axis1|default",
    "LRN": "default",
    "LpNormalization": "",
    "MeanVarianceNormalization": "",
    "Resize": "crop_and_resize$|cubic$|_antialias|not_larger|symmetric|axes_2_3|nearest",
    "Upsample": "",
    "If": "",
    "Loop": "",
    "Scan": "",
    "RoiAlign": "",
    "MaxRoiPool": "",
    "GridSample": "border|bicubic$|nearest_align|volumetric_bilinear",
    "AffineGrid": "",
    "DeformConv": "basic|multiple_offset",
    "NonMaxSuppression": "center_point|two_batches|limit",
    "ImageDecoder": "png_rgb|jpeg_bgr|bmp_grayscale|png_grayscale",
    "NegativeLogLikelihoodLoss": "NC$|NCd1d2_with_weight_reduction_mean$|d1_mean_weight_neg",
    "SoftmaxCrossEntropyLoss": "mean_weight$|none_log_prob$|d1_mean_weight_negative_ii_log_prob",
    "DFT": "dft$|dft_axis|irfft|rfft",
    "STFT": "",
    "HannWindow": "",
    "HammingWindow": "",
    "BlackmanWindow": "",
    "MelWeightMatrix": "",
    "Gradient": "",
    "Adagrad": "",
    "Adam": "",
    "Momentum": "",
}


def _chosen():
    for name, case in node_cases().items():
        if name.endswith("_expanded") or "_expanded_" in name:
            continue
        for op in operators_of(case) & CHOSEN.keys():
            if re.search(CHOSEN[op], name):
                yield name
                break


@pytest.mark.parametrize("name", list(_chosen()))
def test_cases_of_the_standard(name):
    run_case(node_cases()[name])


# old versions, and settings that no case has, beside onnxruntime


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
def test_batch_normalization_by_statistics(opset):
    x = normal(2, 3, 4, 5)
    s, b, m = normal(3, 3, seed=1)
    v = np.abs(normal(3, seed=2))
    feeds = {"x": x, "s": s, "b": b, "m": m, "v": v}
    agree("BatchNormalization", feeds, opset=opset, epsilon=1e-3)


def test_batch_normalization_of_old():
    x = normal(4, 3, 5)
    s, b, m = normal(3, 3, seed=1)
    v = np.abs(normal(3, seed=2))
    feeds = {"x": x, "s": s, "b": b, "m": m, "v": v}
    outs = ["y", "mean", "var", "saved_mean", "saved_var"]
    got = ours(single("BatchNormalization", feeds, outs, opset=6, momentum=0.75), feeds)
    mean, var = x.mean((0, 2)), x.var((0, 2))
    want = (x - mean[:, None]) / np.sqrt(var + 1e-5)[:, None] * s[:, None] + b[:, None]
    np.testing.assert_allclose(got["y"], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["mean"], 0.75 * m + 0.25 * mean, rtol=1e-5)
    np.testing.assert_allclose(got["saved_var"], var, rtol=1e-5)
    each = {k: normal(3, 5, seed=i) for i, k in enumerate("sbm")} | {"v": np.abs(normal(3, 5))}
    got = ours(single("BatchNormalization", {"x": x, **each}, opset=7, spatial=0), {"x": x, **each})
    want = (x - each["m"]) / np.sqrt(each["v"] + 1e-5) * each["s"] + each["b"]
    np.testing.assert_allclose(got["y"], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(1, 1, 2, 3), (1, 1, 0.6, 0.5), (1, 1, 1.7, 0.8)])
def test_resize_before_version_11(mode, scales):
    x = normal(1, 2, 5, 7)
    constants = {"scales": np.array(scales, np.float32)}
    agree("Resize", {"x": x}, opset=10, mode=mode, constants=constants)
    if min(scales) >= 1:
        agree("Upsample", {"x": x}, opset=9, mode=mode, constants=constants)
        agree("Upsample", {"x": x}, opset=7, mode=mode, scales=[float(s) for s in scales])


@pytest.mark.parametrize("rule", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("coordinates", ["asymmetric", "half_pixel"])
def test_nearest_neighbours_of_uneven_scales(rule, coordinates):
    """Positions are f32: 17 / 1.7 is ten."""
    x = normal(1, 1, 30, 33)
    for scale in (1.7, 0.6, 2.3, 1.1):
        constants = {"r": np.zeros(0, np.float32), "s": np.array([1, 1, scale, scale], np.float32)}
        more = {"coordinate_transformation_mode": coordinates, "nearest_mode": rule}
        agree("Resize", {"x": x}, opset=13, constants=constants, rtol=0, atol=0, **more)


def test_max_pool_places():
    x = normal(2, 3, 7, 6)
    for more in ({}, {"storage_order": 1}, {"pads": [1, 0, 1, 1]}, {"dilations": [2, 1]}):
        settings = {"kernel_shape": [3, 2], "strides": [2, 1], "opset": 12, **more}
        agree("MaxPool", {"x": x}, ["y", "places"], **settings)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
def test_auto_pad(auto_pad):
    x, w = normal(1, 2, 9, 8), normal(4, 2, 3, 2, seed=1)
    settings = {"auto_pad": auto_pad, "strides": [2, 3], "opset": 11}
    agree("Conv", {"x": x, "w": w}, rtol=1e-4, atol=1e-5, **settings)
    for pool in ("MaxPool", "AveragePool", "LpPool"):
        agree(pool, {"x": x}, kernel_shape=[3, 2], rtol=1e-4, **settings)
    w = normal(2, 4, 3, 4, seed=1)
    for more in ({}, {"output_shape": [19, 25]}):
        if auto_pad != "VALID" or not more:
            agree("ConvTranspose", {"x": x, "w": w}, rtol=1e-4, atol=1e-5, **settings, **more)


@pytest.mark.parametrize("center", [0, 1])
def test_non_max_suppression(center):
    rng = np.random.default_rng(center)
    boxes = rng.random((2, 60, 4), np.float32)
    boxes[0, 3] = boxes[0, 4]
    scores = np.round(rng.random((2, 3, 60)), 1).astype(np.float32)
    feeds = {"boxes": boxes, "scores": scores}
    for most, iou, score in ((10, 0.3, None), (100, 0.1, 0.35), (0, 0.5, None), (3, None, None)):
        more = {
            "most": np.array([most], np.int64),
            "iou": None if iou is None else np.array([iou], np.float32),
            "score": None if score is None else np.array([score], np.float32),
        }
        agree("NonMaxSuppression", {**feeds, **more}, center_point_box=center)


def test_fourier_transforms():
    x = normal(2, 40, 3, 1)
    agree("DFT", {"x": x}, axis=1, atol=1e-4)
    agree("DFT", {"x": x}, axis=1, onesided=1, atol=1e-4)
    x = normal(2, 300, 1)
    feeds = {"x": x, "step": np.array(20), "w": normal(50, seed=3)}
    agree("STFT", feeds, atol=1e-4)

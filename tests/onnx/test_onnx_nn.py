"""Operators of neural networks against the standard's own cases, and what those leave out."""

from __future__ import annotations

import re

import pytest

onnx = pytest.importorskip("onnx")

from tests.onnx.cases import node_cases, operators_of, run_case  # noqa: E402

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
    "If": "test_if$",
    "Scan": "sum",
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

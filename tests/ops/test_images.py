"""Composed ops of image networks against PyTorch and ONNX's definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.ops.gradcheck import check_gradient, compiled, data

from tilewright.dtypes import i64
from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.ops import images
from tilewright.ops.pool import avg_pool, max_pool

X = np.random.default_rng(0).standard_normal((2, 12, 6, 9), np.float32)


def value(node: Node) -> np.ndarray:
    return compiled([node])[0]


def onnx(op: str, *arrays: np.ndarray, opset: int = 22, **attrs: Any) -> np.ndarray:
    helper = pytest.importorskip("onnx.helper")
    from onnx.reference import ReferenceEvaluator

    names = [f"x{i}" for i in range(len(arrays))]
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, arrays)
    ]
    node = helper.make_node(op, names, ["y"], **attrs)
    out = helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph([node], "g", infos, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return ReferenceEvaluator(model).run(None, dict(zip(names, arrays)))[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    want = onnx("DepthToSpace", X, blocksize=2, mode=mode)
    np.testing.assert_array_equal(value(images.depth_to_space(data(X), 2, mode)), want)


def test_space_to_depth() -> None:
    want = onnx("SpaceToDepth", X, blocksize=3)
    np.testing.assert_array_equal(value(images.space_to_depth(data(X), 3)), want)
    back = images.depth_to_space(images.space_to_depth(data(X), 3), 3)
    np.testing.assert_array_equal(value(back), X)


def test_shuffle_channels() -> None:
    torch = pytest.importorskip("torch")
    want = torch.nn.functional.channel_shuffle(torch.from_numpy(X), 4).numpy()
    np.testing.assert_array_equal(value(images.shuffle_channels(data(X), 4)), want)


@pytest.mark.parametrize(
    ("p", "settings"),
    [
        (1, {"kernel_shape": [2, 3]}),
        (2, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 2]}),
        (3, {"kernel_shape": [2, 2], "dilations": [2, 2]}),
    ],
)
def test_lp_pool(p: int, settings: dict[str, Any]) -> None:
    want = onnx("LpPool", X, p=p, **settings)
    pads = settings.get("pads", [0] * 4)
    got = images.lp_pool(
        data(X),
        settings["kernel_shape"],
        settings.get("strides", 1),
        list(zip(pads[:2], pads[2:])),
        settings.get("dilations", 1),
        p=p,
    )
    np.testing.assert_allclose(value(got), want, 2e-5, 2e-6)


def test_lp_pool_sums_what_a_last_window_sees() -> None:
    got = value(images.lp_pool(data(X), (3, 2), 2, ceil_mode=True))
    np.testing.assert_allclose(got[..., 2, 4], np.sqrt((X[..., 4:, 8] ** 2).sum(-1)), 1e-6)


def test_max_unpool() -> None:
    torch = pytest.importorskip("torch")
    x, size = torch.from_numpy(X), (6, 9)
    values, places = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
    want = torch.nn.functional.max_unpool2d(values, places, 2, output_size=size).numpy()
    ours, where = max_pool(data(X), 2, index_dtype=i64)
    np.testing.assert_array_equal(value(images.max_unpool(ours, where, size)), want)


def test_max_unpool_into_another_plane() -> None:
    x = np.arange(1, 9, dtype=np.float32).reshape(1, 2, 2, 2)
    flat = np.array([5, 7, 13, 15, 16 + 5, 16 + 7, 16 + 13, 16 + 15]).reshape(x.shape)
    want = onnx(
        "MaxUnpool", x, flat, np.array([1, 2, 5, 5]), kernel_shape=[2, 2], strides=[2, 2], opset=11
    )
    places = data(np.array([5, 7, 13, 15] * 2).reshape(x.shape))
    np.testing.assert_array_equal(value(images.max_unpool(data(x), places, (4, 4), (5, 5))), want)


@pytest.mark.parametrize("size", [1, 3, 4, 25])
def test_local_response_norm(size: int) -> None:
    x = np.random.default_rng(2).standard_normal((6, 6, 3, 4), np.float32)
    want = onnx("LRN", x, size=size, alpha=0.2, beta=0.6, bias=1.5)  # right for N = C only
    got = images.local_response_norm(data(x), size, 0.2, 0.6, 1.5)
    np.testing.assert_allclose(value(got), want, 2e-5, 1e-6)


def test_norms() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    w, b = rng.standard_normal((2, 12)).astype(np.float32)
    x, tw, tb = map(torch.from_numpy, (X, w, b))
    want = torch.nn.functional.group_norm(x, 3, tw, tb, 1e-3).numpy()
    got = images.group_norm(data(X), 3, data(w), data(b), 1e-3)
    np.testing.assert_allclose(value(got), want, 2e-5, 2e-6)
    want = torch.nn.functional.instance_norm(x, None, None, tw, tb).numpy()
    np.testing.assert_allclose(
        value(images.instance_norm(data(X), data(w), data(b))), want, 2e-5, 2e-6
    )
    want = onnx("GroupNormalization", X, w[:3], b[:3], num_groups=3, opset=18)
    got = images.group_norm(data(X), 3, data(w[:3]), data(b[:3]))
    np.testing.assert_allclose(value(got), want, 2e-5, 5e-6)


def test_divisor() -> None:
    torch = pytest.importorskip("torch")
    for settings in ({"padding": 1}, {"ceil_mode": True, "stride": 4}):
        want = torch.nn.functional.avg_pool2d(
            torch.from_numpy(X), 3, divisor_override=5, **settings
        ).numpy()
        got = avg_pool(
            data(X),
            3,
            settings.get("stride"),
            settings.get("padding", 0),
            1,
            settings.get("ceil_mode", False),
            divisor=5,
        )
        np.testing.assert_allclose(value(got), want, 1e-6, 1e-6)


GRADIENTS: list[Callable[[Node], Node]] = [
    lambda x: images.lp_pool(x, 2, p=3),
    lambda x: images.local_response_norm(x, 3),
    lambda x: images.depth_to_space(x, 2),
    lambda x: images.group_norm(x, 2),
    lambda x: avg_pool(x, 2, 2, 1, 1, True, divisor=3),
    lambda x: avg_pool(x, 2, 2, divisor=3),
]


@pytest.mark.parametrize("fn", GRADIENTS)
def test_gradients(fn: Callable[[Node], Node]) -> None:
    check_gradient(fn, np.random.default_rng(0).standard_normal((2, 4, 4, 5)) + 0.1)


def test_what_does_not_fit_is_refused() -> None:
    x = data(X)
    for call in (
        lambda: images.depth_to_space(x, 5),
        lambda: images.depth_to_space(x, 2, "RDC"),
        lambda: images.space_to_depth(x, 4),
        lambda: images.shuffle_channels(x, 5),
        lambda: images.lp_pool(x, 2, p=0),
        lambda: images.local_response_norm(x, 0),
        lambda: images.group_norm(x, 5),
        lambda: images.max_unpool(x, x, (3,)),
    ):
        with pytest.raises(ShapeError):
            call()

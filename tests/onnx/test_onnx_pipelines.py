"""Pictures through models: preparation beside transformers', boxes, tiles, and models of others."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tilewright.data import read_image
from tilewright.errors import FormatError, ShapeError, UnsupportedError

onnx = pytest.importorskip("onnx")
pytest.importorskip("ml_dtypes")
Image = pytest.importorskip("PIL.Image")
from tests.onnx.fuzz_models import Node, model  # noqa: E402

import tilewright.onnx  # noqa: E402
from tilewright.onnx.pipelines import images, vision  # noqa: E402
from tilewright.onnx.pipelines.images import Preprocess  # noqa: E402


def pixels(*shape, seed=0):
    """Something smooth, so that filters matter."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 8, 3)).astype(np.uint8))
    return np.asarray(small.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


# --- preparation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"size": {"height": 24, "width": 24}, "resample": 2, "do_normalize": True,
         "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5]},
        {"size": {"height": 20, "width": 28}, "resample": 3, "do_normalize": False},
    ],
)  # fmt: skip
def test_steps_are_those_of_transformers(tmp_path, config):
    transformers = pytest.importorskip("transformers")
    image = pixels(50, 70)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    try:
        processor = transformers.ViTImageProcessorPil(**config)
    except AttributeError:
        pytest.skip("this transformers has no processor on Pillow")
    want = processor(image, return_tensors="np")["pixel_values"]
    found = images.find_config(tmp_path / "model.onnx")
    got = images.read_config(found)(image)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_steps_of_timm(tmp_path):
    """Scale the shorter side to size / crop_pct, take the middle: worked out with Pillow alone."""
    config = {
        "input_size": [3, 32, 32], "crop_pct": 0.8, "interpolation": "bicubic",
        "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": config}))
    image = pixels(60, 90)
    steps = images.read_config(images.find_config(tmp_path / "m.onnx"))
    large = np.asarray(Image.fromarray(image).resize((60, 40), Image.Resampling.BICUBIC))
    want = (large[4:36, 14:46] / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(steps(image)[0].transpose(1, 2, 0), want, atol=1e-6)


def test_steps_fit_an_input():
    image = pixels(40, 60)
    for shape, want in (
        ((1, 3, 20, 20), (1, 3, 20, 20)),
        (("n", 20, 24, 3), (1, 20, 24, 3)),
        ((1, 1, 28, 28), (1, 1, 28, 28)),
        ((1, 16, 18), (1, 16, 18)),
        ((1, 3, "h", "w"), (1, 3, 40, 60)),
    ):
        steps = Preprocess().to_fit(shape, "float32")
        given = image[..., 0] if steps.channels == "L" else image
        assert steps(given).shape == want
    raw = Preprocess().to_fit((1, 40, 60, 3), "uint8")(image)
    np.testing.assert_array_equal(raw[0], image)
    blue_first = Preprocess(channels="BGR", scale=1.0)(image)
    np.testing.assert_array_equal(blue_first[0], image[..., ::-1].transpose(2, 0, 1))
    small = Preprocess(crop=(50, 50))(image)  # black around
    assert not small[0, :, :5].any()
    for bad in ((1, 5, 4, 4), (1, 2)):
        with pytest.raises(ShapeError):
            Preprocess().to_fit(bad, "float32")
    with pytest.raises(ShapeError, match="a mean of 3 channels"):
        Preprocess(mean=(1, 2, 3)).to_fit((1, 1, 4, 4), "float32")
    with pytest.raises(UnsupportedError, match="resample"):
        Preprocess(resample="magic")
    with pytest.raises(ShapeError, match="not zero"):
        Preprocess(std=(0.0,))
    with pytest.raises(ShapeError, match="pixels a side"):
        Preprocess(size=(1 << 20, 3))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"input_size": 3}', '{"size": {"height": "x", "width": 1}}', '{"size": []}',
     '{"size": 4, "resample": 99}', '{"input_size": [3, 4, 4], "crop_pct": 7}', "[" * 100000,
     '{"size": 8, "image_mean": {}}'],
)  # fmt: skip
def test_configurations_may_be_damaged(tmp_path, text):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(text)
    with pytest.raises((FormatError, UnsupportedError, ShapeError)):
        images.read_config(path)


def test_names_of_classes(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("0,tench, a fish\n1,goldfish\n\n")
    assert images.read_labels(path) == ["tench, a fish", "goldfish"]
    path.write_text("n01 tench, a fish\nn02 goldfish\n")
    assert images.read_labels(path) == ["n01 tench, a fish", "n02 goldfish"]
    (tmp_path / "config.json").write_text('{"id2label": {"1": "b", "0": "a"}}')
    assert images.find_labels(tmp_path / "m.onnx") == ["a", "b"]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="UTF-8"):
        images.read_labels(path)


# --- boxes ---------------------------------------------------------------------------------------


def detector(boxes, scores):
    """A model that always finds the same."""
    constants = {"b": np.array([boxes], np.float32), "s": np.array([scores], np.float32),
                 "zero": np.zeros((), np.float32)}  # fmt: skip
    nodes = [
        Node("ReduceMean", ["x"], ["m"], keepdims=0),
        Node("Mul", ["m", "zero"], ["none"]),
        Node("Add", ["b", "none"], ["boxes"]),
        Node("Add", ["s", "none"], ["scores"]),
    ]
    return tilewright.onnx.load(
        model(nodes, {"x": ([1, 3, 12, 16],)}, ["scores", "boxes"], constants), threads=1
    )


def test_the_surest_of_boxes_that_overlap_stay():
    boxes = [[0, 0, 0.5, 0.5], [0.02, 0, 0.5, 0.5], [0.6, 0.6, 1, 1], [0, 0, 0.5, 0.5]]
    scores = [[0, 0.8, 0.1], [0, 0.9, 0], [0.9, 0.1, 0.1], [0, 0.1, 0.95]]
    found = vision.detect(detector(boxes, scores), pixels(50, 100), threshold=0.5)
    assert [(b.label, round(b.score, 3)) for b in found] == [(2, 0.95), (1, 0.9)]
    np.testing.assert_allclose(
        [found[1].left, found[1].top, found[1].right, found[1].bottom], [2, 0, 50, 25], atol=1e-4
    )
    assert len(vision.detect(detector(boxes, scores), pixels(9, 9), overlap=1.0)) == 3
    drawn = np.asarray(vision.draw(np.zeros((50, 100, 3), np.uint8), found, ["", "cat", "dog"]))
    assert drawn[0].any()
    assert drawn[24, 4:48].any()
    assert not drawn[30:].any()


def test_a_detector_has_scores_and_boxes():
    made = model([Node("Identity", ["x"], ["y"])], {"x": ([1, 3, 4, 4],)}, ["y"])
    with pytest.raises(UnsupportedError, match=r"outputs are \(1, 3, 4, 4\)"):
        vision.detect(tilewright.onnx.load(made), pixels(4, 4))


# --- images of images ----------------------------------------------------------------------------


def enlarger(size, channels):
    """Two convolutions and a shuffle of pixels: twice as large."""
    rng = np.random.default_rng(0)
    weights = {
        "a": rng.standard_normal((6, channels, 5, 5)).astype(np.float32) / 20,
        "b": rng.standard_normal((4 * channels, 6, 3, 3)).astype(np.float32) / 5,
        "half": np.full((), 0.5, np.float32),
    }
    nodes = [
        Node("Conv", ["x", "a"], ["c"], pads=[2] * 4),
        Node("Relu", ["c"], ["r"]),
        Node("Conv", ["r", "b"], ["d"], pads=[1] * 4),
        Node("Add", ["d", "half"], ["e"]),
        Node("DepthToSpace", ["e"], ["y"], blocksize=2),
    ]
    made = model(nodes, {"x": ([1, channels, *size],)}, ["y"], weights)
    return tilewright.onnx.load(made, threads=1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(37, 50), (24, 24), (10, 60), (20, 12)])
def test_tiles_leave_no_seams(channels, size):
    image = pixels(*size)
    whole = vision.transform(enlarger(("h", "w"), channels), image)
    assert whole.shape == (2 * size[0], 2 * size[1], 3)
    tiled = vision.transform(enlarger((24, 24), channels), image)
    if min(size) >= 24:
        np.testing.assert_array_equal(tiled, whole)
    else:  # what lies beyond the image is another thing then
        np.testing.assert_array_equal(tiled[:10, :10], whole[:10, :10])


def test_grey_stays_grey_and_fit_scales():
    grey = np.repeat(pixels(20, 20)[..., :1], 3, axis=2)
    assert vision.transform(enlarger(("h", "w"), 1), grey).shape == (40, 40)
    assert vision.transform(enlarger((24, 24), 3), grey, fit=True).shape == (48, 48, 3)


# --- models of others ----------------------------------------------------------------------------


@pytest.fixture
def zoo(assets):
    path = assets / "onnx"
    if not path.is_dir():
        pytest.skip("no ONNX models")
    return path


def both(path, values):
    """Our first output and onnxruntime's."""
    runtime = pytest.importorskip("onnxruntime")
    session = tilewright.onnx.load(path)
    name = session.inputs[0].name
    ours = list(session.run({name: values}).values())
    peer = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return list(zip(ours, peer.run(None, {name: values})))


def close(pairs, tolerance):
    for ours, theirs in pairs:
        scale = float(np.abs(theirs.astype(np.float64)).max())
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize(
    "name", ["mnist-zoo/mnist-7", "mnist-zoo/mnist-8", "mnist-zoo/opt-mnist", "mnist-burn/mnist"]
)
def test_digits(zoo, name):
    path = zoo / f"{name}.onnx"
    raw = np.frombuffer((zoo / "mnist-zoo" / "digits.txt").read_bytes(), np.uint8)
    ten = raw.astype(np.float32).reshape(10, 1, 1, 28, 28)
    if "burn" in name:
        ten = (ten / 255 - 0.1307) / 0.3081
    session = tilewright.onnx.load(path)
    (spec,) = session.inputs
    scores = [next(iter(session.run({spec.name: x}).values())) for x in ten]
    assert [int(s.argmax()) for s in scores] == list(range(10))
    close(both(path, ten[3]), 1e-4)


def test_mnist_8_on_its_test_set(zoo, assets):
    from tilewright.data import read_idx

    x = read_idx(assets / "mnist" / "t10k-images-idx3-ubyte.gz")[:1000].astype(np.float32)
    y = read_idx(assets / "mnist" / "t10k-labels-idx1-ubyte.gz")[:1000]
    session = tilewright.onnx.load(zoo / "mnist-zoo" / "mnist-8.onnx")
    right = sum(
        int(session.run({"Input3": i[None, None]})["Plus214_Output_0"].argmax()) == n
        for i, n in zip(x, y)
    )
    assert right == 987


def test_squeezenet_of_halves(zoo):
    path = zoo / "squeezenet-fp16" / "SqueezeNet_fp16.onnx"
    labels = images.read_labels(path.parent / "Labels.txt")
    steps = Preprocess(channels="BGR", scale=1.0, mean=(104, 117, 123))
    session = tilewright.onnx.load(path)
    (best, share), *_ = vision.classify(session, path.parent / "kitten_224.png", steps)
    assert (labels[best], share > 0.9) == ("tabby, tabby cat", True)
    values = steps.to_fit(session.inputs[0].shape, "float16")(path.parent / "fish.png")
    close(both(path, values), 1e-2)  # it computes in float32 and rounds less often


def test_shufflenet_of_bytes(zoo, assets):
    path = zoo / "shufflenet-int8" / "shufflenet-v2-12-int8.onnx"
    labels = images.read_labels(path.parent / "synset.txt")
    mean, std = images.NORMALISATIONS["imagenet"]
    steps = Preprocess(mean=mean, std=std)
    session = tilewright.onnx.load(path)
    for name, want in (("chelsea_cat", "Egyptian cat"), ("coffee", "espresso")):
        image = assets / "images" / f"{name}.png"
        (best, share), *_ = vision.classify(session, image, steps)
        assert want in labels[best]
        assert share > 0.9
        values = steps.to_fit(session.inputs[0].shape, "float32")(image)
        ((ours, theirs),) = both(path, values)
        step = np.diff(np.unique(theirs)).min()  # of the last quantisation
        assert np.abs(ours - theirs).max() <= 1.5 * step
        assert (ours == theirs).mean() > 0.9


def test_super_resolution(zoo, assets):
    folder = zoo / "super-resolution"
    values = Preprocess(channels="L", size=(224, 224))(folder / "super_res_input.png")
    for name in ("super_resolution", "pytorch_super_resolution"):
        close(both(folder / f"{name}.onnx", values), 1e-4)
    session = tilewright.onnx.load(folder / "pytorch_super_resolution.onnx")
    image = read_image(assets / "images" / "chelsea_cat.png")
    small = images.resize(image, (100, 150), "bicubic")
    made = vision.transform(session, small)
    assert made.shape == (300, 450, 3)
    blurred = images.resize(small, (300, 450), "bilinear")
    assert _error(made, image[:, :450]) < _error(blurred, image[:, :450])


def _error(a, b):
    return float(np.square(a.astype(np.float32) - b).mean())


def test_faces(zoo, assets):
    path = zoo / "ultraface" / "version-RFB-320.onnx"
    steps = Preprocess(mean=(127 / 255,), std=(128 / 255,))
    (face,) = vision.detect(tilewright.onnx.load(path), assets / "images" / "astronaut.png", steps)
    assert face.score > 0.99
    assert 170 < face.left < 190
    assert 50 < face.top < 70
    assert 255 < face.right < 280
    assert 160 < face.bottom < 185
    size = Preprocess(**{**vars(steps), "size": (240, 320)})
    close(both(path, size(assets / "images" / "astronaut.png")), 1e-4)

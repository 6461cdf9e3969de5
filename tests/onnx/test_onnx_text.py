"""Strings beside onnxruntime: n-grams of random pools, pieces, patterns."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.onnx.oracle import ours, single, theirs

from tilewright.errors import FormatError, ShapeError


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize("strings", [False, True])
def test_n_grams(mode, strings):
    rng = np.random.default_rng(len(mode) + strings)
    for _ in range(25):
        words, longest = int(rng.integers(2, 6)), int(rng.integers(1, 4))
        pool, starts, count = [], [], 0
        for n in range(1, longest + 1):
            starts.append(len(pool))
            grams = {tuple(rng.integers(0, words, n).tolist()) for _ in range(rng.integers(1, 5))}
            pool += [token for gram in grams for token in gram]
            count += len(grams)
        attrs = {
            "max_gram_length": longest,
            "min_gram_length": int(rng.integers(1, longest + 1)),
            "max_skip_count": int(rng.integers(0, 4)),
            "ngram_counts": starts,
            "ngram_indexes": rng.permutation(count).tolist(),
            "mode": mode,
        }
        if rng.random() < 0.7:
            attrs["weights"] = rng.random(count).astype(np.float32).tolist()
        shape = (7,) if rng.random() < 0.3 else (int(rng.integers(1, 4)), int(rng.integers(1, 9)))
        x = rng.integers(0, words + 1, shape)
        if strings:
            x = np.array([f"t{v}" for v in x.ravel()], object).reshape(shape)
            attrs["pool_strings"] = [f"t{v}" for v in pool]
        else:
            attrs["pool_int64s"] = pool
        model = single("TfIdfVectorizer", {"x": x}, opset=9, **attrs)
        want = theirs(model, {"x": x})["y"]
        np.testing.assert_allclose(ours(model, {"x": x})["y"], want, rtol=1e-6)


def test_pieces_and_patterns():
    x = np.array([["a,b,,c", ",,"], ["no", ",x"]], object)
    for attrs in ({"delimiter": ","}, {"delimiter": ",", "maxsplit": 1}, {}):
        model = single("StringSplit", {"x": x}, ("y", "n"), opset=20, **attrs)
        want, got = theirs(model, {"x": x}), ours(model, {"x": x})
        np.testing.assert_array_equal(got["y"].astype(str), want["y"].astype(str))
        np.testing.assert_array_equal(got["n"], want["n"])
    model = single("RegexFullMatch", {"x": x}, opset=20, pattern="[a-c,]*")
    np.testing.assert_array_equal(ours(model, {"x": x})["y"], theirs(model, {"x": x})["y"])
    feeds = {"x": x, "other": np.array(["-", "+"], object)}
    model = single("StringConcat", feeds, opset=20)
    np.testing.assert_array_equal(ours(model, feeds)["y"], theirs(model, feeds)["y"])


def test_words_are_cleaned():
    x = np.array(["Monday", "tuesday", "monday"], object)
    for attrs, want in (
        ({"case_change_action": "UPPER", "is_case_sensitive": 1, "stopwords": ["monday"]},
         ["MONDAY", "TUESDAY"]),
        ({"case_change_action": "LOWER", "stopwords": ["MONDAY"]}, ["tuesday"]),
        ({"case_change_action": "NONE", "is_case_sensitive": 1}, x),
        ({"stopwords": ["monday", "TUESDAY"]}, [""]),
    ):  # fmt: skip
        model = single("StringNormalizer", {"x": x}, opset=10, **attrs)
        np.testing.assert_array_equal(ours(model, {"x": x})["y"], want)


def test_refusals():
    x = np.array([["a"], ["b"]], object)
    with pytest.raises(ShapeError, match="C"):
        ours(single("StringNormalizer", {"x": x}, opset=10), {"x": x})
    with pytest.raises(FormatError, match="pattern"):
        ours(single("RegexFullMatch", {"x": x}, opset=20, pattern="(["), {"x": x})

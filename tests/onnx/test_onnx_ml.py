"""Classical models (ai.onnx.ml) beside onnxruntime, and by hand where that has its own mind."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.onnx.oracle import ours, single, theirs

import tilewright.onnx
from tilewright.errors import FormatError, ShapeError

ML = {"domain": "ai.onnx.ml", "domain_opset": 3}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def agree(op, feeds, outputs=("y",), **attrs):
    model = single(op, feeds, outputs, **ML, **attrs)
    got = ours(model, feeds)
    for name, want in theirs(model, feeds).items():
        want = np.asarray(want)
        if want.dtype.kind in "OU":
            np.testing.assert_array_equal(got[name].astype(str), want.astype(str))
            continue
        assert got[name].dtype == want.dtype
        np.testing.assert_allclose(got[name], want, rtol=2e-5, atol=5e-6)


def labels_of(kind, n):
    if kind == "strings":
        return {"classlabels_strings": ["a", "b", "c"][:n]}
    return {"classlabels_int64s": [7, 8, 9][:n]}


def ensemble(rng, modes, trees=6, depth=3, features=5):
    """Attributes of random trees, and their leaves."""
    columns = {
        f"nodes_{k}": []
        for k in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids",
                  "falsenodeids", "missing_value_tracks_true")
    }  # fmt: skip
    leaves = []

    def grow(tree, made, left):
        at, me = len(columns["nodes_modes"]), made[0]
        made[0] += 1
        values = (tree, me, int(rng.integers(features)), round(float(rng.standard_normal()), 1),
                  str(rng.choice(modes)), 0, 0, int(rng.integers(2)))  # fmt: skip
        for column, value in zip(columns.values(), values):
            column.append(value)
        if left == 0 or rng.random() < 0.15:
            columns["nodes_modes"][at] = "LEAF"
            leaves.append((tree, me))
            return me
        columns["nodes_truenodeids"][at] = grow(tree, made, left - 1)
        columns["nodes_falsenodeids"][at] = grow(tree, made, left - 1)
        return me

    for tree in range(trees):
        grow(tree, [0], depth)
    return columns, leaves


def rows(rng, n=23, features=5):
    x = np.round(rng.standard_normal((n, features)), 1).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    return x


MODES = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GT", "BRANCH_GTE", "BRANCH_EQ", "BRANCH_NEQ"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("targets", [1, 3])
def test_tree_regressors(rng, mode, targets):
    for aggregate in ("SUM", "AVERAGE", "MIN", "MAX"):
        attrs, leaves = ensemble(rng, [mode])
        votes = [leaf for leaf in leaves for _ in range(targets)]
        agree(
            "TreeEnsembleRegressor",
            {"x": rows(rng)},
            n_targets=targets,
            aggregate_function=aggregate,
            base_values=[0.5] * targets,
            target_treeids=[t for t, _ in votes],
            target_nodeids=[n for _, n in votes],
            target_ids=[i % targets for i, _ in enumerate(votes)],
            target_weights=rng.standard_normal(len(votes)).tolist(),
            **attrs,
        )


@pytest.mark.parametrize("how", ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT"])
@pytest.mark.parametrize("kind", ["integers", "strings"])
def test_tree_classifiers(rng, how, kind):
    for classes in (2, 3):
        if classes == 2 and how not in ("NONE", "LOGISTIC"):
            continue  # onnxruntime leaves two classes of one score as they are
        for positive in (True, False):
            attrs, leaves = ensemble(rng, ["BRANCH_LEQ"], trees=4)
            votes = [leaf for leaf in leaves for _ in range(1 if classes == 2 else 3)]
            weights = rng.random(len(votes)) * 0.2 + 0.01
            if not positive:
                weights = rng.standard_normal(len(votes))
            agree(
                "TreeEnsembleClassifier",
                {"x": rows(rng)},
                ("y", "scores"),
                class_treeids=[t for t, _ in votes],
                class_nodeids=[n for _, n in votes],
                class_ids=[0 if classes == 2 else i % 3 for i, _ in enumerate(votes)],
                class_weights=weights.tolist(),
                post_transform=how,
                base_values=[0.3] * (1 if classes == 2 else classes),
                **labels_of(kind, classes),
                **attrs,
            )


def test_trees_in_double(rng):
    attrs, leaves = ensemble(rng, ["BRANCH_LEQ"])
    values = np.array(attrs.pop("nodes_values"), np.float64) + 1e-12
    from onnx import numpy_helper

    agree(
        "TreeEnsembleRegressor",
        {"x": rows(rng).astype(np.float64)},
        nodes_values_as_tensor=numpy_helper.from_array(values),
        n_targets=1,
        target_treeids=[t for t, _ in leaves],
        target_nodeids=[n for _, n in leaves],
        target_ids=[0] * len(leaves),
        target_weights_as_tensor=numpy_helper.from_array(rng.standard_normal(len(leaves))),
        **attrs,
    )


def test_broken_trees_are_refused(rng):
    attrs, leaves = ensemble(rng, ["BRANCH_LEQ"])
    votes = {
        "n_targets": 1, "target_treeids": [t for t, _ in leaves],
        "target_nodeids": [n for _, n in leaves], "target_ids": [0] * len(leaves),
        "target_weights": [1.0] * len(leaves),
    }  # fmt: skip
    x = {"x": rows(rng)}
    inner = [i for i, m in enumerate(attrs["nodes_modes"]) if m != "LEAF"]
    root, child = inner[0], inner[1]
    for place, target, message in ((root, 1000, "does not exist"), (child, 0, "circle")):
        changed = [*attrs["nodes_truenodeids"]]
        changed[place] = target
        broken = {**attrs, "nodes_truenodeids": changed}
        model = single("TreeEnsembleRegressor", x, **ML, **votes, **broken)
        with pytest.raises(FormatError, match=message):
            ours(model, x)
    few = {"x": rows(rng, features=1)}
    model = single("TreeEnsembleRegressor", few, **ML, **votes, **attrs)
    with pytest.raises(ShapeError, match="features"):
        ours(model, few)


# --- linear models, support vector machines ------------------------------------------------------


@pytest.mark.parametrize("how", ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"])
def test_linear_models(rng, how):
    x = {"x": rng.standard_normal((11, 4)).astype(np.float32)}
    for classes in (2, 3):
        for labels in ({"classlabels_ints": [5, 6, 7][:classes]}, labels_of("strings", classes)):
            agree(
                "LinearClassifier",
                x,
                ("y", "scores"),
                coefficients=rng.standard_normal(classes * 4).tolist(),
                intercepts=rng.standard_normal(classes).tolist(),
                post_transform=how,
                **labels,
            )
    coefficients = rng.standard_normal(12).tolist()
    attrs = {"coefficients": coefficients, "intercepts": [1.0, 2.0, 3.0], "targets": 3}
    if how in ("NONE", "LOGISTIC"):
        agree("LinearRegressor", x, post_transform=how, **attrs)


KERNELS = ["LINEAR", "RBF", "POLY", "SIGMOID"]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("probable", [False, True])
def test_support_vector_classifiers(rng, kernel, probable):
    x = {"x": rng.standard_normal((11, 4)).astype(np.float32)}
    for classes in (2, 3):
        duels, counts = classes * (classes - 1) // 2, [3, 4, 2][:classes]
        probabilities = {}
        if probable:
            probabilities = {k: rng.standard_normal(duels).tolist() for k in ("prob_a", "prob_b")}
        for how in ("NONE", "LOGISTIC"):
            agree(
                "SVMClassifier",
                x,
                ("y", "scores"),
                coefficients=rng.standard_normal((classes - 1) * sum(counts)).tolist(),
                kernel_type=kernel,
                kernel_params=[0.3, 0.1, 2.0],
                rho=rng.standard_normal(duels).tolist(),
                support_vectors=rng.standard_normal(sum(counts) * 4).tolist(),
                vectors_per_class=counts,
                post_transform=how,
                classlabels_ints=[4, 5, 6][:classes],
                **probabilities,
            )


@pytest.mark.parametrize("kernel", KERNELS)
def test_support_vector_regressors(rng, kernel):
    x = {"x": rng.standard_normal((11, 4)).astype(np.float32)}
    for one_class in (0, 1):
        agree(
            "SVMRegressor",
            x,
            coefficients=rng.standard_normal(6).tolist(),
            kernel_type=kernel,
            kernel_params=[0.3, 0.1, 3.0],
            rho=[0.2],
            support_vectors=rng.standard_normal(24).tolist(),
            n_supports=6,
            one_class=one_class,
        )


# --- features ------------------------------------------------------------------------------------


def test_features(rng):
    x = {"x": rng.standard_normal((5, 3)).astype(np.float32)}
    agree("Scaler", x, offset=[1.0, 2.0, 3.0], scale=[0.5, 2.0, 1.0])
    agree("Scaler", x, offset=[1.0], scale=[0.5])
    agree("Binarizer", x, threshold=0.2)
    for norm in ("MAX", "L1", "L2"):
        if norm != "MAX":  # onnxruntime divides by the greatest, not by the greatest absolute value
            agree("Normalizer", x, norm=norm)
    holes = x["x"].copy()
    holes[0, 1] = holes[3, 2] = np.nan
    nan = float("nan")
    agree("Imputer", {"x": holes}, imputed_value_floats=[1.0, 2.0, 3.0], replaced_value_float=nan)
    whole = {"x": np.array([[1, -1, 3]])}
    agree("Imputer", whole, imputed_value_int64s=[9], replaced_value_int64=-1)
    agree("ArrayFeatureExtractor", {**x, "at": np.array([[2, 0]])})
    agree("FeatureVectorizer", {"a": x["x"], "b": x["x"][:, :2]}, inputdimensions=[3, 2])


def test_tables():
    names = np.array(["cat", "dog", "cat", "emu"], object)
    agree(
        "LabelEncoder", {"x": names}, keys_strings=["cat", "dog"], values_int64s=[3, 4],
        default_int64=-7,
    )  # fmt: skip
    numbers = np.array([[1, 5], [3, 1]])
    agree("LabelEncoder", {"x": numbers}, keys_int64s=[5, 1], values_strings=["five", "one"])
    agree("LabelEncoder", {"x": numbers}, keys_int64s=[5, 1], values_floats=[0.5, 0.1])
    holes = np.array([1.5, np.nan, 2.5], np.float32)
    attrs = {"keys_floats": [float("nan"), 1.5], "values_int64s": [0, 1], "default_int64": 9}
    model = single("LabelEncoder", {"x": holes}, **ML, **attrs)
    np.testing.assert_array_equal(ours(model, {"x": holes})["y"], [1, 0, 9])
    both = {"cats_strings": ["cat", "dog"], "cats_int64s": [10, 20]}
    agree("CategoryMapper", {"x": names}, **both)
    agree("CategoryMapper", {"x": np.array([20, 30, 10])}, **both)
    agree("OneHotEncoder", {"x": np.array([[1, 2], [3, 1]])}, cats_int64s=[1, 3], zeros=1)
    agree("OneHotEncoder", {"x": names}, cats_strings=["dog", "cat"], zeros=1)


def test_a_table_runs_in_the_program():
    """Numbers to numbers: no cut, whatever the values are."""
    feeds = {"x": np.array([1, 5, 7])}
    model = single("LabelEncoder", feeds, **ML, keys_int64s=[7, 1, 7], values_int64s=[1, 2, 3])
    session = tilewright.onnx.load(model)
    for values, wanted in (([1, 5, 7], [2, -1, 3]), ([7, 7, 0], [3, 3, -1])):
        got = session.run({"x": np.array(values)})["y"]
        np.testing.assert_array_equal(got, wanted)


def test_maps():
    scores = np.array([[0.25, 0.75], [1, 0]], np.float32)
    for labels in ({"classlabels_strings": ["no", "yes"]}, {"classlabels_int64s": [3, 9]}):
        model = single("ZipMap", {"x": scores}, **ML, **labels)
        (names,) = labels.values()
        wanted = [dict(zip(names, row)) for row in scores.tolist()]
        assert ours_of_maps(model, {"x": scores}) == wanted


def ours_of_maps(model, feeds):
    session = tilewright.onnx.load(model)
    assert session.run(feeds)["y"] == session.run(feeds)["y"]
    return session.run(feeds)["y"]


def test_dictionaries_as_inputs():
    from onnx import TensorProto, helper

    def model(op, key, **attrs):
        node = helper.make_node(op, ["x"], ["y"], domain="ai.onnx.ml", **attrs)
        value = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        kind = helper.make_map_type_proto(key, value)
        inputs = [helper.make_value_info("x", kind)]
        graph = helper.make_graph([node], "g", inputs, [helper.make_empty_tensor_value_info("y")])
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
        return tilewright.onnx.load(helper.make_model(graph, opset_imports=imports))

    words = model("DictVectorizer", TensorProto.STRING, string_vocabulary=["a", "c", "b", "z"])
    got = words.run({"x": {"a": 4.0, "c": 8.0}})["y"]
    np.testing.assert_array_equal(got, np.array([[4, 8, 0, 0]], np.float32))
    with pytest.raises(FormatError, match="vocabulary has no 'q'"):
        words.run({"x": {"q": 1.0}})
    dense = model("CastMap", TensorProto.INT64, cast_to="TO_FLOAT")
    np.testing.assert_array_equal(dense.run({"x": {7: 0.5, 2: 1.5}})["y"], [[1.5, 0.5]])
    sparse = model("CastMap", TensorProto.INT64, map_form="SPARSE", max_map=5)
    np.testing.assert_array_equal(sparse.run({"x": {1: 0.5, 4: 2.0}})["y"], [[0, 0.5, 0, 0, 2]])

"""The operators against the standard: that each is there, and its own cases of single nodes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("ml_dtypes")

from tests.onnx.cases import node_cases, run_case, select  # noqa: E402

from tilewright.errors import UnsupportedError  # noqa: E402
from tilewright.onnx.registry import find  # noqa: E402

EXPANDED = {"LinearAttention"}
"""Operators that are run by the standard's own definition."""

FAMILIES = {
    "arithmetic": """Abs Acos Acosh Add Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot
        BitwiseOr BitwiseXor Ceil Clip Cos Cosh Div Erf Exp Floor Log Max Mean Min Mod Mul Neg Pow
        Reciprocal Round Sign Sin Sinh Sqrt Sub Sum Tan""",
    "logic": """And Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Not Or Where Xor""",
    "activations": """Celu Elu Gelu HardSigmoid HardSwish Hardmax LeakyRelu LogSoftmax Mish PRelu
        Relu Selu Shrink Sigmoid Softmax Softplus Softsign SwiGLU Swish Tanh ThresholdedRelu""",
    "reductions": """ArgMax ArgMin CumProd CumSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
        ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare""",
    "linear": "Det Einsum Gemm MatMul",
    "casts": "BitCast Cast CastLike",
    "shapes": """CenterCropPad Concat DepthToSpace Expand Flatten Pad Reshape Slice SpaceToDepth
        Split Squeeze Tile Transpose Unsqueeze""",
    "gathers": """Gather GatherElements GatherND ReverseSequence ScatterElements ScatterND
        TensorScatter""",
    "creation": "Constant ConstantOfShape EyeLike OneHot Range Trilu",
    "selecting": "Compress NonZero TopK Unique",
    "sequences": """ConcatFromSequence Identity Optional OptionalGetElement OptionalHasElement
        SequenceAt SequenceConstruct SequenceInsert SequenceLength SequenceMap Size Shape
        SplitToSequence""",
    "text": """RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer""",
    "ml": """ArrayFeatureExtractor Binarizer LabelEncoder TreeEnsemble""",
    "random": "Dropout RandomUniformLike",
    "windows": "BlackmanWindow HammingWindow HannWindow",
}


def test_every_operator_of_the_standard_is_here() -> None:
    """Every version: its attributes are known, and what may be left out may be left out."""
    for schema in onnx.defs.get_all_schemas_with_history():
        name = f"{schema.domain or 'ai.onnx'}.{schema.name} {schema.since_version}"
        operator = find(schema.domain, schema.name, schema.since_version)
        if schema.name in EXPANDED:
            continue
        assert operator is not None, f"{name} is missing"
        assert set(schema.attributes) <= operator.attrs, name
        optional = {k for k, a in schema.attributes.items() if not a.required}
        if (schema.name, schema.since_version) != ("Reshape", 1):  # has no other way to say it
            assert not optional & operator.required, name
        low, high = operator.inputs
        assert low <= schema.min_input, name
        assert min(schema.max_input, 1 << 20) <= high, name


@pytest.mark.parametrize("family", FAMILIES)
def test_cases_of_the_standard(family: str) -> None:
    """Every case of these operators but those written with other operators."""
    wanted = set(FAMILIES[family].split())
    seen = set()
    for case in select([], wanted):
        nodes = case.model.graph.node
        if "_expanded" in case.name or len(nodes) > 6:
            continue
        try:
            run_case(case)
        except Exception as error:
            raise AssertionError(f"{case.name}: {error}") from error
        seen |= {n.op_type for n in nodes}
    assert wanted - seen <= {"Optional", "RandomUniformLike"}


def test_a_wrong_result_is_noticed() -> None:
    """The comparison can fail."""
    case = node_cases()["test_abs"]
    inputs, outputs = case.data_sets[0]
    changed = [outputs[0] + np.float32(0.01)]
    other = replace(case, data_sets=[(inputs, changed)])
    with pytest.raises(AssertionError):
        run_case(other)


def test_unknown_modes_are_refused() -> None:
    from tests.onnx.oracle import ours, single

    x = np.ones((2, 3), np.float32)
    for op, attrs, feeds in (
        ("Pad", {"mode": "mirror"}, {"x": x, "pads": np.zeros(4, np.int64)}),
        ("Gelu", {"approximate": "fast"}, {"x": x}),
        ("BitShift", {"direction": "UP"}, {"x": np.ones(2, np.uint8), "by": np.ones(2, np.uint8)}),
    ):
        with pytest.raises(UnsupportedError, match=next(iter(attrs.values()))):
            ours(single(op, feeds, opset=20, **attrs), feeds)

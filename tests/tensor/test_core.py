"""What a tensor is: laziness, promotion, numbers, operators in place, printing, copies."""

from __future__ import annotations

import copy
import operator
import pickle
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.dtypes import ALL
from tilewright.tensor.promotion import promoted


def test_operations_are_lazy_and_computed_once() -> None:
    x = tw.asarray([1.0, 2.0])
    y = x + 1
    assert y.node.value is None
    assert y.tolist() == [2, 3]
    assert y.node.op == "data"
    assert y.node.value is not None


def test_realize_computes_several_at_once() -> None:
    a, b = tw.ones((2,)) + 1, tw.ones((3,)) * 4
    tw.realize(a, b)
    assert a.node.value is not None
    assert b.node.value is not None


def test_attributes() -> None:
    x = tw.zeros((2, 3), dtype=tw.int16)
    assert (x.shape, x.ndim, x.size, x.nbytes, x.dtype) == ((2, 3), 2, 6, 12, tw.int16)
    assert x.device == "cpu"
    assert x.to_device("cpu") is x
    assert x.T.shape == (3, 2)
    assert tw.ones((4, 2, 3)).mT.shape == (4, 3, 2)
    assert tw.asarray([[1, 2], [3, 4]]).realize()[:, ::-1].strides == (2, -1)
    with pytest.raises(tw.ShapeError, match="mT"):
        tw.ones((4, 2, 3)).T  # noqa: B018
    with pytest.raises(ValueError, match="device"):
        x.to_device("gpu")
    assert x.__array_namespace__(api_version="2024.12") is tw
    with pytest.raises(ValueError, match=r"2019\.01"):
        x.__array_namespace__(api_version="2019.01")
    with pytest.raises(AttributeError):
        x.shade = 1


def test_other_libraries_find_the_namespace() -> None:
    compat = pytest.importorskip("array_api_compat")
    x = tw.asarray([1.0, 2.0])
    assert compat.is_array_api_obj(x)
    assert compat.array_namespace(x, x) is tw
    assert compat.device(x) == "cpu"
    assert compat.size(x) == 2


# promotion

MIXED = [
    ("uint8", "int8", "int16"),
    ("uint32", "int32", "int64"),
    ("uint8", "int64", "int64"),
    ("int64", "float32", "float32"),
    ("bool", "int8", "int8"),
    ("float16", "bfloat16", "float32"),
    ("float32", "float64", "float64"),
    ("bfloat16", "int32", "bfloat16"),
]


@pytest.mark.parametrize(("a", "b", "wanted"), MIXED)
def test_promotion(a: str, b: str, wanted: str) -> None:
    one, two = (tw.ones((2,), dtype=getattr(tw, d)) for d in (a, b))
    assert (one + two).dtype is getattr(tw, wanted)
    assert (two * one).dtype is getattr(tw, wanted)


def test_promotion_commutes_and_has_one_gap() -> None:
    gaps = set()
    for a in ALL:
        for b in ALL:
            try:
                assert promoted(a, b) is promoted(b, a)
            except tw.DTypeError:
                gaps.add(frozenset((a, b)))
    assert {d for gap in gaps for d in gap if d.kind == "u"} == {tw.uint64}
    assert all(d is tw.uint64 or d.kind == "i" for gap in gaps for d in gap)


NUMBERS = [
    (tw.float32, 2, tw.float32),
    (tw.float16, 2.5, tw.float16),
    (tw.bfloat16, 2.5, tw.bfloat16),
    (tw.int8, 2, tw.int8),
    (tw.int8, 2.5, tw.float32),
    (tw.bool, 2, tw.int64),
    (tw.bool, 0.5, tw.float32),
    (tw.float64, True, tw.float64),
    (tw.float64, np.float32(3), tw.float64),
]


@pytest.mark.parametrize(("dtype", "number", "wanted"), NUMBERS, ids=str)
def test_numbers_are_weak(dtype: Any, number: Any, wanted: Any) -> None:
    x = tw.ones((2,), dtype=dtype)
    assert (x + number).dtype is wanted
    assert (number * x).dtype is wanted
    assert (x + number).tolist() == [1 + number] * 2


def test_numbers_that_do_not_fit() -> None:
    with pytest.raises(OverflowError, match="u8"):
        tw.ones((2,), dtype=tw.uint8) + 256
    with pytest.raises(TypeError):
        tw.ones((2,)) + "x"
    with pytest.raises(TypeError):
        tw.ones((2,)) + 1j
    with pytest.raises(TypeError):
        np.ones(2) + tw.ones((2,))
    assert (tw.ones((2,)) == "x") is False


def test_changing_numbers_compiles_nothing_new() -> None:
    from tilewright.compiler.realize import structure
    from tilewright.graph import topological

    x = tw.ones((4,)).realize()

    def key(value: float) -> Any:
        node = (x * value + value).node
        return structure(topological([node]), [node])

    assert key(0.1) == key(0.2)


def test_a_number_can_be_state() -> None:
    count = tw.zeros(())

    @tw.compile
    def step() -> tw.Tensor:
        count.assign(count + 1)
        return count * 10

    assert [step().item() for _ in range(3)] == [10, 20, 30]
    assert count.item() == 3


# operators

REFLECTED = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow"]


@pytest.mark.parametrize("name", REFLECTED)
def test_reflected_and_in_place(name: str) -> None:
    values = np.array([1.0, 2.0, 5.0], np.float32)
    function = getattr(operator, name)
    x = tw.asarray(values)
    np.testing.assert_allclose(function(3, x).numpy(), function(np.float32(3), values), rtol=1e-6)
    same = x
    x = getattr(operator, f"i{name}")(x, 2)
    assert x is same
    np.testing.assert_allclose(x.numpy(), function(values, np.float32(2)), rtol=1e-6)


@pytest.mark.parametrize("name", ["and_", "or_", "xor", "lshift", "rshift"])
def test_bits(name: str) -> None:
    values = np.array([1, 6, 12], np.int32)
    function = getattr(operator, name)
    x = tw.asarray(values)
    np.testing.assert_array_equal(function(x, 2).numpy(), function(values, np.int32(2)))
    np.testing.assert_array_equal(function(3, x).numpy(), function(np.int32(3), values))
    got = getattr(operator, f"i{name.rstrip('_')}")(x, tw.asarray([1, 2, 3], dtype=tw.int32))
    np.testing.assert_array_equal(got.numpy(), function(values, np.array([1, 2, 3], np.int32)))


@pytest.mark.parametrize("op", [operator.add, operator.pow, operator.matmul, operator.lt])
def test_numpy_arrays_are_not_mixed_in(op: Any) -> None:
    """Neither silently converted nor left to NumPy's puzzling messages."""
    x, array = tw.ones((3, 3)), np.ones((3, 3))
    for a, b in ((x, array), (array, x)):
        with pytest.raises(tw.DTypeError, match=r"NumPy array of shape \(3, 3\).*asarray"):
            op(a, b)
    assert (x * np.float32(2)).dtype is tw.float32  # NumPy's numbers are numbers


def test_in_place_rebinds_and_keeps_its_dtype() -> None:
    x = tw.asarray([1, 2])
    y = x
    before = x * 10
    x += 5
    assert y is x
    assert before.tolist() == [10, 20]
    assert x.tolist() == [6, 7]
    with pytest.raises(TypeError, match="in place"):
        x /= 2
    with pytest.raises(tw.ShapeError, match="in place"):
        x += tw.ones((3, 2), dtype=tw.int64)
    x @= tw.asarray([[0, 1], [1, 0]])
    assert x.tolist() == [7, 6]


def test_python_numbers() -> None:
    assert int(tw.asarray(3)) == 3
    assert float(tw.asarray(2.5)) == 2.5
    assert bool(tw.asarray(True)) is True
    assert complex(tw.asarray(2.5)) == 2.5
    assert [10, 20, 30][tw.asarray(1)] == 20
    assert tw.asarray([[4]]).item() == 4
    assert type(tw.asarray([True]).item()) is bool
    with pytest.raises(TypeError, match="index"):
        [1][tw.asarray(0.0)]
    with pytest.raises(TypeError, match="any"):
        bool(tw.asarray([1, 2]))
    with pytest.raises(tw.ShapeError, match="one element"):
        tw.asarray([1, 2]).item()
    assert len(tw.ones((3, 2))) == 3
    assert [v.tolist() for v in tw.asarray([[1, 2], [3, 4]])] == [[1, 2], [3, 4]]
    with pytest.raises(TypeError):
        iter(tw.asarray(1))
    with pytest.raises(TypeError):
        len(tw.asarray(1))


# printing

SHOWN = [
    (lambda: tw.asarray([1.0, 2.5]), "tensor([1. , 2.5], dtype=f32)"),
    (lambda: tw.asarray(3), "tensor(3, dtype=i64)"),
    (lambda: tw.asarray([[True], [False]]), "tensor([[ True],\n        [False]], dtype=bool)"),
    (lambda: tw.zeros((0, 3)), "tensor([], shape=(0, 3), dtype=f32)"),
    (lambda: tw.asarray([0.1], dtype=tw.bfloat16), "tensor([0.10009766], dtype=bf16)"),
    (
        lambda: tw.arange(2000),
        "tensor([   0,    1,    2, ..., 1997, 1998, 1999], shape=(2000,), dtype=i64)",
    ),
]


@pytest.mark.parametrize(("make", "text"), SHOWN)
def test_repr(make: Any, text: str) -> None:
    assert repr(make()) == text


def test_printing_leaves_the_tensor_as_it_was() -> None:
    x = tw.asarray([1.0, 2.0])
    x.requires_grad = True
    y = x * 2
    node = y.node
    assert "requires_grad=True" in repr(y)
    assert y.node is node
    assert node.value is None
    assert f"{tw.asarray(0.5):.2f}" == "0.50"


# creation and copies


def test_asarray_shares_or_copies() -> None:
    array = np.arange(4.0)
    shared, copied = tw.asarray(array, copy=False), tw.asarray(array)
    array[0] = 9
    assert shared.tolist()[0] == 9
    assert copied.tolist()[0] == 0
    x = tw.asarray([1.0])
    assert tw.asarray(x) is x
    other = tw.asarray(x, copy=True)
    x[0] = 5.0
    assert other.tolist() == [1]
    with pytest.raises(ValueError, match="copy"):
        tw.asarray([1.0], copy=False)
    with pytest.raises(ValueError, match="copy"):
        tw.asarray(array, dtype=tw.float32, copy=False)


def test_asarray_takes_what_there_is() -> None:
    assert tw.asarray([[1, 2], [3, 4]]).dtype is tw.int64
    assert tw.asarray([1, 2.5]).dtype is tw.float32
    assert tw.asarray([]).dtype is tw.float32
    assert tw.asarray([tw.asarray(1.0), 2.0]).tolist() == [1, 2]
    assert tw.asarray(bytearray(b"ab")).dtype is tw.uint8
    assert tw.asarray(range(3)).tolist() == [0, 1, 2]
    assert tw.asarray(np.float32(2)).dtype is tw.float32
    assert tw.asarray(0j).dtype is tw.float32
    assert tw.asarray(2**64 - 1, dtype=tw.uint64).item() == 2**64 - 1
    assert tw.asarray([1, 2**63 + 1], dtype=tw.uint64).tolist() == [1, 2**63 + 1]
    with pytest.raises(OverflowError):
        tw.asarray([-1, 2**63 + 1])
    assert tw.Tensor([1.0], requires_grad=True).requires_grad
    with pytest.raises(OverflowError):
        tw.asarray([300], dtype=tw.uint8)
    with pytest.raises(tw.ShapeError, match="length"):
        tw.asarray([[1], [2, 3]])
    with pytest.raises(TypeError):
        tw.asarray("x")
    with pytest.raises(TypeError, match="real"):
        tw.asarray(1j)


def test_bfloat16_rounds_and_shows_as_float32() -> None:
    x = tw.asarray([1.0, 1 / 3, 1e30], dtype=tw.bfloat16)
    assert x.numpy().dtype == np.float32
    assert ((x + 0).numpy() == x.numpy()).all()
    assert abs(x.numpy()[1] - 1 / 3) < 2**-9


def test_numpy_reads_the_same_memory() -> None:
    x = tw.asarray([1.0, 2.0])
    array = x.numpy()
    assert array.ctypes.data == x.node.value.pointer
    assert not array.flags.writeable
    assert np.asarray(x).ctypes.data == x.node.value.pointer
    assert np.array(x, copy=True).flags.writeable
    assert np.asarray(x, dtype=np.float64).dtype == np.float64


def test_copies() -> None:
    x = tw.asarray([1.0, 2.0], dtype=tw.bfloat16)
    x.requires_grad = True
    for other in (copy.copy(x), copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert other.requires_grad
        assert other.dtype is tw.bfloat16
        assert other.tolist() == [1, 2]
        assert other.node is not x.node

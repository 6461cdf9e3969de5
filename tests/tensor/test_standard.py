"""Every function of the Array API standard 2024.12 against array-api-strict."""

from __future__ import annotations

import inspect
import math
import warnings

import array_api_strict as strict
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.tensor.standard import CASES, FLOATS, SPECIAL, Call, agree, run

import tilewright as tw
from tilewright.tensor.api import STANDARD

NAMES = sorted(name for listed in STANDARD.values() for name in listed.split())


def test_every_function_has_a_case() -> None:
    assert set(NAMES) == set(CASES)


@pytest.mark.parametrize("name", sorted(CASES))
def test_agrees_with_strict(name: str) -> None:
    case = CASES[name]

    @settings(
        max_examples=25, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def agreement(data: st.DataObject) -> None:
        call = data.draw(case.calls)
        wanted = run(strict, name, call)
        agree(run(tw, name, call), wanted, case.tolerance, name)

    agreement()


# the oracle has the signature of a later version of the standard
LATER = {"expand_dims"}


@pytest.mark.parametrize("name", sorted({*NAMES} - LATER))
def test_signature_is_that_of_the_standard(name: str) -> None:
    """Names, kinds and order of parameters, and which have defaults."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = inspect.signature(getattr(strict, name))
    got = inspect.signature(getattr(tw, name))
    kinds = {p.name: (p.kind, p.default is p.empty) for p in wanted.parameters.values()}
    mine = {p.name: (p.kind, p.default is p.empty) for p in got.parameters.values()}
    assert {k: v for k, v in mine.items() if k in kinds} == kinds


UNARY = [
    "abs",
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "ceil",
    "cos",
    "cosh",
    "exp",
    "expm1",
    "floor",
    "isfinite",
    "isinf",
    "isnan",
    "log",
    "log10",
    "log1p",
    "log2",
    "negative",
    "positive",
    "reciprocal",
    "round",
    "sign",
    "signbit",
    "sin",
    "sinh",
    "sqrt",
    "square",
    "tan",
    "tanh",
    "trunc",
]
BINARY = [
    "add",
    "atan2",
    "copysign",
    "divide",
    "equal",
    "greater",
    "greater_equal",
    "hypot",
    "less",
    "less_equal",
    "logaddexp",
    "maximum",
    "minimum",
    "multiply",
    "nextafter",
    "not_equal",
    "pow",
    "remainder",
    "subtract",
]
VALUES = [*SPECIAL, 2.0, -2.0, 4.0, 1.5, -1.5, 0.25]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", UNARY)
def test_special_values(name: str, dtype: str) -> None:
    call = Call((np.array(VALUES, dtype),))
    agree(run(tw, name, call), run(strict, name, call), CASES[name].tolerance, name)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", BINARY)
def test_pairs_of_special_values(name: str, dtype: str) -> None:
    values = np.array(VALUES, dtype)
    call = Call((values[:, None], values))
    agree(run(tw, name, call), run(strict, name, call), CASES[name].tolerance, name)


INF = math.inf
QUOTIENTS = [
    (INF, 2.0, INF),
    (INF, -2.0, -INF),
    (-INF, 2.0, -INF),
    (-INF, -2.0, INF),
    (1.0, -INF, -0.0),
    (-1.0, INF, -0.0),
    (1.0, INF, 0.0),
    (-1.0, -INF, 0.0),
    (INF, INF, math.nan),
    (0.0, 0.0, math.nan),
    (1.0, 0.0, INF),
    (-1.0, 0.0, -INF),
    (0.0, 2.0, 0.0),
    (-0.0, 2.0, -0.0),
    (0.0, -2.0, -0.0),
    (math.nan, 1.0, math.nan),
]


@pytest.mark.parametrize("dtype", FLOATS)
def test_floor_divide_of_special_values(dtype: str) -> None:
    """By the standard; NumPy, on which the oracle rests, does as Python does."""
    a, b, wanted = (np.array(column, dtype) for column in zip(*QUOTIENTS))
    got = (tw.asarray(a) // tw.asarray(b)).numpy()
    np.testing.assert_array_equal(got, wanted)
    signs = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(got)[signs], np.signbit(wanted)[signs])

"""Every function of the Array API standard 2024.12 against array-api-strict."""

from __future__ import annotations

import inspect
import warnings

import array_api_strict as strict
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.tensor.standard import CASES, agree, run

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

"""Random kernels: the parser's IR means what the same Python function does."""

from __future__ import annotations

import pytest
from ir_evaluator import run_ir
from random_kernels import random_case

from tilewright.lang.ir import verify


@pytest.mark.parametrize("seed", range(100))
def test_ir_agrees_with_python(seed):
    case = random_case(seed)
    want, got = case.arguments(), case.arguments()
    case.kernel.interpret(case.grid)(*want)
    run_ir(case.kernel, case.grid, got)
    case.check(want, got)
    ir = case.kernel.ir(case.kernel.signature(want))
    verify(ir)
    text = str(ir)
    assert text.startswith("kernel kernel(")
    assert text == str(case.kernel.ir(case.kernel.signature(want)))


def test_generator_covers_the_language():
    names: set[str] = set()
    for seed in range(100):
        case = random_case(seed)
        names |= {op.name for op in case.kernel.ir(case.kernel.signature(case.inputs)).body.walk()}
    wanted = (
        "load store scratch cast bitcast where fma reduce scan scan_with dot for if expand_dims "
        "reshape broadcast transpose slice concat exp popcount floordiv mod shl shr max min"
    )
    assert not set(wanted.split()) - names


def test_cases_are_reproducible():
    a, b = random_case(7), random_case(7)
    assert a.source == b.source
    assert a.source != random_case(8).source

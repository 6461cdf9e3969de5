"""Random stateful functions: compiled, they give the bits of the dynamic path; values stay."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tests.compiler.random_programs import Program

import tilewright as tw
from tilewright import Tensor


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal elements, zeros with equal signs; NaN is NaN."""
    if a.dtype.kind != "f":
        return np.array_equal(a, b)
    return np.array_equal(a, b, equal_nan=True) and np.array_equal(
        np.signbit(a) & (a == 0), np.signbit(b) & (b == 0)
    )


def run(seed: int, compiled: bool, realised: float) -> list[list[np.ndarray]]:
    """The values of results and states after each of some calls."""
    program = Program(seed, realised)
    step = tw.compile(program.step) if compiled else program.step
    look = random.Random(seed)
    found: list[list[np.ndarray]] = []
    kept: list[tuple[Tensor, np.ndarray]] = []
    for call in range(4):
        if look.random() < 0.4:  # somebody takes a value from state, and looks at it later
            state = look.choice(program.states).detach()
            taken = state.reshape((-1,))[::2] if look.random() < 0.5 else state + state
            kept.append((taken, taken.detach().numpy().copy()))
        if look.random() < 0.2:
            state = look.choice(program.states)
            array = state.detach().numpy()
            kept.append((Tensor(array), array.copy()))
        results = step(*program.inputs(call))
        held = [t.detach() for t in results]  # of state that is returned, the value now
        values = [t.numpy().copy() for t in held]
        if look.random() < 0.6:
            kept += list(zip(held, values))
        del results, held
        found.append(values + [s.detach().numpy().copy() for s in program.states])
        for tensor, array in kept:
            assert same_bits(tensor.numpy(), array), f"seed {seed}: a value changed at call {call}"
    return found


def check(seed: int) -> None:
    dynamic = run(seed, False, 0.0)
    for name, other in (
        ("compiled", run(seed, True, 0.0)),
        ("realised", run(seed, False, 0.5)),
    ):
        for call, (a, b) in enumerate(zip(dynamic, other)):
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                assert x.dtype == y.dtype
                assert x.shape == y.shape
                assert same_bits(x, y), (
                    f"seed {seed}, {name}: call {call}, value {i} of {len(a)} {x.shape} {x.dtype}"
                )


@pytest.mark.parametrize("block", range(10))
def test_random_programs(block: int) -> None:
    for seed in range(block * 4, block * 4 + 4):
        check(seed)


def test_an_assigned_leaf_with_several_nodes() -> None:
    """Gradients of all of them are added up in one order, whatever was computed meanwhile."""
    check(436)

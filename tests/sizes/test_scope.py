"""Sizes of a trace: what is answered from hints holds wherever the guards do."""

import operator
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.errors import TraceError
from tilewright.sizes import (
    Real,
    Scope,
    Size,
    applied,
    evaluate,
    hint,
    length_of,
    maximum,
    minimum,
    roughly,
    same,
    slice_indices,
)


def _up(x: Any, y: Any) -> Any:
    return -(-x // y)


OPERATIONS: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
    (operator.add, operator.add),
    (operator.sub, operator.sub),
    (operator.mul, operator.mul),
    (operator.floordiv, operator.floordiv),
    (operator.mod, operator.mod),
    (_up, _up),
    (minimum, min),
    (maximum, max),
    (lambda x, y: applied(max, x, y), max),
]
QUESTIONS = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]


@given(st.integers(0, 2**32 - 1))
def test_answers_hold_wherever_the_guards_do(seed: int) -> None:
    rng = random.Random(seed)
    scope = Scope()
    hints = {name: rng.randint(2, 40) for name in "abc"}
    pool: list[tuple[Any, int]] = [(scope.symbol(n, v), v) for n, v in hints.items()]
    pool += [(n, n) for n in (0, 1, 3, 64, -2)]
    answers: list[tuple[Any, Any, Callable[..., Any], bool]] = []
    for _ in range(14):
        (x, a), (y, b) = rng.choice(pool), rng.choice(pool)
        if rng.random() < 0.4:
            question = rng.choice(QUESTIONS)
            assert question(x, y) is question(a, b)
            answers.append((x, y, question, question(a, b)))
            continue
        symbolic, plain = rng.choice(OPERATIONS)
        if plain in (operator.floordiv, operator.mod, _up) and b == 0:
            continue
        if abs(a) > 1e6:
            continue
        made = symbolic(x, y)
        assert hint(made) == plain(a, b)
        pool.append((made, plain(a, b)))
    sizes = [x for x, _ in pool if isinstance(x, Size)]
    holds, values = scope.holds(), scope.values(sizes)
    assert holds(*hints.values())
    for _ in range(40):
        given_ = [rng.randint(2, 60) for _ in hints]
        if rng.random() < 0.4:
            given_ = [n + rng.randint(0, 2) for n in hints.values()]
        if not holds(*given_):
            continue
        named = dict(zip(hints, given_))
        assert values(*given_) == evaluate(sizes, named)
        for x, y, question, answer in answers:
            assert question(*evaluate((x, y), named)) is answer
        for size, n in zip(sizes, values(*given_)):
            low, high = scope.span(size.terms)
            assert low <= n <= high


def _scope(**hints: int) -> tuple[Scope, list[Any]]:
    scope = Scope()
    return scope, [scope.symbol(name, n) for name, n in hints.items()]


def test_what_is_always_so_needs_no_guard() -> None:
    scope, (b, t) = _scope(b=4, t=4)
    assert b * t == t * b
    assert b * t * 384 // (t * 384) == b
    assert (b * t) % t == 0
    assert (b * t + b) // (t + 1) == b
    assert b * t > b
    assert -(-b // 64) != 0
    assert -(-64 * b // 64) == b
    assert b != 1
    assert not same((b, 3), (t, 3))
    assert same((b * t, 3), (t * b, 3))
    assert not scope.guards
    assert b == t  # now there is one
    assert [scope.holds()(n, m) for n, m in ((4, 4), (7, 7), (4, 7))] == [True, True, False]


def test_asking_for_the_number_makes_it_the_only_one() -> None:
    for ask in (int, float, range, lambda n: {n: 1}, lambda n: [0] * n, lambda n: 2.0 * n > 7):
        scope, (n,) = _scope(n=8)
        ask(n)
        assert [scope.holds()(v) for v in (7, 8, 9)] == [False, True, False]


def test_comparisons_leave_an_interval() -> None:
    scope, (n,) = _scope(n=8)
    assert n > 3
    assert n % 4 == 0
    assert not n >= 20
    assert n != 12
    assert [v for v in range(2, 40) if scope.holds()(v)] == [4, 8, 16]


def test_a_choice_of_speed_leaves_room_on_both_sides() -> None:
    scope, (n,) = _scope(n=8)
    assert roughly(n, 10, 2)
    assert [v for v in range(2, 40) if scope.holds()(v)] == list(range(2, 21))
    scope, (n,) = _scope(n=11)
    assert not roughly(n, 10, 2)
    assert [v for v in range(2, 40) if scope.holds()(v)] == list(range(6, 40))
    assert [roughly(v, 10, 2) for v in (10, 11)] == [True, False]


@given(
    st.integers(2, 9), st.none() | st.integers(-9, 9), st.none() | st.integers(-9, 9),
    st.sampled_from([None, 1, 2, 3, -1, -2]),
)  # fmt: skip
def test_slices_take_what_slices_of_numbers_do(n: int, start: Any, stop: Any, step: Any) -> None:
    _, (size,) = _scope(n=n)
    found = slice_indices(slice(start, stop, step), size)
    assert hint(length_of(*found)) == len(range(n)[start:stop:step])
    if len(range(n)[start:stop:step]):
        assert hint(found[0]) == slice(start, stop, step).indices(n)[0]


def test_fractions_follow_the_size() -> None:
    scope, (n,) = _scope(n=8)
    fraction = 1.0 / (n * 2) + n**-0.5
    assert isinstance(fraction, Real)
    assert not scope.guards
    assert fraction.value(lambda size: size.evaluate({"n": 5})) == 1.0 / 10 + 5**-0.5
    assert fraction < 1  # asks for the number
    assert not scope.holds()(9)


def test_sizes_have_no_value_outside_of_their_trace() -> None:
    scope, (n,) = _scope(n=8)
    scope.open = False
    assert n != 8  # a key of a cache that outlived it
    with pytest.raises(TraceError, match="the size n was read while a function was traced"):
        int(n)
    with pytest.raises(TraceError, match="outside of that trace"):
        n + 1

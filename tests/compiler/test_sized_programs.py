"""Programs for many sizes by hand: leaves with symbols, as a session over a growing cache has."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.arena import Arena
from tilewright.compiler.builder import Storage
from tilewright.compiler.static import Sized, StaticProgram, build
from tilewright.dtypes import f32
from tilewright.graph import Node, data_node
from tilewright.ops import reductions
from tilewright.ops import table as ops
from tilewright.ops.gemm import bmm
from tilewright.ops.views import concat, permute, slice_
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import default_pool, default_target
from tilewright.runtime.memory import take
from tilewright.sizes import Scope

CAPACITY, HEADS, WIDTH = 600, 4, 32


def run(program: StaticProgram, sized: Sized, leaves: Sequence[np.ndarray]) -> list[np.ndarray]:
    memories = [take(n) for n in (*sized.output_bytes, sized.arena_bytes)]
    addresses = [a.ctypes.data for a in leaves] + [m.pointer for m in memories]
    program.run(addresses, [], sized)
    owners = [*leaves, *memories]
    return [
        Buffer(o.dtype, o.shape, o.strides, addresses[o.place] + o.offset, owners[o.place])
        .numpy()
        .copy()
        for o in sized.outputs
    ]


def attend(q: Node, keys: Node, values: Node) -> Node:
    """Attention of q (H, 1, D) over keys and values (H, past, D)."""
    scores = ops.make("scale", bmm(q, permute(keys, (0, 2, 1))), factor=WIDTH**-0.5)
    return bmm(reductions.softmax(scores), values)


def view(past: object) -> Buffer:
    """The first ``past`` places of a cache (H, CAPACITY, D)."""
    return Buffer(f32, (HEADS, past, WIDTH), (CAPACITY * WIDTH, WIDTH, 1), 0)  # type: ignore[arg-type]


def program_of(past: object, scope: Scope | None = None) -> StaticProgram:
    q = data_node(Buffer(f32, (HEADS, 1, WIDTH), (WIDTH, WIDTH, 1), 0))
    keys, values = data_node(view(past)), data_node(view(past))
    mine = attend(q, keys, values)
    tail = slice_(keys, (0, past - 1, 0), (HEADS, 1, WIDTH))  # type: ignore[operator]
    roots = [mine, concat([tail, q, values], 1)]
    return build(roots, default_target(), default_pool(), scope=scope)


def test_attention_over_a_growing_cache() -> None:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((HEADS, 1, WIDTH), np.float32)
    keys, values = rng.standard_normal((2, HEADS, CAPACITY, WIDTH), np.float32)
    leaves = [q, keys, values]
    programs: list[StaticProgram] = []
    for past in (2, 3, 5, 17, 64, 65, 128, 300, 500, 3):
        program = next((p for p in programs if p.holds(past=past)), None)
        if program is None:
            scope = Scope()
            program = program_of(scope.symbol("past", past), scope)
            programs.append(program)
        assert program.holds(past=past)
        fixed = program_of(past)
        want = run(fixed, fixed.at(), leaves)
        for got, plain in zip(run(program, program.at(past=past), leaves), want, strict=True):
            assert got.shape == plain.shape
            assert got.tobytes() == plain.tobytes()
    assert len(programs) <= 4


def test_the_arena_serves_sizes_near_the_one_it_was_planned_for() -> None:
    scope = Scope()
    program = program_of(scope.symbol("past", 100), scope)
    sizes = {program.at(past=n).arena_bytes for n in range(97, 128)}
    assert len(sizes) <= 2
    assert program.at(past=100) is program.at(past=100)


def test_values_that_break_a_guard_are_not_held() -> None:
    scope = Scope()
    past = scope.symbol("past", 40)
    x = data_node(Buffer(f32, (past, 4), (4, 1), 0))  # type: ignore[arg-type]
    program = build(
        [slice_(x, (0, 0), (10, 4)), ops.make("neg", x)],
        default_target(),
        default_pool(),
        scope=scope,
    )
    assert program.holds(past=10)
    assert not program.holds(past=9)
    with pytest.raises(KeyError):
        program.holds(future=3)


def test_temporary_results_that_are_alive_together_lie_apart_at_every_size() -> None:
    rng = random.Random(0)
    scope = Scope()
    n = scope.symbol("n", 50)
    sizes: list[Any] = []
    storages = []
    for number in range(60):
        nbytes = rng.choice([n * 64, n * n, 4096, n * 4 + 100])
        first = rng.randrange(100)
        storages.append(Storage(number, nbytes, "temporary", -1, first, first + rng.randrange(20)))
        sizes.append(nbytes)
    unique = {id(s): s for s in sizes if not isinstance(s, int)}
    arena = Arena(storages)
    arena.settle({key: i for i, key in enumerate(unique)}, len(storages))
    values = scope.values(list(unique.values()))
    for at in (50, 51, 3, 200, 7, 1000, 50):
        found = np.array(values(at), np.int64)
        offsets, total = arena.plan(found, lambda at=at: np.array(values(at + 9), np.int64))
        bytes_of = dict(zip(unique, found.tolist()))
        places = [
            (s, int(offsets[arena.numbering[s.number]]), bytes_of.get(id(s.nbytes), s.nbytes))
            for s in storages
        ]
        for i, (a, start, size) in enumerate(places):
            assert start % 64 == 0
            assert start + size <= total
            for b, other, wide in places[:i]:
                if a.first <= b.last and b.first <= a.last:
                    assert start + size <= other or other + wide <= start

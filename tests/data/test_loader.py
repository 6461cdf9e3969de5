"""Loaders: the right batches, resumed bit for bit, with and without a thread."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tilewright.data import Batches, Loader, Prefetch, RandomWindows, Windows
from tilewright.errors import ShapeError, TrainingError

TOKENS = np.arange(1000, dtype=np.uint16)


def saved(loader: Any) -> dict[str, Any]:
    """The state after a trip through JSON, as in a checkpoint."""
    state: dict[str, Any] = json.loads(json.dumps(loader.state()))
    return state


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a.dtype == b.dtype and np.array_equal(a, b)


def take(loader: Any, count: int) -> list[Any]:
    return [next(loader) for _ in range(count)]


def example() -> Batches:
    arrays = {"x": np.arange(23) * 1.5, "y": np.arange(46).reshape(23, 2)}
    return Batches(
        arrays, 5, seed=3, transform=lambda b, rng: {**b, "noise": rng.standard_normal(2)}
    )


def test_windows_are_cut_from_the_stream() -> None:
    loader = RandomWindows(TOKENS, 8, 16, seed=1)
    starts = set()
    for x, y in take(loader, 50):
        assert x.shape == y.shape == (8, 16)
        assert x.dtype == y.dtype == np.int32
        assert x.flags.c_contiguous
        assert y.flags.c_contiguous
        assert np.array_equal(x, x[:, :1] + np.arange(16))
        assert np.array_equal(y, x + 1)
        starts |= set(x[:, 0].tolist())
    assert len(starts) > 250
    assert min(starts) >= 0
    assert max(starts) <= 1000 - 17


def test_every_window_is_reached() -> None:
    loader = RandomWindows(TOKENS[:6], 100, 4, seed=0)
    assert set(next(loader)[0][:, 0].tolist()) == {0, 1}


def test_seeds_differ_and_repeat() -> None:
    one, again, other = (RandomWindows(TOKENS, 4, 8, seed=s) for s in (7, 7, 8))
    assert same(take(one, 3)[2], take(again, 3)[2])
    assert not same(next(one), take(other, 4)[3])


def test_validation_sees_every_target_once() -> None:
    loader = Windows(TOKENS[:98], 4, 8)
    targets = np.concatenate([y.ravel() for _, y in loader])
    assert targets.tolist() == list(range(1, 97))
    assert [x.shape for x, _ in loader] == [(4, 8)] * 3
    assert len(loader) == 3
    assert [len(x) for x, _ in Windows(TOKENS[:98], 5, 8)] == [5, 5, 2]
    assert [len(x) for x, _ in Windows(TOKENS[:98], 5, 8, drop_last=True)] == [5, 5]


def test_each_epoch_has_every_example_once_in_another_order() -> None:
    loader = Batches(np.arange(12), 3, seed=1, epochs=3)
    assert loader.batches_per_epoch == 4
    batches = list(loader)
    assert len(batches) == 12
    assert loader.epoch == 3
    epochs = [np.concatenate(batches[i : i + 4]).tolist() for i in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_last_batch_that_is_not_full() -> None:
    kept = list(Batches(np.arange(7), 3, epochs=1, drop_last=False, shuffle=False))
    assert [b.tolist() for b in kept] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [len(b) for b in Batches(np.arange(7), 3, epochs=2)] == [3, 3, 3, 3]


def test_batches_have_the_form_of_the_arrays() -> None:
    x, y = np.arange(6), np.arange(12).reshape(6, 2)
    assert next(Batches(x, 2, shuffle=False)).tolist() == [0, 1]
    pair = next(Batches((x, y), 2))
    assert isinstance(pair, tuple)
    assert np.array_equal(pair[1][:, 0], 2 * pair[0])
    assert next(Batches({"a": x, "b": y}, 2)).keys() == {"a", "b"}


@pytest.mark.parametrize("make", [lambda: RandomWindows(TOKENS, 4, 8, seed=2), example])
@pytest.mark.parametrize("at", [0, 1, 4, 5, 9])
def test_resuming_is_exact(make: Any, at: int) -> None:
    whole = take(make(), 20)
    loader = make()
    assert isinstance(loader, Loader)
    take(loader, at)
    resumed = make()
    resumed.restore(saved(loader))
    assert all(map(same, take(resumed, 20 - at), whole[at:]))


@pytest.mark.parametrize("make", [lambda: RandomWindows(TOKENS, 4, 8, seed=2), example])
def test_prefetching_changes_nothing(make: Any) -> None:
    whole = take(make(), 20)
    with Prefetch(make(), depth=3) as loader:
        assert all(map(same, take(loader, 7), whole))
        time.sleep(0.01)  # the thread is ahead; the state must not be
        state = saved(loader)
        take(loader, 5)
        loader.restore(state)
        assert all(map(same, take(loader, 13), whole[7:]))
    with Prefetch(make()) as other:
        other.restore(state)
        assert same(next(other), whole[7])


def test_other_data_or_settings_are_refused() -> None:
    state = saved(RandomWindows(TOKENS, 4, 8, seed=2))
    changed = TOKENS.copy()
    changed[3] = 9
    for loader, message in (
        (RandomWindows(changed, 4, 8, seed=2), "the data have changed"),
        (RandomWindows(TOKENS[:-1], 4, 8, seed=2), "the data have changed"),
        (RandomWindows(TOKENS, 4, 8, seed=3), "seed is different"),
        (RandomWindows(TOKENS, 5, 8, seed=2), "batch is different"),
        (RandomWindows(TOKENS, 4, 9, seed=2), "context is different"),
        (Batches(TOKENS, 4, seed=2), "kind is different"),
    ):
        with pytest.raises(TrainingError, match=message):
            loader.restore(state)
    for at in (-1, None, "3", 2.0, True):
        with pytest.raises(TrainingError, match="no position 'at'"):
            RandomWindows(TOKENS, 4, 8, seed=2).restore({**state, "at": at})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomWindows(TOKENS, 2, 1000), "1000 tokens hold no window of 1000"),
        (lambda: RandomWindows(TOKENS.reshape(10, 100), 2, 3), "1-D integers"),
        (lambda: Windows(TOKENS * 1.0, 2, 3), "1-D integers"),
        (lambda: Windows(TOKENS, 0, 3), "at least 1"),
        (lambda: Batches({"a": TOKENS, "b": TOKENS[1:]}, 2), "one length"),
        (lambda: Batches(TOKENS[:3], 4), "3 examples make no batch of 4"),
        (lambda: Batches(TOKENS[:0], 4, drop_last=False), "0 examples"),
        (lambda: Batches((), 4), "one length"),
    ],
)
def test_what_makes_no_batch(make: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        make()


def threads() -> int:
    return sum(t.name == "tilewright-prefetch" for t in threading.enumerate())


def test_exceptions_reach_the_consumer_in_their_place() -> None:
    def broken() -> Iterator[int]:
        yield from (1, 2)
        raise KeyError("third")

    with Prefetch(broken()) as loader:
        assert take(loader, 2) == [1, 2]
        for _ in range(2):
            with pytest.raises(KeyError, match="third"):
                next(loader)
        with pytest.raises(TypeError, match="no state"):
            loader.state()
    assert threads() == 0


def test_a_loader_that_ends() -> None:
    with Prefetch(iter(range(5)), depth=2) as loader:
        assert list(loader) == [0, 1, 2, 3, 4]
        assert list(loader) == []
    loader.close()
    with pytest.raises(ValueError, match="closed"):
        next(loader)
    with pytest.raises(ValueError, match="depth is 0"):
        Prefetch(iter(()), 0)


def test_closing_ends_the_thread_wherever_it_is() -> None:
    for work in (0.0, 0.02):

        def endless(work: float = work) -> Iterator[int]:
            while True:
                time.sleep(work)
                yield 1

        loader = Prefetch(endless())
        next(loader)
        begin = time.monotonic()
        loader.close()
        assert time.monotonic() - begin < 1
        assert threads() == 0


def test_dropping_it_ends_the_thread() -> None:
    loader = Prefetch(RandomWindows(TOKENS, 2, 4))
    next(loader)
    assert threads() == 1
    del loader
    gc.collect()
    end = time.monotonic() + 5
    while threads() and time.monotonic() < end:
        time.sleep(0.01)
    assert threads() == 0


def test_batches_are_made_while_the_consumer_works() -> None:
    """Five batches of 20 ms beside five steps of 20 ms: less than one after the other."""

    def slow() -> Iterator[int]:
        for i in range(6):
            time.sleep(0.02)
            yield i

    with Prefetch(slow()) as loader:
        next(loader)
        begin = time.monotonic()
        for _ in loader:
            time.sleep(0.02)
        assert time.monotonic() - begin < 0.18

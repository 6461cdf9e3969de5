"""Batches in an order that is random, reproducible, and resumed exactly.

Nothing here keeps a random generator: what batch ``i`` of epoch ``e`` holds is a function of the
seed, ``e`` and ``i``, computed with a counter-based generator (Philox4x64, Salmon et al. 2011). So
a position is two numbers, and going to one takes no time.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from tilewright.errors import ShapeError, TrainingError

__all__ = ["Batches", "Loader", "RandomWindows", "Windows"]

T_co = TypeVar("T_co", covariant=True)
State = dict[str, Any]


@runtime_checkable
class Loader(Protocol[T_co]):
    """An iterator of batches that knows where it stands."""

    def __iter__(self) -> Iterator[T_co]:
        """Itself."""
        ...

    def __next__(self) -> T_co:
        """The next batch."""
        ...

    def state(self) -> State:
        """Where it stands: JSON values, few."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go where ``state`` says; `TrainingError` when that is of other data or settings."""
        ...


class RandomWindows:
    """Random windows of a token stream, without end: ``(x, y)``, int32 ``(batch, context)`` each.

    ``y`` is ``x`` one token later. Starts are drawn uniformly and independently.

    Args:
        tokens: 1-D integers, memory-mapped or not; more than ``context`` of them.
        batch, context: the shape of a batch.
        seed: what the draws depend on.

    Raises:
        ShapeError: not 1-D integers, or too few.
    """

    def __init__(self, tokens: np.ndarray, batch: int, context: int, *, seed: int = 0) -> None:
        _check_tokens(tokens, batch, context)
        self.tokens = tokens
        self.batch, self.context = batch, context
        self._at = 0
        self._settings: State = {
            "seed": seed,
            "batch": batch,
            "context": context,
            "length": len(tokens),
            "data": _fingerprint(tokens),
        }
        self._seed = seed

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        draws = _draws(self._seed, 0, self._at, self.batch)
        self._at += 1
        # 64 random bits: the bias of the remainder is below 2**-24 for any stream there is
        starts = (draws % np.uint64(len(self.tokens) - self.context)).astype(np.int64)
        return _windows(self.tokens, starts, self.context)

    def state(self) -> State:
        """See `Loader`."""
        return {"kind": "RandomWindows", **self._settings, "at": self._at}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Loader`."""
        self._at = _position(state, "RandomWindows", self._settings, "at")


class Windows:
    """All windows of a token stream in order, once, for validation: ``(x, y)`` as `RandomWindows`.

    Windows do not overlap, so every token but the first is a target once; a rest that fills no
    window is left out, and so is one that fills no batch when ``drop_last``.

    Raises:
        ShapeError: not 1-D integers, or too few.
    """

    def __init__(
        self, tokens: np.ndarray, batch: int, context: int, *, drop_last: bool = False
    ) -> None:
        _check_tokens(tokens, batch, context)
        self.tokens = tokens
        self.batch, self.context, self.drop_last = batch, context, drop_last

    def __len__(self) -> int:
        """Number of batches."""
        windows = (len(self.tokens) - 1) // self.context
        return windows // self.batch if self.drop_last else -(-windows // self.batch)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        windows = (len(self.tokens) - 1) // self.context
        for i in range(len(self)):
            chosen = np.arange(i * self.batch, min((i + 1) * self.batch, windows))
            yield _windows(self.tokens, chosen * self.context, self.context)


class Batches:
    """Batches of arrays, shuffled anew each epoch.

    Args:
        arrays: an array, or a tuple or mapping of arrays (or of anything with a length that takes
            an int64 array of indices and gives an array, such as `ImageFolder.images`), all of the
            same length. Batches come in the same form.
        batch: examples in a batch.
        seed: what the order depends on.
        shuffle: False: always in the order of the arrays.
        epochs: how many, or None: without end.
        drop_last: leave out examples at an epoch's end that fill no batch, so that all batches have
            one shape. Which ones changes from epoch to epoch.
        transform: ``transform(batch, rng)`` makes what is given out of a batch, with a
            `numpy.random.Generator` of its own for each batch: augmentations resume exactly, too.

    Raises:
        ShapeError: unequal lengths, or fewer examples than a batch (or none).
    """

    def __init__(
        self,
        arrays: Any,
        batch: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = None,
        drop_last: bool = True,
        transform: Callable[[Any, np.random.Generator], Any] | None = None,
    ) -> None:
        self._arrays = arrays
        parts = _parts(arrays)
        lengths = {name: len(part) for name, part in parts.items()}
        n = next(iter(lengths.values()), 0)
        if len(set(lengths.values())) != 1:
            raise ShapeError(f"Batches: arrays of one length are wanted, got {lengths}")
        if batch < 1 or n < (batch if drop_last else 1):
            raise ShapeError(f"Batches: {n} examples make no batch of {batch}")
        self.batch, self.shuffle, self.epochs, self.drop_last = batch, shuffle, epochs, drop_last
        self._n, self._seed, self._transform = n, seed, transform
        self._epoch = self._at = 0
        self._order: tuple[int, np.ndarray] | None = None
        self._settings: State = {
            "seed": seed,
            "batch": batch,
            "shuffle": shuffle,
            "drop_last": drop_last,
            "length": n,
            "data": [_fingerprint(part) for part in parts.values()],
        }

    @property
    def epoch(self) -> int:
        """Epochs that are complete."""
        return self._epoch

    @property
    def batches_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self._n // self.batch if self.drop_last else -(-self._n // self.batch)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.epochs is not None and self._epoch >= self.epochs:
            raise StopIteration
        chosen = self._shuffled()[self._at * self.batch : (self._at + 1) * self.batch]
        batch = _take(self._arrays, chosen)
        if self._transform is not None:
            key = _key(self._seed, 2)
            counter = np.array([0, self._at, self._epoch, 0], np.uint64)
            rng = np.random.Generator(np.random.Philox(key=key, counter=counter))
            batch = self._transform(batch, rng)
        self._at += 1
        if self._at == self.batches_per_epoch:
            self._epoch, self._at = self._epoch + 1, 0
        return batch

    def _shuffled(self) -> np.ndarray:
        if self._order is None or self._order[0] != self._epoch:
            if self.shuffle:
                keys = _draws(self._seed, 1, self._epoch, self._n)
                order = np.argsort(keys, kind="stable")
            else:
                order = np.arange(self._n)
            self._order = self._epoch, order
        return self._order[1]

    def state(self) -> State:
        """See `Loader`."""
        return {"kind": "Batches", **self._settings, "epoch": self._epoch, "at": self._at}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Loader`."""
        at = _position(state, "Batches", self._settings, "at")
        self._epoch, self._at = _position(state, "Batches", self._settings, "epoch"), at


def _check_tokens(tokens: np.ndarray, batch: int, context: int) -> None:
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ShapeError(f"tokens should be 1-D integers, got {tokens.dtype} {tokens.shape}")
    if batch < 1 or context < 1:
        raise ShapeError(f"batch {batch} and context {context} should be at least 1")
    if len(tokens) <= context:
        raise ShapeError(
            f"{len(tokens)} tokens hold no window of {context} and the token after it; use a "
            "shorter context or more text"
        )


def _windows(tokens: np.ndarray, starts: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    both = tokens[starts[:, None] + np.arange(context + 1)].astype(np.int32)  # (batch, context + 1)
    return np.ascontiguousarray(both[:, :-1]), np.ascontiguousarray(both[:, 1:])


def _key(seed: int, purpose: int) -> np.ndarray:
    """A Philox key: draws for different purposes have nothing to do with each other."""
    return np.array([seed % (1 << 64), purpose], np.uint64)


def _draws(seed: int, purpose: int, block: int, count: int) -> np.ndarray:
    """(count,) random uint64, a function of the arguments alone."""
    counter = np.array([0, block, 0, 0], np.uint64)
    raw: np.ndarray = np.random.Philox(key=_key(seed, purpose), counter=counter).random_raw(count)
    return raw


def _parts(arrays: Any) -> dict[str, Any]:
    if isinstance(arrays, Mapping):
        return {str(k): v for k, v in arrays.items()}
    if isinstance(arrays, tuple | list):
        return {str(i): v for i, v in enumerate(arrays)}
    return {"0": arrays}


def _take(arrays: Any, chosen: np.ndarray) -> Any:
    if isinstance(arrays, Mapping):
        return {k: v[chosen] for k, v in arrays.items()}
    if isinstance(arrays, tuple | list):
        return tuple(v[chosen] for v in arrays)
    return arrays[chosen]


def _fingerprint(data: Any) -> int:
    """A number that other data will hardly have: of its dtype, shape, and both ends."""
    if not isinstance(data, np.ndarray):
        own = getattr(data, "fingerprint", None)
        return int(own()) if own is not None else len(data)
    ends = [data[:256], data[-256:]] if data.ndim and len(data) else [data]
    found = zlib.crc32(repr((data.dtype.str, data.shape)).encode())
    for end in ends:
        found = zlib.crc32(np.ascontiguousarray(end).tobytes(), found)
    return found


def _position(state: Mapping[str, Any], kind: str, settings: State, name: str) -> int:
    """``state[name]``, after the rest of the state proved to be of the same data and settings."""
    wanted = {"kind": kind, **settings}
    for key, value in wanted.items():
        if state.get(key) != value:
            what = {"data": "the data have changed", "length": "the data have changed"}.get(key)
            raise TrainingError(
                f"the checkpoint's {kind} does not fit: {what or key + ' is different'} "
                f"(it has {state.get(key)!r}, here is {value!r}); resume with what the run began "
                "with, or begin a new run"
            )
    at = state.get(name)
    if type(at) is not int or at < 0:
        raise TrainingError(f"the checkpoint's {kind} has no position {name!r}: {at!r}")
    return at

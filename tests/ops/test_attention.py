from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from kernel_calls import buffer, interpret, run

from tilewright.dtypes import f32
from tilewright.errors import ShapeError
from tilewright.ops.attention import (
    PAGE,
    TILE_TOKENS,
    attention_calls,
    attention_reference,
    attention_tiles,
)
from tilewright.ops.kvcache import cache_pages, read_cache
from tilewright.runtime.buffers import Buffer, empty


@dataclass
class Batch:
    """A cache with some sequences in it, and query rows for their last positions."""

    q: np.ndarray
    positions: np.ndarray
    sequences: np.ndarray
    counts: list[int]
    table: np.ndarray
    keys: Buffer
    values: Buffer

    def run(self, tile: int = TILE_TOKENS, by=run, rows: slice | None = None) -> np.ndarray:
        counts = self.counts
        q, positions = self.q, self.positions
        tiles = attention_tiles(counts, tile)
        if rows is not None:  # of a batch with a single sequence
            q, positions = q[rows], positions[rows]
            tiles = attention_tiles([q.shape[0]], tile)
        out = empty(f32, q.shape, pad_rows=True)
        out.numpy()[...] = np.nan
        calls = attention_calls(
            buffer(q, pad=16),
            buffer(positions),
            buffer(self.table),
            buffer(tiles),
            self.keys,
            self.values,
            out,
        )
        by(calls)
        return out.numpy().copy()

    def reference(self) -> np.ndarray:
        return attention_reference(
            self.q,
            self.positions,
            self.sequences,
            self.table,
            self.keys.numpy(),
            self.values.numpy(),
            self.keys.shape[2] ** -0.5,
        )


def batch(
    lengths: Sequence[tuple[int, int]],
    heads: int,
    kv_heads: int,
    head_dim: int,
    seed: int = 0,
    spread: float = 1.0,
) -> Batch:
    """``lengths`` has (tokens in the cache, of which the last n are queries) of each sequence."""
    rng = np.random.default_rng(seed)
    pages = [-(-total // PAGE) for total, _ in lengths]
    order = rng.permutation(sum(pages) + 3).astype(np.int32)
    table = np.full((len(lengths), max(pages, default=1) + 1), -1, np.int32)
    keys, values = cache_pages(len(order), kv_heads, head_dim)
    at = 0
    for i, (total, _) in enumerate(lengths):
        used = order[at : at + pages[i]]
        table[i, : pages[i]] = used
        at += pages[i]
        k = rng.standard_normal((pages[i] * PAGE, kv_heads, head_dim)).astype(np.float32) * spread
        v = rng.standard_normal(k.shape).astype(np.float32)
        k[total:] = v[total:] = 1e30  # written by nobody who may be seen
        keys.numpy()[used] = k.reshape(-1, PAGE, kv_heads, head_dim).transpose(0, 2, 3, 1)
        values.numpy()[used] = v.reshape(-1, PAGE, kv_heads, head_dim).transpose(0, 2, 1, 3)
    counts = [n for _, n in lengths]
    positions = [np.arange(total - n, total) for total, n in lengths]
    sequences = [np.full(n, i) for i, n in enumerate(counts)]
    tokens = sum(counts)
    q = rng.standard_normal((tokens, heads * head_dim)).astype(np.float32) * spread
    return Batch(
        q,
        np.concatenate([*positions, np.zeros(0)]).astype(np.int32),
        np.concatenate([*sequences, np.zeros(0)]).astype(np.int32),
        counts,
        table,
        keys,
        values,
    )


def close(got: np.ndarray, want: np.ndarray) -> None:
    assert np.abs(got - want).max(initial=0) <= 3e-6


@pytest.mark.parametrize("head_dim", [8, 32, 48, 64, 80, 96, 100, 128])
@pytest.mark.parametrize("tokens", [70, 1])
def test_head_widths(head_dim: int, tokens: int) -> None:
    work = batch([(70, tokens)], 4, 2, head_dim)
    close(work.run(), work.reference())


@pytest.mark.parametrize("group", [1, 2, 3, 5, 8, 12])
def test_token_counts(group: int) -> None:
    for tokens in (0, 1, 2, 7, 8, 9, 33):
        work = batch([(max(tokens, 1) + 100, tokens)], 2 * group, 2, 32, seed=tokens)
        close(work.run(), work.reference())


@pytest.mark.parametrize("total", [1, 63, 64, 65, 128, 200])
def test_next_token(total: int) -> None:
    work = batch([(total, 1)], 32, 4, 64, seed=total)
    close(work.run(), work.reference())


def test_ragged_batch() -> None:
    work = batch([(130, 130), (64, 1), (65, 3), (1, 1), (300, 17)], 8, 2, 64)
    close(work.run(), work.reference())


def test_sharp_and_flat_scores() -> None:
    for spread in (1e-6, 8.0):
        work = batch([(90, 20)], 4, 2, 32, spread=spread)
        want = work.reference()
        assert np.abs(work.run() - want).max() <= 1e-4  # scores of up to 500, rounded to f32


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(8, 1, 64), (4, 4, 48), (6, 2, 8)])
def test_same_bits_in_any_tile_and_chunk(heads: int, kv_heads: int, head_dim: int) -> None:
    work = batch([(150, 150)], heads, kv_heads, head_dim)
    whole = work.run()
    for tile in (1, 3, 8):
        assert work.run(tile).tobytes() == whole.tobytes()
    for size in (1, 7, 64):
        for start in range(0, 150, size):
            rows = slice(start, min(start + size, 150))
            assert work.run(rows=rows).tobytes() == whole[rows].tobytes()


def test_same_bits_in_any_batch() -> None:
    others = [(130, 130), (64, 1), (200, 5)]
    alone = batch([(100, 100)], 8, 2, 32)
    alone_out = alone.run()
    crowd = batch([*others, (100, 100)], 8, 2, 32, seed=1)
    k, v = read_cache(alone.keys.numpy(), alone.values.numpy(), alone.table[0], 128)
    used = crowd.table[3, :2]
    crowd.keys.numpy()[used] = k.reshape(2, PAGE, 2, 32).transpose(0, 2, 3, 1)
    crowd.values.numpy()[used] = v.reshape(2, PAGE, 2, 32).transpose(0, 2, 1, 3)
    crowd.q[-100:] = alone.q
    assert crowd.run()[-100:].tobytes() == alone_out.tobytes()


@pytest.mark.parametrize(("heads", "tokens"), [(2, 1), (1, 3)])
def test_interpreter_agrees(heads: int, tokens: int) -> None:
    work = batch([(tokens, tokens)], heads, 1, 8)
    got, want = work.run(by=interpret), work.run()
    # exp differs between NumPy and the target within its documented error
    assert np.abs(got - want).max() <= 1e-6
    close(want, work.reference())


def test_tiles_cover_every_token_once() -> None:
    tiles = attention_tiles([3, 0, 17, 16], 8)
    assert tiles.tolist() == [
        [0, 0, 3],
        [2, 3, 8],
        [2, 11, 8],
        [2, 19, 1],
        [3, 20, 8],
        [3, 28, 8],
    ]
    assert attention_tiles([]).shape == (0, 3)


def test_refuses_what_does_not_fit() -> None:
    keys, values = cache_pages(1, 2, 16)
    ids = buffer(np.zeros(1, np.int32))
    table = buffer(np.zeros((1, 1), np.int32))
    tiles = buffer(attention_tiles([1]))
    q = empty(f32, (1, 48))
    with pytest.raises(ShapeError, match="2 KV heads of 16"):
        attention_calls(q, ids, table, tiles, keys, values, empty(f32, (1, 48)))
    with pytest.raises(ShapeError, match="0 heads"):
        cache_pages(1, 0, 16)

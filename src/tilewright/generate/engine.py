"""The engine: sequences, pages, and one step over any mix of them.

A :class:`Sequence` owns pages of the KV cache, or two slots of recurrent state: a step reads one
and writes the other, so that one made again after an interrupt reads what it read before.
:meth:`Engine.step` takes some tokens for each of some sequences, runs one program, and returns
logits. Which sequences ride together, and how a prompt is cut into steps, never changes a bit of
the result.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from tilewright.compiler import Program
from tilewright.errors import ContextLengthError, TilewrightError
from tilewright.layers import StepLimits
from tilewright.ops.attention import TILE_TOKENS
from tilewright.ops.kvcache import PAGE

__all__ = ["Engine", "Sequence", "Work"]


@dataclass(eq=False)
class Sequence:
    """One text in the cache.

    Attributes:
        row: its row of the page table.
        length: tokens that are stored.
        pages: of the cache, in order.
        turn: which of its two slots holds the recurrent state.
    """

    row: int
    length: int = 0
    pages: list[int] = field(default_factory=list)
    turn: int = 0


@dataclass(frozen=True)
class Work:
    """New tokens of one sequence. ``outputs`` counts the last tokens whose logits are wanted."""

    sequence: Sequence
    ids: Seq[int] | np.ndarray
    outputs: int = 1


class Engine:
    """Owns a program's inputs and its cache. Not thread-safe: one thread steps."""

    def __init__(self, program: Program, limits: StepLimits, vocab_size: int) -> None:
        self.program = program
        self.limits = limits
        self.vocab_size = vocab_size
        self._free_pages = list(range(limits.pages - 1, -1, -1))
        self._free_rows = list(range(limits.sequences - 1, -1, -1))
        self._in = {name: buffer.numpy() for name, buffer in program.inputs.items()}
        self._paged = "page_table" in self._in

    def open(self) -> Sequence:
        """A new, empty sequence."""
        if not self._free_rows:
            raise TilewrightError(
                f"all {self.limits.sequences} sequences are in use; close one first"
            )
        return Sequence(self._free_rows.pop())

    def close(self, sequence: Sequence) -> None:
        """Give the sequence's pages back."""
        self._free_pages += reversed(sequence.pages)
        self._free_rows.append(sequence.row)
        sequence.pages, sequence.length, sequence.row = [], 0, -1

    def truncate(self, sequence: Sequence, length: int) -> int:
        """Forget everything from token ``length`` on; returns how many tokens are still known.

        Recurrent state cannot go back: unless nothing is to be forgotten, everything is.
        """
        if not self._paged and length < sequence.length:
            length = 0
        keep = -(-length // PAGE)
        self._free_pages += reversed(sequence.pages[keep:])
        del sequence.pages[keep:]
        sequence.length = min(sequence.length, length)
        return sequence.length

    def step(self, work: Seq[Work]) -> np.ndarray:
        """Feed every item's ids; logits (sum of outputs, vocab) float32, in the order of ``work``.

        The result is a view that the next step overwrites. Raises :class:`ContextLengthError`
        before anything changes when a sequence would outgrow its context or the cache.
        """
        self._check(work)
        ins = self._in
        token = tile = out = 0
        for item in work:
            seq, n = item.sequence, len(item.ids)
            stop = token + n
            ins["ids"][token:stop] = item.ids
            if self._paged:
                self._place(seq, token, n)
                for start in range(token, stop, TILE_TOKENS):
                    ins["tiles"][tile] = (seq.row, start, min(TILE_TOKENS, stop - start))
                    tile += 1
            elif n:
                target = 2 * seq.row + 1 - seq.turn
                ins["write_slots"][token:stop] = target
                ins["read_slots"][token:stop] = target
                ins["read_slots"][token] = 2 * seq.row + seq.turn if seq.length else -1
            ins["output_rows"][out : out + item.outputs] = np.arange(
                stop - item.outputs, stop, dtype=np.int32
            )
            token, out = stop, out + item.outputs
        self.program.run({"tokens": token, "tiles": tile, "outputs": out})
        for item in work:  # only now: an interrupted step has fed nothing
            seq, n = item.sequence, len(item.ids)
            seq.length, seq.turn = seq.length + n, seq.turn ^ int(n > 0)
        return self.program.outputs["logits"].numpy()[:out]

    def feed(self, sequence: Sequence, ids: Seq[int] | np.ndarray, chunk: int = 0) -> np.ndarray:
        """Feed a whole prompt, in steps of at most ``chunk`` tokens; the last token's logits."""
        size = min(chunk or self.limits.tokens, self.limits.tokens)
        logits = np.empty((0, self.vocab_size), np.float32)
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            last = start + size >= len(ids)
            logits = self.step([Work(sequence, part, 1 if last else 0)])
        return logits[0]

    def _check(self, work: Seq[Work]) -> None:
        limits = self.limits
        tokens = sum(len(item.ids) for item in work)
        outputs = sum(item.outputs for item in work)
        if tokens > limits.tokens or outputs > limits.outputs:
            raise TilewrightError(
                f"a step of {tokens} tokens and {outputs} outputs is more than the engine was "
                f"built for ({limits.tokens} and {limits.outputs})"
            )
        if len({item.sequence.row for item in work}) < len(work):
            raise TilewrightError("a sequence appears twice in one step; join its tokens")
        pages = 0
        for item in work:
            ids = np.asarray(item.ids)
            if ids.size and not (int(ids.min()) >= 0 and int(ids.max()) < self.vocab_size):
                bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
                raise TilewrightError(f"token id {bad} is outside 0..{self.vocab_size - 1}")
            if item.outputs > len(item.ids):
                raise TilewrightError(f"{item.outputs} outputs wanted of {len(item.ids)} tokens")
            length = item.sequence.length + len(item.ids)
            if length > limits.context:
                raise ContextLengthError(
                    f"{length} tokens do not fit a context of {limits.context} "
                    f"({item.sequence.length} are in it already)"
                )
            if self._paged:
                pages += max(-(-length // PAGE) - len(item.sequence.pages), 0)
        if pages > len(self._free_pages):
            raise ContextLengthError(
                f"the cache has {len(self._free_pages)} free pages of {PAGE} tokens, "
                f"{pages} more are needed"
            )

    def _place(self, sequence: Sequence, token: int, n: int) -> None:
        """Find pages for ``n`` more tokens, which stand at ``token`` of the step."""
        first, stop = sequence.length, sequence.length + n
        while len(sequence.pages) * PAGE < stop:
            page = self._free_pages.pop()
            self._in["page_table"][sequence.row, len(sequence.pages)] = page
            sequence.pages.append(page)
        self._in["positions"][token : token + n] = np.arange(first, stop, dtype=np.int32)
        self._in["sequences"][token : token + n] = sequence.row

"""SentencePiece's BPE: merge neighbours by the score of the piece they would form.

This is written out rather than handed to the ``tokenizers`` library, whose BPE ranks *pairs*.
SentencePiece ranks the *pieces* that pairs form, and among equal scores the leftmost pair wins:
with ``ab`` and ``ba`` scored alike, ``aba`` is ``ab a`` and ``bab`` is ``ba b``, which no order of
the two pairs gives. Nor can a piece there contain a character that is no token itself. And no table
of pairs has to be derived: a vocabulary of 32,000 is ready in 20 ms where its 61,000 pairs take
150.

Text is split where no piece can cross and the parts are remembered, which makes running text cheap.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable

import numpy as np

from tilewright.errors import UnsupportedError
from tilewright.tokenizers.vocabulary import TokenType, Vocabulary

__all__ = ["SPACE", "spm_encoder", "spm_token_bytes"]

SPACE = "\u2581"
"""LOWER ONE EIGHTH BLOCK, SentencePiece's visible space."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REMEMBERED_PARTS = 1 << 16
_REMEMBERED_LENGTH = 64


def spm_encoder(vocabulary: Vocabulary) -> Callable[[str], list[int]]:
    """A function from text to ids. The text has its prefix space already, and no special tokens."""
    assert vocabulary.scores is not None
    ids = vocabulary.ids
    # dense ranks: equal scores share a rank, the highest score has rank 0
    _, ranks = np.unique(-vocabulary.scores, return_inverse=True)
    rank_of: dict[str, int] = dict(zip(vocabulary.tokens, ranks.tolist()))
    part_boundary = _part_boundary(vocabulary.tokens)
    remembered: dict[str, list[int]] = {}

    def fallback(piece: str) -> list[int]:
        """A character without a token of its own becomes its UTF-8 bytes."""
        out = []
        for byte in piece.encode():
            token_id = ids.get(f"<0x{byte:02X}>", ids.get(chr(byte)) if byte < 128 else None)
            if token_id is None:
                if vocabulary.unk_id is None:
                    raise UnsupportedError(
                        f"the vocabulary has no token for {piece!r}, none for its byte "
                        f"0x{byte:02X}, and no unknown token"
                    )
                return [vocabulary.unk_id]
            out.append(token_id)
        return out

    def encode_part(part: str) -> list[int]:
        out: list[int] = []
        for piece in _merge(part, rank_of):
            token_id = ids.get(piece)
            if token_id is None:
                out += fallback(piece)
            else:
                out.append(token_id)
        return out

    def encode(text: str) -> list[int]:
        out: list[int] = []
        for part in part_boundary.split(text.replace(" ", SPACE)):
            found = remembered.get(part)
            if found is None:
                found = encode_part(part)
                if len(part) <= _REMEMBERED_LENGTH:
                    if len(remembered) >= _REMEMBERED_PARTS:
                        remembered.clear()
                    remembered[part] = found
            out += found
        return out

    return encode


def _part_boundary(tokens: list[str]) -> re.Pattern[str]:
    """Matches (empty) before each space that no piece can join to the character before it."""
    # a lone surrogate cannot occur in a token, so nothing matches across the separator
    joined = "\ud800".join(tokens)
    before = set(re.findall(f"([^\ud800]){SPACE}", joined)) | {SPACE}
    # overlapping occurrences ("x▁▁") end in a space before a space, which is in the set anyway
    return re.compile(f"(?<=[^{re.escape(''.join(sorted(before)))}])(?={SPACE})")


def _merge(text: str, rank_of: dict[str, int]) -> list[str]:
    """The pieces of ``text``: best-ranked merge first, the leftmost among equals."""
    n = len(text)
    if n < 2:
        return [text] if text else []
    # piece i is text[i : ends[i]]; a piece that was merged into its left neighbour has ends[i] == i
    ends = list(range(1, n + 1))
    before = list(range(-1, n - 1))
    heap = []
    for i in range(n - 1):
        rank = rank_of.get(text[i : i + 2])
        if rank is not None:
            heap.append((rank, i, i + 1, i + 2))
    heapq.heapify(heap)
    while heap:
        _, left, middle, end = heapq.heappop(heap)
        if ends[left] != middle or ends[middle] != end:
            continue  # one of the two has been merged since
        ends[left] = end
        ends[middle] = middle
        if end < n:
            before[end] = left
            rank = rank_of.get(text[left : ends[end]])
            if rank is not None:
                heapq.heappush(heap, (rank, left, end, ends[end]))
        previous = before[left]
        if previous >= 0:
            rank = rank_of.get(text[previous:end])
            if rank is not None:
                heapq.heappush(heap, (rank, previous, left, end))
    pieces = []
    i = 0
    while i < n:
        pieces.append(text[i : ends[i]])
        i = ends[i]
    return pieces


def spm_token_bytes(vocabulary: Vocabulary, token_id: int) -> bytes:
    """What the token adds to the text; a prefix space of the whole text is still there."""
    text = vocabulary.tokens[token_id]
    kind = int(vocabulary.types[token_id])  # a NumPy number would search the enum for hooks
    if kind == TokenType.BYTE:
        match = _BYTE_TOKEN.fullmatch(text)
        if match is not None:
            return bytes([int(match[1], 16)])
    if kind in (TokenType.UNUSED, TokenType.UNDEFINED):
        return b""
    if kind in (TokenType.NORMAL, TokenType.BYTE):
        text = text.replace(SPACE, " ")
    return text.encode()

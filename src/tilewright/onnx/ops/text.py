"""Strings: joined, split, cleaned, matched, counted. All of it on the host."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.errors import FormatError, ShapeError, UnsupportedError
from tilewright.onnx.registry import op


@op("StringConcat", since=20, boundary=True)
def string_concat(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pairs of strings joined, broadcasting."""
    return np.asarray(x.astype(object) + y.astype(object), object)


@op("StringSplit", since=20, boundary=True)
def string_split(
    x: np.ndarray, *, delimiter: str = "", maxsplit: int = -1
) -> tuple[np.ndarray, np.ndarray]:
    """The pieces of each string along a new axis, filled up with "", and their numbers."""
    pieces = [str(s).split(delimiter or None, maxsplit) for s in x.reshape(-1)]
    counts = np.array([len(p) for p in pieces], np.int64)
    width = int(counts.max(initial=0))
    table = np.full((len(pieces), width), "", object)
    for row, piece in zip(table, pieces):
        row[: len(piece)] = piece
    return table.reshape(*x.shape, width), counts.reshape(x.shape)


@op("StringNormalizer", since=10, boundary=True)
def string_normalizer(
    x: np.ndarray,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: int = 0,
    locale: str = "",
    stopwords: Sequence[str] = (),
) -> np.ndarray:
    """Strings [C] or [1, C] without stop words, in lower or upper case."""
    if x.ndim not in (1, 2) or (x.ndim == 2 and x.shape[0] != 1):
        raise ShapeError(f"wants strings [C] or [1, C], got {x.shape}")
    changes: dict[str, Callable[[str], str]]
    changes = {"NONE": str, "LOWER": str.lower, "UPPER": str.upper}
    change = changes.get(case_change_action)
    if change is None:
        raise UnsupportedError(f"case_change_action {case_change_action!r} is not known")
    fold = str if is_case_sensitive else str.lower
    stop = {fold(s) for s in stopwords}
    kept = [change(str(s)) for s in x.reshape(-1) if fold(str(s)) not in stop]
    found = np.array(kept or [""], object)
    return found if x.ndim == 1 else found[None]


@op("RegexFullMatch", since=20, boundary=True)
def regex_full_match(x: np.ndarray, *, pattern: str = "") -> np.ndarray:
    """Which strings match a regular expression as a whole."""
    try:
        matches = re.compile(pattern).fullmatch
    except re.error as error:
        raise FormatError(f"pattern {pattern!r}: {error}") from error
    return np.array([matches(str(s)) is not None for s in x.reshape(-1)], bool).reshape(x.shape)


# --- n-grams -------------------------------------------------------------------------------------


@op("TfIdfVectorizer", since=9, boundary=True)
def tf_idf_vectorizer(
    x: np.ndarray,
    *,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: str,
    ngram_counts: Sequence[int],
    ngram_indexes: Sequence[int],
    pool_int64s: Sequence[int] | None = None,
    pool_strings: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
) -> np.ndarray:
    """How often each n-gram of a pool occurs in each row, by number or weighted.

    The pool holds the 1-grams, then the 2-grams and so on; ``ngram_counts`` says where each begins.
    The tokens of an n-gram stand 1 to ``max_skip_count + 1`` places apart, evenly.
    """
    if mode not in ("TF", "IDF", "TFIDF"):
        raise UnsupportedError(f"mode is TF, IDF or TFIDF, got {mode!r}")
    if (pool_int64s is None) == (pool_strings is None):
        raise FormatError("wants either pool_int64s or pool_strings")
    pool: Any = pool_int64s if pool_strings is None else pool_strings
    tokens = {token: i for i, token in enumerate(dict.fromkeys(pool))}
    table = np.array([tokens[t] for t in pool], np.int64)
    rows = np.atleast_2d(x)
    ids = np.array([tokens.get(t, -1) for t in rows.reshape(-1).tolist()], np.int64)
    ids = ids.reshape(rows.shape)
    found = np.zeros((len(rows), max(ngram_indexes, default=-1) + 1), np.float32)
    starts = [*ngram_counts, len(table)]
    before = 0
    for n in range(1, len(ngram_counts) + 1):
        grams = table[starts[n - 1] : starts[n]].reshape(-1, n)
        places = np.asarray(ngram_indexes[before : before + len(grams)], np.int64)
        before += len(grams)
        if min_gram_length <= n <= max_gram_length and len(grams):
            _count_grams(ids, grams, places, max_skip_count if n > 1 else 0, found)
    scale = np.ones(found.shape[1], np.float32)
    if weights is not None and mode != "TF":
        scale[np.asarray(ngram_indexes, np.int64)] = weights
    counts = np.minimum(found, 1) if mode == "IDF" else found
    return (counts * scale).reshape(*x.shape[:-1], -1).astype(np.float32)


def _count_grams(
    ids: np.ndarray, grams: np.ndarray, places: np.ndarray, skips: int, found: np.ndarray
) -> None:
    """Add to ``found`` how often each of ``grams`` (many, n) occurs in each row of ``ids``."""
    n = grams.shape[1]
    for gap in range(1, skips + 2):
        width = ids.shape[1] - (n - 1) * gap
        if width <= 0:
            break
        windows = np.stack([ids[:, k * gap : k * gap + width] for k in range(n)], -1)
        known, seen = _numbered(grams, windows.reshape(-1, n))
        order = np.argsort(known, kind="stable")
        at = np.searchsorted(known[order], seen)
        at = np.minimum(at, len(order) - 1)
        hit = (known[order][at] == seen) & (seen >= 0)
        row = np.repeat(np.arange(len(ids)), width)
        np.add.at(found, (row[hit], places[order][at][hit]), 1)


def _numbered(grams: np.ndarray, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One number for each gram and window, equal where they are; -1 for what is in no gram."""
    number, seen = grams[:, 0], windows[:, 0]
    base = int(max(grams.max(), windows.max())) + 1
    for k in range(1, grams.shape[1]):
        pairs = number * base + grams[:, k]
        wanted = np.where((seen >= 0) & (windows[:, k] >= 0), seen * base + windows[:, k], -1)
        distinct, number = np.unique(pairs, return_inverse=True)
        at = np.minimum(np.searchsorted(distinct, wanted), len(distinct) - 1)
        seen = np.where(distinct[at] == wanted, at, -1)
    return number, seen

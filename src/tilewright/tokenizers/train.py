"""Train byte-level BPE tokenizers, on the ``tokenizers`` library.

What is trained comes as GGUF metadata (``tokenizer.ggml.*``), ready for a model file, for
`tilewright.tokenizers.from_metadata`, and for `tilewright.tokenizers.json_file.write_json`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from tilewright.errors import FormatError
from tilewright.formats.fasta import read_fasta
from tilewright.formats.text import read_text_pieces
from tilewright.tokenizers.bpe import byte_alphabet
from tilewright.tokenizers.json_file import begin_and_end
from tilewright.tokenizers.vocabulary import TokenType

__all__ = ["END_OF_TEXT", "read_corpus", "train_bpe", "train_characters"]

END_OF_TEXT: Final = "<|endoftext|>"
_PIECE_CHARS: Final = 1 << 16


def read_corpus(
    paths: Iterable[str | os.PathLike[str]],
    *,
    fasta: bool = False,
    skip: str | tuple[str, ...] = (),
) -> Iterator[str]:
    """What files say, in pieces for `train_bpe`: of text files texts, of FASTA files sequences.

    Text is cut only where no word is, so the words are those of whole files. ``skip``: FASTA
    records whose header begins with one of these are left out.

    Raises:
        FormatError: a file that is not UTF-8 (naming the byte) or not FASTA (naming the line).
        OSError: a file cannot be read.
    """
    for path in paths:
        if fasta:
            for record in read_fasta(path, skip=skip):
                yield record.sequence
        else:
            yield from read_text_pieces(path, _PIECE_CHARS)


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    special: Sequence[str] = (END_OF_TEXT,),
    add_bos: bool = False,
    min_frequency: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Learn merges from texts; returns the tokenizer as GGUF metadata.

    Ids: the special tokens, the 256 bytes, the merges in the order they were learned, which is that
    of the library: most frequent pair first, of equal ones the one with the lowest ids. The same
    texts give the same tokenizer, in any order and with any number of threads. Words are GPT-2's
    (``tokenizer.ggml.pre`` is ``gpt-2``), so a protein sequence is one word.

    Args:
        texts: any number; special tokens in them are plain text.
        vocab_size: tokens in all; fewer when the texts have no more pairs.
        special: control tokens; which of them begin and end texts goes by their names.
        add_bos: texts begin with the begin token when they are encoded.
        min_frequency: pairs seen less often are not merged.
        progress: show the library's progress bars on stderr.

    Raises:
        ValueError: a vocabulary with no room for special tokens and bytes.
        FormatError: there is no text.
        KeyboardInterrupt: at once, although the library cannot be interrupted.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    special = _checked(special, add_bos)
    smallest = len(special) + 256
    if vocab_size < smallest:
        raise ValueError(
            f"a vocabulary of {vocab_size} has no room for 256 bytes and {len(special)} special "
            f"tokens; the smallest is {smallest}"
        )
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(special),
        initial_alphabet=byte_alphabet(),
        show_progress=progress,
    )
    seen = False

    def watched() -> Iterator[str]:
        nonlocal seen
        for text in texts:
            seen = seen or bool(text)
            yield text

    _interruptible(lambda: engine.train_from_iterator(watched(), trainer))
    if not seen:
        raise FormatError("there is no text to learn from")
    ids: dict[str, int] = engine.get_vocab()
    tokens = sorted(ids, key=ids.__getitem__)
    return _metadata(tokens, _merges(engine), special, add_bos)


def train_characters(
    texts: Iterable[str], *, special: Sequence[str] = (), add_bos: bool = False
) -> dict[str, Any]:
    """A tokenizer whose tokens are the characters of the texts, as GGUF metadata.

    Ids: the characters in the order of their code points, then the special tokens, then what
    byte-level BPE needs to put together characters that take several bytes. Characters that the
    texts lack cannot be encoded; encoding warns and leaves them out.

    Raises:
        FormatError: there is no text.
    """
    special = _checked(special, add_bos)
    found: set[str] = set()
    for text in texts:
        found.update(text)
    if not found:
        raise FormatError("there is no text to learn from")
    alphabet = byte_alphabet()
    spelled = ["".join(alphabet[b] for b in c.encode()) for c in sorted(found)]
    parts: dict[str, None] = {}
    merges: dict[str, None] = {}
    for token in spelled:
        for end in range(1, len(token)):
            parts.update({token[:end]: None, token[end]: None})
            merges[f"{token[:end]} {token[end]}"] = None
    known = {*spelled, *special}
    tokens = [*spelled, *special, *(part for part in parts if part not in known)]
    if len(set(tokens)) != len(tokens):
        raise ValueError(f"a special token of {special} is a character of the text, too")
    return _metadata(tokens, list(merges), special, add_bos)


def _checked(special: Sequence[str], add_bos: bool) -> tuple[str, ...]:
    special = tuple(special)
    if len(set(special)) != len(special) or "" in special:
        raise ValueError(f"special tokens must differ and not be empty, got {special}")
    if add_bos and begin_and_end(special)[0] is None:
        raise ValueError(f"none of the special tokens {special} is known to begin texts")
    return special


def _merges(engine: Any) -> list[str]:
    import json

    model = json.loads(engine.to_str())["model"]
    return [" ".join(entry) if isinstance(entry, list) else entry for entry in model["merges"]]


def _metadata(
    tokens: list[str], merges: list[str], special: Sequence[str], add_bos: bool
) -> dict[str, Any]:
    types = np.full(len(tokens), TokenType.NORMAL, np.int32)
    places = [tokens.index(token) for token in special]
    types[places] = TokenType.CONTROL
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        # a NumPy array knows that it is one of texts when it is empty, too
        "tokenizer.ggml.merges": merges or np.array([], np.str_),
    }
    for role, token in zip(("bos", "eos"), begin_and_end(special)):
        if token is not None:
            metadata[f"tokenizer.ggml.{role}_token_id"] = tokens.index(token)
    metadata["tokenizer.ggml.add_bos_token"] = add_bos
    metadata["tokenizer.ggml.add_eos_token"] = False
    return metadata


def _interruptible(work: Callable[[], None]) -> None:
    """Run ``work`` so that Ctrl-C ends the wait for it.

    The library computes without looking for signals. In a thread of its own it may go on until the
    process ends, which a daemon thread does not hold up.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # raised again below, where the caller is
            failed.append(error)

    thread = threading.Thread(target=run, name="tilewright-train-bpe", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]

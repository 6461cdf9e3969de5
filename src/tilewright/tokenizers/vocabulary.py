"""The ``tokenizer.ggml.*`` metadata of a GGUF file, checked once and turned into plain fields.

Key names and defaults are those of the GGUF specification and of llama.cpp, whose files these are.
Everything that a file can get wrong is found here; the encoders may trust a `Vocabulary`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.errors import FormatError, UnsupportedError

__all__ = ["TokenType", "Vocabulary", "read_vocabulary"]


class TokenType(enum.IntEnum):
    """``tokenizer.ggml.token_type`` (SentencePiece's piece types, plus UNDEFINED)."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Chat models end a turn with a token of their own, and many files name only `eos`. Like llama.cpp,
# recognise the others by their text; each also counts as CONTROL whatever type the file gives it.
_END_OF_GENERATION = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<｜end▁of▁sentence｜>",
    }
)
# Fill-in-the-middle markers: CONTROL by their text; padding and file separators also end the text.
_FILL_IN_MIDDLE_END = frozenset(
    {
        "<|fim_pad|>",
        "<fim-pad>",
        "<fim_pad>",
        "<PAD>",
        "[PAD]",
        "<|fim_repo|>",
        "<|repo_name|>",
        "<fim-repo>",
        "<REPO>",
        "<reponame>",
        "<|file_sep|>",
    }
)
_FILL_IN_MIDDLE = frozenset(
    {
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
    }
)
_UNSUPPORTED_MODELS = {
    "bert": "WordPiece",
    "t5": "Unigram",
    "rwkv": "RWKV trie",
    "plamo2": "PLaMo-2",
    "gemma4": "SentencePiece-style BPE with merges",
}


@dataclass(frozen=True)
class Vocabulary:
    """A checked vocabulary. Ids are positions in `tokens`; every special id is in range."""

    model: str
    """``"llama"`` (SentencePiece-style) or ``"gpt2"`` (byte-level BPE)."""
    pre: str
    """Name of the pre-tokeniser; meaningful for ``gpt2`` only."""
    tokens: list[str]
    ids: dict[str, int]
    types: npt.NDArray[np.int32]
    """(vocab,) of `TokenType`, after the recognition of control tokens by their text."""
    scores: npt.NDArray[np.float32] | None
    merges: list[str]
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    pad_id: int | None
    eos_ids: frozenset[int]
    add_bos: bool | None
    """None: the file does not say, the model's default applies."""
    add_eos: bool
    add_space_prefix: bool
    chat_template: str | None
    strips_right: frozenset[int] = field(default_factory=frozenset)
    """Special tokens that swallow the white space that follows them in the text."""


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Read and check the tokenizer keys of ``metadata`` (a GGUF file's key-value pairs).

    Arrays of strings are sequences of ``str``; numeric arrays are NumPy arrays or sequences.
    Raises `FormatError` for what is missing, inconsistent or out of range, `UnsupportedError` for
    a tokenizer model that tilewright does not have.
    """
    model = _string(metadata, "tokenizer.ggml.model")
    if model is None:
        raise FormatError("no tokenizer: the key 'tokenizer.ggml.model' is missing")
    if model not in ("llama", "gpt2"):
        kind = _UNSUPPORTED_MODELS.get(model)
        raise UnsupportedError(
            f"tokenizer model {model!r}{f' ({kind})' if kind else ''} is not supported; "
            "supported are 'llama' (SentencePiece-style) and 'gpt2' (byte-level BPE)"
        )
    spm = model == "llama"

    tokens = [
        # an empty piece would match everywhere; llama.cpp renames it likewise
        text or f"[EMPTY_{i}]"
        for i, text in enumerate(_strings(metadata, "tokenizer.ggml.tokens", required=True))
    ]
    n = len(tokens)
    if n == 0:
        raise FormatError("'tokenizer.ggml.tokens' is empty")
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError as error:
        raise FormatError("'tokenizer.ggml.tokens' has text that is not valid Unicode") from error
    ids = dict(zip(tokens, range(n)))
    if len(ids) != n:
        twice = next(i for i, text in enumerate(tokens) if ids[text] != i)
        raise FormatError(
            f"'tokenizer.ggml.tokens' has the token {tokens[twice]!r} twice, "
            f"as ids {twice} and {ids[tokens[twice]]}"
        )

    scores = _numbers(metadata, "tokenizer.ggml.scores", n)
    if scores is not None:
        with np.errstate(over="ignore"):  # beyond float32 a score is infinite
            scores = scores.astype(np.float32)
        if np.isnan(scores).any():
            bad = int(np.flatnonzero(np.isnan(scores))[0])
            raise FormatError(f"'tokenizer.ggml.scores' is NaN for token {bad} {tokens[bad]!r}")
    elif spm:
        raise FormatError("'tokenizer.ggml.scores' is missing; model 'llama' merges by score")
    raw_types = _numbers(metadata, "tokenizer.ggml.token_type", n)
    types = np.full(n, TokenType.NORMAL, np.int32)
    if raw_types is not None:
        # an unknown type number means "no particular type", as llama.cpp reads it
        known = (raw_types >= 0) & (raw_types <= max(TokenType))
        types = np.where(known, raw_types, TokenType.UNDEFINED).astype(np.int32)

    merges: list[str] = []
    if not spm:
        merges = list(_strings(metadata, "tokenizer.ggml.merges", required=True))

    def special(name: str, default: int | None = None) -> int | None:
        value = _integer(metadata, f"tokenizer.ggml.{name}_token_id")
        if value is None:
            return default if default is None or default < n else None
        if not 0 <= value < n:
            # converters write 2^32 - 1 for "none"
            if value in (-1, 0xFFFFFFFF):
                return None
            raise FormatError(
                f"'tokenizer.ggml.{name}_token_id' is {value}, "
                f"but the vocabulary has {n} tokens (0..{n - 1})"
            )
        return value

    bos_id = special("bos", 1 if spm else None)
    eos_id = special("eos", 2 if spm else None)
    unk_id = special("unknown", 0 if spm else None)
    named_ends = [eos_id, special("eot"), special("eom")]

    ends = {ids[text] for text in _END_OF_GENERATION | _FILL_IN_MIDDLE_END if text in ids}
    for control in [*ends, *(ids[text] for text in _FILL_IN_MIDDLE if text in ids)]:
        types[control] = TokenType.CONTROL
    ends.update(end for end in named_ends if end is not None)
    if "<|end|>" in ids and {"<|call|>", "<|return|>"} <= ids.keys():
        # harmony: <|end|> closes one message of several, only <|return|> and <|call|> end the turn
        ends.discard(ids["<|end|>"])
        types[ids["<|end|>"]] = TokenType.USER_DEFINED

    add_bos = _boolean(metadata, "tokenizer.ggml.add_bos_token")
    add_eos = _boolean(metadata, "tokenizer.ggml.add_eos_token") or False
    add_space_prefix = _boolean(metadata, "tokenizer.ggml.add_space_prefix")
    for flag, name, token_id in ((add_bos, "bos", bos_id), (add_eos, "eos", eos_id)):
        if flag and token_id is None:
            raise FormatError(
                f"'tokenizer.ggml.add_{name}_token' is true, "
                f"but there is no 'tokenizer.ggml.{name}_token_id'"
            )

    return Vocabulary(
        model=model,
        pre=_string(metadata, "tokenizer.ggml.pre") or "default",
        tokens=tokens,
        ids=ids,
        types=types,
        scores=scores,
        merges=merges,
        bos_id=bos_id,
        eos_id=eos_id,
        unk_id=unk_id,
        pad_id=special("padding"),
        eos_ids=frozenset(ends),
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=spm if add_space_prefix is None else add_space_prefix,
        chat_template=_string(metadata, "tokenizer.chat_template"),
        strips_right=_right_stripping(_string(metadata, "general.name") or "", ids, types),
    )


def _right_stripping(
    model_name: str, ids: Mapping[str, int], types: npt.NDArray[np.int32]
) -> frozenset[int]:
    """GGUF has no field for "this token swallows the white space after it"; only Phi-3 needs it,
    and llama.cpp tells it by the model's name."""
    if not any(name in model_name.lower() for name in ("phi-3", "phi3")):
        return frozenset()
    special = np.isin(types, (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN))
    keep = {ids[text] for text in ("<unk>", "<s>", "<|endoftext|>") if text in ids}
    return frozenset(np.flatnonzero(special).tolist()) - keep


def _string(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise FormatError(f"{key!r} is a {type(value).__name__}, wanted a string")
    return value


def _boolean(metadata: Mapping[str, Any], key: str) -> bool | None:
    value = metadata.get(key)
    if value is not None and not isinstance(value, bool | np.bool_):
        raise FormatError(f"{key!r} is a {type(value).__name__}, wanted a boolean")
    return None if value is None else bool(value)


def _integer(metadata: Mapping[str, Any], key: str) -> int | None:
    value = metadata.get(key)
    if value is not None and (
        isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer)
    ):
        raise FormatError(f"{key!r} is a {type(value).__name__}, wanted an integer")
    return None if value is None else int(value)


def _strings(metadata: Mapping[str, Any], key: str, *, required: bool) -> Sequence[str]:
    value = metadata.get(key)
    if value is None and required:
        raise FormatError(f"{key!r} is missing")
    if isinstance(value, np.ndarray) and value.dtype.kind == "U" and value.ndim == 1:
        return [str(text) for text in value]
    if not isinstance(value, list | tuple) or not all(map(str.__instancecheck__, value)):
        raise FormatError(f"{key!r} is not an array of strings")
    return value


def _numbers(metadata: Mapping[str, Any], key: str, length: int) -> npt.NDArray[Any] | None:
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, list | tuple | np.ndarray):
        raise FormatError(f"{key!r} is a {type(value).__name__}, wanted an array of numbers")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise FormatError(f"{key!r} is not an array of numbers") from error
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise FormatError(f"{key!r} is not an array of numbers")
    if len(array) != length:
        raise FormatError(
            f"{key!r} has {len(array)} entries, but 'tokenizer.ggml.tokens' has {length}"
        )
    return array

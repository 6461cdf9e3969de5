"""``tokenizer.json``, the file of Hugging Face's ``tokenizers``, to GGUF metadata and back.

Byte-level BPE is converted, without a normaliser and with a pre-tokeniser that GGUF has a name for;
anything else is refused by name. GGUF's ``tokenizer.ggml.*`` keys are the form that everything here
works on: what `read_json` gives, `tilewright.tokenizers.from_metadata` makes a tokenizer of.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from tilewright.errors import FormatError, UnsupportedError
from tilewright.formats.atomic import atomic_file
from tilewright.tokenizers.bpe import read_merges
from tilewright.tokenizers.load import from_metadata
from tilewright.tokenizers.pretokenizers import find_pretokenizer, named_by_patterns
from tilewright.tokenizers.tokenizer import Tokenizer
from tilewright.tokenizers.vocabulary import TokenType, read_vocabulary

__all__ = ["begin_and_end", "from_json", "read_json", "write_json"]

MAX_BYTES: Final = 256 << 20
"""The largest tokenizers in use take about 35 MB."""

_BEGIN: Final = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "<｜begin▁of▁sentence｜>")
# Byte-level BPE has no scores, and nothing is unknown to it.
_MEANINGLESS: Final = ("tokenizer.ggml.scores", "tokenizer.ggml.unknown_token_id")
_END: Final = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "<｜end▁of▁sentence｜>")


def from_json(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer in a ``tokenizer.json``; raises as `read_json`.

    Text that the file wants in Unicode's normal form NFC is brought into it by `encode`; GGUF has
    no place for that, so that `read_json` refuses it.
    """
    content = _read(path)
    composed = isinstance(content, dict) and content.get("normalizer") == {"type": "NFC"}
    if composed:
        content = {**content, "normalizer": None}
    tokenizer = from_metadata(_checked_metadata(content, path))
    tokenizer.composes = composed
    return tokenizer


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``tokenizer.ggml.*`` metadata that say the same as a ``tokenizer.json``.

    Which token begins a text and which ends it is taken from the post-processor, and where that is
    silent from the tokens' usual names.

    Raises:
        FormatError: damaged or inconsistent.
        UnsupportedError: a kind of tokenizer that GGUF's byte-level BPE cannot express.
        OSError: the file cannot be read.
    """
    return _checked_metadata(_read(path), path)


def _read(path: str | os.PathLike[str]) -> Any:
    name = os.fspath(path)
    with open(name, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise FormatError(f"has more than {MAX_BYTES} bytes", path=name)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"is not JSON: {str(error)[:200]}", path=name) from None


def _checked_metadata(content: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    name = os.fspath(path)
    try:
        metadata = _metadata(content)
        read_merges(read_vocabulary(metadata))  # whatever is wrong is found here
        return metadata
    except FormatError as error:
        raise FormatError(str(error), path=name) from None
    except UnsupportedError as error:
        raise UnsupportedError(f"{name}: {error}") from None


def _metadata(content: Any) -> dict[str, Any]:
    model = _table(_table(content, "the file").get("model"), "'model'")
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram or WordPiece")
    if kind != "BPE" or model.get("byte_fallback"):
        fallback = " with byte fallback" if model.get("byte_fallback") else ""
        raise UnsupportedError(
            f"a tokenizer of type {kind!r:.40}{fallback} is not byte-level BPE; convert its model "
            "to GGUF with llama.cpp's tools"
        )
    for option in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(option):
            raise UnsupportedError(f"'model' has {option} {model[option]!r:.40}, which GGUF lacks")
    if content.get("normalizer") is not None:
        raise UnsupportedError("it normalises text before encoding, which GGUF's BPE does not")
    pre = _pre_name(content.get("pre_tokenizer"), bool(model.get("ignore_merges")))

    ids: dict[str, int] = dict(_table(model.get("vocab"), "'model.vocab'"))
    added = [_table(entry, "an added token") for entry in content.get("added_tokens") or []]
    for entry in added:
        ids[_text(entry.get("content"))] = entry.get("id")  # type: ignore[assignment]
    tokens, types = _places(ids)
    for entry in added:
        special = entry.get("special") is True
        types[entry["id"]] = TokenType.CONTROL if special else TokenType.USER_DEFINED
        for option in ("lstrip", "rstrip", "single_word"):
            if entry.get(option):
                warnings.warn(
                    f"token {entry['content']!r} has {option}, for which GGUF has no place; it is "
                    "left out",
                    stacklevel=4,
                )
    merges = [_merge(entry) for entry in model.get("merges") or []]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges or np.array([], np.str_),
    }
    first, last = _template(content.get("post_processor"))
    specials = [entry["content"] for entry in added if entry.get("special") is True]
    begin, end = begin_and_end(specials)
    for role, around, usual in (("bos", first, begin), ("eos", last, end)):
        token = around if around is not None else usual
        if token is not None:
            if token not in ids:
                raise FormatError(f"the post-processor adds {token!r:.80}, which is no token")
            metadata[f"tokenizer.ggml.{role}_token_id"] = ids[token]
        metadata[f"tokenizer.ggml.add_{role}_token"] = around is not None
    return metadata


def _places(ids: dict[str, int]) -> tuple[list[str], np.ndarray]:
    """(tokens by id, their types); ids that no token has become unused tokens."""
    for token, token_id in ids.items():
        if not isinstance(token, str) or type(token_id) is not int or token_id < 0:
            raise FormatError(f"token {token!r:.80} has the id {token_id!r:.40}")
    size = max(ids.values(), default=-1) + 1
    if size > 2 * len(ids) + 4096:
        raise FormatError(f"{len(ids)} tokens have ids up to {size - 1}")
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = np.full(size, TokenType.UNUSED, np.int32)
    for token, token_id in ids.items():
        if types[token_id] == TokenType.NORMAL:
            raise FormatError(f"tokens {tokens[token_id]!r} and {token!r} both have id {token_id}")
        tokens[token_id] = token
        types[token_id] = TokenType.NORMAL
    return tokens, types


def _merge(entry: Any) -> str:
    if isinstance(entry, list) and len(entry) == 2 and all(isinstance(p, str) for p in entry):
        if any(" " in part for part in entry):
            raise UnsupportedError(f"the merge {entry!r:.80} has a space, so it is not byte-level")
        return " ".join(entry)
    return _text(entry)


def _pre_name(pre: Any, ignore_merges: bool) -> str:
    """GGUF's name for a chain of pre-tokenisers."""
    steps = _steps(pre, "pretokenizers")
    patterns: list[str] = []
    for step in steps:
        kind = step.get("type")
        if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            patterns.append(_text(_table(step.get("pattern"), "a pattern").get("Regex")))
        elif kind == "Digits":
            patterns.append(r"\p{N}" if step.get("individual_digits") else r"\p{N}+")
        elif kind == "ByteLevel" and step is steps[-1] and not step.get("add_prefix_space"):
            if step.get("use_regex", True):
                patterns += find_pretokenizer("gpt-2").patterns
            name = named_by_patterns(tuple(patterns), ignore_merges)
            if name is not None:
                return name
            break
        else:
            break
    raise UnsupportedError(
        f"GGUF has no name for its way of cutting text into words: {json.dumps(pre)[:300]}"
        + (" with ignore_merges" if ignore_merges else "")
    )


def _steps(value: Any, list_name: str) -> list[Mapping[str, Any]]:
    """The parts of a ``Sequence``, or the one thing itself."""
    if value is None:
        return []
    table = _table(value, list_name)
    if table.get("type") != "Sequence":
        return [table]
    return [_table(step, list_name) for step in table.get(list_name) or []]


def _template(post: Any) -> tuple[str | None, str | None]:
    """(token put before a text, token put after it)."""
    for step in _steps(post, "processors"):
        kind = step.get("type")
        if kind == "ByteLevel":  # concerns offsets only
            continue
        if kind in ("RobertaProcessing", "BertProcessing"):
            cls, sep = step.get("cls"), step.get("sep")
            if not (isinstance(cls, list) and isinstance(sep, list) and cls and sep):
                raise FormatError(f"{kind} has no 'cls' and 'sep'")
            return _text(cls[0]), _text(sep[0])
        if kind != "TemplateProcessing":
            raise UnsupportedError(f"post-processor {kind!r:.40} is not supported")
        names = [
            _text(_table(part["SpecialToken"], "a template").get("id"))
            if "SpecialToken" in _table(part, "a template")
            else None
            for part in step.get("single") or []
        ]
        if names.count(None) != 1 or len(names) > 3 or len(names) - names.index(None) > 2:
            raise UnsupportedError(f"the template {json.dumps(step.get('single'))[:200]}")
        at = names.index(None)
        if at > 1:
            raise UnsupportedError("a template with two tokens before the text")
        return (names[0] if at else None), (names[-1] if len(names) > at + 1 else None)
    return None, None


def begin_and_end(specials: Sequence[str]) -> tuple[str | None, str | None]:
    """Which of the special tokens begin and end a text, by their usual names.

    One that is alone does both, as GPT-2's ``<|endoftext|>``.
    """
    begin = next((token for token in _BEGIN if token in specials), None)
    end = next((token for token in _END if token in specials), None)
    if begin is None and (end is not None or len(specials) == 1):
        begin = end or specials[0]
    if end is None and len(specials) == 1:
        end = specials[0]
    return begin, end


def _table(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"{what} is {type(value).__name__}, wanted a table")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise FormatError(f"found {value!r:.80} where a text belongs")
    return value


def write_json(path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> None:
    """Write the tokenizer of GGUF metadata as a ``tokenizer.json``, atomically.

    The file has no field for which token begins or ends a text, other than by putting it there;
    where its usual name does not say so either, a warning tells what is lost.

    Raises:
        FormatError: the metadata are damaged.
        UnsupportedError: not byte-level BPE.
        OSError: the disk said no; an old file stays as it was.
    """
    content = _content(metadata)
    text = json.dumps(content, ensure_ascii=False, indent=1)
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))
    _warn_of_losses(metadata, _metadata(content))


def _content(metadata: Mapping[str, Any]) -> dict[str, Any]:
    vocabulary = read_vocabulary(metadata)
    if vocabulary.model != "gpt2":
        raise UnsupportedError(
            "only byte-level BPE goes into a tokenizer.json, this is a SentencePiece vocabulary"
        )
    pre = find_pretokenizer(vocabulary.pre)
    tokenizer = from_metadata(metadata)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    found = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    added = [
        {"id": i, "content": token, **flags, "special": int(kind) != TokenType.USER_DEFINED}
        for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types))
        if int(kind) in found
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    if pre.patterns == find_pretokenizer("gpt-2").patterns:
        pre_tokenizer: dict[str, Any] = {**byte_level, "use_regex": True}
    else:
        steps = [
            {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
            for p in pre.patterns
        ]
        pre_tokenizer = {
            "type": "Sequence",
            "pretokenizers": [*steps, {**byte_level, "use_regex": False}],
        }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": _post_processor(tokenizer, vocabulary.tokens),
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre.ignore_merges,
            "vocab": vocabulary.ids,
            "merges": [merge.split(" ") for merge in vocabulary.merges],
        },
    }


def _post_processor(tokenizer: Tokenizer, tokens: Sequence[str]) -> dict[str, Any] | None:
    before = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    after = [tokenizer.eos_id] if tokenizer.add_eos and tokenizer.eos_id is not None else []
    if not before and not after:
        return None

    def special(token_id: int, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": tokens[token_id], "type_id": kind}}

    def around(name: str, kind: int) -> list[dict[str, Any]]:
        return [
            *(special(i, kind) for i in before),
            {"Sequence": {"id": name, "type_id": kind}},
            *(special(i, kind) for i in after),
        ]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            tokens[i]: {"id": tokens[i], "ids": [i], "tokens": [tokens[i]]}
            for i in dict.fromkeys(before + after)
        },
    }


def _warn_of_losses(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    lost = [
        key
        for key, value in before.items()
        if key.startswith("tokenizer.")
        and key not in after
        and value is not None
        and key not in _MEANINGLESS
    ]
    for role in ("bos", "eos"):
        key = f"tokenizer.ggml.{role}_token_id"
        if key in before and key in after and before[key] != after[key]:
            lost.append(key)
    if lost:
        warnings.warn(f"tokenizer.json has no place for {', '.join(sorted(lost))}", stacklevel=3)

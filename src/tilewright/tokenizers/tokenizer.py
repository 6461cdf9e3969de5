"""`Tokenizer`: one face for every kind of vocabulary."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable

import numpy as np

from tilewright.tokenizers.vocabulary import TokenType, Vocabulary

__all__ = ["Tokenizer"]

_C_WHITE_SPACE = " \t\n\v\f\r"


class Tokenizer:
    """Text to token ids and back. Made by `from_gguf` or `from_metadata`, immutable afterwards.

    Ids equal llama.cpp's for the same file: special tokens are found in the text first, the longest
    first, and what lies between them is encoded by the vocabulary's own algorithm.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        make_encoder: Callable[[], Callable[[str], list[int]]],
        token_bytes: Callable[[int], bytes],
        add_bos: bool,
    ) -> None:
        self._vocabulary = vocabulary
        self._make_encoder = make_encoder
        self._encode_text: Callable[[str], list[int]] | None = None
        self._compute_bytes = token_bytes
        self._bytes: dict[int, bytes] = {}
        types = vocabulary.types
        hidden = np.isin(types, (TokenType.CONTROL, TokenType.UNKNOWN))
        self._special = frozenset(np.flatnonzero(hidden).tolist())
        in_text = np.flatnonzero(hidden | (types == TokenType.USER_DEFINED)).tolist()
        tokens = vocabulary.tokens
        self._found_in_text = sorted(
            ((tokens[i], i) for i in in_text), key=lambda item: -len(item[0].encode())
        )
        self.add_bos = add_bos
        """Whether `encode` begins with `bos_id` (and ``add_special`` is left on)."""
        self.add_eos = vocabulary.add_eos
        """Whether `encode` ends with `eos_id` (and ``add_special`` is left on)."""
        self.composes = False
        """Whether `encode` brings text between special tokens into Unicode's normal form NFC."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens; ids run from 0 to ``vocab_size - 1``."""
        return len(self._vocabulary.tokens)

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, if the vocabulary has one."""
        return self._vocabulary.bos_id

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, if the vocabulary has one."""
        return self._vocabulary.eos_id

    @property
    def unk_id(self) -> int | None:
        """The token for what cannot be encoded, if the vocabulary has one."""
        return self._vocabulary.unk_id

    @property
    def pad_id(self) -> int | None:
        """The padding token, if the vocabulary has one."""
        return self._vocabulary.pad_id

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every token after which generation ends: end of text, of turn, of message."""
        return self._vocabulary.eos_ids

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of the model's chat format, if the file has one."""
        return self._vocabulary.chat_template

    @property
    def add_space_prefix(self) -> bool:
        """Whether `encode` puts a space before the text, which `decode` takes away again."""
        return self._vocabulary.add_space_prefix

    def __repr__(self) -> str:
        v = self._vocabulary
        kind = "SentencePiece-style" if v.model == "llama" else f"byte-level BPE, {v.pre}"
        return f"Tokenizer({kind}, {self.vocab_size} tokens)"

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of ``text``.

        ``add_special``: put the begin and end tokens where the model wants them. ``parse_special``:
        the text of a control token stands for that token; turn it off for text from strangers.
        Raises `ValueError` for a lone surrogate, which is not text.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text has the lone surrogate U+{ord(text[error.start]):04X} at index "
                f"{error.start}, which no encoding can carry; decode the input with "
                "errors='replace'"
            ) from error
        v = self._vocabulary
        if self._encode_text is None:
            self._encode_text = self._make_encoder()
        out = [v.bos_id] if add_special and self.add_bos and v.bos_id is not None else []
        after_special = True
        for fragment in self._partition(text, parse_special):
            if isinstance(fragment, int):
                out.append(fragment)
                after_special = True
            else:
                if self.composes:
                    fragment = unicodedata.normalize("NFC", fragment)
                prefix = " " if v.add_space_prefix and after_special else ""
                out += self._encode_text(prefix + fragment)
                after_special = False
        if add_special and self.add_eos and v.eos_id is not None:
            out.append(v.eos_id)
        return out

    def _partition(self, text: str, parse_special: bool) -> list[str | int]:
        """Split at special tokens. One token after the other, the longest first, not left to right:
        that is what llama.cpp does, and it differs where their texts overlap."""
        fragments: list[str | int] = [text] if text else []
        for token, token_id in self._found_in_text:
            if token not in text or (token_id in self._special and not parse_special):
                continue
            strip = token_id in self._vocabulary.strips_right
            pieces: list[str | int] = []
            for fragment in fragments:
                if isinstance(fragment, int) or token not in fragment:
                    pieces.append(fragment)
                    continue
                for i, between in enumerate(fragment.split(token)):
                    if i:
                        pieces.append(token_id)
                        if strip:
                            between = between.lstrip(_C_WHITE_SPACE)
                    if between:
                        pieces.append(between)
            fragments = pieces
        return fragments

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become U+FFFD.

        ``skip_special`` leaves control tokens out. A space that `encode` put before the text is
        taken away from the first token that counts.
        """
        parts = []
        first = True
        for token_id in ids:
            if skip_special and token_id in self._special:
                continue
            parts.append(self.token_bytes(token_id, first=first))
            first = False
        return b"".join(parts).decode("utf-8", "replace")

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        """Exactly the bytes that the token adds to the text, which may be part of a character.

        ``first``: it begins the text, so the space that `encode` puts there is left out.
        """
        token_id = int(token_id)
        found = self._bytes.get(token_id)
        if found is None:
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(
                    f"token id {token_id} is out of range for a vocabulary of {self.vocab_size}"
                )
            found = self._bytes[token_id] = self._compute_bytes(token_id)
        if (
            first
            and self._vocabulary.add_space_prefix
            and found.startswith(b" ")
            and int(self._vocabulary.types[token_id]) == TokenType.NORMAL
        ):
            return found[1:]
        return found

    def token_text(self, token_id: int) -> str:
        """The token as the vocabulary spells it (``"▁the"``, ``"Ġthe"``, ``"<0x0A>"``)."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(
                f"token id {token_id} is out of range for a vocabulary of {self.vocab_size}"
            )
        return self._vocabulary.tokens[token_id]

    def token_id(self, text: str) -> int | None:
        """The id of the token that the vocabulary spells ``text``, or None."""
        return self._vocabulary.ids.get(text)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control (or unknown) token, which is not part of the text."""
        return token_id in self._special

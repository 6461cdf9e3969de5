"""Byte-level BPE (GPT-2 and most of its successors), on the ``tokenizers`` library.

Text is cut into words by the model's pre-tokeniser, each word is written in GPT-2's alphabet of 256
printable characters (one for each byte), and neighbours are merged in the order of the merge list.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from tilewright.errors import FormatError
from tilewright.tokenizers.pretokenizers import PreTokenizer
from tilewright.tokenizers.vocabulary import TokenType, Vocabulary

__all__ = ["bpe_encoder", "bpe_token_bytes", "byte_alphabet", "read_merges"]


def byte_alphabet() -> list[str]:
    """GPT-2's character for each of the 256 bytes: itself if printable, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(shifted)) for byte in range(256)]


def read_merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The merge list as pairs. Raises `FormatError` unless both parts and the result are tokens."""
    ids = vocabulary.ids
    pairs: dict[tuple[str, str], None] = {}
    for index, line in enumerate(vocabulary.merges):
        left, space, right = line.partition(" ")
        if not (left in ids and right in ids and left + right in ids):
            if not (space and left and right) or " " in right:
                raise FormatError(
                    f"'tokenizer.ggml.merges' entry {index} is {line!r}, "
                    "wanted two tokens with one space between them"
                )
            missing = next(t for t in (left, right, left + right) if t not in ids)
            raise FormatError(
                f"'tokenizer.ggml.merges' entry {index}, {line!r}, needs the token {missing!r}, "
                "which is not in the vocabulary"
            )
        pairs.setdefault((left, right))  # of two equal entries the first counts
    return list(pairs)


def bpe_encoder(
    vocabulary: Vocabulary, merges: list[tuple[str, str]], pre: PreTokenizer
) -> Callable[[str], list[int]]:
    """A function from text (without special tokens) to ids."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    # Some vocabularies lack bytes that their training text did not have. The library leaves them
    # out without a word (and so does llama.cpp); an id beyond the vocabulary makes them visible.
    vocab_size = len(vocabulary.tokens)
    absent = [(byte, c) for byte, c in enumerate(byte_alphabet()) if c not in vocabulary.ids]
    stand_ins = {c: vocab_size + i for i, (_, c) in enumerate(absent)}
    model = models.BPE(
        vocab={**vocabulary.ids, **stand_ins}, merges=merges, ignore_merges=pre.ignore_merges
    )
    engine = Tokenizer(model)
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in pre.patterns]
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )

    def without_stand_ins(ids: list[int]) -> list[int]:
        lost = sorted({absent[i - vocab_size][0] for i in ids if i >= vocab_size})
        if not lost:
            return ids
        warnings.warn(
            "the vocabulary has no token for the UTF-8 bytes "
            f"{', '.join(f'0x{byte:02X}' for byte in lost)}; they are left out of the ids",
            stacklevel=4,
        )
        return [i for i in ids if i < vocab_size]

    def encode(text: str) -> list[int]:
        ids: list[int] = engine.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return without_stand_ins(ids) if absent else ids

    return encode


def bpe_token_bytes(vocabulary: Vocabulary, token_id: int, byte_of: dict[str, int]) -> bytes:
    """What the token adds to the text. ``byte_of`` inverts `byte_alphabet`."""
    text = vocabulary.tokens[token_id]
    kind = int(vocabulary.types[token_id])  # a NumPy number would search the enum for hooks
    if kind in (TokenType.UNUSED, TokenType.UNDEFINED):
        return b""
    if kind != TokenType.NORMAL:
        return text.encode()
    try:
        return bytes([byte_of[c] for c in text])
    except KeyError:
        # an added token that the file calls normal: its text is not in the byte alphabet
        return text.encode()

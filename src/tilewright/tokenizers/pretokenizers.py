"""How byte-level BPE vocabularies cut text into words before merging.

GGUF files carry only a name (``tokenizer.ggml.pre``); what it means is this table, whose names and
patterns are those of llama.cpp. Patterns are applied one after the other: each cuts the pieces that
the previous ones left, and what a pattern does not match stays a piece of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.errors import UnsupportedError

__all__ = ["PreTokenizer", "find_pretokenizer", "pretokenizer_names"]


@dataclass(frozen=True)
class PreTokenizer:
    """Patterns in Oniguruma's syntax, and the defaults that come with the name."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    """A word that is a token is that token, whatever the merges would make of it."""
    add_bos: bool = False
    """Texts begin with the begin token unless the file says otherwise."""


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _llama3(digits: str) -> str:
    return (
        _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    ) + _SPACES


def _cased(contraction: str, digits: str) -> str:
    """Words end where a lower-case letter is followed by an upper-case one (Tekken, GPT-4o)."""
    upper, lower = r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"
    lead = r"[^\r\n\p{L}\p{N}]?"
    return (
        f"{lead}{upper}*{lower}+{contraction}|{lead}{upper}+{lower}*{contraction}|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    ) + _SPACES


_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES,
)
_DEEPSEEK_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ"
    "Ḁ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄ"
    "Ⰰ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_DEEPSEEK_IDEOGRAPHS = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"

_FAMILIES: tuple[tuple[tuple[str, ...], PreTokenizer], ...] = (
    (
        ("default",),
        PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    ),
    (
        (
            *("gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "mpt", "olmo", "jais"),
            *("exaone4", "trillion", "granite-docling"),
        ),
        PreTokenizer((_GPT2,)),
    ),
    (
        (
            *("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone"),
            *("minerva-7b", "mellum2"),
        ),
        PreTokenizer((r"\p{N}", _GPT2)),
    ),
    (
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        PreTokenizer((_llama3(r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True),
    ),
    (
        ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"),
        PreTokenizer((_llama3(r"\p{N}{1,3}"),)),
    ),
    (
        (
            *("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan"),
            *("solar-open", "grok-2"),
        ),
        PreTokenizer((_llama3(r"\p{N}"),)),
    ),
    (
        ("qwen35",),
        PreTokenizer(
            (
                _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
                r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES,
            )
        ),
    ),
    (
        ("seed-coder",),
        PreTokenizer(
            (
                _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}"
                r"| ?[^\s\p{L}\p{N}\r\n]+|" + _SPACES,
            )
        ),
    ),
    (
        ("bailingmoe", "bailingmoe2", "llada-moe"),
        PreTokenizer(
            (
                r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
            )
        ),
    ),
    (
        ("deepseek-llm",),
        PreTokenizer(
            (
                r"[\r\n]",
                rf"\s?[{_DEEPSEEK_LETTERS}]+",
                "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
                r"\s+$",
                _DEEPSEEK_IDEOGRAPHS,
                r"\p{N}+",
            )
        ),
    ),
    (
        ("deepseek-coder",),
        PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_IDEOGRAPHS, r"\p{N}")),
    ),
    (("deepseek-v3", "hunyuan-dense", "joyai-llm"), PreTokenizer(_DEEPSEEK3)),
    (
        ("falcon",),
        PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    ),
    (("poro-chat", "bloom", "gpt3-finnish"), PreTokenizer((_BLOOM,))),
    (("viking",), PreTokenizer((_BLOOM, r"\p{N}"))),
    (
        ("tekken",),
        PreTokenizer((_cased("", r"\p{N}"),), ignore_merges=True, add_bos=True),
    ),
    (
        ("gpt-4o", "llama4", "kanana2", "minimax-m2"),
        PreTokenizer((_cased(_CONTRACTION + "?", r"\p{N}{1,3}"),)),
    ),
)


def pretokenizer_names() -> list[str]:
    """Every supported value of ``tokenizer.ggml.pre``."""
    return sorted(name for names, _ in _FAMILIES for name in names)


def find_pretokenizer(name: str) -> PreTokenizer:
    """The pre-tokeniser that a file calls ``name``; `UnsupportedError` names it if unknown."""
    for names, pre in _FAMILIES:
        if name in names:
            return pre
    raise UnsupportedError(
        f"pre-tokeniser {name!r} (key 'tokenizer.ggml.pre') is not supported; "
        f"supported are {', '.join(pretokenizer_names())}"
    )

"""How byte-level BPE vocabularies cut text into words before merging.

GGUF files carry only a name (``tokenizer.ggml.pre``); what it means is this table, whose names and
patterns are those of llama.cpp. Patterns are applied one after the other: each cuts the pieces that
the previous ones left, and what a pattern does not match stays a piece of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.errors import UnsupportedError

__all__ = ["PreTokenizer", "find_pretokenizer", "named_by_patterns", "pretokenizer_names"]


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
# by code point: several of these look like, and normalise to, other letters
_DEEPSEEK_LETTERS = (
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}"
    r"\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}"
    r"\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}"
    r"\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}"
    r"\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}"
    r"\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}"
    r"\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}"
    r"\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}"
    r"\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}"
    r"\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}"
    r"\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}"
    r"\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}"
    r"\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}"
    r"\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}"
    r"\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}"
    r"\x{1E900}-\x{1E943}"
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


def named_by_patterns(patterns: tuple[str, ...], ignore_merges: bool) -> str | None:
    """The name for these patterns, applied one after the other; None if there is none.

    Patterns are compared as text, but for the ways in which tokenizers' own files write the same.
    """
    wanted = tuple(map(_usual_spelling, patterns))
    for names, pre in _FAMILIES:
        if pre.ignore_merges == ignore_merges and wanted == tuple(
            map(_usual_spelling, pre.patterns)
        ):
            return names[0]
    return None


def _usual_spelling(pattern: str) -> str:
    pattern = pattern.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", _CONTRACTION)
    # what the last alternative would match is left over, a piece of its own, without it
    return pattern.removesuffix(r"|\s+") if pattern.startswith("'s|'t|") else pattern

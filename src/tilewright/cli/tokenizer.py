"""``tilewright tokenizer``: train tokenizers, look at them, use them, convert them."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tilewright.cli.common import guarded, table
from tilewright.errors import FormatError

__all__ = ["commands", "decode", "encode", "export", "show", "train"]

TokenizerFile = Annotated[
    Path, typer.Argument(metavar="TOKENIZER", help="A tokenizer.json, or a GGUF file.")
]


def commands() -> typer.Typer:
    """The subcommands as a `typer.Typer`."""
    app = typer.Typer(
        help="Train tokenizers, look at them, use them, convert them.", no_args_is_help=True
    )
    for command in (train, encode, decode, show, export):
        app.command()(guarded(command))
    return app


def train(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILES", help="Text in UTF-8, or FASTA; gzip too.")
    ],
    out: Annotated[
        Path,
        typer.Option("-o", "--out", metavar="FILE", help="tokenizer.json, or .gguf to write one."),
    ],
    vocab: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Tokens in all.  [default: 4096]")
    ] = None,
    merges: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Instead: merges beyond bytes and special tokens."),
    ] = None,
    fasta: Annotated[
        bool, typer.Option("--fasta", help="The files are FASTA; each sequence is a word.")
    ] = False,
    skip: Annotated[
        list[str] | None,
        typer.Option(metavar="PREFIX", help="Leave out FASTA records by how their header begins."),
    ] = None,
    characters: Annotated[
        bool, typer.Option("--characters", help="No merges: every character is a token.")
    ] = False,
    special: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOKEN",
            help="A special token; may be repeated. '' for none.  [default: <|endoftext|>]",
        ),
    ] = None,
    add_bos: Annotated[
        bool, typer.Option("--add-bos", help="Texts begin with the begin token.")
    ] = False,
    min_frequency: Annotated[
        int, typer.Option(metavar="N", min=0, help="Merge no pair that is rarer.")
    ] = 0,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no report.")] = False,
) -> None:
    """Learn a byte-level BPE tokenizer from files."""
    from tilewright.tokenizers.train import END_OF_TEXT, read_corpus, train_bpe, train_characters

    if vocab is not None and merges is not None:
        raise ValueError("--vocab and --merges exclude each other")
    if skip and not fasta:
        raise ValueError("--skip is for FASTA files; add --fasta")
    specials = [token for token in ([END_OF_TEXT] if special is None else special) if token]
    for file in files:  # a name that is wrong is told before the others are read
        with file.open("rb"):
            pass
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(2, "No such directory to write to", str(out.parent))
    begin = time.monotonic()
    texts = read_corpus(files, fasta=fasta, skip=tuple(skip or ()))
    if characters:
        if vocab is not None or merges is not None:
            raise ValueError("--characters makes as many tokens as there are characters")
        metadata = train_characters(texts, special=specials, add_bos=add_bos)
    else:
        size = (vocab or 4096) if merges is None else 256 + len(specials) + merges
        metadata = train_bpe(
            texts,
            size,
            special=specials,
            add_bos=add_bos,
            min_frequency=min_frequency,
            progress=not quiet and sys.stderr.isatty(),
        )
    _write(out, metadata)
    if quiet:
        return
    found = len(metadata["tokenizer.ggml.tokens"])
    learned = len(metadata["tokenizer.ggml.merges"])
    print(
        f"{out}: {found} tokens, {learned} merges, in {time.monotonic() - begin:.1f} s",
        file=sys.stderr,
    )
    if not characters and found < size:
        print(f"note: the texts have no more pairs; {size} tokens were wanted", file=sys.stderr)


def encode(
    tokenizer: TokenizerFile,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="[default: standard input]")
    ] = None,
    pieces: Annotated[
        bool, typer.Option("--pieces", help="The tokens' texts, one per line, beside the ids.")
    ] = False,
    special: Annotated[
        bool,
        typer.Option("--special", help="Add begin and end tokens; find special ones in the text."),
    ] = False,
) -> None:
    """Print the ids of a text."""
    found = _load(tokenizer)
    if text is None:
        text = _read_stdin()
    ids = found.encode(text, add_special=special, parse_special=special)
    if pieces:
        for token_id in ids:
            print(f"{token_id}\t{_shown(found, token_id)}")
    else:
        print(" ".join(map(str, ids)))


def decode(
    tokenizer: TokenizerFile,
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="IDS", help="Numbers.  [default: from standard input]"),
    ] = None,
    skip_special: Annotated[
        bool, typer.Option("--skip-special", help="Leave special tokens out.")
    ] = False,
) -> None:
    """Print the text of ids, exactly."""
    words = re.split(r"[\s,\[\]]+", " ".join(ids) if ids else _read_stdin())
    wrong = next((word for word in words if word and not re.fullmatch(r"[0-9]{1,18}", word)), None)
    if wrong is not None:
        raise ValueError(f"{wrong[:40]!r} is no token id")
    text = _load(tokenizer).decode([int(word) for word in words if word], skip_special)
    sys.stdout.write(text + ("\n" if sys.stdout.isatty() else ""))


def show(
    tokenizer: TokenizerFile,
    every: Annotated[bool, typer.Option("--all", help="Every token, one per line.")] = False,
) -> None:
    """What a tokenizer is made of."""
    metadata = _read(tokenizer)
    found = _made(metadata, tokenizer)
    tokens = range(found.vocab_size)
    if every:
        for token_id in tokens:
            print(f"{token_id}\t{_shown(found, token_id)}")
        return
    longest = sorted(tokens, key=lambda i: (-len(found.token_bytes(i)), i))
    ordinary = [i for i in longest if not found.is_special(i)][:8]
    rows = [
        ("kind", repr(found)[10:-1]),
        ("tokens", found.vocab_size),
        ("merges", len(metadata.get("tokenizer.ggml.merges", ()))),
        ("special", " ".join(_shown(found, i) for i in tokens if found.is_special(i))[:200] or "-"),
        ("begins texts", _role(found, found.bos_id, found.add_bos)),
        ("ends texts", _role(found, found.eos_id, found.add_eos)),
        ("longest", " ".join(_shown(found, i) for i in ordinary)[:300]),
    ]
    print(table(rows))


def export(
    tokenizer: TokenizerFile,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="tokenizer.json, or .gguf for a vocabulary file.")
    ],
) -> None:
    """Convert a tokenizer: tokenizer.json to GGUF and back."""
    _write(out, _read(tokenizer))


def _shown(tokenizer: Any, token_id: int) -> str:
    """The token's text, quoted; ``b'..'`` where it is part of a character only."""
    data: bytes = tokenizer.token_bytes(token_id)
    try:
        return repr(data.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(data)


def _role(tokenizer: Any, token_id: int | None, added: bool) -> str:
    if token_id is None:
        return "-"
    return f"{token_id} {_shown(tokenizer, token_id)}{', added to every text' if added else ''}"


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _read(path: Path) -> dict[str, Any]:
    """The ``tokenizer.*`` metadata of either kind of file."""
    if not _is_gguf(path):
        from tilewright.tokenizers.json_file import read_json

        return read_json(path)
    from tilewright.formats.gguf import open_gguf

    with open_gguf(path) as file:
        found = {k: v for k, v in file.metadata.items() if k.startswith("tokenizer.")}
    if found.get("tokenizer.ggml.merges") == []:
        found["tokenizer.ggml.merges"] = np.array([], np.str_)  # writable again, being typed
    return found


def _load(path: Path) -> Any:
    return _made(_read(path), path)


def _made(metadata: dict[str, Any], path: Path) -> Any:
    from tilewright.tokenizers import from_metadata

    try:
        return from_metadata(metadata)
    except FormatError as error:
        raise error if error.path else FormatError(str(error), path=path) from error


def _write(path: Path, metadata: dict[str, Any]) -> None:
    if path.suffix != ".gguf":
        from tilewright.tokenizers.json_file import write_json

        write_json(path, metadata)
        return
    from tilewright.formats.gguf import write_gguf

    write_gguf(path, {"general.architecture": "llama", "general.type": "vocab", **metadata}, {})


def _read_stdin() -> str:
    data = sys.stdin.buffer.read() if hasattr(sys.stdin, "buffer") else sys.stdin.read().encode()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("standard input is not UTF-8", path="-", offset=error.start) from None

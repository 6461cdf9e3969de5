"""``tilewright run``: text from a model, or a prompt loop."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from tilewright.cli.common import Progress, error_line, load_model
from tilewright.errors import ContextLengthError, TilewrightError, UnsupportedError
from tilewright.generate.model import Generation, Model
from tilewright.generate.sampling import SamplingParams
from tilewright.generate.session import Conversation

__all__ = ["run"]


def run(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="A GGUF file; without one, the model that ships inside."
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "-p",
            "--prompt",
            metavar="TEXT",
            help="Text to continue; without it, prompts in a loop.",
        ),
    ] = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            "-n",
            "--max-tokens",
            metavar="N",
            min=-1,
            help="Tokens at most; -1: until the model ends.",
        ),
    ] = 256,
    context: Annotated[
        int | None,
        typer.Option(
            "-c",
            "--context",
            metavar="N",
            min=1,
            help="Context in tokens.  [default: the model's, up to 4096]",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "-t", "--threads", metavar="N", min=1, help="Worker threads.  [default: one per core]"
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "-s", "--seed", metavar="S", min=0, help="Same seed, same text.  [default: a fresh one]"
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temp", metavar="T", help="0 takes the likeliest token every time.")
    ] = 0.8,
    top_k: Annotated[
        int, typer.Option("--top-k", metavar="K", help="Among the K likeliest; 0: all.")
    ] = 40,
    top_p: Annotated[
        float,
        typer.Option("--top-p", metavar="P", help="Among the likeliest that make up P; 1: all."),
    ] = 0.95,
    min_p: Annotated[
        float,
        typer.Option(
            "--min-p", metavar="P", help="At least P times as likely as the best; 0: any."
        ),
    ] = 0.05,
    repeat_penalty: Annotated[
        float,
        typer.Option(
            "--repeat-penalty", metavar="R", help="Divides logits of recent tokens; 1: off."
        ),
    ] = 1.0,
    presence_penalty: Annotated[
        float,
        typer.Option(
            "--presence-penalty", metavar="R", help="Subtracted from recent tokens; 0: off."
        ),
    ] = 0.0,
    frequency_penalty: Annotated[
        float,
        typer.Option("--frequency-penalty", metavar="R", help="The same per occurrence; 0: off."),
    ] = 0.0,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", metavar="TEXT", help="Stop before this text (repeatable)."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per answer, no echo of the prompt.")
    ] = False,
) -> None:
    """Continue a prompt; without -p, answer prompts in a loop.

    With -p the text is continued as it stands. The loop reads a prompt per line and keeps the
    conversation in the context; it uses the model's chat template if the file has one.
    """
    sampling: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repeat_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "seed": seed,
    }
    SamplingParams(**sampling)  # what is out of range is said before a large model is loaded
    if prompt is not None:
        _check_utf8(prompt)
    if not all(stop or ()):
        raise ValueError("--stop is empty; it would end every text at once")
    loaded = load_model(model, threads=threads, context=context, quiet=as_json)
    settings = {
        **sampling,
        "max_tokens": None if max_tokens < 0 else max_tokens,
        "stop": stop or (),
    }
    if prompt is None:
        _loop(loaded, settings, as_json)
    elif _answer(loaded.generate(prompt, **settings), prompt, as_json, echo=prompt):
        raise typer.Exit(130)


def _check_utf8(text: str) -> None:
    """Arguments that are not UTF-8 arrive with surrogates in place of their bytes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) & 0xFF
        raise ValueError(
            f"the prompt is not UTF-8: byte 0x{byte:02x} after {text[: error.start][-20:]!r}"
        ) from None


def _answer(generation: Generation, prompt: str, as_json: bool, echo: str = "") -> bool:
    """Print an answer as it comes; whether Ctrl-C ended it."""
    pieces: list[str] = []
    interrupted = False
    progress = Progress(enabled=not as_json)
    try:
        progress.say("reading the prompt (a first run also compiles kernels)")
        first = next(generation, "")
        progress.done()
        for piece in itertools.chain((echo, first), generation):
            pieces.append(piece)
            if not as_json:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        interrupted = True
        generation.close()
    finally:
        progress.done()
    reason = "interrupted" if interrupted else generation.reason
    t = generation.timings
    prompt_rate = t.prompt_tokens / t.prompt_seconds if t.prompt_seconds else 0.0
    rate = t.tokens / t.seconds if t.seconds else 0.0
    if as_json:
        report = {
            "prompt": prompt,
            "text": "".join(pieces[1:]),
            "ids": generation.ids,
            "reason": reason,
            "prompt_tokens": t.prompt_tokens,
            "prompt_seconds": t.prompt_seconds,
            "prompt_tokens_per_s": prompt_rate,
            "tokens": len(generation.ids),
            "seconds": t.seconds,
            "tokens_per_s": rate,
            "compile_seconds": t.compile_seconds,
        }
        print(json.dumps(report), flush=True)
    else:
        print(flush=True)
        compiled = f"; kernels: {t.compile_seconds:.1f} s" if t.compile_seconds >= 0.05 else ""
        print(
            f"[{reason}] prompt: {t.prompt_tokens} tokens, {prompt_rate:.1f}/s; "
            f"answer: {len(generation.ids)} tokens, {rate:.1f}/s{compiled}",
            file=sys.stderr,
        )
    return interrupted


def _loop(model: Model, settings: dict[str, Any], as_json: bool) -> None:
    """Answer prompts until the input ends. Ctrl-C ends an answer, or, at the prompt, the loop."""
    if model.tokenizer.chat_template is not None and find_spec("jinja2") is None:
        raise UnsupportedError(
            "the model has a chat template, which needs the package jinja2: "
            "pip install 'tilewright[chat]', or give a prompt with -p, which is continued as it is"
        )
    interactive = sys.stdin is not None and sys.stdin.isatty() and not as_json
    if interactive:
        print("Type a prompt; Ctrl-C stops an answer, Ctrl-D ends.", file=sys.stderr)
    conversation = Conversation(model)
    fresh = True
    while (line := _read(interactive)) is not None:
        if not line.strip():
            continue
        try:
            generation = conversation.say(line, **settings)
        except ContextLengthError as error:
            if fresh:
                _refuse(error, interactive)
                continue
            print("note: the context is full; a new conversation begins", file=sys.stderr)
            conversation.close()
            conversation, fresh = Conversation(model), True
            try:
                generation = conversation.say(line, **settings)
            except ContextLengthError as again:
                _refuse(again, interactive)
                continue
        _answer(generation, line, as_json)
        fresh = False
    if interactive:
        print(file=sys.stderr)


def _refuse(error: TilewrightError, interactive: bool) -> None:
    """A person may try again; a script has to know."""
    if not interactive:
        raise error
    print(f"tilewright: {error_line(error)}", file=sys.stderr)


def _read(interactive: bool) -> str | None:
    """A line of input without its end; None when there is no more."""
    if interactive and sys.stdout is not None and sys.stdout.isatty():
        with contextlib.suppress(ImportError):  # not everywhere
            import readline  # noqa: F401  (arrow keys and history)
        try:
            return input("> ")
        except EOFError:
            return None
    if interactive:
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline() if sys.stdin is not None else ""
    return line.rstrip("\r\n") if line else None

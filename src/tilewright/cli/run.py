"""``tilewright run``: text from a model, or a prompt loop."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tilewright.cli.common import load_model
from tilewright.generate.model import Generation, Model
from tilewright.generate.session import Conversation

__all__ = ["run"]


def run(
    model: Annotated[
        Path | None, typer.Argument(help="A GGUF file; without one, the model that ships inside.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Text to continue; without it, a loop.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("-n", "--max-tokens", min=0, help="Tokens at most [default: 256].")
    ] = None,
    context: Annotated[
        int | None, typer.Option("-c", "--context", min=1, help="Context in tokens.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("-t", "--threads", min=1, help="Worker threads.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("-s", "--seed", min=0, help="Same seed, same text.")
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temp", help="0 takes the likeliest token every time.")
    ] = 0.8,
    top_k: Annotated[int, typer.Option("--top-k", help="0: off.")] = 40,
    top_p: Annotated[float, typer.Option("--top-p", help="1: off.")] = 0.95,
    min_p: Annotated[float, typer.Option("--min-p", help="0: off.")] = 0.05,
    repeat_penalty: Annotated[float, typer.Option("--repeat-penalty", help="1: off.")] = 1.0,
    presence_penalty: Annotated[float, typer.Option("--presence-penalty", help="0: off.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option("--frequency-penalty", help="0: off.")] = 0.0,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="Stop before this text (repeatable).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per answer.")] = False,
) -> None:
    """Continue a prompt; without -p, read prompts in a loop."""
    loaded = load_model(model, threads=threads, context=context, quiet=as_json)
    settings: dict[str, Any] = {
        "max_tokens": 256 if max_tokens is None else max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repeat_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "seed": seed,
        "stop": stop or (),
    }
    if prompt is not None:
        generation = loaded.generate(prompt, **settings)
        interrupted = _answer(generation, prompt, as_json)
        if interrupted:
            raise typer.Exit(130)
    else:
        _loop(loaded, settings, as_json)


def _answer(generation: Generation, prompt: str, as_json: bool) -> bool:
    """Print an answer as it comes; whether Ctrl-C ended it."""
    pieces: list[str] = []
    interrupted = False
    try:
        if not as_json:
            sys.stdout.write(prompt)
            sys.stdout.flush()
        for piece in generation:
            pieces.append(piece)
            if not as_json:
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        interrupted = True
        generation.close()
    reason = "interrupted" if interrupted else generation.reason
    t = generation.timings
    prompt_rate = t.prompt_tokens / t.prompt_seconds if t.prompt_seconds else 0.0
    rate = t.tokens / t.seconds if t.seconds else 0.0
    if as_json:
        print(
            json.dumps(
                {
                    "prompt": prompt,
                    "text": "".join(pieces),
                    "ids": generation.ids,
                    "reason": reason,
                    "prompt_tokens": t.prompt_tokens,
                    "prompt_seconds": t.prompt_seconds,
                    "prompt_tokens_per_s": prompt_rate,
                    "tokens": len(generation.ids),
                    "seconds": t.seconds,
                    "tokens_per_s": rate,
                },
                ensure_ascii=False,
            )
        )
    else:
        print()
        print(
            f"[{reason}] prompt: {t.prompt_tokens} tokens, {prompt_rate:.1f}/s; "
            f"answer: {len(generation.ids)} tokens, {rate:.1f}/s",
            file=sys.stderr,
        )
    return interrupted


def _loop(model: Model, settings: dict[str, Any], as_json: bool) -> None:
    """Read prompts until the end of input; Ctrl-C ends an answer, twice (or idle) the loop."""
    conversation = Conversation(model)
    interactive = sys.stdin.isatty() and not as_json
    if interactive:
        print("Type a prompt; Ctrl-C stops an answer, Ctrl-D ends.", file=sys.stderr)
    try:
        while True:
            if interactive:
                sys.stderr.write("> ")
                sys.stderr.flush()
            line = sys.stdin.readline()
            if not line:
                break
            if line.strip():
                _answer(conversation.say(line.rstrip("\n"), **settings), "", as_json)
    except KeyboardInterrupt:
        pass
    finally:
        conversation.close()
        if interactive:
            print(file=sys.stderr)

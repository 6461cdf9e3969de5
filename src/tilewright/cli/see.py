"""``tilewright see``: text about a picture."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["see"]


def see(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODELDIR", help="The three ONNX graphs of a LLaVA-OneVision."),
    ],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture.")],
    prompt: Annotated[
        str, typer.Option("-p", "--prompt", metavar="TEXT", help="What is asked.")
    ] = "Describe this image.",
    max_tokens: Annotated[
        int, typer.Option("-n", "--max-tokens", metavar="N", min=1, help="Tokens at most.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option("--temp", metavar="T", help="0 takes the likeliest token every time.")
    ] = 0.0,
    seed: Annotated[
        int | None, typer.Option("-s", "--seed", metavar="S", min=0, help="Same seed, same text.")
    ] = None,
    variant: Annotated[
        str, typer.Option(metavar="END", help="Ending of the graphs' names, such as _fp16.")
    ] = "",
    threads: Annotated[
        int | None,
        typer.Option(
            "-t", "--threads", metavar="N", min=1, help="Worker threads.  [default: one per core]"
        ),
    ] = None,
) -> None:
    """Ask a LLaVA-OneVision model about a picture."""
    from tilewright.generate.sampling import SamplingParams
    from tilewright.onnx.pipelines.llava import LlavaOneVision

    start = time.perf_counter()
    llava = LlavaOneVision(model, threads=threads, variant=variant)
    print(f"loaded in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    params = SamplingParams(temperature=temperature, seed=seed)
    for piece in llava.answer(image, prompt, max_tokens, params):
        print(piece, end="", flush=True)
    print()

"""``tilewright onnx detect`` and ``transform``: pictures in, pictures out."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tilewright.cli.common import table
from tilewright.cli.onnx_values import image_steps
from tilewright.data.images import read_image
from tilewright.onnx.pipelines.images import read_labels

__all__ = ["detect", "transform"]


def detect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Gives scores and boxes.")],
    image: Annotated[Path, typer.Argument(metavar="IMAGE")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The picture with boxes.")
    ] = None,
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Least probability.")] = 0.7,
    overlap: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of two that share more the surer stays.")
    ] = 0.3,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names of classes, one a line.")
    ] = None,
    preprocess: Annotated[
        Path | None, typer.Option(metavar="FILE", help="preprocessor_config.json, say.")
    ] = None,
    mean: Annotated[str | None, typer.Option(metavar="A,B,C", help="Of images.")] = None,
    std: Annotated[str | None, typer.Option(metavar="A,B,C", help="Of images.")] = None,
    scale: Annotated[float | None, typer.Option(help="Of pixels.  [default: 1/255]")] = None,
    bgr: Annotated[bool, typer.Option("--bgr", help="Images with blue first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The boxes as JSON.")] = False,
    threads: Annotated[int | None, typer.Option("-t", "--threads", metavar="N", min=1)] = None,
) -> None:
    """Find objects with a detector that gives scores (1, n, classes) and boxes (1, n, 4)."""
    from tilewright.cli.onnx import load_model
    from tilewright.onnx.pipelines.vision import detect as find
    from tilewright.onnx.pipelines.vision import draw

    steps = image_steps(model, preprocess, None, mean, std, scale, bgr)
    names = None if labels is None else read_labels(labels)
    pixels = read_image(image)
    boxes = find(load_model(model, threads), pixels, steps, threshold, overlap)
    if as_json:
        print(json.dumps([asdict(b) for b in boxes]))
    elif boxes:
        rows: list[tuple[Any, ...]] = [("class", "score", "left", "top", "right", "bottom")]
        for b in boxes:
            name = names[b.label] if names and b.label < len(names) else b.label
            corners = (f"{v:.1f}" for v in (b.left, b.top, b.right, b.bottom))
            rows.append((name, f"{b.score:.3f}", *corners))
        print(table(rows))
    else:
        print("nothing found")
    if output is not None:
        draw(pixels, boxes, names).save(output)
        print(f"wrote {output}", file=sys.stderr)


def transform(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="From an image to one: larger, say.")
    ],
    image: Annotated[Path, typer.Argument(metavar="IMAGE")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A PNG file.")],
    fit: Annotated[
        bool, typer.Option("--fit", help="Scale the image to the model's size; else in tiles.")
    ] = False,
    threads: Annotated[int | None, typer.Option("-t", "--threads", metavar="N", min=1)] = None,
) -> None:
    """Super-resolution, autoencoders: models that make an image of an image."""
    from PIL import Image

    from tilewright.cli.onnx import load_model
    from tilewright.onnx.pipelines.vision import transform as change

    made: np.ndarray = change(load_model(model, threads), image, fit)
    Image.fromarray(made).save(output)
    size = f"{made.shape[1]} x {made.shape[0]}"
    print(f"wrote {output}, {size} pixels", file=sys.stderr)

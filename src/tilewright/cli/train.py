"""``tilewright train``: whole training runs, each into a folder of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tilewright.cli.common import guarded

__all__ = ["autoencoder", "commands", "gpt", "llama", "lora", "mamba", "merge", "mnist"]

# Options that several commands have

Data = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Text in UTF-8, or FASTA; gzip too. May be repeated."),
]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder of the run.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with the run in DIR; what is not given is as the run began."
    ),
]
Tokenizer = Annotated[
    str, typer.Option(metavar="KIND", help="chars, bpe:N, or a tokenizer.json or GGUF file.")
]
Folder = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A folder with MNIST's files, or train*.npz.")
]
Epochs = Annotated[int, typer.Option(metavar="N", min=1, help="How often each image is seen.")]
Fasta = Annotated[bool, typer.Option("--fasta", help="The files are FASTA.")]
Layers = Annotated[int, typer.Option(metavar="N", min=1)]
Heads = Annotated[int, typer.Option(metavar="N", min=1)]
Width = Annotated[int, typer.Option(metavar="N", min=1, help="Features of a token.")]
Context = Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of a window.")]
Batch = Annotated[int, typer.Option(metavar="N", min=1, help="Windows or images of a batch.")]
Accumulate = Annotated[int, typer.Option(metavar="N", min=1, help="Batches of a step.")]
Steps = Annotated[int, typer.Option(metavar="N", min=1, help="Steps of the optimiser.")]
Rate = Annotated[float, typer.Option("--lr", metavar="LR", help="Learning rate at its highest.")]
MinRate = Annotated[
    float | None,
    typer.Option("--min-lr", metavar="LR", help="And at the end.  [default: a tenth of --lr]"),
]
Warmup = Annotated[int, typer.Option(metavar="N", min=0, help="Steps of rising learning rate.")]
Dropout = Annotated[float, typer.Option(metavar="P", min=0, max=0.99)]
Decay = Annotated[float, typer.Option("--weight-decay", metavar="D", min=0, help="Of matrices.")]
Beta2 = Annotated[float, typer.Option("--beta2", metavar="B", min=0, max=1, help="Of AdamW.")]
Clip = Annotated[
    float, typer.Option(metavar="N", min=0, help="Most that the gradients' norm may be; 0: any.")
]
EvalEvery = Annotated[
    int, typer.Option("--eval-every", metavar="N", min=0, help="Steps between; 0: never.")
]
EvalBatches = Annotated[
    int, typer.Option("--eval-batches", metavar="N", min=1, help="At most so many of them.")
]
CheckpointEvery = Annotated[
    int, typer.Option("--checkpoint-every", metavar="N", min=0, help="Steps; 0: at the end only.")
]
Validation = Annotated[
    float,
    typer.Option("--validation", metavar="F", min=0.001, max=0.9, help="Share of the text's end."),
]
Precision = Annotated[str, typer.Option(metavar="TYPE", help="f32, or bf16 for products.")]
Seed = Annotated[int, typer.Option(metavar="S", min=0, help="Same seed, same run, bit for bit.")]
Threads = Annotated[
    int | None,
    typer.Option("-t", "--threads", metavar="N", min=1, help="[default: one per core]"),
]
Sample = Annotated[int, typer.Option(metavar="N", min=0, help="Tokens of text to show at the end.")]
Prompt = Annotated[str | None, typer.Option(metavar="TEXT", help="What the sample begins with.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]


def commands() -> typer.Typer:
    """The subcommands as a `typer.Typer`."""
    app = typer.Typer(
        help="Train models: checkpoints, a record, a loss curve, and model files in a folder.",
        no_args_is_help=True,
    )
    for command in (gpt, llama, mamba, mnist, autoencoder, lora, merge):
        app.command()(guarded(command))
    return app


def _run(ctx: typer.Context, recipe: str) -> None:
    """Call a recipe of `tilewright.train.recipes.run` with the command's settings."""
    from tilewright.train.recipes import run

    given = {
        name: value
        for name, value in ctx.params.items()
        if getattr(ctx.get_parameter_source(name), "name", "") not in ("DEFAULT", "DEFAULT_MAP")
    }
    before = run.look_before(ctx.params["out"])
    settings = run.begin_run(str(ctx.command.name), dict(ctx.params), given)
    if settings["threads"] is not None:
        os.environ["TILEWRIGHT_THREADS"] = str(settings["threads"])
    try:
        getattr(run, recipe)(settings, _show)
    except BaseException:
        run.abandon_run(before)
        raise


def gpt(
    ctx: typer.Context,
    out: Out,
    data: Data = None,
    tokenizer: Tokenizer = "chars",
    fasta: Fasta = False,
    layers: Layers = 6,
    heads: Heads = 6,
    width: Width = 384,
    context: Context = 256,
    bias: Annotated[bool, typer.Option("--bias", help="Linear layers and norms have one.")] = False,
    batch: Batch = 64,
    accumulate: Accumulate = 1,
    steps: Steps = 5000,
    lr: Rate = 1e-3,
    min_lr: MinRate = None,
    warmup: Warmup = 100,
    beta2: Beta2 = 0.99,
    dropout: Dropout = 0.2,
    weight_decay: Decay = 0.1,
    clip: Clip = 1.0,
    precision: Precision = "f32",
    eval_every: EvalEvery = 250,
    eval_batches: EvalBatches = 50,
    checkpoint_every: CheckpointEvery = 250,
    validation: Validation = 0.1,
    seed: Seed = 1337,
    resume: Resume = False,
    threads: Threads = None,
    sample: Sample = 200,
    prompt: Prompt = None,
    quiet: Quiet = False,
) -> None:
    """A GPT-2 from text. The defaults are nanoGPT's for Shakespeare by characters."""
    _run(ctx, "run_gpt")


def llama(
    ctx: typer.Context,
    out: Out,
    data: Data = None,
    tokenizer: Tokenizer = "chars",
    fasta: Fasta = False,
    layers: Layers = 6,
    heads: Heads = 6,
    kv_heads: Annotated[
        int | None,
        typer.Option("--kv-heads", metavar="N", min=1, help="[default: half of --heads, if even]"),
    ] = None,
    width: Width = 384,
    hidden: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Of the MLP.  [default: 8/3 of --width, rounded up]"),
    ] = None,
    context: Context = 256,
    batch: Batch = 64,
    accumulate: Accumulate = 1,
    steps: Steps = 5000,
    lr: Rate = 1e-3,
    min_lr: MinRate = None,
    warmup: Warmup = 100,
    beta2: Beta2 = 0.99,
    weight_decay: Decay = 0.1,
    clip: Clip = 1.0,
    precision: Precision = "f32",
    eval_every: EvalEvery = 250,
    eval_batches: EvalBatches = 50,
    checkpoint_every: CheckpointEvery = 250,
    validation: Validation = 0.1,
    seed: Seed = 1337,
    resume: Resume = False,
    threads: Threads = None,
    sample: Sample = 200,
    prompt: Prompt = None,
    quiet: Quiet = False,
) -> None:
    """A llama from text.

    That is: RMSNorm, SwiGLU, rotary positions, grouped queries.
    """
    _run(ctx, "run_llama")


def mamba(
    ctx: typer.Context,
    out: Out,
    data: Data = None,
    tokenizer: Tokenizer = "chars",
    fasta: Fasta = False,
    layers: Layers = 6,
    width: Width = 256,
    state: Annotated[
        int, typer.Option(metavar="N", min=1, help="Numbers that a channel remembers.")
    ] = 16,
    context: Context = 256,
    batch: Batch = 32,
    accumulate: Accumulate = 1,
    steps: Steps = 5000,
    lr: Rate = 1e-3,
    min_lr: MinRate = None,
    warmup: Warmup = 100,
    beta2: Beta2 = 0.95,
    weight_decay: Decay = 0.1,
    clip: Clip = 1.0,
    precision: Precision = "f32",
    eval_every: EvalEvery = 250,
    eval_batches: EvalBatches = 50,
    checkpoint_every: CheckpointEvery = 250,
    validation: Validation = 0.1,
    seed: Seed = 1337,
    resume: Resume = False,
    threads: Threads = None,
    sample: Sample = 200,
    prompt: Prompt = None,
    quiet: Quiet = False,
) -> None:
    """A Mamba language model from text.

    It has selective state spaces instead of attention.
    """
    _run(ctx, "run_mamba")


def mnist(
    ctx: typer.Context,
    out: Out,
    data: Folder = None,
    model: Annotated[str, typer.Option(metavar="KIND", help="cnn, or vit.")] = "cnn",
    width: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Of the network.  [default: 16 (cnn), 64 (vit)]"),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Images of a batch.  [default: 100 (cnn), 50 (vit)]"),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="[default: 8 (cnn), 20 (vit)]"),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr", metavar="LR", help="At its highest.  [default: 3e-3 (cnn), 2e-3 (vit)]"
        ),
    ] = None,
    weight_decay: Decay = 0.01,
    clip: Clip = 1.0,
    precision: Precision = "f32",
    checkpoint_every: CheckpointEvery = 0,
    seed: Seed = 1337,
    resume: Resume = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """MNIST's handwritten digits.

    By a convolutional network or a vision transformer.
    """
    _run(ctx, "run_digits")


def autoencoder(
    ctx: typer.Context,
    out: Out,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="MNIST's folder, or images (in folders or not)."),
    ] = None,
    latent: Annotated[
        int, typer.Option(metavar="N", min=1, help="Numbers that an image becomes.")
    ] = 32,
    width: Annotated[int, typer.Option(metavar="N", min=1, help="Channels.")] = 16,
    size: Annotated[
        int, typer.Option(metavar="N", min=4, help="Pixels that images are fitted to.")
    ] = 64,
    batch: Batch = 100,
    epochs: Epochs = 10,
    lr: Rate = 3e-3,
    weight_decay: Decay = 0.0,
    clip: Clip = 0.0,
    precision: Precision = "f32",
    checkpoint_every: CheckpointEvery = 0,
    seed: Seed = 1337,
    resume: Resume = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """A convolutional autoencoder.

    Of MNIST or other images; draws what it makes of some that it has not seen.
    """
    _run(ctx, "run_reconstruction")


def lora(
    ctx: typer.Context,
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="A GGUF file, or a folder with config.json and safetensors."
        ),
    ],
    out: Out,
    data: Data = None,
    fasta: Fasta = False,
    rank: Annotated[int, typer.Option(metavar="N", min=1)] = 8,
    alpha: Annotated[
        float, typer.Option(metavar="A", help="Adapters count by alpha / rank.")
    ] = 16.0,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Matrices: q_proj, c_attn, ..., attention, all. May be repeated.  "
            "[default: q_proj and v_proj; c_attn]",
        ),
    ] = None,
    dropout: Dropout = 0.0,
    context: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Tokens of a window.  [default: 256 at most]"),
    ] = None,
    batch: Batch = 8,
    accumulate: Accumulate = 1,
    steps: Steps = 500,
    lr: Rate = 3e-4,
    min_lr: MinRate = None,
    warmup: Warmup = 20,
    beta2: Beta2 = 0.999,
    weight_decay: Decay = 0.0,
    clip: Clip = 1.0,
    precision: Precision = "f32",
    eval_every: EvalEvery = 100,
    eval_batches: EvalBatches = 50,
    checkpoint_every: CheckpointEvery = 100,
    validation: Validation = 0.1,
    seed: Seed = 1337,
    resume: Resume = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a decoder.

    By low-rank adapters, which are saved as PEFT saves them; see merge.
    """
    _run(ctx, "run_lora")


def merge(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="What the adapter was trained for.")
    ],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder of the adapter.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="merged.gguf, or .safetensors.")
    ],
    stored: Annotated[
        str,
        typer.Option(
            "--type", metavar="TYPE", help="Of changed matrices in GGUF: f32, f16, q8_0, same, ..."
        ),
    ] = "f32",
) -> None:
    """Add an adapter to its model."""
    from tilewright.train.recipes.lora import merge as write_merged

    changed = write_merged(model, adapter, out, stored)
    print(f"wrote {out}: {len(changed)} matrices changed", file=sys.stderr)


def _show(what: str, text: str) -> None:
    """A result: samples and figures on stdout, notes on stderr."""
    print(text, file=sys.stderr if what == "note" else sys.stdout, flush=True)

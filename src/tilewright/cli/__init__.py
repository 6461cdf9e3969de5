"""The ``tilewright`` command. One file per subcommand.

Answers go to stdout, everything else (progress, notes, timings, errors) to stderr. Exit status: 0,
1 (tilewright said no, in one line), 2 (usage), 130 (Ctrl-C). What is none of these is a bug and
keeps its traceback.
"""

from __future__ import annotations

import signal
import sys
import warnings
from typing import Any

__all__ = ["build", "main"]


def main() -> None:
    """Entry point: prepare the process, then run the command that its arguments name."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `tilewright ... | head` ends quietly
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a character shows its code
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning
    try:
        build()(prog_name="tilewright")
    except KeyboardInterrupt:  # while the commands were being imported
        sys.exit(130)


def build() -> Any:
    """The commands as a `typer.Typer`; making it changes nothing."""
    import typer

    from tilewright.cli.bench import bench
    from tilewright.cli.common import guarded
    from tilewright.cli.doctor import doctor
    from tilewright.cli.inspect import inspect
    from tilewright.cli.onnx import commands as onnx_commands
    from tilewright.cli.run import run
    from tilewright.cli.see import see
    from tilewright.cli.tokenizer import commands as tokenizer_commands
    from tilewright.cli.train import commands as train_commands

    app = typer.Typer(
        help="Run language models from GGUF files, with kernels compiled for this machine.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for command in (run, see, inspect, bench, doctor):
        app.command()(guarded(command))
    app.add_typer(tokenizer_commands(), name="tokenizer")
    app.add_typer(train_commands(), name="train")
    app.add_typer(onnx_commands(), name="onnx")

    @app.callback(invoke_without_command=True)
    def options(
        version: bool = typer.Option(False, "--version", help="Print the version."),
    ) -> None:
        if version:
            from tilewright import __version__

            print(f"tilewright {__version__}")
            raise typer.Exit

    return app


def _show_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    """A warning as one line for people, without the place in the source."""
    print(f"tilewright: warning: {message}", file=sys.stderr)

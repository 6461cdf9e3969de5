"""The ``tilewright`` command. One file per subcommand; each is imported only when it is run."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point: exits with 0, 1 (a tilewright error), 2 (usage) or 130 (interrupted)."""
    import typer

    from tilewright.cli.bench import bench
    from tilewright.cli.doctor import doctor
    from tilewright.cli.inspect import inspect
    from tilewright.cli.run import run
    from tilewright.errors import TilewrightError

    app = typer.Typer(
        help="Run neural networks at the speed of the machine they stand on.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for command in (run, inspect, bench, doctor):
        app.command()(command)

    @app.callback(invoke_without_command=True)
    def options(
        version: bool = typer.Option(False, "--version", help="Print the version."),
    ) -> None:
        if version:
            from tilewright import __version__

            typer.echo(f"tilewright {__version__}")
            raise typer.Exit

    try:
        app()
    except (TilewrightError, ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()
            sys.exit(141)
        print(f"tilewright: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)

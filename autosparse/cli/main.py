"""The ``autosparse`` command and what it does with errors."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import click
import typer

from autosparse.cli import demo, generate, listing, prune, train, train_scorer
from autosparse.errors import AutoSparseError
from autosparse.files import write_errors

app = typer.Typer(
    name="autosparse",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="""Prune neural networks before they are trained.

    Iterative rewind pruning on one network shows which initial weights survive (generate); a scorer learns that from
    the weights' initial features (train-scorer); it then prunes networks that it has never seen, in one shot (prune);
    train shows what the pruning was worth. A pretrained scorer comes with the package, so you can start with prune.
    """,
    epilog="Example:  autosparse prune --model vgg16 --sparsity 0.98 --out runs/vgg16",
)
for module in (prune, train, generate, train_scorer, listing, demo):
    module.register(app)


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        from autosparse import __version__

        typer.echo(f"autosparse {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; exit status 0, 2 for a mistake of the user's (one line on stderr), 130 interrupted."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    command = typer.main.get_command(app)
    try:
        from pathlib import Path

        with write_errors(Path("the output")):
            status = command.main(
                list(arguments) if arguments is not None else None, "autosparse", standalone_mode=False
            )
    except AutoSparseError as error:
        return _fail(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        typer.echo(error.format_message())
        return 2
    except click.ClickException as error:
        return _fail(error.format_message())
    except (click.exceptions.Abort, KeyboardInterrupt):
        return _fail("interrupted; repeat the command with --resume to continue, if it offers that", 130)
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int = 2) -> int:
    print(f"autosparse: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"autosparse: warning: {message}", file=sys.stderr)

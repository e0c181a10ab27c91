"""The ``autosparse`` command and what it does with errors."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from autosparse.cli import (
    bench,
    demo,
    explain,
    export,
    generate,
    listing,
    measure,
    prune,
    report,
    search_scorer,
    show,
    shrink,
    train,
    train_scorer,
)
from autosparse.cli.interrupts import interrupts_kept
from autosparse.errors import AutoSparseError
from autosparse.files import write_errors

app = typer.Typer(
    name="autosparse",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Prune neural networks before they are trained.\n\n"
    "Iterative rewind pruning on one network shows which initial weights survive (generate); a scorer learns that "
    "from the weights' initial features (train-scorer); it then prunes networks that it has never seen, in one shot "
    "(prune); train shows what the pruning was worth. A pretrained scorer comes with the package, so you can start "
    "with prune, or look at everything at once with demo.",
    epilog="Example:  autosparse prune --model vgg16 --sparsity 0.98 --out runs/vgg16",
)
_COMMANDS = (
    prune, shrink, train, export, measure, generate, train_scorer, search_scorer, explain, bench, report, show,
    listing, demo,
)  # fmt: skip
for module in _COMMANDS:
    module.register(app)

# Typer may bring its own copy of click, whose base error it does not export.
_CommandLineError: type[Exception] = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)

_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it; Typer returns it too
_HOW_TO_GO_ON = {
    "generate": "repeat the command with --resume to continue",
    "train": "repeat the command with --resume to continue",
    "bench": "repeat the command to continue",
    "demo": "repeat the command to continue",
    "search-scorer": "repeat the command to continue",
}


def _print_version(asked: bool) -> None:
    if asked:
        from autosparse import __version__

        typer.echo(f"autosparse {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; exit status 0, 2 for a mistake of the user's (one line on stderr), 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            with write_errors(Path("the output")), interrupts_kept():
                status = command.main(given, "autosparse", standalone_mode=False)
        except AutoSparseError as error:
            return _fail(str(error))
        except _CommandLineError as error:
            message: str = error.format_message()  # type: ignore[attr-defined]
            if not given:  # no_args_is_help: the message is the help text
                typer.echo(message)
                return 2
            return _fail(message)
        except (typer.Abort, KeyboardInterrupt):
            status = _INTERRUPTED
    if status == _INTERRUPTED:
        hint = next((_HOW_TO_GO_ON[word] for word in given[:1] if word in _HOW_TO_GO_ON), "nothing was written")
        return _fail(f"interrupted; {hint}", _INTERRUPTED)
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int = 2) -> int:
    print(f"autosparse: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"autosparse: warning: {' '.join(str(message).split())}", file=sys.stderr)

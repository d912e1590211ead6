"""The command line: `virtualmle COMMAND`. Exit codes: 0 success, 1 user error, 2 wrong usage, 3 internal error.

This module only assembles the commands and maps errors to exit codes; each command group has its own module, which is
imported when it runs, so that `serve` waits for no other command.
"""

import functools
import os
import shlex
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer

from .. import __version__
from ..data.errors import ColumnsError, VirtualMLEError
from ..data.permissions import keep_private

USER_ERROR, INTERNAL_ERROR = 1, 3

COMMANDS = {
    "init": "keys.init",
    "keygen": "keys.keygen",
    "tune": "tune.tune",
    "serve": "serve.serve",
    "install": "install.install",
    "call": "call.call",
    "data": "data.app",
    "sessions": "sessions.app",
    "memory": "memory.app",
    "costs": "costs.app",
    "track": "track.track",
    "reveal": "revealing.reveal",
    "report": "report.report",
    "export": "export.export",
    "convert": "convert.convert",
    "evaluate": "evaluate.evaluate",
    "continue": "continuing.continue_training",
    "recommend": "recommend.recommend",
    "serve-model": "serve_model.serve_model",
    "compare": "compare.compare",
    "exhibit": "exhibit.exhibit",
    "bench": "bench.app",
    "replay": "replay.app",
    "verify": "verify.verify",
    "doctor": "doctor.doctor",
    "redteam": "redteam.redteam",
}
"""Each command: its module in this room, and in it a function, or the Typer of a group. Only what runs is imported."""
SESSIONS = {
    "finalize": "closing.finalize",
    "extend": "closing.extend",
    "receipt": "receipt.receipt",
    "seal-choice": "revealing.seal_choice",
    "bring-back": "revealing.bring_back",
}
"""Commands of the group `sessions` that have modules of their own."""


def build(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command line with the commands of these names."""
    built = typer.Typer(
        name="virtualmle",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        callback=options,
    )
    for name in names:
        command = _load(COMMANDS[name])
        if isinstance(command, typer.Typer):
            built.add_typer(command, name=name)
        else:
            built.command(name)(command)
    return built


@functools.cache
def _load(place: str) -> Any:
    module, _, attribute = place.partition(".")
    found = getattr(import_module(f".{module}", __package__), attribute)
    for name, inner in SESSIONS.items() if place == COMMANDS["sessions"] else ():
        found.command(name)(_load(inner))
    return found


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """A virtual ML engineer that tunes sequential recommenders (SASRec, HSTU).

    Exit codes: 0 success, 1 user error, 2 wrong usage, 3 internal error, 130 interrupted.

    Example: virtualmle tune demo --backbone sasrec --trials 12
    """


def __getattr__(name: str) -> Any:
    """`app`: the whole command line, for tests and documentation; it imports every command."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault("app", build())


def _ensure_utf8() -> None:
    """Restart this process in Python's UTF-8 mode if the locale has another encoding for file names.

    Otherwise the name of a home that is not ASCII could not be stored in memory.db and in the files of trials. Child
    processes inherit the mode.
    """
    if sys.getfilesystemencoding().lower() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit the process with its exit code."""
    if arguments is None:
        _ensure_utf8()
        keep_private()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # the one command that runs, or all of them for a list of commands or a suggestion
        app = build(words[:1] if words[:1] and words[0] in COMMANDS else COMMANDS)
        # typer exits with 0 on success and with 2 on wrong usage
        app(args=words, prog_name="virtualmle")
    except ColumnsError as error:
        whole = shlex.join(["virtualmle", *words, *error.options])
        print(f"virtualmle: {error.problem}; name them, for example: {whole}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except VirtualMLEError as error:
        print(f"virtualmle: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except Exception:  # the outermost handler: any other exception is a bug
        traceback.print_exc()
        print("virtualmle: internal error; please report it together with the traceback above", file=sys.stderr)
        sys.exit(INTERNAL_ERROR)
    sys.exit(0)

"""The command line: `virtualmle COMMAND`. Exit codes: 0 done, 1 the user's error, 2 usage, 3 our fault.

This page only puts the commands together and turns errors into exit codes; each group has a file of its own.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from .. import __version__
from ..data.errors import VirtualMLEError
from . import bench, call, data, doctor, memory, report, serve, sessions, tune

USERS_ERROR, OUR_FAULT = 1, 3

app = typer.Typer(
    name="virtualmle",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("tune")(tune.tune)
app.command("serve")(serve.serve)
app.command("call")(call.call)
app.add_typer(data.app, name="data")
app.add_typer(sessions.app, name="sessions")
app.add_typer(memory.app, name="memory")
app.command("report")(report.report)
app.add_typer(bench.app, name="bench")
app.command("doctor")(doctor.doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
    ] = False,
) -> None:
    """A virtual ML engineer for sequential recommenders (SASRec, HSTU).

    Example: virtualmle tune demo --backbone sasrec --trials 12
    """


def _ensure_utf8() -> None:
    """Start this process again in Python's UTF-8 mode where the locale would have file names in another encoding.

    A home whose name is not ASCII could not be written to memory.db and to the files of trials otherwise. Child
    processes inherit the mode.
    """
    if sys.getfilesystemencoding().lower() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and leave the process with its exit code."""
    if arguments is None:
        _ensure_utf8()
    try:
        # Leaves by itself with 0 when done and 2 for wrong usage
        app(args=None if arguments is None else list(arguments), prog_name="virtualmle")
    except VirtualMLEError as error:
        print(f"virtualmle: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(USERS_ERROR)
    except Exception:  # the outermost handler: whatever arrives here is a mistake of ours
        traceback.print_exc()
        print("virtualmle: this is a fault of VirtualMLE; please report it with the lines above", file=sys.stderr)
        sys.exit(OUR_FAULT)
    sys.exit(0)

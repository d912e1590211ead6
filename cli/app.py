"""The command line: `virtualmle COMMAND`. Exit codes: 0 success, 1 user error, 2 wrong usage, 3 internal error.

This module only assembles the commands and maps errors to exit codes; each command group has its own module.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from .. import __version__
from ..data.errors import VirtualMLEError
from ..data.permissions import keep_private
from . import (
    bench,
    call,
    closing,
    compare,
    continuing,
    convert,
    costs,
    data,
    doctor,
    evaluate,
    exhibit,
    export,
    install,
    keys,
    memory,
    receipt,
    recommend,
    redteam,
    replay,
    report,
    revealing,
    serve,
    serve_model,
    sessions,
    track,
    tune,
    verify,
)

USER_ERROR, INTERNAL_ERROR = 1, 3

app = typer.Typer(
    name="virtualmle",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("init")(keys.init)
app.command("keygen")(keys.keygen)
app.command("tune")(tune.tune)
app.command("serve")(serve.serve)
app.command("install")(install.install)
app.command("call")(call.call)
app.add_typer(data.app, name="data")
sessions.app.command("finalize")(closing.finalize)
sessions.app.command("extend")(closing.extend)
sessions.app.command("receipt")(receipt.receipt)
sessions.app.command("seal-choice")(revealing.seal_choice)
sessions.app.command("bring-back")(revealing.bring_back)
app.add_typer(sessions.app, name="sessions")
app.add_typer(memory.app, name="memory")
app.add_typer(costs.app, name="costs")
app.command("track")(track.track)
app.command("reveal")(revealing.reveal)
app.command("report")(report.report)
app.command("export")(export.export)
app.command("convert")(convert.convert)
app.command("evaluate")(evaluate.evaluate)
app.command("continue")(continuing.continue_training)
app.command("recommend")(recommend.recommend)
app.command("serve-model")(serve_model.serve_model)
app.command("compare")(compare.compare)
app.command("exhibit")(exhibit.exhibit)
app.add_typer(bench.app, name="bench")
app.add_typer(replay.app, name="replay")
app.command("verify")(verify.verify)
app.command("doctor")(doctor.doctor)
app.command("redteam")(redteam.redteam)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """A virtual ML engineer that tunes sequential recommenders (SASRec, HSTU).

    Exit codes: 0 success, 1 user error, 2 wrong usage, 3 internal error, 130 interrupted.

    Example: virtualmle tune demo --backbone sasrec --trials 12
    """


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
    try:
        # typer exits with 0 on success and with 2 on wrong usage
        app(args=None if arguments is None else list(arguments), prog_name="virtualmle")
    except VirtualMLEError as error:
        print(f"virtualmle: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except Exception:  # the outermost handler: any other exception is a bug
        traceback.print_exc()
        print("virtualmle: internal error; please report it together with the traceback above", file=sys.stderr)
        sys.exit(INTERNAL_ERROR)
    sys.exit(0)

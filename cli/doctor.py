"""`virtualmle doctor`: check whether the machine and the home are usable and whether the test set is out of reach."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .options import HERE, Home, Json

STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    home: Home = HERE,
    as_json: Json = False,
    mend: Annotated[
        bool, typer.Option("--mend", help="First take the permissions of other users from the files of the home.")
    ] = False,
) -> None:
    """Check the installation and the home.

    Checks python, torch, the home directory and the sealing of test sets; exits with 1 if a check fails. With --mend,
    files of the home that other users may read become the owner's only, before the checks.

    Example: virtualmle doctor --home ~/recsys
    """
    from .checks import run_checks  # imports polars, cryptography and sqlite-utils

    if mend:
        _mend(home)
    findings = run_checks(home)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        _print_table([(f.check, f.status, f.detail) for f in findings])
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


def _mend(home: Path) -> None:
    from ..data.errors import HomeError
    from ..data.wording import counted
    from .permission_checks import mend_permissions

    try:
        changed = mend_permissions(home)
    except PermissionError as error:
        raise HomeError(f"{error.filename!r} belongs to another user; run doctor --mend as that user") from None
    print(f"permissions of {counted(changed, 'file')} changed to the owner's only", file=sys.stderr)


def _print_table(rows: list[tuple[str, str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "status", "details")
    for check, status, detail in rows:
        table.add_row(check, Text(status, style=STYLES[status]), Text(detail))
    Console().print(table)

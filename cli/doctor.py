"""`virtualmle doctor`: check whether the machine and the home are usable and whether the test set is out of reach."""

import json
from dataclasses import asdict

import typer

from .options import HERE, Home, Json

STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(home: Home = HERE, as_json: Json = False) -> None:
    """Check the installation and the home.

    Checks python, torch, the home directory and the sealing of test sets; exits with 1 if a check fails.

    Example: virtualmle doctor --home ~/recsys
    """
    from .checks import run_checks  # imports polars, cryptography and sqlite-utils

    findings = run_checks(home)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        _print_table([(f.check, f.status, f.detail) for f in findings])
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


def _print_table(rows: list[tuple[str, str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "status", "details")
    for check, status, detail in rows:
        table.add_row(check, Text(status, style=STYLES[status]), Text(detail))
    Console().print(table)

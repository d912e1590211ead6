"""`virtualmle doctor`: whether the machine and the home are usable, and what protects the test set.

It prints the checks, the isolation level, and a line per attack that it tried on a scratch home of its own; the home
that it is asked about is only read.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import HERE, Home, Json

if TYPE_CHECKING:
    from .attacks.attack import Attack
    from .attacks.verdict import Verdict
    from .checks import Finding

STYLES = {"ok": "green", "warn": "yellow", "fail": "red", "held": "green", "seen": "cyan", "fell": "red"}


def doctor(
    home: Home = HERE,
    agent_user: Annotated[
        str | None,
        typer.Option(
            "--agent-user",
            metavar="USER",
            help="The unix user that agents run as, for the isolation level.",
            show_default="this user",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave the attacks out, which take a minute.")] = False,
    mend: Annotated[
        bool, typer.Option("--mend", help="First take the permissions of other users from the files of the home.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check the installation and the home, and try to break the protection of the test set.

    Checks python, torch, the home directory, its records and the sealing of test sets, and prints the isolation level.
    Then tries attacks on a scratch home; each was held, or seen (not prevented, but reported by the checks), or it
    fell. Exits with 1 if a check fails or an attack fell. With --mend, files of the home that other users may read
    become the owner's only, before the checks.

    Example: virtualmle doctor --home ~/recsys
    """
    from .checks import run_checks  # imports cryptography and sqlite-utils

    if mend:
        _mend(home)
    findings = run_checks(home, agent_user=agent_user)
    if not as_json:
        _print_findings(findings)
    tried = [] if quick else _tried(as_json)
    if as_json:
        level = next(finding.detail[:2] for finding in findings if finding.check == "isolation")
        attacks = [shown(attack, verdict) for attack, verdict in tried]
        print(json.dumps({"level": level, "findings": [asdict(f) for f in findings], "attacks": attacks}, indent=1))
    failed = any(finding.status == "fail" for finding in findings)
    if failed or any(verdict.outcome == "fell" for _, verdict in tried):
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


def _tried(as_json: bool) -> "list[tuple[Attack, Verdict]]":
    """Try the quick attacks on a scratch home, with a line for each unless the output is JSON."""
    from .attacks.registry import try_quick
    from .checks import failures

    if not as_json:
        print("attacks on a scratch home:")
    return try_quick(failures, lambda attack, verdict: None if as_json else print_verdict(attack, verdict))


def shown(attack: "Attack", verdict: "Verdict") -> dict[str, str]:
    """One attack as JSON shows it."""
    return {
        "number": attack.number, "title": attack.title, "means": attack.means,
        "outcome": verdict.outcome, "detail": verdict.detail,
    }  # fmt: skip


def print_verdict(attack: "Attack", verdict: "Verdict") -> None:
    """Print one attack as a line."""
    from rich.console import Console
    from rich.text import Text

    line = Text(f"{attack.number:>4}  ")
    line.append(f"{verdict.outcome:<8}", style=STYLES.get(verdict.outcome, "dim"))
    line.append(f"{attack.title}: {verdict.detail}")
    Console().print(line, soft_wrap=True)


def _print_findings(findings: "list[Finding]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "status", "details")
    for finding in findings:
        table.add_row(finding.check, Text(finding.status, style=STYLES[finding.status]), Text(finding.detail))
    Console().print(table)

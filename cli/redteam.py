"""`virtualmle redteam`: a scripted hostile agent plays every attack of docs/security.md against a live server."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json, absolute

if TYPE_CHECKING:
    from .attacks.attack import Attack
    from .attacks.verdict import Verdict


def redteam(
    only: Annotated[
        str, typer.Option("--only", metavar="NUMBERS", help="Rows of the table, e.g. 1a,7c.", show_default="all")
    ] = "",
    home: Annotated[
        Path | None,
        typer.Option(
            "--home",
            callback=lambda path: path and absolute(path),
            help="Also read the files below this directory, of any tuning server, for test figures and open files.",
            show_default="none",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Attack a scratch home and its live server, with a line per attack.

    Plays the attacks of docs/security.md over a real MCP client, over the wire, and as a shell of the same user: held
    (prevented), seen (not prevented, but `doctor` reports it) or fell. Takes two minutes; no home is changed. Exits
    with 1 if an attack fell.

    Example: virtualmle redteam

    Another server's home: virtualmle redteam --home ~/other-tuner
    """
    from .attacks.homes import scan_home
    from .attacks.registry import try_all
    from .checks import failures
    from .doctor import print_verdict, shown

    wanted = {number for number in re.split(r"[,\s]+", only) if number}

    def report(attack: "Attack", verdict: "Verdict") -> None:
        if not as_json:
            print_verdict(attack, verdict)

    tried = scan_home(home, report) if home else []
    tried += try_all(failures, report, wanted)
    counts = Counter(verdict.outcome for _, verdict in tried)
    if as_json:
        attacks = [shown(attack, verdict) for attack, verdict in tried]
        print(json.dumps({"attacks": attacks, "counts": dict(counts)}, indent=1))
    else:
        print(", ".join(f"{counts[outcome]} {outcome}" for outcome in ("held", "seen", "fell", "skipped")))
    if counts["fell"]:
        raise typer.Exit(1)

"""`virtualmle report`: write the HTML report of a session, or of several sessions side by side."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import HERE, Home, Json, Reveal


def report(
    sessions: Annotated[
        list[str], typer.Argument(help="The id of a session, e.g. demo-sasrec-1; several ids compare the sessions.")
    ],
    reveal: Reveal = False,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Write the HTML report of a session, or of several sessions side by side.

    Prints the path of the report. Of several sessions, a table is printed before it. While another session on the same
    data is open, the test result is written with --reveal only.

    Example: virtualmle report demo-sasrec-1

    Side by side: virtualmle report demo-sasrec-1 demo-hstu-1
    """
    given = list(dict.fromkeys(sessions))
    if len(given) > 1:
        _report_side_by_side(given, home, reveal, as_json)
        return
    from ..report.html import write_report  # imports matplotlib

    path = write_report(home, given[0], reveal=reveal)
    print(json.dumps({"session": given[0], "report": str(path)}) if as_json else path)


def _report_side_by_side(sessions: list[str], home: Path, reveal: bool, as_json: bool) -> None:
    from rich.console import Console

    from ..report.side_by_side import side_by_side, side_table
    from ..report.side_page import write_side_page

    compared = side_by_side(home, sessions, reveal=reveal)
    path = write_side_page(compared)
    if as_json:
        tables = {"facts": compared.facts, "settings": compared.settings}
        content = {name: {row.title: row.cells for row in rows} for name, rows in tables.items()}
        print(json.dumps({"sessions": sessions, "report": str(path), **content, "notes": compared.notes}, indent=1))
        return
    Console().print(*side_table(compared), sep="\n")
    print(path)

"""`virtualmle report`: the HTML page of a session."""

import json
from typing import Annotated

import typer

from .options import HERE, Home, Json


def report(
    session: Annotated[str, typer.Argument(help="A session's id, e.g. demo-sasrec-1.")],
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Write the HTML report of a session and print its path.

    Example: virtualmle report demo-sasrec-1
    """
    from ..report.html import write_report  # brings matplotlib

    path = write_report(home, session)
    print(json.dumps({"session": session, "report": str(path)}) if as_json else path)

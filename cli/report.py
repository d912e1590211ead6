"""`virtualmle report`: write the HTML report of a session."""

import json
from typing import Annotated

import typer

from .options import HERE, Home, Json


def report(
    session: Annotated[str, typer.Argument(help="The id of a session, e.g. demo-sasrec-1.")],
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Write the HTML report of a session.

    Prints the path of the report.

    Example: virtualmle report demo-sasrec-1
    """
    from ..report.html import write_report  # imports matplotlib

    path = write_report(home, session)
    print(json.dumps({"session": session, "report": str(path)}) if as_json else path)

"""The options that give a server its bearer token."""

from pathlib import Path
from typing import Annotated

import typer

from ..server.bearer import OPTIONS, read_token


def _warned(ctx: typer.Context, parameter: typer.CallbackParam, value: str | None) -> str | None:
    """The token as given; with a warning if it is on the command line, which every user of the machine can read."""
    source = ctx.get_parameter_source(str(parameter.name))
    if source is not None and source.name == "COMMANDLINE":
        typer.echo(
            f"warning: every user of this machine can read the token in the command line; use {OPTIONS}",
            err=True,
        )
        if ctx.params.get("token_file") is not None:
            raise typer.BadParameter("give either --token-file or --token")
    return value


TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        is_eager=True,  # so that the callback of --token sees it
        help="File with the bearer token of HTTP clients, with the mode 0600. A token is required with --allowed-host, "
        "and for a host that is not loopback.",
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="VIRTUALMLE_TOKEN",
        callback=_warned,
        help="The bearer token itself. Other users of the machine can read the command line: prefer --token-file.",
    ),
]


def bearer_token(token: str | None, token_file: Path | None) -> str | None:
    """The token of the file, or else the one of --token or VIRTUALMLE_TOKEN. Raises ServerError."""
    return token if token_file is None else read_token(token_file)

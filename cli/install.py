"""`virtualmle install`: enter this installation as a server in the configuration of an MCP client."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..data.errors import ClientConfigError
from .client_entry import (
    Entry,
    launch_command,
    read_config,
    require_name,
    shell_command,
    variables,
    with_entry,
    without_entry,
    write_config,
)
from .mcp_clients import CLIENTS, Client, Place
from .options import HERE, Home

ClientName = StrEnum("ClientName", {name: name for name in CLIENTS})  # type: ignore[misc]


def install(
    client: Annotated[ClientName, typer.Option(help="The client that is to start the server.")],
    home: Home = HERE,
    name: Annotated[str, typer.Option(help="Name of the server in the client.")] = "virtualmle",
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Variable for the server; may be repeated.",
            show_default="CUDA_VISIBLE_DEVICES and LD_LIBRARY_PATH, if they are set now",
        ),
    ] = None,
    print_only: Annotated[bool, typer.Option("--print", help="Print the entry; change nothing.")] = False,
    uninstall: Annotated[bool, typer.Option("--uninstall", help="Remove the entry of this name.")] = False,
) -> None:
    """Enter this server in the configuration of an MCP client, with absolute paths.

    Everything else in the client's file stays as it is, and the previous file is kept beside it. Running the command
    again changes only what is different. For Claude Code, the file is .mcp.json in the working directory.

    Example: virtualmle install --client claude-desktop --home ~/recsys
    """
    known = CLIENTS[client]
    entry = launch_command(home, os.environ, variables(env or []))
    require_name(name)
    place = Place(sys.platform, os.environ, Path.home(), Path.cwd())
    if print_only:
        _print_entry(known, place, name, entry)
        return
    path = known.file(place)
    try:
        before = read_config(path)
        after = without_entry(known, path, before, name) if uninstall else with_entry(known, path, before, name, entry)
        if after == before:
            state = f"has no server {name!r}" if uninstall else f"has the server {name!r} already"
            print(f"{path} {state}; nothing was changed")
            return
        if not known.is_installed(place):
            missing = " or ".join(map(str, known.marks(place)))
            raise ClientConfigError(f"{known.title} has not run here, since there is no {missing}")
        backup = write_config(path, after)
    except ClientConfigError as error:
        raise ClientConfigError(
            f"{path} was not changed: {error}; correct that, or print the entry with `virtualmle install --client "
            f"{client} --print` and edit the file yourself"
        ) from None
    print(f"{path}: {'removed' if uninstall else 'entered'} the server {name!r}")
    if backup is not None:
        print(f"previous file: {backup}")
    print(known.restart)
    if known is CLIENTS["claude-code"] and not uninstall:
        print(f"For all your projects instead: {shell_command(name, entry)}")


def _print_entry(client: Client, place: Place, name: str, entry: Entry) -> None:
    """The entry on standard output, and where it belongs on standard error."""
    path = client.file(place)
    print(with_entry(client, path, "", name, entry), end="")
    print(f"Add this to {path}. {client.restart}", file=sys.stderr)
    if client is CLIENTS["claude-code"]:
        print(f"For all your projects instead: {shell_command(name, entry)}", file=sys.stderr)

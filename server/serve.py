"""Serves over stdio or HTTP until it is stopped. Messages use standard output or a socket; all logs go to stderr."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import anyio

from ..data.permissions import keep_private
from ..tools.workspace import Settings
from ..training.private_process import forbid_core_dumps, forbid_inspection
from .app import build_server
from .connections import HttpLimits
from .log import start_log
from .stdio import serve_stdio
from .streamable_http import DEFAULT_LIMITS, serve_http

Transport = Literal["stdio", "http"]


def serve(
    home: Path,
    settings: Settings | None = None,
    transport: Transport = "stdio",
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    allowed_hosts: Sequence[str] = (),
    limits: HttpLimits = DEFAULT_LIMITS,
) -> None:
    """Serve `home` until the client closes stdin (stdio) or a signal ends the process (http).

    token: bearer token that HTTP clients must send; required for a host that other machines can reach, and without
    use over stdio, where whoever starts the server is its client. allowed_hosts: names under which a reverse proxy
    forwards HTTP requests to this server. limits: what an HTTP connection may take. Raises ServerError for a missing or
    weak token and for a port in use, and whatever `build_server` raises.
    """
    keep_private()
    forbid_core_dumps()
    forbid_inspection()  # the token and the keys of language models are in this process
    start_log("%(levelname)s %(name)s: %(message)s")
    if transport == "http":
        serve_http(home, settings, host, port, token, allowed_hosts, limits)
    else:
        server = build_server(home, settings)
        try:
            anyio.run(serve_stdio, server)
        except* BrokenPipeError:  # the client was killed before it read an answer; a running trial continues
            logging.getLogger(__name__).info("the client is gone")

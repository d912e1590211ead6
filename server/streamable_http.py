"""Streamable HTTP, on loopback by default; any host that other machines can reach requires a bearer token."""

import errno
import logging
import signal
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType

import anyio
import uvicorn
from mcp.server.transport_security import TransportSecuritySettings

from ..data.errors import ServerError
from ..tools.workspace import Settings
from .app import build_server
from .bearer import check_token
from .connections import HttpLimits, limited
from .guard import Guard
from .names import allowed_names

logger = logging.getLogger(__name__)

PATH = "/mcp"
MAX_BODY = 4 << 20  # bytes of a request; larger ones get a 413
DEFAULT_LIMITS = HttpLimits()
BACKLOG = 128  # connections waiting to be accepted; one agent opens a handful
SHUTDOWN_SECONDS = 3.0  # then open streams are closed; trials continue, and clients reconnect


def serve_http(
    home: Path,
    settings: Settings | None,
    host: str,
    port: int,
    token: str | None,
    allowed_hosts: Sequence[str] = (),
    limits: HttpLimits = DEFAULT_LIMITS,
) -> None:
    """Serve until a signal ends the process. Raises ServerError before anything is served.

    allowed_hosts: further accepted values of the Host header, `name` or `name:port`, for a reverse proxy.
    """
    check_token(host, token, allowed_hosts)
    names = allowed_names(host, allowed_hosts)
    with listen(host, port) as listener:
        app = build_server(home, settings).streamable_http_app(
            streamable_http_path=PATH,
            max_request_body_size=MAX_BODY,
            # The guard checks the names: the SDK compares only how a name begins.
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )
        config = uvicorn.Config(
            Guard(app, names, token),
            http=limited(limits),
            ws="none",
            log_config=None,
            timeout_graceful_shutdown=int(SHUTDOWN_SECONDS),
        )
        logger.info("serving MCP at %s%s", base_url(host, listener.getsockname()[1]), PATH)
        signal.signal(signal.SIGTERM, _exit)  # uvicorn calls it after its own shutdown
        anyio.run(partial(uvicorn.Server(config).serve, sockets=[listener]))


def _exit(number: int, frame: FrameType | None) -> None:
    """End the process as at the end of its program, so that the log is written to its end."""
    raise SystemExit(0)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; opened before the server starts, so that a port in use gives a one-line ServerError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServerError(f"host={host!r} is not an address of this machine ({error.strerror}); see --host") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # allows an immediate restart
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ServerError(f"port {port} on {host} is in use; choose another with --port, or 0 for any") from None
        raise ServerError(f"cannot listen on {host} port {port} ({error.strerror}); choose another --port") from None
    return listener


def base_url(host: str, port: int) -> str:
    """http://HOST:PORT, with brackets around an IPv6 host."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

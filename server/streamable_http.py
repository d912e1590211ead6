"""Streamable HTTP, on loopback by default; any host that other machines can reach requires a bearer token."""

import errno
import hmac
import ipaddress
import logging
import re
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
import uvicorn
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.auth.settings import AuthSettings
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import AnyHttpUrl

from ..data.errors import ServerError
from ..tools.workspace import Settings
from .app import build_server

logger = logging.getLogger(__name__)

PATH = "/mcp"
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
MIN_TOKEN_LENGTH = 16  # characters: too long to try out over a network
_HOST_HEADER = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?")  # a name, or an IPv6 address in brackets
BACKLOG = 128  # connections waiting to be accepted; one agent opens a handful
SHUTDOWN_SECONDS = 3.0  # then open streams are closed; trials continue, and clients reconnect


class BearerToken(TokenVerifier):
    """Accepts requests that carry the server's only token."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def verify_token(self, token: str) -> AccessToken | None:
        """The access that `token` grants, or None."""
        if not hmac.compare_digest(token.encode(), self._token):  # in constant time, so that timing reveals nothing
            return None
        return AccessToken(token=token, client_id="bearer", scopes=[])


def serve_http(
    home: Path, settings: Settings | None, host: str, port: int, token: str | None, allowed_hosts: Sequence[str] = ()
) -> None:
    """Serve until a signal ends the process. Raises ServerError before anything is served.

    allowed_hosts: further accepted values of the Host header, `name` or `name:port`, for a reverse proxy.
    """
    check_token(host, token, allowed_hosts)
    security = transport_security(host, allowed_hosts)
    with listen(host, port) as listener:
        url = base_url(host, listener.getsockname()[1])
        server = build_server(
            home,
            settings,
            auth=AuthSettings(issuer_url=AnyHttpUrl(url), resource_server_url=None) if token else None,
            token_verifier=BearerToken(token) if token else None,
        )
        app = server.streamable_http_app(streamable_http_path=PATH, host=host, transport_security=security)
        config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=int(SHUTDOWN_SECONDS))
        logger.info("serving MCP at %s%s", url, PATH)
        anyio.run(partial(uvicorn.Server(config).serve, sockets=[listener]))


def check_token(host: str, token: str | None, allowed_hosts: Sequence[str] = ()) -> None:
    """Refuse a host that other machines can reach without a token, and a token that can be guessed (ServerError)."""
    proxied = [name for name in allowed_hosts if not is_loopback(name)]
    if token is None and proxied and is_loopback(host):
        raise ServerError(
            f"--allowed-host {proxied[0]} makes the server reachable through a proxy, and whoever reaches it can spend "
            "your compute; give a bearer token (VIRTUALMLE_TOKEN), which the client or the proxy sends"
        )
    if token is None and not is_loopback(host):
        raise ServerError(
            f"host={host!r} can be reached from other machines, and whoever reaches it can spend your compute; "
            "give a bearer token, or serve on 127.0.0.1"
        )
    if token is not None and len(token) < MIN_TOKEN_LENGTH:
        raise ServerError(
            f"the bearer token has {len(token)} characters; take at least {MIN_TOKEN_LENGTH}, for instance from "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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


def transport_security(host: str, allowed_hosts: Sequence[str] = ()) -> TransportSecuritySettings:
    """Which Host and Origin headers are accepted: other Hosts get a 421, other Origins a 403.

    This protects against web pages whose name was re-bound to this address. A server on every address (0.0.0.0, ::)
    cannot know its names: without `allowed_hosts` it accepts all of them, and the token keeps such pages out.
    Raises ServerError for an entry of `allowed_hosts` that is not a host name with an optional port.
    """
    for name in allowed_hosts:
        if not _HOST_HEADER.fullmatch(name):
            raise ServerError(
                f"--allowed-host {name!r:.80} is not a host name; give the name as it stands in the Host header, "
                "without a scheme or a path, e.g. recsys.example.org or recsys.example.org:8443"
            )
    if host in ("0.0.0.0", "::") and not allowed_hosts:
        return TransportSecuritySettings(enable_dns_rebinding_protection=False)
    own = sorted({*LOOPBACK_NAMES, f"[{host}]" if ":" in host else host})
    proxied = [form for name in allowed_hosts for form in _with_any_port(name)]  # behind TLS, hence https as well
    return TransportSecuritySettings(
        allowed_hosts=[*(f"{name}:*" for name in own), *proxied],
        allowed_origins=[
            *(f"http://{name}:*" for name in own),
            *(f"{scheme}://{name}" for name in proxied for scheme in ("https", "http")),
        ],
    )


def _with_any_port(name: str) -> list[str]:
    """The Host headers that `name` allows: only itself if it has a port, or else itself with and without any port.

    Browsers and most proxies send a name in lower case, so this form is allowed as well.
    """
    forms = sorted({name, name.lower()})
    return forms if re.search(r":\d+$", name) else [form for each in forms for form in (each, f"{each}:*")]

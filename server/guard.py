"""Who may use an HTTP application: the checks of Host, Origin and token, before the application sees a request."""

import logging
from collections.abc import Sequence

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .bearer import OPTIONS, is_bearer
from .names import AllowedNames

logger = logging.getLogger(__name__)

SENTENCES = {
    400: "a request has exactly one Host header, and at most one Origin and one Authorization header",
    401: "this server needs its token in the header Authorization: Bearer TOKEN; the token is the one that the server "
    f"was started with ({OPTIONS})",
    403: "requests of web pages of other origins are refused",
    421: "this server does not answer to the name in the Host header; start it with --allowed-host NAME",
}


class Guard:
    """Forwards the requests that may use `app`, and answers the others itself."""

    def __init__(self, app: ASGIApp, names: AllowedNames, token: str | None, open_paths: Sequence[str] = ()) -> None:
        self._app = app
        self._names = names
        self._token = token
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI defines."""
        status = self._refusal(scope) if scope["type"] == "http" else None
        if status is None:
            await self._app(scope, receive, send)
            return
        logger.warning("a request from %s was refused with %d: %s", _client(scope), status, SENTENCES[status])
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        await JSONResponse({"error": SENTENCES[status]}, status, headers)(scope, receive, send)

    def _refusal(self, scope: Scope) -> int | None:
        """The status with which a request is refused, if it is."""
        hosts, origins, tokens = (_values(scope, name) for name in (b"host", b"origin", b"authorization"))
        if len(hosts) != 1 or len(origins) > 1 or len(tokens) > 1:
            return 400
        if not self._names.has_host(hosts[0]):
            return 421
        if origins and not self._names.has_origin(origins[0]):
            return 403
        if self._token is None or scope["path"] in self._open_paths:
            return None
        return None if tokens and is_bearer(tokens[0], self._token) else 401


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _client(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else "an unknown address"

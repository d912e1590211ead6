"""Access to an HTTP application other than MCP: the checks of `streamable_http.py` for Host, Origin and token."""

import hmac

from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = ("/health",)  # for load balancers, which have no token
SENTENCES = {
    421: "this server does not answer to the name in the Host header; start it with --allowed-host NAME",
    403: "requests of web pages of other origins are refused",
}


class Guard:
    """Forwards the requests that may use `app`, and answers the others itself."""

    def __init__(self, app: ASGIApp, security: TransportSecuritySettings, token: str | None) -> None:
        self._app = app
        self._names = TransportSecurityMiddleware(security)
        self._expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI defines."""
        refusal = await self._refusal(Request(scope)) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    async def _refusal(self, request: Request) -> Response | None:
        refused = await self._names.validate_request(request)
        if refused is not None:
            return JSONResponse({"error": SENTENCES[refused.status_code]}, refused.status_code)
        if self._expected is None or request.url.path in OPEN_PATHS:
            return None
        given = request.headers.get("authorization", "").encode("latin-1")
        if hmac.compare_digest(given, self._expected):  # in constant time, so that timing reveals nothing
            return None
        sentence = "this server needs its token in the header Authorization: Bearer TOKEN"
        return JSONResponse({"error": sentence}, 401, {"WWW-Authenticate": "Bearer"})

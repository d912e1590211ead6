"""Which Host and Origin headers a server accepts: an exact comparison of host names, after a strict parse.

This protects a server without a token against web pages whose name was re-bound to its address. A name that only begins
like an accepted one (`localhost:80.evil.example`, `127.0.0.1:8000@evil.example`) is another name.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..data.errors import ServerError

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
EVERY_ADDRESS = ("0.0.0.0", "::")
MAX_PORT = 65535
_AUTHORITY = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")  # a name or [IPv6], and a port
_ORIGIN = re.compile(r"(https?)://(.+)")

Authority = tuple[str, int | None]
"""A host name in lower case, or an IPv6 address in brackets, and a port if one is given."""


def authority_of(text: str) -> Authority | None:
    """The host and port of a Host header; None if it has another form, for instance with user information."""
    match = _AUTHORITY.fullmatch(text)
    if match is None or int(match[2] or 0) > MAX_PORT:
        return None
    port = int(match[2]) if match[2] else None
    if not match[1].startswith("["):
        return match[1].lower(), port
    try:
        return f"[{ipaddress.IPv6Address(match[1][1:-1])}]", port  # one address has several forms
    except ValueError:
        return None


@dataclass(frozen=True)
class AllowedNames:
    """The accepted names: `own` with any port, `proxied` with the stated port, or with any if none is stated.

    A server on every address cannot know its names: if `own` is None, it accepts every name, and its token keeps web
    pages out.
    """

    own: frozenset[str] | None
    proxied: frozenset[Authority] = frozenset()

    def has_host(self, header: str) -> bool:
        """Whether a Host header has an accepted name."""
        authority = authority_of(header)
        return authority is not None and (self.own is None or authority[0] in self.own or self._is_proxied(authority))

    def has_origin(self, header: str) -> bool:
        """Whether an Origin header is of an accepted name: http for own names, https as well for those of a proxy."""
        if self.own is None:
            return True
        match = _ORIGIN.fullmatch(header)
        authority = authority_of(match[2]) if match else None
        if match is None or authority is None:
            return False
        return (match[1] == "http" and authority[0] in self.own) or self._is_proxied(authority)

    def _is_proxied(self, authority: Authority) -> bool:
        return authority in self.proxied or (authority[0], None) in self.proxied


def allowed_names(host: str, proxied: Sequence[str] = ()) -> AllowedNames:
    """The names of a server that listens on `host`, behind a proxy that forwards the names `proxied`.

    Raises ServerError for a `proxied` name that is not a host name with an optional port.
    """
    authorities = frozenset(map(_proxied, proxied))
    if host in EVERY_ADDRESS and not proxied:
        return AllowedNames(own=None)
    own = authority_of(f"[{host}]" if ":" in host else host)
    return AllowedNames(frozenset({*LOOPBACK_NAMES, *([own[0]] if own else [])}), authorities)


def _proxied(name: str) -> Authority:
    authority = authority_of(name)
    if authority is None:
        raise ServerError(
            f"--allowed-host {name!r:.80} is not a host name; give the name as it stands in the Host header, "
            "without a scheme or a path, e.g. recsys.example.org or recsys.example.org:8443"
        )
    return authority


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""The bearer token of a server: where it comes from, when one is needed, and how a request's token is compared."""

import hmac
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from ..data.errors import ServerError
from .names import is_loopback

MIN_TOKEN_LENGTH = 16  # characters: too long to try out over a network
MAX_FILE = 4096  # bytes
OPTIONS = "--token-file FILE, or the variable VIRTUALMLE_TOKEN"


def read_token(file: Path) -> str:
    """The token in `file`, without white space around it. Raises ServerError if other users may use the file."""
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode & 0o777
            text = opened.read(MAX_FILE + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"--token-file {str(file)!r} cannot be read ({error}); check its path") from None
    if mode & 0o077 and os.name == "posix":
        raise ServerError(
            f"--token-file {str(file)!r} has the mode {mode:04o}, so that other users of this machine can use it; "
            f"run: chmod 600 {shlex.quote(str(file))}, and choose a new token if others may have read this one"
        )
    if len(text) > MAX_FILE:
        raise ServerError(f"--token-file {str(file)!r} has more than {MAX_FILE} bytes; it contains the token only")
    return text.strip()


def check_token(host: str, token: str | None, allowed_hosts: Sequence[str] = ()) -> None:
    """Refuse a host that other machines can reach without a token, and a token that can be guessed (ServerError)."""
    proxied = [name for name in allowed_hosts if not is_loopback(name)]
    if token is None and proxied and is_loopback(host):
        raise ServerError(
            f"--allowed-host {proxied[0]} makes the server reachable through a proxy, and whoever reaches it can spend "
            f"your compute; give a bearer token ({OPTIONS}), which the client or the proxy sends"
        )
    if token is None and not is_loopback(host):
        raise ServerError(
            f"host={host!r} can be reached from other machines, and whoever reaches it can spend your compute; "
            f"give a bearer token ({OPTIONS}), or serve on 127.0.0.1"
        )
    if token is not None and len(token) < MIN_TOKEN_LENGTH:
        raise ServerError(
            f"the bearer token has {len(token)} characters; take at least {MIN_TOKEN_LENGTH}, for instance from "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    if token is not None and not all("!" <= character <= "~" for character in token):
        raise ServerError(
            "the bearer token has a space, a line break or a letter outside ASCII, which no header can carry; "
            f"check {OPTIONS}"
        )


def is_bearer(authorization: str, token: str) -> bool:
    """Whether an Authorization header carries `token`; in constant time, so that timing reveals nothing."""
    scheme, _, given = authorization.partition(" ")
    return hmac.compare_digest(given.strip().encode(), token.encode()) and scheme.lower() == "bearer"

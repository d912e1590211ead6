"""Attacks on the wire: lines that no parser accepts, half-sent requests, forged names of hosts, tokens in sight."""

import contextlib
import http.client
import json
import os
import secrets
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from .scene import Scene
from .verdict import Verdict, fell, held

LINES = (
    b'{"jsonrpc": "2.0", "id": 2, "method": "ping", "params": {"x": "\\ud800"}}',
    b'{"jsonrpc": "2.0", "id": 3, "method": "ping", "params": ' + b"[" * 500 + b"]" * 500 + b"}",
    b"this is not JSON",
    b'"a string"',
    b"\xff\xfe\x00",
)
"""Lines that a JSON-RPC server must answer (with an error) or close the connection for."""
HELLO = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "redteam", "version": "1"}
    },
}  # fmt: skip
PING = b'{"jsonrpc": "2.0", "id": 99, "method": "ping"}'
ANSWER_SECONDS = 15.0  # for one line
HALF_SENT, HALF_SENT_SECONDS = 40, 35.0  # connections, and how long a server may keep them
HOSTS = ("127.0.0.1:{port}@evil.example", "localhost:80.evil.example", "evil.example", "127.0.0.1.evil.example:{port}")


@dataclass(frozen=True)
class HttpServer:
    """A server over HTTP, and its token."""

    port: int
    token: str


def send_unreadable_lines(scene: Scene) -> Verdict:
    """Send lines over stdio that the JSON parser refuses, and then an ordinary request."""
    home = scene.copy()
    command = [sys.executable, "-P", "-m", "virtualmle", "serve", "--home", str(home)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    )
    try:
        if _answer(process, json.dumps(HELLO).encode(), 60.0) is None:
            return fell("the server did not answer `initialize`")
        for number, line in enumerate(LINES):
            if _answer(process, line, ANSWER_SECONDS) is None and process.poll() is None:
                return fell(f"line {number + 1} ({line[:40]!r} …) was never answered")
        last = _answer(process, PING, ANSWER_SECONDS) or b""
        if process.poll() is None and b'"id":99' not in last.replace(b" ", b""):
            return fell("an ordinary request after the unreadable lines was not answered")
        return held(f"{len(LINES)} unreadable lines were answered or closed the connection")
    finally:
        process.kill()
        process.wait()


def _answer(process: subprocess.Popen[bytes], line: bytes, seconds: float) -> bytes | None:
    """Send one line; the next line of the server, or None if there is none in time."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(line + b"\n")
        process.stdin.flush()
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline() if ready else None


def forge_the_host(server: HttpServer) -> Verdict:
    """Send names of other hosts in Host and Origin, as a web page of another origin makes a browser do."""
    if _status(server, {}) != 200:
        return fell("the server did not answer an ordinary request, so that a refusal would say nothing")
    for pattern in HOSTS:
        name = pattern.format(port=server.port)
        for headers in ({"Host": name}, {"Origin": f"http://{name}"}):
            status = _status(server, headers)
            if status < 400:
                return fell(f"{headers} was accepted ({status})")
    return held(f"{len(HOSTS)} forged names were refused as Host and as Origin")


def come_without_the_token(server: HttpServer) -> Verdict:
    """Send no token, a wrong one, and the right one with a space and a letter behind it."""
    for token in ("", "x" * 24, f"{server.token} x"):
        status = _status(server, {"Authorization": f"Bearer {token}"})
        if status not in (400, 401):
            return fell(f"the token {token!r} was accepted ({status})")
    return held("wrong tokens were refused")


def read_the_token(server: HttpServer) -> Verdict:
    """Read the token on the command line of the server, as every user of the machine can."""
    found = [p.pid for p in psutil.process_iter(["cmdline"]) if server.token in " ".join(p.info["cmdline"] or [])]
    if found:
        return fell("the token stands on the server's command line; this version has no --token-file")
    return held("the token stands on no command line")


def keep_requests_half_sent(server: HttpServer) -> Verdict:
    """Leave many requests half sent, without a token, and see whether the server gets rid of them."""
    with contextlib.ExitStack() as stack:
        left, since = [], time.monotonic()
        for _ in range(HALF_SENT):
            left.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port))))
            with contextlib.suppress(OSError):  # the server may close a connection at once
                left[-1].sendall(b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n")
        while left and time.monotonic() < since + HALF_SENT_SECONDS:
            ready, _, _ = select.select(left, [], [], 1.0)
            left = [each for each in left if each not in ready]  # readable: an answer, or the end of the connection
    seconds = time.monotonic() - since
    if left:
        return fell(f"{len(left)} of {HALF_SENT} half-sent requests were open after {seconds:.0f} s")
    return held(f"{HALF_SENT} half-sent requests were closed within {seconds:.0f} s")


def _status(server: HttpServer, headers: dict[str, str]) -> int:
    """The status of an `initialize` with these headers besides the right ones."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    sent = {
        "Accept": "application/json, text/event-stream", "Content-Type": "application/json",
        "Authorization": f"Bearer {server.token}", **headers,
    }  # fmt: skip
    try:
        connection.request("POST", "/mcp", body=json.dumps(HELLO), headers=sent)
        return connection.getresponse().status
    except (http.client.HTTPException, OSError):
        return 400  # the connection was closed without an answer
    finally:
        connection.close()


@contextlib.contextmanager
def http_server(home: Path) -> Iterator[HttpServer]:
    """Serve a home over HTTP as docs/security.md recommends."""
    token = secrets.token_urlsafe(24)
    file = home / "token"
    file.write_text(token, encoding="utf-8")
    file.chmod(0o600)
    command = [sys.executable, "-P", "-m", "virtualmle", "serve", "--home", str(home), "--transport", "http"]
    given = ["--token-file", str(file)] if _takes_token_files() else ["--token", token]
    process = subprocess.Popen(
        [*command, "--port", "0", *given], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=dict(os.environ),
    )  # fmt: skip
    assert process.stderr is not None
    try:
        yield HttpServer(_port_of(process), token)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def _port_of(process: subprocess.Popen[str]) -> int:
    """The port in the line with which the server says that it listens."""
    assert process.stderr is not None
    for line in process.stderr:
        for word in line.split():
            if word.startswith("http://"):
                return int(word.split("://")[1].split("/")[0].rsplit(":", 1)[1])
    raise ConnectionError("the server ended before it listened")


def _takes_token_files() -> bool:
    shown = subprocess.run(
        [sys.executable, "-P", "-m", "virtualmle", "serve", "--help"], capture_output=True, text=True, check=False
    )
    return "--token-file" in shown.stdout

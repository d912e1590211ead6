"""Connections that are slow, half open, too many or too talkative, against running HTTP servers over real sockets."""

import http.client
import logging
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from io import StringIO
from pathlib import Path

import httpx
import pytest

from tests.quick_home import environment
from tests.test_server_http import TOKEN, greet
from tests.toy_export import toy_export
from tests.waiting import until
from virtualmle.server.log import BURST, CountingHandler

SERVE = """
import json, sys
from pathlib import Path
from virtualmle.server.connections import HttpLimits
from virtualmle.server.serve import serve
home, token, limits = sys.argv[1:]
serve(Path(home), None, "http", port=0, token=token or None, limits=HttpLimits(**json.loads(limits)))
"""
SERVE_MODEL = """
import functools, json, sys
from virtualmle.server import connections
connections.HttpLimits = functools.partial(connections.HttpLimits, **json.loads(sys.argv.pop(1)))
from virtualmle.cli.app import main
main(["serve-model", sys.argv[1], "--port", "0"])
"""
KNOWN = {"Authorization": f"Bearer {TOKEN}"}
GIVE_UP_SECONDS = 60.0
GET = b"GET /mcp HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@contextmanager
def running(program: str, log: Path, *arguments: str) -> Iterator[str]:
    """A server in a process of its own; its address. It logs to the file `log`."""
    with log.open("w+") as stderr:
        command = [sys.executable, "-P", "-c", program, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stderr, env=environment())
        try:
            until(lambda: "at http://" in log.read_text() or process.poll() is not None)
            yield log.read_text().split("at http://")[-1].split()[0].removesuffix("/mcp")
        finally:
            process.terminate()
            process.wait(timeout=30)


def connected(address: str) -> socket.socket:
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=GIVE_UP_SECONDS)


def rest_of(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed a connection on which it had nothing to say but a refusal."""
    readable, _, _ = select.select([connection], [], [], 0)
    if not readable:
        return False
    try:
        return b"connection: close" in (found := connection.recv(65536)) or found == b""
    except ConnectionResetError:
        return True


@pytest.fixture(scope="module", params=["", TOKEN], ids=["without a token", "with a token"])
def impatient(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address and the log of a server that waits half a second for a request, and one between two requests."""
    folder = tmp_path_factory.mktemp("impatient")
    limits = '{"header_seconds": 0.5, "body_seconds": 0.5, "keep_alive_seconds": 1, "write_seconds": 0.5}'
    with running(SERVE, folder / "log", str(folder), request.param, limits) as address:
        yield address, folder / "log"


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a patient server with a token that has room for 20 connections."""
    folder = tmp_path_factory.mktemp("crowded")
    limits = '{"header_seconds": 200, "body_seconds": 200, "max_connections": 20}'
    with running(SERVE, folder / "log", str(folder), TOKEN, limits) as address:
        yield address


@pytest.mark.parametrize(
    "half",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"POST /mcp HT", id="half a line"),
        pytest.param(GET, id="headers without an end"),
        pytest.param(POST + b"Content-Length: 100\r\n\r\n{", id="half a body"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", id="half a chunk"),
    ],
)
def test_a_half_sent_request_is_closed_in_time(half: bytes, impatient: tuple[str, Path]) -> None:
    address, log = impatient
    before = log.read_text().count("was not complete in time")
    with connected(address) as connection:
        connection.sendall(half)
        assert rest_of(connection)[:12] in (b"HTTP/1.1 408", b"HTTP/1.1 401")  # 401: the headers had no token
    assert log.read_text().count("was not complete in time") == before + 1


@pytest.mark.parametrize("start", [GET + b"X: ", POST + b"Content-Length: 100000\r\n\r\n"], ids=["headers", "body"])
def test_bytes_that_trickle_in_do_not_extend_the_time(start: bytes, impatient: tuple[str, Path]) -> None:
    with connected(impatient[0]) as connection, suppress(ConnectionError):
        connection.sendall(start)
        for _ in range(1000):
            connection.sendall(b" ")  # fails once the server has closed the connection
            time.sleep(0.05)
        pytest.fail("the connection was open for 50 s")


def test_an_idle_connection_is_closed(impatient: tuple[str, Path]) -> None:
    with connected(impatient[0]) as connection:
        connection.sendall(GET + b"\r\n")
        time.sleep(0.7)  # longer than headers may take: that time does not run between two requests
        connection.sendall(GET + b"\r\n")
        answers = rest_of(connection)
    assert answers.count(b"HTTP/1.1 40") == 2 and b"408" not in answers


def test_a_client_that_does_not_read_its_answers_is_disconnected(impatient: tuple[str, Path]) -> None:
    address, log = impatient
    session = greet(f"http://{address}/mcp", **KNOWN).headers["mcp-session-id"]
    body = b'{"jsonrpc": "2.0", "id": 2, "method": "tools/list"}'  # its answer has some 20 kB
    accept = f"Authorization: Bearer {TOKEN}\r\nAccept: application/json, text/event-stream\r\n"
    head = POST + f"{accept}mcp-session-id: {session}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.socket() as connection, suppress(ConnectionError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = address.split(":")
        connection.connect((host, int(port)))
        connection.sendall((head + body) * 500)
        until(lambda: "does not read its answer" in log.read_text())


def test_half_sent_requests_do_not_keep_others_out(crowded: str) -> None:
    with ExitStack() as held:
        halves = []
        for _ in range(60):
            halves.append(held.enter_context(connected(crowded)))
            halves[-1].sendall(GET)
        assert greet(f"http://{crowded}/mcp", **KNOWN).status_code == 200
        oldest, latest = halves[:41], halves[41:]  # 20 may be open, and the last was that of `greet`
        until(lambda: all(map(is_closed, oldest)))
        assert not any(map(is_closed, latest))


def test_a_connection_too_many_is_refused_if_all_others_have_a_request(crowded: str) -> None:
    url = f"http://{crowded}/mcp"
    with ExitStack() as streams:
        for _ in range(20):
            session = greet(url, **KNOWN).headers["mcp-session-id"]
            headers = {**KNOWN, "Accept": "text/event-stream", "mcp-session-id": session, "Host": "localhost"}
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            stream = streams.enter_context(connected(crowded))
            stream.sendall(f"GET /mcp HTTP/1.1\r\n{lines}\r\n".encode())
            assert stream.recv(1000).startswith(b"HTTP/1.1 200"), "an open stream of events"
        with connected(crowded) as another, suppress(ConnectionError):
            another.sendall(GET + b"\r\n")
            assert rest_of(another)[:12] in (b"HTTP/1.1 503", b"")  # empty: reset before it could be read
    until(lambda: _status(url) == 200)


def _status(url: str) -> int | None:
    try:
        return greet(url, **KNOWN).status_code
    except httpx.TransportError:  # there is no room yet
        return None


def test_a_body_over_the_limit_is_refused_whether_it_is_announced_or_not(crowded: str) -> None:
    post = POST + f"Authorization: Bearer {TOKEN}\r\n".encode()
    with connected(crowded) as connection:
        connection.sendall(post + b"Content-Length: 5000000000\r\n\r\n{")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")
    with connected(crowded) as connection:
        connection.sendall(post + b"Transfer-Encoding: chunked\r\n\r\n")
        part = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        for _ in range(5):
            connection.sendall(part)
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_flood_of_bad_requests_leaves_a_short_log_that_counts_them(tmp_path: Path) -> None:
    log, kinds = tmp_path / "log", (
        b"GET /mcp HTTP/1.1\r\nHost: %d.example\r\n\r\n",  # another text each time
        GET + b"Origin: http://%d.example\r\n\r\n",
        b"no HTTP at all %d\r\n\r\n",
        GET + b"Upgrade: websocket\r\nConnection: Upgrade\r\nX: %d\r\n\r\n",
    )  # fmt: skip
    with running(SERVE, log, str(tmp_path / "home"), "", "{}") as address:
        for number in range(400):
            with connected(address) as connection:
                connection.sendall(kinds[number % len(kinds)] % number)
                connection.recv(100)
    text = log.read_text()  # complete, as the server has ended
    assert len(text) < 20_000 and text.count("\n") < (len(kinds) + 1) * (BURST + 2)
    counted = sum(int(number) for number in re.findall(r"(\d+) more like this", text))
    assert counted + text.count("was refused with") + text.count("Invalid HTTP") >= 300, text


def test_an_endpoint_of_a_model_has_the_same_limits(tiny_dataset_dir: Path, tmp_path: Path) -> None:
    model = toy_export(tiny_dataset_dir, tmp_path / "model")
    limits = '{"header_seconds": 0.5, "keep_alive_seconds": 30}'
    with running(SERVE_MODEL, tmp_path / "log", limits, str(model)) as address:
        with connected(address) as connection:
            connection.sendall(b"POST /recommend HTT")
            assert rest_of(connection).startswith(b"HTTP/1.1 408")
        for name in ("127.0.0.1:80@evil.example", "localhost:80.evil.example"):
            answer = httpx.get(f"http://{address}/health", headers={"Host": name})
            assert answer.status_code == 421 and "--allowed-host" in answer.json()["error"]
        host, port = address.split(":")
        with closing(http.client.HTTPConnection(host, int(port), timeout=GIVE_UP_SECONDS)) as kept:
            for _ in range(2):  # the time for headers does not run between two requests of a connection
                kept.request("GET", "/health")
                assert kept.getresponse().read()
                time.sleep(1.0)


def record(line: int, text: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("server", logging.WARNING, "guard.py", line, text, arguments, None)


def test_the_log_counts_repetitions_for_each_line_of_code() -> None:
    stream = StringIO()
    handler = CountingHandler(stream, burst=2, period=3600)
    for number in range(50):
        handler.handle(record(1, "refused %d", number))
    handler.handle(record(2, "another"))
    assert stream.getvalue().splitlines() == ["refused 0", "refused 1", "another"]
    handler.close()
    assert stream.getvalue().splitlines()[3:] == ["48 more like this within 3600 s; the last one: refused 49"]


def test_a_period_ends_with_the_next_message_and_a_long_message_is_cut() -> None:
    stream = StringIO()
    handler = CountingHandler(stream, burst=1, period=0.0)
    for text in ("first", "second"):
        handler.handle(record(1, text))
    handler.handle(record(1, "x" * 100_000))
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["first", "second"] and "(92000 characters more)" in lines[2] and len(lines[2]) < 9000

"""Standard input of the server: every line is answered, whatever it contains, and the next one is served."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from virtualmle.server.stdio import MAX_LINE, Lines

SERVE = "import sys; from pathlib import Path; from virtualmle.server.serve import serve; serve(Path(sys.argv[1]))"
GIVE_UP_SECONDS = 240.0


class Peer:
    """A client that writes lines as they stand, and reads an answer to each."""

    def __init__(self, source: BinaryIO, target: BinaryIO) -> None:
        self._source, self._target = source, target

    def say(self, *lines: bytes) -> None:
        self._target.write(b"".join(line + b"\n" for line in lines))
        self._target.flush()

    def ask(self, line: bytes) -> dict[str, Any]:
        self.say(line)
        return json.loads(self._source.readline())


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    with started(tmp_path_factory.mktemp("home")) as (each, _):
        yield each


@contextmanager
def started(home: Path) -> Iterator[tuple[Peer, "subprocess.Popen[bytes]"]]:
    command = [sys.executable, "-P", "-c", SERVE, str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        alarm = threading.Timer(GIVE_UP_SECONDS, process.kill)  # an unanswered line ends the test instead of the wait
        alarm.start()
        try:
            yield Peer(process.stdout, process.stdin), process
        finally:
            alarm.cancel()
            process.kill()


def request(number: object = 7, method: str = "ping", **params: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()


def nested(levels: int) -> bytes:
    return request(number=7, tree=0).replace(b": 0", b": " + b"[" * levels + b"]" * levels)


UNREADABLE = -32700
INVALID = -32600


@pytest.mark.parametrize(
    ("line", "code", "number"),
    [
        pytest.param(request(text="\ud800"), UNREADABLE, 7, id="a lone surrogate"),
        pytest.param(request("\udfff"), UNREADABLE, None, id="a lone surrogate as id"),
        pytest.param(nested(500), UNREADABLE, 7, id="500 levels"),
        pytest.param(nested(100_000), UNREADABLE, None, id="100,000 levels"),
        pytest.param(request(text="?").replace(b"?", b"\xff\xfe"), UNREADABLE, 7, id="no UTF-8"),
        pytest.param(b"hello", UNREADABLE, None, id="no JSON"),
        pytest.param(b"\0\0\0", UNREADABLE, None, id="NUL bytes"),
        pytest.param(b"\xef\xbb\xbf" + request(), UNREADABLE, None, id="a byte order mark"),
        pytest.param(request() + request(), UNREADABLE, None, id="two messages in a line"),
        pytest.param(request()[:-1], UNREADABLE, None, id="half a message"),
        pytest.param(b"9", INVALID, None, id="a number"),
        pytest.param(b"9" * 5000, UNREADABLE, None, id="a number of 5,000 digits"),
        pytest.param(b"[]", INVALID, None, id="an empty batch"),
        pytest.param(b"[" + request() + b"]", INVALID, None, id="a batch"),
        pytest.param(b"null", INVALID, None, id="null"),
        pytest.param(b'"ping"', INVALID, None, id="a text"),
        pytest.param(b"{}", INVALID, None, id="an empty object"),
        pytest.param(b'{"id": 7, "method": "ping"}', INVALID, 7, id="no version"),
        pytest.param(request().replace(b"2.0", b"1.0"), INVALID, 7, id="another version"),
        pytest.param(request(method=3), INVALID, 7, id="a method that is no text"),  # type: ignore[arg-type]
        pytest.param(request().replace(b"{}", b"[1]"), INVALID, 7, id="a list of parameters"),
        pytest.param(request(None), INVALID, None, id="no id"),
        pytest.param(request(1.5), INVALID, None, id="a fraction as id"),
        pytest.param(request([7]), INVALID, None, id="a list as id"),
        pytest.param(b'{"jsonrpc": "2.0", "id": 7, "result": 3}', INVALID, None, id="a response that is none"),
        pytest.param(request(text="x" * 50_000_000), INVALID, None, id="50 MB"),
    ],
)
def test_a_line_that_is_no_message_is_answered_and_the_next_one_is_served(
    line: bytes, code: int, number: int | None, peer: Peer
) -> None:
    answer = peer.ask(line)
    assert (answer["error"]["code"], answer["id"]) == (code, number), answer
    assert len(answer["error"]["message"]) < 300 and "Traceback" not in answer["error"]["message"]
    assert peer.ask(request("next")) == {"jsonrpc": "2.0", "id": "next", "result": {}}


def test_blank_lines_and_windows_line_ends_are_accepted(peer: Peer) -> None:
    peer.say(b"", b"   ", b"\r")
    assert peer.ask(request(8) + b"\r")["id"] == 8


def test_the_longest_line_is_served(peer: Peer) -> None:
    line = request(9, text="")
    assert peer.ask(line.replace(b'""', b'"' + b"x" * (MAX_LINE - len(line)) + b'"'))["id"] == 9


def test_a_refusal_is_short_whatever_it_refuses(peer: Peer) -> None:
    long = "y " * 50_000
    rule = {"kind": "avoid", "statement": "x", long: 1}
    claims = {"session": "s", "trial": "t001", "helped": "no", "dimension": "capacity", "lesson": "x"}
    client = {"name": "test", "version": "1"}
    peer.ask(request(0, "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo=client))
    peer.say(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}')
    for name, arguments in (("write_reflection", {**claims, "rule": rule}), ("list_sessions", {long: 1})):
        answer = peer.ask(request(1, "tools/call", name=name, arguments=arguments))
        assert answer["result"]["isError"] and len(json.dumps(answer)) < 5000


def test_many_lines_at_once_are_all_answered_in_one_piece(peer: Peer) -> None:
    lines = [b"no %d" % number if number % 3 else request(number) for number in range(300)]
    writer = threading.Thread(target=peer.say, args=lines)
    writer.start()
    answers = [json.loads(peer._source.readline()) for _ in lines]
    writer.join()
    assert sum(answer["id"] is None for answer in answers) == 200
    assert {answer["id"] for answer in answers} == {None, *range(0, 300, 3)}


def test_a_last_line_without_its_end_is_served_and_the_server_ends_with_its_input(tmp_path: Path) -> None:
    with started(tmp_path) as (peer, process):
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(b"no message")
        process.stdin.close()
        assert json.loads(peer._source.readline())["error"]["code"] == UNREADABLE
        assert process.wait(timeout=GIVE_UP_SECONDS) == 0
        assert process.stderr.read() == b""


def test_a_line_is_kept_up_to_the_limit_only() -> None:
    source, target = os.pipe()
    text = b"abc\n" + b"x" * 50_000 + b"\n\nend"
    os.write(target, text)
    os.close(target)
    lines = Lines(source, limit=5)
    assert [lines.next() for _ in range(5)] == [b"abc", b"x" * 6, b"", b"end", None]
    os.close(source)

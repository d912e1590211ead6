"""Access to the server over HTTP, and settings with which it refuses to start."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from virtualmle.data.errors import ServerError
from virtualmle.server.bearer import read_token
from virtualmle.server.names import allowed_names, is_loopback
from virtualmle.server.serve import serve
from virtualmle.server.streamable_http import base_url, listen

TOKEN = "a-token-of-twenty-four-c"
SERVE = (
    "import sys; from pathlib import Path; from virtualmle.server.serve import serve\n"
    "serve(Path(sys.argv[1]), None, 'http', port=0, token=sys.argv[2] or None)"
)
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}
ACCEPT = {"Accept": "application/json, text/event-stream"}


@contextmanager
def serving(home: Path, token: str = "") -> Iterator[str]:
    arguments = [sys.executable, "-P", "-c", SERVE, str(home), token]
    process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        yield process.stderr.readline().split()[-1]
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stderr.close()


@contextmanager
def command(home: Path, *options: str, **environment: str) -> Iterator[tuple[str, list[str]]]:
    """`virtualmle serve` with options: its address, and what it wrote to stderr before."""
    program = [sys.executable, "-P", "-m", "virtualmle", "serve", "--home", str(home), "--transport", "http"]
    kept = {name: value for name, value in os.environ.items() if name != "VIRTUALMLE_TOKEN"}
    environment = {**kept, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    with subprocess.Popen(
        [*program, "--port", "0", *options], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=environment,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        try:
            said: list[str] = []
            for line in process.stderr:
                if " at http" in line:
                    break
                said.append(line)
            yield line.split()[-1], said
        finally:
            process.terminate()


def greet(url: str, **headers: str) -> httpx.Response:
    return httpx.post(url, json=HELLO, headers={**ACCEPT, **headers}, timeout=30)


def test_a_loopback_server_accepts_its_own_host_names_only(tmp_path: Path) -> None:
    with serving(tmp_path) as url:
        answer = greet(url)
        assert answer.status_code == 200 and '"name":"virtualmle"' in answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert greet(url, Host="evil.example:80").status_code == 421
        assert greet(url, Origin="http://evil.example").status_code == 403


def test_a_server_with_a_token_accepts_only_requests_with_the_token(tmp_path: Path) -> None:
    with serving(tmp_path, TOKEN) as url:
        refused = greet(url)
        assert refused.status_code == 401 and "Bearer" in refused.headers["www-authenticate"]
        assert greet(url, Authorization=f"Bearer {TOKEN}x").status_code == 401
        assert greet(url, Authorization=f"Bearer {TOKEN}").status_code == 200


def test_a_server_behind_a_proxy_accepts_only_the_allowed_host_names(tmp_path: Path) -> None:
    options = ["--allowed-host", "recsys.example.org", "--allowed-host", "other.example:8443"]
    known = {"Authorization": f"Bearer {TOKEN}"}
    with command(tmp_path, *options, VIRTUALMLE_TOKEN=TOKEN) as (url, _):
        for name in ("recsys.example.org", "recsys.example.org:443", "other.example:8443", "127.0.0.1:80"):
            assert greet(url, Host=name, **known).status_code == 200, name
        for name in ("evil.example", "recsys.example.org.evil.example", "other.example", "other.example:80"):
            assert greet(url, Host=name, **known).status_code == 421, name
        assert greet(url, Host="recsys.example.org", Origin="https://recsys.example.org", **known).status_code == 200
        assert greet(url, Host="recsys.example.org", Origin="https://evil.example", **known).status_code == 403
        assert greet(url, Host="recsys.example.org").status_code == 401


def test_allowed_hosts_need_a_token_and_must_be_host_names(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="--allowed-host recsys.example.org .* bearer token"):
        serve(tmp_path, transport="http", port=0, allowed_hosts=["recsys.example.org"])
    for name in ("https://recsys.example.org", "recsys.example.org/mcp", "", "*"):
        with pytest.raises(ServerError, match="is not a host name"):
            serve(tmp_path, transport="http", port=0, token=TOKEN, allowed_hosts=[name])
    assert allowed_names("0.0.0.0").has_host("any.example")
    assert not allowed_names("0.0.0.0", ["recsys.example.org"]).has_host("any.example")
    names = allowed_names("127.0.0.1", ["Recsys.Example.org", "Other.example:8443"])
    assert names.has_host("recsys.example.org") and names.has_host("recsys.EXAMPLE.org:80"), "in any case"
    assert names.has_host("other.example:8443") and not names.has_host("other.example")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_a_host_that_other_machines_can_reach_needs_a_token(tmp_path: Path, host: str) -> None:
    with pytest.raises(ServerError, match="bearer token"):
        serve(tmp_path, transport="http", host=host, port=0)
    assert not (tmp_path / "memory.db").exists()


def test_a_token_that_can_be_guessed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="6 characters"):
        serve(tmp_path, transport="http", port=0, token="secret")


def test_a_port_in_use_is_a_one_line_error_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} on 127.0.0.1 is in use"):
            serve(tmp_path, transport="http", port=port)
    assert not (tmp_path / "memory.db").exists()


def test_listening_on_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(ServerError, match=r"192\.0\.2\.1"):
        listen("192.0.2.1", 0)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)],
)
def test_a_loopback_host_is_recognised(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_a_named_host_accepts_its_name_and_a_wildcard_host_accepts_any() -> None:
    named = allowed_names("192.0.2.1")
    assert named.has_host("192.0.2.1:80") and not named.has_host("192.0.2.2:80")
    assert allowed_names("0.0.0.0").has_host("192.0.2.2:80") and allowed_names("0.0.0.0").has_origin("null")
    assert base_url("::1", 80) == "http://[::1]:80"


FOREIGN = [
    "127.0.0.1:8477@evil.example", "localhost:80.evil.example", "localhost.evil.example", "localhost:80:80",
    "localhost.", "user@localhost", "user:pass@localhost:80", "127.1", "2130706433", "0x7f.0.0.1", "127.0.0.1.",
    "localhost:", "localhost:99999", "localhost:8a", "localhost:-1", "localhost /", "localhost#", "localhost?", "",
    "[::1]evil.example", "[::1]:80.evil.example", "[::1", "::1", "[::ffff:127.0.0.1]", "[::1%25lo]", "[::2]",
    "loc\u00e4lhost", "localhost\t", "*", "recsys.example.org.evil.example", "evil.example.recsys.example.org",
]  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_name_that_only_looks_like_an_accepted_one_is_refused(name: str) -> None:
    names = allowed_names("127.0.0.1", ["recsys.example.org"])
    assert not names.has_host(name)
    assert not names.has_origin(f"http://{name}") and not names.has_origin(f"https://{name}")


@pytest.mark.parametrize(
    "name", ["127.0.0.1:8477", "localhost:1", "LOCALHOST:8477", "[::1]:8477", "[0:0:0:0:0:0:0:1]:80", "localhost"]
)
def test_a_name_of_the_server_is_accepted_in_each_of_its_forms(name: str) -> None:
    names = allowed_names("127.0.0.1")
    assert names.has_host(name) and names.has_origin(f"http://{name}")


@pytest.mark.parametrize(
    "origin",
    ["null", "", "localhost", "https://localhost", "file://localhost", "http://localhost/", "http:localhost",
     "http://localhost http://localhost", "http://localhost,http://evil.example", "ws://localhost"],
)  # fmt: skip
def test_an_origin_of_another_form_is_refused(origin: str) -> None:
    assert not allowed_names("127.0.0.1").has_origin(origin)


def raw_status(url: str, *lines: str, body: bytes = b"") -> int:
    """The status that a request gets that is sent as it stands."""
    host, port = url.removeprefix("http://").removesuffix("/mcp").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return int(connection.recv(1000).split()[1])


def test_a_running_server_compares_whole_names_and_wants_one_of_each_header(tmp_path: Path) -> None:
    with serving(tmp_path) as url:
        get, end = "GET /mcp HTTP/1.1", "Connection: close"
        for name in ("127.0.0.1:8477@evil.example", "localhost:80.evil.example", "localhost."):
            assert raw_status(url, get, f"Host: {name}", end) == 421, name
            assert raw_status(url, get, "Host: localhost", f"Origin: http://{name}", end) == 403, name
        assert raw_status(url, get, "Host: localhost", "Origin: null", end) == 403
        assert raw_status(url, get, end) == 400
        assert raw_status(url, "GET /mcp HTTP/1.0", end) == 400
        assert raw_status(url, get, "Host: localhost", "Host: evil.example", end) == 400
        assert raw_status(url, "GET /mcp HTTP/1.0", "Host: localhost", "Host: evil.example", end) == 400
        twice = ("Origin: http://localhost", "Origin: http://evil.example")
        assert raw_status(url, get, "Host: localhost", *twice, end) == 400
        for name in ("LOCALHOST:8477", "[::1]:8477", "127.0.0.1"):  # 406: a GET without an Accept header
            assert raw_status(url, get, f"Host: {name}", f"Origin: http://{name}", end) == 406, name


def test_a_token_file_is_read_if_only_its_owner_can_use_it(tmp_path: Path) -> None:
    file = tmp_path / "to ken"
    file.write_text(f"{TOKEN}\n", encoding="ascii")
    for mode in (0o644, 0o640, 0o604, 0o620, 0o601):
        file.chmod(mode)
        with pytest.raises(ServerError, match=f"has the mode {mode:04o}.* run: chmod 600 '{file}'"):
            read_token(file)
    for mode in (0o600, 0o400):
        file.chmod(mode)
        assert read_token(file) == TOKEN
    file.chmod(0o600)
    file.write_text("x" * 5000, encoding="ascii")
    with pytest.raises(ServerError, match="more than 4096 bytes"):
        read_token(file)
    with pytest.raises(ServerError, match="cannot be read"):
        read_token(tmp_path / "nothing")


@pytest.mark.parametrize(
    "token", ["sixteen letters and spaces", "two-lines-of-a-file\nanother", "t\u00f6ken-of-twenty-four"]
)
def test_a_token_that_no_header_can_carry_is_refused(tmp_path: Path, token: str) -> None:
    with pytest.raises(ServerError, match="no header can carry"):
        serve(tmp_path, transport="http", port=0, token=token)


def test_the_token_comes_from_a_file_or_the_environment_and_with_a_warning_from_the_command_line(
    tmp_path: Path,
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n", encoding="ascii")
    file.chmod(0o600)
    for options, environment, warned in (
        (["--token-file", str(file)], {"VIRTUALMLE_TOKEN": "the-file-comes-before-this"}, False),
        ([], {"VIRTUALMLE_TOKEN": TOKEN}, False),
        (["--token", TOKEN], {}, True),
    ):
        with command(tmp_path / "home", *options, **environment) as (url, said):
            refused = greet(url)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
            assert "--token-file FILE" in refused.json()["error"] and "VIRTUALMLE_TOKEN" in refused.json()["error"]
            assert greet(url, Authorization=f"bearer {TOKEN}").status_code == 200
            assert any("every user of this machine can read" in line for line in said) is warned, said


def test_a_token_on_the_command_line_and_in_a_file_are_one_too_many(tmp_path: Path) -> None:
    program = [sys.executable, "-P", "-m", "virtualmle", "serve", "--home", str(tmp_path), "--token", TOKEN]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([*program, "--token-file", "x"], capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 2 and "either --token-file or --token" in ran.stderr

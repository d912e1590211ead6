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
from virtualmle.server.serve import serve
from virtualmle.server.streamable_http import base_url, is_loopback, listen, transport_security

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
    command = [sys.executable, "-P", "-m", "virtualmle", "serve", "--home", str(tmp_path), "--transport", "http"]
    environment = {**os.environ, "VIRTUALMLE_TOKEN": TOKEN, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [*command, "--port", "0", *options], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip
    assert process.stderr is not None
    known = {"Authorization": f"Bearer {TOKEN}"}
    try:
        url = process.stderr.readline().split()[-1]
        for name in ("recsys.example.org", "recsys.example.org:443", "other.example:8443", "127.0.0.1:80"):
            assert greet(url, Host=name, **known).status_code == 200, name
        for name in ("evil.example", "recsys.example.org.evil.example", "other.example", "other.example:80"):
            assert greet(url, Host=name, **known).status_code == 421, name
        assert greet(url, Host="recsys.example.org", Origin="https://recsys.example.org", **known).status_code == 200
        assert greet(url, Host="recsys.example.org", Origin="https://evil.example", **known).status_code == 403
        assert greet(url, Host="recsys.example.org").status_code == 401
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stderr.close()


def test_allowed_hosts_need_a_token_and_must_be_host_names(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="--allowed-host recsys.example.org .* bearer token"):
        serve(tmp_path, transport="http", port=0, allowed_hosts=["recsys.example.org"])
    for name in ("https://recsys.example.org", "recsys.example.org/mcp", "", "*"):
        with pytest.raises(ServerError, match="is not a host name"):
            serve(tmp_path, transport="http", port=0, token=TOKEN, allowed_hosts=[name])
    assert not transport_security("0.0.0.0").enable_dns_rebinding_protection
    assert transport_security("0.0.0.0", ["recsys.example.org"]).enable_dns_rebinding_protection
    hosts = transport_security("127.0.0.1", ["Recsys.Example.org", "Other.example:8443"]).allowed_hosts
    assert {"recsys.example.org", "recsys.example.org:*", "other.example:8443"} <= set(hosts), "in lower case as well"


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
    named = transport_security("192.0.2.1")
    assert named.enable_dns_rebinding_protection and "192.0.2.1:*" in named.allowed_hosts
    assert not transport_security("0.0.0.0").enable_dns_rebinding_protection
    assert base_url("::1", 80) == "http://[::1]:80"

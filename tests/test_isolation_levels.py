"""Isolation level L2: the server runs as another unix user, and the agent's user reaches the tools only."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import virtualmle
from virtualmle.cli.isolation import isolation_of
from virtualmle.data.errors import HomeError
from virtualmle.examiner.operator_keys import create_keys, read_public_keys
from virtualmle.examiner.vault import Vault

DOCS = Path(virtualmle.__file__).parent / "docs" / "isolation"
SERVER, AGENT, TOKEN = "nobody", "daemon", "a-token-of-twenty-four-c"
ACCEPT = {"Accept": "application/json, text/event-stream"}


def as_user(user: str, *command: object) -> list[str]:
    return ["setpriv", "--reuid", user, "--regid", user_group(user), "--clear-groups", *map(str, command)]


def user_group(user: str) -> str:
    import pwd  # noqa: PLC0415 - only on POSIX

    return str(pwd.getpwnam(user).pw_gid)


def python(*arguments: object) -> list[str]:
    return [sys.executable, "-P", *map(str, arguments)]


def environment(**further: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1", **further}


@pytest.fixture
def users() -> None:
    """Skips the test unless two further unix users can run this interpreter."""
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, to run the server as another user")
    for user in (SERVER, AGENT):
        probe = as_user(user, *python("-c", "import virtualmle.cli.app"))
        if subprocess.run(probe, env=environment(), capture_output=True, check=False).returncode:
            pytest.skip(f"the user {user} does not exist or cannot run this interpreter")


@pytest.fixture
def home(users: None) -> Iterator[Path]:
    """A home that belongs to the server's user, in a directory that everybody may enter."""
    folder = Path(tempfile.mkdtemp(prefix="virtualmle-l2-"))
    folder.chmod(0o755)
    home = folder / "home"
    home.mkdir(mode=0o700)
    shutil.chown(home, SERVER)
    yield home
    shutil.rmtree(folder)


@contextmanager
def serving(home: Path) -> Iterator[str]:
    command = python("-m", "virtualmle", "serve", "--home", home, "--transport", "http", "--port", "0")
    process = subprocess.Popen(
        as_user(SERVER, *command), env=environment(VIRTUALMLE_TOKEN=TOKEN), cwd="/", umask=0o077,
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        yield process.stderr.readline().split()[-1]
    finally:
        process.terminate()
        process.wait(timeout=60)
        process.stderr.close()


CALL = """
import asyncio, httpx2, json, sys
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

async def main(url, token, tool, arguments):
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=120) as http:
        async with Client(streamable_http_client(url, http_client=http)) as client:
            print(json.dumps((await client.call_tool(tool, json.loads(arguments))).structured_content))

asyncio.run(main(*sys.argv[1:]))
"""


def called_by_the_agent(url: str, tool: str, **arguments: object) -> dict[str, object]:
    """What a tool answers to a client that runs as the agent's user."""
    words = as_user(AGENT, *python("-c", CALL, url, TOKEN, tool, json.dumps(arguments)))
    done = subprocess.run(words, env=environment(), cwd="/", capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_agents_user_reaches_the_tools_and_not_the_home(home: Path) -> None:
    with serving(home) as url:
        assert httpx.post(url, json={}, headers=ACCEPT, timeout=60).status_code == 401
        opened = called_by_the_agent(url, "open_session", dataset="demo", backbone="sasrec")
        assert opened["session"] == "demo-sasrec-1"
        key = home / ".virtualmle" / "vault" / "private_key"
        assert key.exists() and key.owner() == SERVER
        for path in (home, home / "memory.db", key, home / ".virtualmle" / "data" / "demo" / "test.sealed"):
            read = subprocess.run(as_user(AGENT, "cat", path), capture_output=True, text=True, check=False)
            assert read.returncode and "Permission denied" in read.stderr, path
        code = (
            "import sys; from pathlib import Path; from virtualmle.cli.isolation import isolation_of\n"
            "print(isolation_of(Path(sys.argv[1])).level)"
        )
        seen = subprocess.run(
            as_user(AGENT, *python("-c", code, home)), env=environment(), capture_output=True, text=True, check=False
        )
        assert seen.stdout.strip() == "L2", seen.stderr
    assert isolation_of(home, SERVER).level == "L1"
    assert isolation_of(home, AGENT).level == "L2"
    key.parent.chmod(0o755)
    assert isolation_of(home, AGENT).level == "L1"  # the vault stands open


def test_the_level_depends_on_key_and_user(tmp_path: Path) -> None:
    assert isolation_of(tmp_path / "new").level == "L1"
    Vault(tmp_path / "own").public_key()
    assert isolation_of(tmp_path / "own").level == "L1"
    assert isolation_of(tmp_path / "own", has_plain_targets=True)[::2] == ("L0", "fail")
    if os.name == "posix":
        with pytest.raises(HomeError, match="no-such-user"):
            isolation_of(tmp_path / "own", "no-such-user")
    private, public = create_keys(tmp_path / "keys")
    Vault(tmp_path / "operator").use_operator_key(*read_public_keys(public))
    assert isolation_of(tmp_path / "operator")[::2] == ("L3", "ok")
    shutil.copy(private, tmp_path / "operator" / "forgotten")
    assert isolation_of(tmp_path / "operator")[::2] == ("L1", "fail")
    (tmp_path / "own" / ".virtualmle" / "vault" / "private_key").unlink()  # lost, or operator mode that was forced on
    assert isolation_of(tmp_path / "own")[::2] == ("L3", "warn")


def test_the_unit_is_one_that_systemd_accepts(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = (DOCS / "virtualmle.service").read_text(encoding="utf-8")
    program = tmp_path / "virtualmle"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "virtualmle.service"
    unit.write_text(text.replace("/opt/virtualmle/bin/virtualmle", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False, timeout=60
    )
    complaints = [line for line in done.stderr.splitlines() if "virtualmle" in line]
    assert not complaints, complaints


def test_unit_and_container_start_the_server_as_a_user_of_its_own_with_a_token_file() -> None:
    unit = (DOCS / "virtualmle.service").read_text(encoding="utf-8")
    container = (DOCS / "Containerfile").read_text(encoding="utf-8")
    started = re.findall(r"^ExecStart=.*$", unit, flags=re.MULTILINE)[0]
    entry = " ".join(json.loads(re.findall(r"^ENTRYPOINT (.*)$", container, flags=re.MULTILINE)[0]))
    for command in (started, entry):
        assert "--transport http" in command and "--token-file" in command and "--token " not in command
    assert "User=virtualmle" in unit and "UMask=0077" in unit and "StateDirectoryMode=0700" in unit
    assert container.index("USER virtualmle") < container.index("ENTRYPOINT")

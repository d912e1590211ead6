"""Confinement: what a worker can no longer open, tried by a process that confines itself as a worker does."""

import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtualmle.training import confinement, landlock
from virtualmle.training.confinement import (
    SWITCH,
    around,
    can_read_inputs,
    confinement_here,
    grants_of,
    inputs_of,
    is_confined,
)
from virtualmle.training.landlock import READ, RUN, PathBeneath, Right, RulesetAttributes, rights_known

needs_landlock = pytest.mark.skipif(
    not is_confined(confinement_here()), reason=f"needs Landlock; confinement here: {confinement_here()}"
)

ATTEMPTS = """
import errno, json, os, socket, sys, tempfile
from pathlib import Path
from virtualmle.training.worker_start import start

given = json.loads(sys.argv[1])
start([given["trial"], given["inbox"], "1"], tcp=given["tcp"])

def outcome(attempt):
    try:
        attempt()
    except OSError as error:
        return "refused" if error.errno in (errno.EACCES, errno.EPERM, errno.EXDEV) else repr(error)
    return "done"

def connect():
    with socket.create_connection(("127.0.0.1", given["port"])):
        pass

def listen():
    with socket.create_server(("127.0.0.1", 0)):
        pass

attempts = {f"read {name}": lambda path=path: open(path, "rb").read() for name, path in given["read"].items()}
attempts |= {f"write {name}": lambda path=path: open(path, "ab").write(b"x") for name, path in given["write"].items()}
attempts |= {f"truncate {name}": lambda path=path: os.truncate(path, 0) for name, path in given["truncate"].items()}
attempts |= {"link the key": lambda: os.link(given["read"]["the key"], f"{given['trial']}/a link")}
attempts |= {
    "move an order": lambda: os.rename(f"{given['inbox']}/order", f"{given['next']}/lease.json"),
    "temporary file": lambda: tempfile.TemporaryFile().write(b"x"),
    "connect": connect,
    "listen": listen,
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "signal itself": lambda: os.kill(os.getpid(), 0),
    "run a program": lambda: os.spawnv(os.P_WAIT, "/bin/true", ["true"]) and 1 / 0,
}
print(json.dumps({name: outcome(attempt) for name, attempt in attempts.items()}))
"""


class Home:
    """A home with a vault, two datasets, two sessions and a memory, all of them made up; `start` plays a worker."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / ".virtualmle"
        self.session = self.state / "sessions" / "shop-sasrec-1"
        self.library = root.parent / "libraries" / "library.so"
        self.file(self.library)
        self.trial, self.next, self.inbox = (self.session / name for name in ("t001", "t002", "worker"))
        for name in ("memory.db", "notes.txt"):
            self.file(root / name)
        for name in ("private_key", "revealed/shop-sasrec-0.json", "mac_key"):
            self.file(self.state / "vault" / name)
        for dataset in ("shop", "other"):
            for name in ("items.npy", "test.sealed", "item_ids.parquet"):
                self.file(self.state / "data" / dataset / name)
            manifest = {"files": {"items.npy": "", "item_ids.parquet": "", "../../vault/private_key": ""}}
            (self.state / "data" / dataset / "manifest.json").write_text(json.dumps(manifest))
        for name in (self.trial / "ranks.npy", self.next / "ranks.npy", self.inbox / "order"):
            self.file(name)
        self.file(self.state / "sessions" / "shop-sasrec-0" / "t001" / "checkpoint.safetensors")
        spec = {"dataset_dir": str(self.state / "data" / "shop")}
        (self.trial / "spec.json").write_text(json.dumps(spec))

    def file(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")

    def outcomes(self, port: int = 0, *, tcp: bool = False, **environment: str) -> dict[str, str]:
        """What a confined process can do here, by attempt: done or refused."""
        vault, data = self.state / "vault", self.state / "data"
        earlier = self.state / "sessions" / "shop-sasrec-0" / "t001" / "checkpoint.safetensors"
        os.symlink(vault / "private_key", self.trial / "a symbolic link")
        named = {
            "the key": vault / "private_key", "the key by a link": self.trial / "a symbolic link",
            "the key by /proc": Path(f"/proc/{os.getpid()}/root{vault}/private_key"),
            "a revealed result": vault / "revealed" / "shop-sasrec-0.json", "memory.db": self.root / "memory.db",
            "a file of the user": self.root / "notes.txt", "the sealed part": data / "shop" / "test.sealed",
            "original ids": data / "shop" / "item_ids.parquet", "another dataset": data / "other" / "items.npy",
            "an array": data / "shop" / "items.npy", "an earlier trial": earlier,
            "the environment of its parent": Path(f"/proc/{os.getppid()}/environ"),
        }  # fmt: skip
        given = {
            "trial": self.trial, "inbox": self.inbox, "next": self.next, "port": port, "tcp": tcp, "read": named,
            "write": {
                "an array": data / "shop" / "items.npy", "an earlier trial": earlier, "code": self.library,
                "the key": vault / "private_key", "its trial": self.trial / "new", "its next trial": self.next / "new",
            },
            "truncate": {"an array": data / "shop" / "items.npy", "its trial": self.trial / "ranks.npy"},
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-P", "-c", ATTEMPTS, json.dumps(given, default=str)],
            capture_output=True, text=True, check=False,
            env=os.environ | {"LD_LIBRARY_PATH": str(self.library.parent)} | environment,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return dict(json.loads(done.stdout))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


ALLOWED = {
    "read an array", "read an earlier trial", "write its trial", "write its next trial", "truncate its trial",
    "move an order", "temporary file", "signal itself", "run a program",
}  # fmt: skip


@needs_landlock
def test_a_worker_reads_its_inputs_writes_its_trials_and_can_do_nothing_else(home: Home, port: int) -> None:
    outcomes = home.outcomes(port)
    allowed = {name for name, outcome in outcomes.items() if outcome == "done"}
    scoped = set() if landlock.kernel_abi() >= 6 else {"signal the parent"}
    sockets = set() if landlock.kernel_abi() >= 4 else {"connect", "listen"}
    assert allowed == ALLOWED | scoped | sockets
    assert outcomes["read the key"] == outcomes["read the key by /proc"] == outcomes["link the key"] == "refused"
    assert (home.state / "data" / "shop" / "items.npy").read_bytes() == b"content"


@needs_landlock
def test_a_home_beneath_a_directory_of_code_is_still_closed(home: Home) -> None:
    outcomes = home.outcomes(LD_LIBRARY_PATH=str(home.root.parent))
    refused = {name for name, outcome in outcomes.items() if outcome == "refused"}
    assert refused >= {"read the key", "read the key by a link", "read a revealed result", "read memory.db"}
    assert outcomes["read a file of the user"] == "done", "the home's other files are beneath what was declared as code"


def test_confinement_can_be_switched_off(home: Home) -> None:
    outcomes = home.outcomes(**{SWITCH: "off"})
    assert outcomes["read the key"] == outcomes["read memory.db"] == "done"


@needs_landlock
def test_a_worker_of_a_ray_node_may_use_the_network(home: Home, port: int) -> None:
    outcomes = home.outcomes(port, tcp=True)
    assert outcomes["connect"] == outcomes["listen"] == "done" and outcomes["read the key"] == "refused"


def test_a_machine_without_landlock_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def restrict(*_: object, **__: object) -> int:
        pytest.fail("it was called")

    monkeypatch.setattr(confinement, "restrict", restrict)
    monkeypatch.delenv(SWITCH, raising=False)
    for abi, state in (
        (0, "not available (no Landlock here)"), (1, "not available (Landlock ABI 1, needs 2)"),
    ):  # fmt: skip
        monkeypatch.setattr(confinement, "kernel_abi", lambda abi=abi: abi)
        assert confinement_here() == confinement.confine_worker(tmp_path) == state and not is_confined(state)
    monkeypatch.setattr(confinement, "kernel_abi", lambda: 7)
    assert confinement_here({}) == "landlock ABI 7" and is_confined(confinement_here({}))
    assert confinement_here({SWITCH: "off"}) == "off (VIRTUALMLE_CONFINE=off)"


def test_a_kernel_that_refuses_is_a_warning_and_no_crash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def restrict(*_: object, **__: object) -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(confinement, "kernel_abi", lambda: 7)
    monkeypatch.setattr(confinement, "restrict", restrict)
    monkeypatch.setattr(confinement, "drop_capabilities", lambda: None)
    monkeypatch.setenv("TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    assert confinement.confine_worker(tmp_path) == "not confined (Operation not supported)"
    assert "warning" in capsys.readouterr().err


def test_the_structures_have_the_layout_of_the_kernels_header() -> None:
    assert ctypes.sizeof(RulesetAttributes) == 24 and ctypes.sizeof(PathBeneath) == 12
    assert [getattr(RulesetAttributes, name).offset for name in ("fs", "net", "scoped")] == [0, 8, 16]
    assert (PathBeneath.allowed.offset, PathBeneath.parent.offset) == (0, 8)
    assert bytes(PathBeneath(1, -2)) == (1).to_bytes(8, sys.byteorder) + (-2).to_bytes(4, sys.byteorder, signed=True)


def test_each_version_of_the_abi_is_asked_for_what_it_knows() -> None:
    assert [hex(rights_known(abi)) for abi in range(1, 9)] == [
        "0x1fff", "0x3fff", "0x7fff", "0x7fff", "0xffff", "0xffff", "0xffff", "0xffff"
    ]  # fmt: skip
    fields = [landlock.ruleset_attributes(abi, tcp=False) for abi in (2, 3, 4, 6)]
    assert [(found.net, found.scoped) for found in fields] == [(0, 0), (0, 0), (3, 0), (3, 3)]
    assert landlock.ruleset_attributes(7, tcp=True).net == 0


def test_a_grant_goes_around_what_is_kept_out(tmp_path: Path) -> None:
    for name in ("code/a.py", "code/home/.virtualmle/vault/key", "code/home/b.py", "elsewhere/c.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    closed = tmp_path / "code" / "home" / ".virtualmle"
    assert around(tmp_path / "elsewhere", RUN, [closed]) == [(tmp_path / "elsewhere", RUN)]
    assert around(closed, RUN, [closed]) == [] == around(closed / "vault", RUN, [closed])
    found = around(tmp_path / "code", RUN, [closed])
    assert set(found) == {
        (tmp_path / "code", Right.READ_DIR), (tmp_path / "code" / "a.py", RUN),
        (tmp_path / "code" / "home", Right.READ_DIR), (tmp_path / "code" / "home" / "b.py", RUN),
    }  # fmt: skip


def test_a_cold_worker_writes_in_its_own_directory_only(home: Home) -> None:
    writable = [path for path, rights in grants_of(home.trial, None) if rights & Right.MAKE_REG]
    assert home.trial in writable and home.session not in writable
    assert (home.state / "sessions", READ) in grants_of(home.trial, None)


def test_the_trials_whose_models_a_trial_uses_are_among_its_inputs(home: Home) -> None:
    """Of a trial outside of a home, as on a node, where no grant for all sessions covers them."""
    alone = home.root.parent / "node" / "t003"
    members, teachers = ([home.root.parent / kind / "t001"] for kind in ("members", "teachers"))
    named = {"members": members, "teachers": teachers}
    spec = {"dataset_dir": str(home.state / "data" / "shop")}
    spec |= {kind: [{"directory": str(path)} for path in paths] for kind, paths in named.items()}
    alone.mkdir(parents=True)
    (alone / "spec.json").write_text(json.dumps(spec))
    for path in (*members, *teachers):
        assert path in inputs_of(alone) and (path, READ) in grants_of(alone, None)


def test_inputs_that_may_not_be_read_are_noticed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(path)

    assert can_read_inputs(home.trial)
    shutil.rmtree(home.state / "data")
    assert can_read_inputs(home.trial), "the trial itself reports what is missing"
    monkeypatch.setattr(confinement.os, "open", refuse)
    assert not can_read_inputs(home.trial)

"""The checks of `virtualmle doctor`: each examines one thing and reports ok, warn or fail with a sentence.

Not covered: the correctness of training, which the tests check. Nothing is installed, changed or downloaded, and the
only file written is an empty one that is removed at once.
"""

import json
import os
import platform
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..data.catalogue import Catalogue
from ..data.dataset_signature import DATASET_MAC
from ..data.errors import VirtualMLEError
from ..data.prepared import ARRAYS, ITEM_IDS, MANIFEST, SEALED, TIME_ARRAYS, USER_IDS, array_file
from ..data.similar import CACHE
from ..data.wording import counted
from ..examiner.vault import MAC_KEY, PRIVATE, Vault
from ..memory.store import Memory
from ..sandbox.protocol import load_protocol
from .isolation import isolation_of
from .permission_checks import permissions
from .record_checks import Status, check_records

PROBE_SECONDS = 120.0  # the first import of torch from a cold network file system takes a minute
TRAINING_ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "VIRTUALMLE_WAIT_SECONDS", "PYTHONPATH",
)  # fmt: skip
TORCH_PROBE = """
import json, torch
try:
    import triton
    triton_version = triton.__version__
except ImportError:
    triton_version = None
cuda = torch.cuda.is_available()
print(json.dumps({"torch": torch.__version__, "triton": triton_version, "threads": torch.get_num_threads(),
                  "cuda": torch.version.cuda, "device": torch.cuda.get_device_name(0) if cuda else None}))
"""
VISIBLE_FILES = {MANIFEST, SEALED, DATASET_MAC, USER_IDS, ITEM_IDS, CACHE, *map(array_file, ARRAYS | TIME_ARRAYS)}
"""All files that belong in the directory of a prepared dataset; only the sealed one contains test targets."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    status: Status
    detail: str


def run_checks(home: Path, agent_user: str | None = None) -> list[Finding]:
    """Run all checks on this machine and on `home`, in the order in which problems are best fixed.

    agent_user: the unix user of agents, for the isolation level. Raises HomeError if there is none of this name.
    """
    findings = [_python(), *_torch(), _guarded(_environment, home), *home_checks(home)]
    exposed = any(finding.check == "plain targets" and finding.status == "fail" for finding in findings)
    isolation = isolation_of(home, agent_user, has_plain_targets=exposed)
    return [*findings, Finding("isolation", isolation.status, f"{isolation.level}: {isolation.detail}")]


def home_checks(home: Path) -> list[Finding]:
    """The checks of a home alone."""
    checks = (_memory, _protocol, _vault, _permissions, _plain_targets, _records)
    return [_home(home), *(_guarded(check, home) for check in checks)]


def failures(home: Path) -> dict[str, str]:
    """The details of the failed checks of a home, by check."""
    return {finding.check: finding.detail for finding in home_checks(home) if finding.status == "fail"}


def _guarded(check: Callable[[Path], Finding], home: Path) -> Finding:
    """The finding of `check`; an error that a user can fix becomes a failed check with the error's message."""
    try:
        return check(home)
    except (VirtualMLEError, OSError) as error:
        return Finding(check.__name__.strip("_").replace("_", " "), "fail", str(error))


def _python() -> Finding:
    version = platform.python_version()
    return Finding("python", "ok" if sys.version_info >= (3, 11) else "fail", f"{version} on {platform.system()}")


def _torch() -> list[Finding]:
    """Probe torch in a subprocess: this process must not import it, and a broken install must not end the doctor."""
    command = [sys.executable, "-P", "-c", TORCH_PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return [Finding("torch", "fail", f"importing torch took more than {PROBE_SECONDS:.0f} s")]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [Finding("torch", "fail", f"cannot be imported, so no trial can run: {last}")]
    return _torch_findings(json.loads(done.stdout.splitlines()[-1]))


def _torch_findings(probe: dict[str, str | int | None]) -> list[Finding]:
    device = probe["device"]
    cuda = Finding("cuda", "ok", f"{device}, CUDA {probe['cuda']}") if device else Finding(
        "cuda", "warn", "no CUDA device; trials run on the CPU"
    )  # fmt: skip
    if probe["triton"]:
        triton = Finding("triton", "ok", str(probe["triton"]))
    else:
        triton = Finding("triton", "warn" if device else "ok", "not installed; the plain torch kernels are used")
    count, limit = os.cpu_count(), os.environ.get("OMP_NUM_THREADS")
    threads = f"{probe['threads']} torch threads on {count} cores" + (f" (OMP_NUM_THREADS={limit})" if limit else "")
    return [Finding("torch", "ok", str(probe["torch"])), triton, cuda, Finding("threads", "ok", threads)]


def _home(home: Path) -> Finding:
    """Whether `home` is writable; for a home that does not exist yet, whether its nearest existing parent is."""
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Finding("home", "fail", f"{home} cannot be written ({error.strerror}); choose another with --home")
    state = "is writable" if existing == home else "will be created on first use"
    return Finding("home", "ok", f"{home} {state}")


def _memory(home: Path) -> Finding:
    path = home / "memory.db"
    if not path.exists():
        return Finding("memory", "ok", "no memory.db yet; it will be created on first use")
    with Memory(path) as memory:
        sessions, rules = len(memory.sessions.all()), len(memory.rules.all())
    return Finding("memory", "ok", f"{counted(sessions, 'session')}, {counted(rules, 'rule')}")


def _protocol(home: Path) -> Finding:
    own = home / "SANDBOX.md"
    protocol = load_protocol(own if own.exists() else None)
    source = str(own) if own.exists() else "the bundled SANDBOX.md"
    limits = f"{counted(protocol.max_trials, 'trial')}, {counted(len(protocol.space.entries), 'knob')}"
    return Finding("protocol", "ok", f"{source}: {limits}, keep z >= {protocol.keep_z:g}")


def _environment(home: Path) -> Finding:
    """Whether variables that matter for training reach a stdio server; MCP clients pass only a few of them on."""
    del home  # this check does not depend on the home
    from mcp.client.stdio import get_default_environment  # imports the MCP library

    passed = get_default_environment()
    lost = [name for name in TRAINING_ENVIRONMENT if name in os.environ and name not in passed]
    if not lost:
        return Finding("environment", "ok", f"a stdio server receives {', '.join(sorted(passed))}")
    entries = ", ".join(f'"{name}": "{os.environ[name]}"' for name in lost)
    detail = f"not passed to a stdio server; add to `env` in the client's configuration: {entries}"
    return Finding("environment", "warn", detail)


def _vault(home: Path) -> Finding:
    vault = Vault(home)
    if not vault.directory.exists():
        return Finding("vault", "ok", "none yet; it will be created with the first dataset")
    open_to_others = [
        path.name
        for path in (vault.directory, vault.directory / PRIVATE, vault.directory / MAC_KEY)
        if path.exists() and _others_may_read(path)
    ]
    if open_to_others:
        names = " and ".join(open_to_others)
        return Finding("vault", "fail", f"other users can read {names}; run chmod -R go= {vault.directory}")
    return Finding("vault", "ok", f"{vault.mode} mode; not readable by other users")


def _records(home: Path) -> Finding:
    return Finding("records", *check_records(home))


def _others_may_read(path: Path) -> bool:
    return os.name == "posix" and bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))


def _permissions(home: Path) -> Finding:
    return Finding("permissions", *permissions(home))


def _plain_targets(home: Path) -> Finding:
    """Look for unsealed test targets wherever an agent could read them."""
    names, found = Catalogue(home).names(), []
    for name in names:
        directory = Catalogue(home).path(name)
        found += [f"{name}/{path.name}" for path in directory.iterdir() if path.name not in VISIBLE_FILES]
        if not _looks_sealed(directory / SEALED):
            found.append(f"{name}/{SEALED} (not ciphertext)")
    downloads = home / ".virtualmle" / "vault" / "downloads"
    found += [f"downloads/{path.name}" for path in downloads.glob("*")] if downloads.exists() else []
    if found:
        return Finding("plain targets", "fail", f"files that may contain unsealed test targets: {', '.join(found)}")
    return Finding("plain targets", "ok", f"none found in {counted(len(names), 'dataset')}")


def _looks_sealed(path: Path) -> bool:
    """Whether a file exists and looks like ciphertext: no known format, and not mostly zero bytes (small integers)."""
    if not path.is_file():
        return False
    content = path.read_bytes()
    if content.startswith((b"\x93NUMPY", b"PK", b"{", b"[", b"PAR1")):
        return False
    return sum(byte == 0 for byte in content) < len(content) / 16 + 16

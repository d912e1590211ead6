"""Asking the examiner: the one door between the tools and the sealed test split. Torch-free.

The examiner is a process of its own (`main.py`), so that neither the key nor a test target is ever in the memory of the
server. What it found comes back through the vault.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from ..data.errors import SealError
from .ledger import Ledger, Look, already_looked
from .vault import Vault, present

MODULE = "virtualmle.examiner.main"


class TestResult(BaseModel):
    """What one look at the test set found."""

    __test__: ClassVar[bool] = False  # not a test class, whatever its name suggests to pytest
    model_config = ConfigDict(frozen=True, extra="forbid")

    session: str
    trial: str
    dataset: str
    dataset_id: str
    metrics: dict[str, float]  # recall@5, recall@10, ndcg@5, ndcg@10, mrr
    ndcg10_se: float  # standard error of ndcg@10 over users
    ties: int  # users whose target tied with another candidate (counted against the model)
    num_users: int
    look: int  # which look at this content it was, over all names and sessions of this home; 1 = first
    fingerprint_short: str  # first 12 hex digits of the content's fingerprint
    at: str  # UTC, ISO 8601


def examine(
    home: Path,
    session: str,
    trial_directory: Path,
    dataset_dir: Path,
    timeout: float,
    key_file: Path | None = None,
) -> TestResult:
    """Evaluate a finished trial on the test targets, once; returns what is then in the vault.

    `key_file` holds the private key (32 bytes) in operator mode. Raises SealError if the session has looked before, the
    seal does not open, or the examiner fails or runs longer than `timeout` seconds. From the moment the attempt is in
    the ledger the look is used, whatever happens then; Ctrl-C here does not reach the examiner, which ends in peace.
    """
    vault = Vault(home)
    vault.revealed_path(session)  # refuses an impossible id
    if Ledger(vault.directory).find(session):
        raise SealError(already_looked(session))
    command = [sys.executable, "-P", "-m", MODULE]
    command += ["--home", str(home.resolve()), "--session", session]
    command += ["--trial", str(trial_directory.resolve()), "--dataset", str(dataset_dir.resolve())]
    if key_file:
        command += ["--key-file", str(key_file.resolve())]
    _run(command, session, timeout)
    result = read_revealed(home, session)
    if result is None:
        raise SealError(f"the examiner of session {session} ended without a result; its look is used")
    return result


def read_revealed(home: Path, session: str) -> TestResult | None:
    """The result of a session's look, or None while there is none."""
    path = Vault(home).revealed_path(session)
    try:
        return TestResult.model_validate_json(path.read_bytes()) if present(path) else None
    except ValidationError:
        raise SealError(f"{str(path)!r} is damaged; restore it from a backup") from None


def has_looked(home: Path, session: str) -> bool:
    """Whether a session has used its look, with or without a result."""
    return Ledger(Vault(home).directory).find(session) is not None


def in_progress(home: Path, session: str) -> bool:
    """Whether an examiner of this session is at work on this machine, also one whose server has died."""
    wanted = [MODULE, "--home", str(home.resolve()), "--session", session]
    lines = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return any(line[line.index(MODULE) :][: len(wanted)] == wanted for line in lines if MODULE in line)


def looks(home: Path) -> list[Look]:
    """Every look ever taken in this home, oldest first."""
    return Ledger(Vault(home).directory).looks()


def _run(command: list[str], session: str, timeout: float) -> None:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},  # as a worker has it: two threads that spin starve each other
        start_new_session=os.name == "posix",
    )
    try:
        answer, noise = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise SealError(f"the examiner of session {session} ran longer than {timeout:g} s and was ended") from None
    if process.returncode:
        raise SealError(_cause(answer, noise, process.returncode))


def _cause(answer: str, noise: str, status: int) -> str:
    """The examiner's own sentence; or, if it died without one, its exit status and last words."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(answer)["error"])
    words = (noise.strip().splitlines() or ["no message"])[-1]
    return f"the examiner ended with status {status} ({words}); call finalize again: it says whether its look is used"

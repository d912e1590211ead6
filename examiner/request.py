"""Requests to the examiner: the only interface between the tools and the sealed test split. Does not import torch.

The examiner is a separate process (`main.py`), so that neither the key nor a test target is ever in the memory of the
server. The examiner writes its result to the vault, and this module reads it from there.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from ..data.errors import SealError
from .examining import in_progress, lock_to_pass
from .ledger import Ledger, Look, second_look_message
from .vault import Vault

MODULE = "virtualmle.examiner.main"


class Opening(BaseModel):
    """The opening of the commitment to the test targets (data/commitment.py), in hexadecimal; it names no target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nonce: str
    targets_digest: str


class DefaultResult(BaseModel):
    """The session's default configuration in the same look, beside the selected trial."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: str
    models: int  # whose means the metrics are: 1, or the repetitions that confirmed the default
    metrics: dict[str, float]  # the names of `TestResult.metrics`
    metrics_se: dict[str, float]  # standard errors over users
    delta: dict[str, float]  # the selected trial minus the default
    delta_se: dict[str, float]  # standard errors of these differences, paired over users


@dataclass(frozen=True)
class Beside:
    """What is evaluated beside the selected trial: the default's trial, and the directories of its models."""

    trial: str
    models: Sequence[Path]


class TestResult(BaseModel):
    """The result of one look at the test set."""

    __test__: ClassVar[bool] = False  # pytest must not collect this class because of its name
    model_config = ConfigDict(frozen=True, extra="forbid")

    session: str
    trial: str
    dataset: str
    dataset_id: str
    metrics: dict[str, float]  # recall@5, recall@10, ndcg@5, ndcg@10, mrr; of several models, their means
    metrics_sd: dict[str, float] = {}  # of several models: standard deviations over them (ddof 1)
    repetitions: list[dict[str, float]] = []  # of several models: the metrics of each
    baselines: dict[str, dict[str, float]] = {}  # metrics by baseline (training/baselines.py), from the same look
    ndcg10_se: float  # standard error of ndcg@10 over users; of several models, of their mean per user
    ties: int  # users whose target tied with another candidate, over all models; ties are broken pessimistically
    num_users: int
    look: int  # number of this look at the content, over all dataset names and sessions of this home; 1 = first
    look_note: str = ""  # which near-duplicates of the content the earlier looks were at; empty if there are none
    fingerprint_short: str  # first 12 hex digits of the content's fingerprint
    at: str  # UTC, ISO 8601
    opening: Opening | None = None  # None for a dataset that was prepared by an earlier version
    metrics_se: dict[str, float] = {}  # standard errors over users; of several models, of their mean per user
    default: DefaultResult | None = None  # None if the default is the selected trial or has no model

    @model_serializer(mode="wrap")
    def _as_it_was_signed(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the fields of a later version that are not set: digests and signatures of older results hold."""
        dumped: dict[str, Any] = handler(self)
        return {name: value for name, value in dumped.items() if value or name not in ("metrics_se", "default")}

    @property
    def look_remark(self) -> str:
        """The note on earlier looks as an addition to a sentence; empty without a note."""
        return f" ({self.look_note})" if self.look_note else ""


def examine(
    home: Path,
    session: str,
    trial: str,
    models: Sequence[Path],
    dataset_dir: Path,
    timeout: float,
    key_file: Path | None = None,
    *,
    beside: Beside | None = None,
    is_packed: bool = False,
) -> TestResult:
    """Evaluate `trial` on the test targets, once; returns the result, which is also in the vault.

    models: the directories of the finished trials whose models are evaluated: that of `trial`, or of its repetitions
    under several seeds. beside: the default, for a paired comparison. All of them are one look.
    `key_file` contains the private key (32 bytes) in operator mode. is_packed: dataset and models are from a bundle of
    another home, and signed with its key. Raises SealError if the session has looked before,
    if decryption fails, or if the examiner fails or runs longer than `timeout` seconds. The look is used as soon as the
    ledger has an entry for it, even if the examiner fails afterwards. Ctrl-C here does not interrupt the examiner.
    """
    vault = Vault(home)
    vault.revealed_path(session)  # raises SealError for an invalid session id
    if Ledger(vault.directory).find(session):
        raise SealError(second_look_message(session))
    command = [sys.executable, "-P", "-m", MODULE]
    command += ["--home", str(home.resolve()), "--session", session]
    command += ["--trial", trial, "--dataset", str(dataset_dir.resolve())]
    command += ["--model", *(str(directory.resolve()) for directory in models)]
    if beside:
        command += ["--beside-trial", beside.trial, "--beside", *(str(path.resolve()) for path in beside.models)]
    if key_file:
        command += ["--key-file", str(key_file.resolve())]
    if is_packed:
        command += ["--packed"]
    _run(command, vault, session, timeout)
    result = read_revealed(home, session)
    if result is None:
        raise SealError(f"the examiner of session {session} ended without a result; the session's look is used")
    return result


def read_revealed(home: Path, session: str) -> TestResult | None:
    """The result of a session's look, or None if there is none. Raises SealError if the file is damaged."""
    path = Vault(home).revealed_path(session)
    try:
        content = Vault(home).read(path.parent.name, path.name)
        return TestResult.model_validate_json(content) if content is not None else None
    except ValidationError:
        raise SealError(f"{str(path)!r} is damaged; restore it from a backup") from None


def read_item_names(home: Path, session: str) -> dict[int, str]:
    """The original ids of items without a visible event, by item, as the session's look has opened them.

    Empty before the look, for a dataset without such items, and if the look was taken on another machine.
    """
    path = Vault(home).names_path(session)
    content = Vault(home).read(path.parent.name, path.name)
    return {int(item): str(name) for item, name in json.loads(content).items()} if content else {}


def has_looked(home: Path, session: str) -> bool:
    """Whether a session has used its look, even if the look gave no result."""
    return Ledger(Vault(home).directory).find(session) is not None


def awaits_holder(home: Path, session: str) -> bool:
    """Whether the session's look needs a key that is kept elsewhere, and has neither begun nor been answered."""
    if Vault(home).mode != "operator" or in_progress(home, session):  # asked before the result, which may come after it
        return False
    return read_revealed(home, session) is None and not has_looked(home, session)


def looks(home: Path) -> list[Look]:
    """Every look in this home, oldest first."""
    return Ledger(Vault(home).directory).looks()


def _run(command: list[str], vault: Vault, session: str, timeout: float) -> None:
    with lock_to_pass(vault, session) as (environment, descriptors):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=vault.directory.resolve(),  # this process's own may have been deleted
            env=environment,
            pass_fds=descriptors,
            start_new_session=os.name == "posix",
        )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise SealError(f"the examiner of session {session} ran longer than {timeout:g} s and was stopped") from None
    if process.returncode:
        raise SealError(_cause(stdout, stderr, process.returncode))


def _cause(stdout: str, stderr: str, exit_code: int) -> str:
    """The error that the examiner reported as JSON, or else its exit code and last line of standard error."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(stdout)["error"])
    last_line = (stderr.strip().splitlines() or ["no message"])[-1]
    return (
        f"the examiner ended with code {exit_code} ({last_line}); call finalize again to see whether the look is used"
    )

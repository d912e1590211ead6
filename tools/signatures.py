"""What the server checks before it uses a trial's files: that a worker of the session wrote them as they are.

`training/signature.py` says what is signed. Not covered: memory.db, and whoever can read the vault's key.
"""

from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from ..data.errors import TrialError
from ..examiner.adoption import sign_old_trial
from ..memory.records import SessionRecord, TrialRecord
from ..training.metrics import metrics_from_ranks
from ..training.signature import (
    SIGNATURE,
    SPEC_SIGNATURE,
    TrialSignature,
    check_trial,
    signed_bytes,
    state_is_signed,
)
from ..training.spec import CHECKPOINT, RANKS, RESULT, STATE, SWEPT_RANKS, TrialResult, read_trial_file
from .workspace import Workspace

Ranks = npt.NDArray[np.int32]
TOLERANCE = 1e-6
"""Between metrics of a worker and those that the server computes from the same ranks: another machine may sum in
another order."""


def signature_of_end(ws: Workspace, session: SessionRecord, record: TrialRecord) -> TrialSignature:
    """The signature of a trial that has ended, before it is recorded. TrialError unless it fits all of its files."""
    directory = ws.trial_directory(session.id, record.handle)
    _adopt_if_older(ws, record, directory)
    names = (RESULT, RANKS, SWEPT_RANKS, CHECKPOINT)
    return check_trial(
        directory, ws.session_key(session.id), session.id, record.handle, dataset_id=session.dataset_id, names=names
    )


def signed_result(directory: Path, signature: TrialSignature) -> TrialResult:
    """The result that was signed. TrialError if it is another one by now."""
    try:
        return TrialResult.model_validate_json(signed_bytes(directory, RESULT, signature))
    except ValidationError:
        raise TrialError(f"{directory / RESULT} is of another version; run the trial again in a new session") from None


def signed_ranks(directory: Path, signature: TrialSignature, name: str = RANKS) -> npt.NDArray[Any]:
    """The ranks that were signed, int32 (num_users,), or of a sweep uint8 (num_settings, num_users). TrialError."""
    return _loaded(directory / name, signed_bytes(directory, name, signature))


def load_ranks(ws: Workspace, trial: TrialRecord) -> Ranks:
    """The ranks of a finished trial, int32 (num_users,). TrialError if they are missing or not as they were signed."""
    ranks: Ranks = signed_ranks(ws.trial_directory(trial.session, trial.handle), check_files(ws, trial))
    return ranks


def recorded_ranks(directory: Path, trial: TrialRecord) -> Ranks:
    """The ranks of a finished trial, without a key, for a home that is only read.

    TrialError if they are missing, or have another hash than memory.db recorded when the trial ended.
    """
    recorded = trial.outcome.details.get("files", {}).get(RANKS) if trial.outcome else None
    try:
        content = read_trial_file(directory, RANKS)
    except OSError as error:
        raise TrialError(f"{directory / RANKS} cannot be read ({error.strerror}); restore it") from None
    if recorded and sha256(content).hexdigest() != recorded:
        raise TrialError(f"{directory / RANKS} has changed since {trial.handle} ended; restore it")
    ranks: Ranks = _loaded(directory / RANKS, content)
    return ranks


def measured(session: SessionRecord, ranks: Ranks, result: TrialResult) -> dict[str, float]:
    """The metrics of these ranks. TrialError if the result states other ones.

    The ranks in a replay table are clipped, which changes mrr only: that of the result is taken.
    """
    metrics = metrics_from_ranks(ranks)
    if session.replay and "mrr" in result.metrics:
        metrics["mrr"] = result.metrics["mrr"]
    for name, value in metrics.items():
        stated = result.metrics.get(name, value)
        if abs(stated - value) > TOLERANCE:
            raise TrialError(
                f"{RESULT} states {name} {stated:.6f}, but {RANKS} gives {value:.6f}: they are not of one trial; "
                "run the trial again in a new session"
            )
    return metrics


def check_files(ws: Workspace, trial: TrialRecord, *names: str) -> TrialSignature:
    """The signature of a finished trial. TrialError unless its result and the named files are as they were signed."""
    directory, key = ws.trial_directory(trial.session, trial.handle), ws.session_key(trial.session)
    return check_trial(directory, key, trial.session, trial.handle, names=names)


def has_signed_state(ws: Workspace, session: str, handle: str) -> bool:
    """Whether a trial has left a training state, and a worker of the session has written it."""
    return state_is_signed(ws.trial_directory(session, handle) / STATE, ws.session_key(session), session)


def _loaded(path: Path, content: bytes) -> npt.NDArray[Any]:
    try:
        ranks: npt.NDArray[Any] = np.load(BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise TrialError(f"{path} is damaged ({error}); restore it or open a new session") from None
    return ranks


def _adopt_if_older(ws: Workspace, record: TrialRecord, directory: Path) -> None:
    """Sign a trial that was running without a key when the home got one."""
    if any((directory / name).exists() for name in (SIGNATURE, SPEC_SIGNATURE)):
        return
    key, adoption = ws.session_key(record.session), ws.vault.adoption()
    if adoption and f"{record.session}/{record.handle}" in adoption.unfinished:
        sign_old_trial(directory, key)

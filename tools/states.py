"""The training states of a session's trials: which one a new trial continues, and how long they are kept.

The state of a trial stays in its directory when it ends, so that a trial with more `epochs` or `patience` continues it
instead of starting from scratch. The states of a session take at most `MAX_BYTES`, and none is left once it is closed.
"""

import contextlib
import logging
from pathlib import Path

from ..data.errors import TrialError
from ..memory.records import TrialRecord
from ..models.config import continuation_hash
from ..training.spec import STATE, read_spec
from ..training.state_outline import read_curve
from ..training.stopping import epochs_saved
from .places import Share
from .signatures import has_signed_state
from .workspace import Workspace

logger = logging.getLogger(__name__)

MAX_BYTES = 2 << 30  # of the states of a session; a state is four or five times as large as the weights


def state_to_continue(ws: Workspace, trial: TrialRecord, share: Share) -> Path | None:
    """The directory of the session's trial whose state saves the new `trial` most epochs; None if none saves any.

    Of equally useful states, that of the latest trial. Trials that ran on another kind of device or with another number
    of threads are left out: they would not give the same bits. So are states that no worker of the session has signed.
    """
    config, wanted = trial.configuration, continuation_hash(trial.configuration)
    best, most = None, 0
    for other in reversed(ws.memory.trials.all(trial.session)):
        directory = ws.trial_directory(trial.session, other.handle)
        alike = continuation_hash(other.configuration) == wanted and other.repetition == trial.repetition
        if other.handle == trial.handle or not alike or not _ran_on(share, directory):
            continue
        if not has_signed_state(ws, other.session, other.handle):
            continue
        saved = epochs_saved(read_curve(directory / STATE), config.epochs, config.patience)
        if saved > most:
            best, most = directory, saved
    return best


def prune_states(ws: Workspace, session: str) -> None:
    """Delete states of ended trials until the rest takes at most `MAX_BYTES`.

    The incumbent's state is the last to go, then the latest ones. Those of running trials stay, and those that they
    started from.
    """
    incumbent = ws.memory.trials.incumbent(session)
    trials = ws.memory.trials.all(session)
    needed = {_source(ws.trial_directory(session, t.handle)) for t in trials if t.status == "running"}
    ended = [trial for trial in reversed(trials) if trial.status != "running"]
    ended.sort(key=lambda trial: incumbent is None or trial.handle != incumbent.handle)
    total = 0
    for trial in ended:
        path = ws.trial_directory(session, trial.handle) / STATE
        total += path.stat().st_size if path.exists() else 0
        if total > MAX_BYTES and path.parent not in needed:
            _delete(path)


def delete_states(ws: Workspace, session: str) -> None:
    """Delete the states of all trials and repetitions of a closed session."""
    for trial in [*ws.memory.trials.all(session), *ws.memory.trials.repetitions(session)]:
        _delete(ws.trial_directory(session, trial.handle) / STATE)


def _ran_on(share: Share, directory: Path) -> bool:
    """Whether the trial in `directory` ran on the kind of device, and with the threads, that a new one gets."""
    try:
        spec = read_spec(directory)
    except TrialError:
        return False
    kinds = {device.partition(":")[0] for device in (spec.device, share.device)}
    return len(kinds) == 1 and spec.threads == share.threads


def _source(directory: Path) -> Path | None:
    """The directory from whose state the trial in `directory` starts."""
    try:
        source = read_spec(directory).resume_from
    except TrialError:
        return None
    return Path(source) if source else None


def _delete(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        try:
            path.unlink()
        except PermissionError as error:
            logger.warning("%s cannot be deleted: %s", path, error)

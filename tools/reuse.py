"""Answer a trial from another session of this home that has measured the same configuration, without training."""

import logging
from pathlib import Path

from ..data.errors import TrialError
from ..memory.records import SessionRecord, TrialOutcome, TrialRecord
from ..training.spec import EpochRecord, TrialResult, TrialSpec, engine_version
from ..trials.reuse import COPIED, adopt, holds
from .signatures import check_files
from .sync import MEASURED_DETAILS
from .workspace import Workspace

logger = logging.getLogger(__name__)


def copy_equal_trial(
    ws: Workspace, session: SessionRecord, trial: TrialRecord, spec: TrialSpec, directory: Path
) -> bool:
    """Make `directory` a finished copy of an equal trial of another session; False if there is none.

    Equal means: the same configuration, data and seed, measured by the same engine on the same kind of device with as
    many threads. The files must have the hashes that memory.db recorded when the other trial ended. A session without
    memory, or whose memory leaves out its own dataset, reuses nothing; nor does a sweep, an ensemble, or a student,
    whose members or teachers are named from the point of view of its session.
    """
    if trial.sweep or trial.uses_models or not _may_reuse(ws, session):
        return False
    for other in ws.memory.trials.elsewhere(trial):
        source, outcome = ws.trial_directory(other.session, other.handle), other.outcome
        if outcome is None or other.ended_after is not None or outcome.details.get("engine") != engine_version():
            continue
        if holds(source, spec, str(outcome.details.get("device")), outcome.details.get("files") or {}):
            try:
                signed = check_files(ws, other, *COPIED)
            except TrialError as error:
                logger.warning("%s/%s is not reused: %s", other.session, other.handle, error)
                continue
            origin = {"reused_from": f"{other.session}/{other.handle}", "saved_seconds": _cost(outcome)}
            if adopt(
                source, directory, spec.model_copy(update=origin), _result(outcome), signed, ws.session_key(session.id)
            ):
                return True
    return False


def _may_reuse(ws: Workspace, session: SessionRecord) -> bool:
    allowed = not session.memory_from or session.dataset in session.memory_from
    return session.with_memory and allowed and ws.session_protocol(session).reuse_trials


def _cost(outcome: TrialOutcome) -> float:
    """The training seconds of the run that measured `outcome`, which may itself have been reused."""
    return outcome.train_seconds + float(outcome.details.get("saved_seconds", 0.0))


def _result(outcome: TrialOutcome) -> TrialResult:
    """The result of a reused trial: the figures that memory.db has, at no cost in seconds."""
    return TrialResult(
        status="finished",
        metrics=outcome.metrics,
        curve=[EpochRecord(**epoch) for epoch in outcome.curve],
        parameters=outcome.parameters,
        **{name: outcome.details[name] for name in MEASURED_DETAILS & set(outcome.details)},
    )

"""Estimates of what a trial will take, from the trials of its session and of other sessions in this home."""

from collections.abc import Sequence

from ..memory.records import SessionRecord, TrialRecord
from ..models.config import TrialConfig
from ..sandbox.estimates import Estimate, estimate_of, scaled_to
from ..trials.places import num_gpus
from .workspace import Workspace

SESSIONS = 5  # other sessions that are read, the nearest first


def estimate_for(
    ws: Workspace, session: SessionRecord, config: TrialConfig, trials: Sequence[TrialRecord]
) -> Estimate:
    """The estimate for a configuration; `trials`: those of the session that count, without the one in question."""
    measured = any(trial.status == "finished" for trial in trials)
    return estimate_of(config, session, trials, () if measured else _elsewhere(ws, session))


def _elsewhere(ws: Workspace, session: SessionRecord) -> list[TrialRecord]:
    """Finished trials of other sessions with this backbone, scaled to this data; none for a session without memory.

    Those on the same data come first, then the newest. Replays have seconds of another machine, and trials on another
    kind of device have other ones.
    """
    if not session.with_memory or session.replay:
        return []
    others = [other for other in ws.memory.sessions.all() if _may_be_read(session, other)]
    others.sort(key=lambda other: (other.dataset_id == session.dataset_id, other.opened_at), reverse=True)
    kind = "cuda" if ws.settings.ray_address is None and num_gpus(ws.settings.device) else "cpu"
    found: list[TrialRecord] = []
    for other in others[:SESSIONS]:
        if found and other.dataset_id != session.dataset_id:
            break
        trials = [trial for trial in ws.memory.trials.all(other.id) if _ran_on(trial, kind)]
        found += scaled_to(session, other, trials)
    return found


def _may_be_read(session: SessionRecord, other: SessionRecord) -> bool:
    allowed = not session.memory_from or other.dataset in session.memory_from
    return allowed and other.id != session.id and other.backbone == session.backbone and not other.replay


def _ran_on(trial: TrialRecord, kind: str) -> bool:
    device = str(trial.outcome.details.get("device", "")) if trial.outcome else ""
    return device.startswith(kind)

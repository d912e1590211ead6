"""Trials of other sessions that an ensemble may have as members, for the state view: the best of each session.

The best are chosen by validation figures alone, and only among trials that began before anybody looked at the test set
of this data: a later one may have been run because of a test figure (`after_reveal.py`). A session without memory, or
with a memory that leaves out its own dataset, is told of none.
"""

from collections.abc import Iterator

from ..examiner.request import looks
from ..memory.records import SessionRecord, TrialRecord
from ..models.knobs.trial_names import ENSEMBLE
from .cognition import best_first
from .contents import content_in
from .members import may_look_elsewhere, obstacle
from .views import NDCG10, OtherMember
from .workspace import Workspace

PER_SESSION = 2
MOST = 4
"""How many are named: an ensemble has at most four members, and one of them is the session's own."""
MOST_TRIED = 8
"""How many trials of a session are looked at, the best first: each takes a look at its files."""

_Model = tuple[str, int | None, int, int]


def other_members(ws: Workspace, session: SessionRecord, trials: list[TrialRecord]) -> list[OtherMember]:
    """The possible members from other open and ended sessions on the same data, the best first; at most MOST.

    trials: those of the session itself, whose trained models are left out.
    """
    if session.state != "open" or session.replay or not may_look_elsewhere(session):
        return []
    offered = {knob.name for knob in ws.session_protocol(session).space.knobs(session.backbone)}
    others = [other for other in ws.memory.sessions.all() if other.dataset_id == session.dataset_id]
    others = [other for other in others if other.id != session.id and not other.replay]
    if not others or ENSEMBLE not in offered:
        return []
    first_look = _first_look(ws, session)
    models = {_model(session, trial) for trial in trials}
    found = []
    for other in others:
        found += list(_of_session(ws, session, other, first_look, models))
    return sorted(found, key=lambda member: -member.ndcg)[:MOST]


def _of_session(
    ws: Workspace,
    session: SessionRecord,
    other: SessionRecord,
    first_look: str | None,
    models: set[_Model],
) -> Iterator[OtherMember]:
    """The best trials of another session, one for each trained model, whose models are added to `models`."""
    trained = [trial for trial in ws.memory.trials.all(other.id) if not trial.is_ensemble]
    before = [trial for trial in trained if first_look is None or trial.created_at < first_look]
    num_found = 0
    for trial in best_first(before)[:MOST_TRIED]:
        model = _model(other, trial)
        if num_found == PER_SESSION:
            return
        if trial.outcome is None or model in models or obstacle(ws, session, other, trial):
            continue
        models.add(model)
        num_found += 1
        score = trial.outcome.metrics[NDCG10]
        yield OtherMember(trial=f"{other.id}/{trial.handle}", backbone=other.backbone, ndcg=score)


def _model(owner: SessionRecord, trial: TrialRecord) -> _Model:
    """What two trials have in common that share a trained model, as far as memory.db says."""
    return trial.train_hash, trial.ended_after, owner.seed, trial.repetition


def _first_look(ws: Workspace, session: SessionRecord) -> str | None:
    """When the test set of this content was looked at first, UTC in ISO 8601 to the second; None if never."""
    known = looks(ws.home)
    same = content_in(ws.home, session.dataset_id) if known else frozenset()
    return min((look.at for look in known if look.dataset_id in same), default=None)

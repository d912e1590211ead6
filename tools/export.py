"""Which trial of a session an export takes, and where its files are. Not an MCP tool: only people export models.

Nothing here reads a test figure. `serving/assembly.py` makes the export from the plan.
"""

from dataclasses import dataclass
from pathlib import Path

from ..data.errors import ExportError
from ..examiner.request import read_item_names
from ..memory.records import SessionRecord, TrialRecord
from ..sandbox.program import trials_measured
from ..serving.layout import TrainedModel
from ..training.spec import CHECKPOINT
from .cognition import best_first, select
from .members import members_in
from .signatures import check_files
from .sync import sync_session
from .workspace import Workspace


@dataclass(frozen=True)
class ExportPlan:
    """A trial to export."""

    session: SessionRecord
    trial: TrialRecord
    members: list[TrialRecord]  # the trial itself, or the members of an ensemble
    models: list[TrainedModel]  # their trained models, in the same order
    dataset_dir: Path
    item_names: dict[int, str]  # item → original id, of items without a visible event, if it is no longer sealed

    @property
    def name(self) -> str:
        """SESSION/HANDLE of the trial."""
        return f"{self.session.id}/{self.trial.handle}"

    def measured_elsewhere(self, ws: Workspace) -> int:
        """How many configurations the other sessions of the members have measured."""
        others = {member.session for member in self.members} - {self.session.id}
        return sum(trials_measured(ws.memory.trials.all(session)) for session in others)


def plan_export(ws: Workspace, session: str, handle: str | None = None) -> ExportPlan:
    """The trial with this handle; without one, the selected trial, or the best finished one of an open session.

    ExportError if it has no complete model or the session is a replay, SessionError if it does not exist or none has
    finished, TrialError if its checkpoint is missing or changed, DataError if the dataset was replaced.
    """
    record = ws.memory.sessions.get(session)
    if record.replay:
        raise ExportError(f"session {record.id} is a replay, which trains no model; export a trained session")
    if record.state == "open":
        sync_session(ws, record.id)
    trial = _trial(ws, record, handle or record.selected)
    members = members_in(ws, trial) if trial.is_ensemble else [trial]
    models = []
    for member in members:
        directory = ws.trial_directory(member.session, member.handle)
        check_files(ws, member, CHECKPOINT)
        models.append(TrainedModel(f"{member.session}/{member.handle}", directory))
    return ExportPlan(record, trial, members, models, ws.session_dataset(record), _item_names(ws, record))


def _item_names(ws: Workspace, session: SessionRecord) -> dict[int, str]:
    """The names that the session's look has opened; none while another session on the data keeps them sealed."""
    if session.state != "revealed" or ws.memory.sessions.all_open(session.dataset_id):
        return {}
    return read_item_names(ws.home, session.id)


def _trial(ws: Workspace, session: SessionRecord, handle: str | None) -> TrialRecord:
    trials = ws.memory.trials.all(session.id)
    trial = ws.memory.trials.get(session.id, handle) if handle else select(trials)
    if trial.status != "finished":
        raise ExportError(f"trial {trial.handle} of session {session.id} {_why(trial)}{_instead(trials)}")
    return trial


def _why(trial: TrialRecord) -> str:
    """What an unfinished trial lacks, and how to get it."""
    if trial.status == "running":
        return "is still running; export it when it has finished"
    if trial.status == "stopped":
        return "was stopped early, so that it has no complete model; run its configuration again to its end"
    return f"{'has crashed' if trial.status == 'crashed' else 'was cancelled'} and has no model; run it again"


def _instead(trials: list[TrialRecord]) -> str:
    best = best_first(trials)
    return f", or export the best finished trial, {best[0].handle}" if best else ""

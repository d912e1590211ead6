"""What `export --refit` trains again, and when it may. Not an MCP tool: only people refit models.

The test events are read by the examiner's process alone; here are the rules that need memory.db.
"""

from ..data.errors import DataError, SessionError
from ..data.permissions import users_umask
from ..examiner.refit_request import MemberToRefit, OpenSession, RefitRequest
from ..training.spec import read_result, read_spec
from .export import ExportPlan, plan_export
from .workspace import Workspace


def plan_refit(ws: Workspace, session: str, handle: str | None = None) -> ExportPlan:
    """The trial to train again: as `plan_export`, but only of a session whose look is over.

    SessionError if the session is not revealed, or if another one on its dataset is open.
    """
    plan = plan_export(ws, session, handle)
    record = plan.session
    if record.state != "revealed":
        raise SessionError(
            f"session {record.id} is {record.state}; a refit trains on the test events, so finalize the session first, "
            "or export without --refit"
        )
    others = [other.id for other in ws.memory.sessions.all_open(record.dataset_id)]
    if others:
        raise SessionError(
            f"session {others[0]} on the same data is open, and its agent could read the test events from a refitted "
            f"model; finalize {others[0]} first, or export without --refit"
        )
    return plan


def open_sessions(ws: Workspace) -> list[OpenSession]:
    """All sessions of this home whose test set must stay unknown, whatever their dataset is.

    Replays have none, and neither has a session whose dataset was replaced: it can no longer be finalized. A dataset
    that was changed is not left out; the process of the refit refuses it.
    """
    found = []
    for record in ws.memory.sessions.all():
        if record.state != "open" or record.replay:
            continue
        try:
            found.append(OpenSession(session=record.id, dataset_dir=str(ws.dataset_path(record))))
        except DataError:
            continue
    return found


def epochs_of(plan: ExportPlan) -> list[int]:
    """The epochs of every model of the plan, which a refit repeats."""
    results = [read_result(model.directory) for model in plan.models]
    return [result.best_epoch if result else 0 for result in results]


def refit_request(
    ws: Workspace, plan: ExportPlan, card: str, destination: str, *, overwrite: bool, device: str | None, threads: int,
    key_file: str | None,
) -> RefitRequest:  # fmt: skip
    """What the examiner's process needs to know of a plan; device: None = that of the first model's trial."""
    return RefitRequest(
        home=str(ws.home),
        session=plan.session.id,
        dataset_dir=str(plan.dataset_dir),
        members=[MemberToRefit(name=model.name, directory=str(model.directory)) for model in plan.models],
        scoring=plan.trial.config,
        card=card,
        destination=destination,
        overwrite=overwrite,
        device=device or read_spec(plan.models[0].directory).device,
        threads=threads,
        key_file=key_file,
        umask=users_umask(),
    )

"""Judge trials that have ended and record them in memory.db, exactly once, whichever process notices the end first.

A trial runs in its own process and may outlive the server that started it. Every tool calls `sync_session` first, and
a server calls `adopt_all` when it starts; nothing else is needed to re-adopt a trial.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.errors import TrialError, VirtualMLEError
from ..memory.records import SessionRecord, TrialOutcome, TrialRecord
from ..models.config import TrialConfig
from ..sandbox.observations import COVARIANCES, user_covariances
from ..sandbox.program import TrialSize, judge
from ..sandbox.statistics import Comparison, compare, metric_errors, standard_error
from ..sandbox.sweeping import chosen, setting_figures
from ..training.metrics import best_setting, clip_ranks
from ..training.signature import TrialSignature
from ..training.spec import SWEPT_RANKS, TrialResult, TrialSpec, read_spec
from ..trials.launcher import TrialState, ended_at
from .places import started_at
from .recording import finish_recorded
from .rule_counts import count_rules
from .signatures import Ranks, load_ranks, measured, signature_of_end, signed_ranks, signed_result
from .states import prune_states
from .stopping import stopped_outcome
from .workspace import Workspace

logger = logging.getLogger(__name__)

MEASURED_DETAILS = {
    "model_ndcg10", "train_ndcg10", "popularity_ndcg10", "baselines", "ties", "best_epoch", "device", "engine", "files",
    "peak_bytes",
}  # fmt: skip


def adopt_all(ws: Workspace) -> list[str]:
    """Record the trials that ended while no server was running; returns `session/handle` of those still running."""
    running = []
    for session in ws.memory.sessions.all():
        if session.state != "open":
            continue
        try:
            records = sync_session(ws, session.id)
        except VirtualMLEError as error:  # one broken session must not block the others
            logger.warning("session %s: %s", session.id, error)
            continue
        running += [f"{session.id}/{record.handle}" for record in records]
    return running


def sync_session(ws: Workspace, session_id: str) -> list[TrialRecord]:
    """Record the session's trials that have ended, in the order of ending; returns those still running, in order."""
    session = ws.memory.sessions.get(session_id)
    running = ws.memory.trials.running(session_id)
    ended = _ended(ws, running)
    for record, state in ended:
        _record(ws, session, record, state)
    if ended:
        prune_states(ws, session_id)
    over = {record.handle for record, _ in ended}
    return [record for record in running if record.handle not in over]


def _ended(ws: Workspace, running: Sequence[TrialRecord]) -> list[tuple[TrialRecord, TrialState]]:
    """The trials that have ended, in the order of ending.

    Trials are polled one after another. Those that seemed to run are polled again as long as others turn out to have
    ended, so that none is left out that ended before one of the others.
    """
    states: dict[str, TrialState] = {}
    while True:
        left = [record for record in running if record.handle not in states]
        polled = {record.handle: _poll(ws, record) for record in left}
        found = {handle: state for handle, state in polled.items() if state.status != "running"}
        states |= found
        if not found or len(found) == len(left):
            break
    ended = [record for record in running if record.handle in states]
    ended.sort(key=lambda r: (ended_at(ws.trial_directory(r.session, r.handle)), r.number))
    return [(record, states[record.handle]) for record in ended]


def _poll(ws: Workspace, record: TrialRecord) -> TrialState:
    directory = ws.trial_directory(record.session, record.handle)
    asked_at = started_at(record)  # the trial's directory may not exist yet
    return ws.launcher_of(record.session, directory).look(directory, asked_at=asked_at)


def _record(ws: Workspace, session: SessionRecord, record: TrialRecord, state: TrialState) -> None:
    """Judge a trial that has ended and store its outcome, unless another process has; again if the incumbent changes
    meanwhile."""
    while ws.memory.trials.get(session.id, record.handle).status == "running":
        try:
            outcome = outcome_of(ws, session, record, state)
        except TrialError as error:  # missing or damaged files must not block the session
            outcome = _crash(str(error), state)
        best = outcome.details.get("best_setting")
        choice = None if best is None else chosen(record, _base_config(ws, session, record), best)
        judged = outcome.status == "finished"
        if finish_recorded(ws, session.id, record.handle, outcome, choice, judged=judged):
            count_rules(ws, session, record.changed)


def outcome_of(ws: Workspace, session: SessionRecord, record: TrialRecord, state: TrialState) -> TrialOutcome:
    """The outcome of a trial that has ended, with its metrics and the Program's verdict."""
    if state.status == "cancelled":
        return TrialOutcome(
            status="cancelled", reason="cancelled; the budget that it used is not refunded", train_seconds=state.seconds
        )
    if state.result is None:
        return _crash(state.cause or "the worker ended without a result", state)
    try:
        signature = signature_of_end(ws, session, record)
        result = signed_result(ws.trial_directory(session.id, record.handle), signature)
    except TrialError as error:  # what the result says is not known to be true
        unknown = {"result": None, "machine_fault": False, "lost": False}
        return _crash(str(error), state.model_copy(update=unknown))
    if result.status == "failed":
        known = {"result": result, "machine_fault": result.machine_fault}
        return _crash(result.cause or "the worker gave no cause", state.model_copy(update=known))
    if result.status == "stopped":
        return stopped_outcome(record, result, ws.memory.trials.all(session.id), state.seconds)
    return _judged(ws, session, record, result, signature, state.seconds)


def _crash(cause: str, state: TrialState) -> TrialOutcome:
    return TrialOutcome(
        status="crashed",
        verdict="crash",
        reason=cause,
        cause=cause,
        curve=[epoch.model_dump() for epoch in state.result.curve] if state.result else [],
        details={name: True for name in ("machine_fault", "lost") if getattr(state, name)},
        train_seconds=0.0 if state.machine_fault else state.seconds,
        wall_seconds=state.seconds,
    )


def _judged(
    ws: Workspace,
    session: SessionRecord,
    record: TrialRecord,
    result: TrialResult,
    signature: TrialSignature,
    wall_seconds: float,
) -> TrialOutcome:
    directory = ws.trial_directory(session.id, record.handle)
    spec = read_spec(directory)
    if spec.config != record.config:
        raise TrialError(f"{directory} holds a trial other than {record.handle}: memory.db was restored or replaced")
    ranks: Ranks = signed_ranks(directory, signature)
    metrics = measured(session, ranks, result)
    incumbent = ws.memory.trials.incumbent(session.id)
    against_incumbent = _compare_to(ws, incumbent, ranks)
    against_start = _compare_to_start(ws, session, record, incumbent, ranks)
    base = _base_trial(ws, session, record)
    against_base = _compare_to(ws, base, ranks)
    judgement = judge(
        TrialSize(record.handle, result.parameters),
        _size_of(incumbent),
        against_incumbent,
        ws.session_protocol(session).keep_z,
        best_kept=_best_kept(ws, session, incumbent, ranks),
        settings=len(record.settings),
    )
    return TrialOutcome(
        status="finished",
        verdict=judgement.verdict,
        reason=judgement.reason + (against_start.words if against_start else "") + _early_end(record, result),
        metrics=metrics,
        ndcg_se=standard_error(ranks),
        incumbent_before=incumbent.handle if incumbent else None,
        delta=against_incumbent.delta if against_incumbent else None,
        delta_se=against_incumbent.se if against_incumbent else None,
        z=against_incumbent.z if against_incumbent else None,
        base_delta=against_base.delta if against_base else None,
        base_delta_se=against_base.se if against_base else None,
        curve=[epoch.model_dump() for epoch in result.curve],
        details={
            **result.model_dump(include=MEASURED_DETAILS),
            "rescored": bool(spec.rescore_from or spec.members) and spec.reused_from is None,
            **_continued(spec, result),
            **({"ended_after": result.ended_after} if result.ended_after else {}),
            "signature": signature.mac,
            "metrics_se": metric_errors(ranks),
            **({"incumbent_at_start": against_start.figures} if against_start else {}),
            COVARIANCES: user_covariances(record.handle, ranks, _ranks_of_others(ws, session, ranks)),
            **(_swept(ws, record, base, ranks, result, signature) if record.sweep else {}),
            **(spec.model_dump(include={"reused_from", "saved_seconds"}) if spec.reused_from else {}),
        },
        parameters=result.parameters,
        train_seconds=result.train_seconds + result.evaluate_seconds,
        wall_seconds=wall_seconds,
    )


def _continued(spec: TrialSpec, result: TrialResult) -> dict[str, Any]:
    """The trial whose training this one has continued, and how many epochs that has saved; empty if there is none."""
    if not spec.resume_from or not result.resumed_epochs:
        return {}
    return {"continued_from": Path(spec.resume_from).name, "resumed_epochs": result.resumed_epochs}


def _early_end(record: TrialRecord, result: TrialResult) -> str:
    """That the training was ended on request, as the end of a sentence; empty if it ran to its end."""
    if result.ended_after is None:
        return ""
    return f"; its training was ended on request after epoch {result.ended_after} of {record.config['epochs']}"


class _AgainstStart(NamedTuple):
    """A trial compared with the incumbent at its start: as a dictionary, and as the end of a sentence."""

    figures: dict[str, Any]
    words: str


def _compare_to_start(
    ws: Workspace, session: SessionRecord, record: TrialRecord, incumbent: TrialRecord | None, ranks: Ranks
) -> _AgainstStart | None:
    """The comparison with the incumbent at the trial's start; None if it still is the incumbent, or if there was none.

    It decides nothing, but tells what the change does over the configuration that the agent had in view.
    """
    handle = record.incumbent_at_start
    if handle is None or incumbent is None or incumbent.handle == handle:
        return None
    found = _compare_to(ws, ws.memory.trials.get(session.id, handle), ranks)
    if found is None:
        return None
    figures = {"trial": handle, "delta": found.delta, "se": found.se, "z": found.z}
    words = f"; {found.delta:+.4f} ± {found.se:.4f} (z = {found.z:+.2f}) against {handle}, the incumbent at its start"
    return _AgainstStart(figures, words)


def _swept(
    ws: Workspace,
    record: TrialRecord,
    base: TrialRecord | None,
    ranks: Ranks,
    result: TrialResult,
    signature: TrialSignature,
) -> dict[str, Any]:
    """The figures of every setting of a sweep, and which one it has chosen, from the ranks that the worker wrote."""
    directory = ws.trial_directory(record.session, record.handle)
    swept = signed_ranks(directory, signature, SWEPT_RANKS)
    complete = swept.shape == (len(record.settings), len(ranks))
    if base is None or not complete or result.best_setting != best_setting(swept) or (
        swept[result.best_setting] != clip_ranks(ranks)
    ).any():
        raise TrialError(f"the files in {directory} do not belong to one sweep; sweep the same settings again")
    base_ranks = load_ranks(ws, base)
    return {
        "best_setting": result.best_setting,
        "base_values": {knob: base.config[knob] for knob in record.settings[0]},
        "sweep": setting_figures(base_ranks, list(swept)),
    }


def _base_trial(ws: Workspace, session: SessionRecord, record: TrialRecord) -> TrialRecord | None:
    """The trial that measured the base of `record`; None if its base is the default and has not been measured."""
    return default_trial(ws, session) if record.base == "default" else ws.memory.trials.get(session.id, record.base)


def _base_config(ws: Workspace, session: SessionRecord, record: TrialRecord) -> TrialConfig:
    if record.base == "default":
        return ws.session_protocol(session).space.default(session.backbone)
    return ws.memory.trials.get(session.id, record.base).configuration


def default_trial(
    ws: Workspace, session: SessionRecord, trials: Sequence[TrialRecord] | None = None
) -> TrialRecord | None:
    """The finished trial of the backbone's default configuration, if any; `trials`: the session's trials if loaded."""
    default = ws.session_protocol(session).space.default(session.backbone)
    finished = (t for t in trials or ws.memory.trials.all(session.id) if t.status == "finished")
    return next((trial for trial in finished if trial.configuration == default), None)


def _compare_to(ws: Workspace, other: TrialRecord | None, ranks: Ranks) -> Comparison | None:
    if other is None or other.status != "finished":
        return None
    return compare(load_ranks(ws, other), ranks)


def _ranks_of_others(ws: Workspace, session: SessionRecord, ranks: Ranks) -> dict[str, Ranks]:
    """The ranks of the session's finished trials; trials whose ranks are lost or on other users are left out."""
    found = {}
    for other in ws.memory.trials.all(session.id):
        if other.status != "finished":
            continue
        try:
            theirs = load_ranks(ws, other)
        except TrialError as error:
            logger.warning("%s: the joint estimate falls back to paired errors: %s", other.handle, error)
            continue
        if theirs.shape == ranks.shape:
            found[other.handle] = theirs
    return found


def _best_kept(
    ws: Workspace, session: SessionRecord, incumbent: TrialRecord | None, ranks: Ranks
) -> tuple[str, Comparison] | None:
    """The kept trial with the best NDCG@10, and `ranks` compared with it; None if that trial is the incumbent."""
    kept = [t for t in ws.memory.trials.all(session.id) if t.outcome and t.outcome.verdict == "keep"]
    best = max(kept, key=lambda t: (t.outcome.metrics["ndcg@10"] if t.outcome else 0.0, t.number), default=None)
    if best is None or incumbent is None or best.handle == incumbent.handle:
        return None
    comparison = _compare_to(ws, best, ranks)
    return (best.handle, comparison) if comparison else None


def _size_of(record: TrialRecord | None) -> TrialSize | None:
    return TrialSize(record.handle, record.outcome.parameters) if record and record.outcome else None

"""The tool run_trial, one step of the loop: resolve the configuration, admit it, launch it, judge and record it."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ..data.errors import AdmissionError, ConfigError, ConflictError, MachineError, SessionError, TrialError
from ..memory.records import Hypothesis, SessionRecord, TrialOutcome, TrialRecord
from ..memory.text import clean_text
from ..memory.trials import handle_of
from ..models.config import TrialConfig, fingerprint, train_hash
from ..sandbox.changes import KnobValue, merged_changes
from ..sandbox.ended_early import trains_on
from ..sandbox.program import Admission, admit
from ..training.spec import NamedModel, TrialSpec, read_spec
from ..trials.replay import serve
from .guidance import budget_of, pending_reflection, stop_of
from .help_text import described
from .members import members_for, teachers_for, with_short_names
from .observation import observe
from .places import occupation, share_of
from .planning import ignored_changes, planned, with_estimate
from .proposing import followed_proposal
from .racing import prepare_race
from .recording import finish_recorded, start_recorded
from .results import TrialObservation
from .reuse import copy_equal_trial
from .states import state_to_continue
from .sync import sync_session
from .transfer import heuristics_of
from .wait_trial import WaitSeconds, wait_trial
from .workspace import Workspace, trial_seed

REASON_LENGTH = 500


@described
def run_trial(
    ws: Workspace,
    session: Annotated[str, Field(description="session id")],
    changes: Annotated[
        dict[str, Any] | None,
        Field(description="knobs to change in the base, e.g. {\"lr\": 0.001}; none: the base itself"),
    ] = None,
    hypothesis: Annotated[Hypothesis | None, Field(description="what you expect")] = None,
    base: Annotated[str, Field(description="incumbent (if left out), default or a trial (t003)")] = "incumbent",
    override_reason: Annotated[str, Field(description="why a refusing discard heuristic does not apply")] = "",
    wait_seconds: WaitSeconds = None,
    changes_list: Annotated[
        list[KnobValue] | None, Field(description="changes as a list, for clients without free keys")
    ] = None,
    dry_run: Annotated[bool, Field(description="start nothing: what it would take and do")] = False,
) -> TrialObservation:
    """Train a configuration, evaluate it on validation, get the verdict: keep, discard or crash.

    Status 'running': the wait is up; call wait_trial, never start it again. A configuration tried before costs nothing.
    """
    record = ws.memory.sessions.get(session)
    dataset_dir = ws.session_dataset(record)
    running = sync_session(ws, session)
    trials = ws.memory.trials.all(session)
    protocol = ws.session_protocol(record)
    base_handle, base_config = resolve_base(ws, record, base)
    changes = with_short_names(session, merged_changes(changes, changes_list))
    config = protocol.space.resolve(base_config, changes)
    rounded = protocol.space.roundings(record.backbone, changes)
    given, changes = changes, {knob: getattr(config, knob) for knob in changes}
    said = {"rounded": rounded, "ignored": ignored_changes(base_handle, base_config, config, changes)}
    heuristics = heuristics_of(ws, record, base_config, changes)
    admission = admit(
        session_state=record.state,
        trials=trials,
        budget=budget_of(record, trials),
        running=occupation(ws, record, running, trials),
        pending_reflection=pending_reflection(ws, record, trials),
        base=base_config,
        config=config,
        changes=changes,
        heuristics=heuristics,
        override_reason=override_reason,
        stop=stop_of(ws, record, trials),
    )
    if dry_run:
        admission = _with_models(ws, record, config, admission)
        base_of = (base_handle, base_config)
        plan = planned(ws, record, trials, [config], admission, heuristics, base_of, changes)
        return plan.model_copy(update=said)
    if admission.kind == "refused":
        raise AdmissionError(admission.reason)
    if admission.kind == "duplicate" and admission.trial:
        known = observe(ws, record, admission.trial, duplicate_reason=f"{admission.reason}.")
        return known.model_copy(update=said)
    request = TrialRecord(
        session=session,
        handle="",
        number=0,
        base=base_handle,
        changes=changes,
        config=config.model_dump(),
        config_hash=fingerprint(config.model_dump()),
        train_hash=train_hash(config),
        hypothesis=cleaned(hypothesis),
        override_reason=_override_record(admission.reason, override_reason),
        proposal=followed_proposal(ws, record, trials, base_handle, changes),
    )
    try:
        handle = start_trial(ws, record, request, dataset_dir, seen=len(trials))
    except ConflictError:  # another client was faster: its trial may be this one, or the last of the budget
        return run_trial(ws, session, given, hypothesis, base, override_reason, wait_seconds)
    observed = wait_trial(ws, session, handle, wait_seconds).model_copy(update=said)
    return with_estimate(ws, record, observed, config, trials)


def _with_models(ws: Workspace, session: SessionRecord, config: TrialConfig, admission: Admission) -> Admission:
    """The decision on a trial that is not started: refused as well if it names a trial that it may not use."""
    try:
        if admission.kind == "admitted" and not session.replay:
            members_for(ws, session, config)
            teachers_for(ws, session, config, _trained(ws, session, config))
    except ConfigError as error:
        return Admission("refused", str(error))
    return admission


def start_trial(
    ws: Workspace, session: SessionRecord, request: TrialRecord, dataset_dir: Path, *, seen: int | None = None
) -> str:
    """Record the admitted trial `request` and start it; returns its handle.

    seen: the number of trials among which it was admitted; ConflictError if another one was started since.

    A trial that an earlier session has measured is copied from there and has then ended. A fault of this machine ends
    the trial as a crash. Raises TrialError if the trial cannot be started for any other reason, AdmissionError if the
    session's replay table does not hold it, and ConfigError if it names a trial that it may not use.
    """
    replay = ws.replay_of(session)
    cells = replay.cells_of(request) if replay else []
    config = request.configuration
    trained = _trained(ws, session, config, sweeps=request.sweep is not None)
    members = [] if replay else members_for(ws, session, config)
    teachers = [] if replay else teachers_for(ws, session, config, trained)
    started = start_recorded(ws, request, seen=seen)
    directory = ws.trial_directory(session.id, started.handle)
    spec = _spec(ws, session, started, dataset_dir, trained, members, teachers)
    try:
        if cells:
            serve(cells, spec, directory, ws.session_key(session.id), session.dataset_id)
        elif not copy_equal_trial(ws, session, started, spec, directory):
            prepare_race(ws, session, started, spec, directory)
            ws.launcher(started).submit(spec, directory)
    except TrialError as error:
        machine_fault = isinstance(error, MachineError)
        details = {"machine_fault": True} if machine_fault else {}
        crash = TrialOutcome(status="crashed", verdict="crash", reason=str(error), cause=str(error), details=details)
        finish_recorded(ws, session.id, started.handle, crash)
        if not machine_fault:
            raise
    return started.handle


def _trained(ws: Workspace, session: SessionRecord, config: TrialConfig, *, sweeps: bool = False) -> Path | None:
    """The directory of the trial of the session whose model a trial of `config` only scores again; None if it trains.

    sweeps: the trial is a sweep, which never trains.
    """
    if not sweeps and trains_on(ws.memory.trials.all(session.id), config):
        return None
    return ws.checkpoint_directory(session.id, train_hash(config))


def resolve_base(ws: Workspace, session: SessionRecord, base: str) -> tuple[str, TrialConfig]:
    """The handle and the configuration of `base`; 'incumbent' is the default until a trial has been kept."""
    default = ws.session_protocol(session).space.default(session.backbone)
    base = handle_of(base)  # both words are lower-case as well
    if base == "incumbent":
        incumbent = ws.memory.trials.incumbent(session.id)
        if incumbent is None:
            return "default", default
        return incumbent.handle, incumbent.configuration
    if base == "default":
        return "default", default
    record = ws.memory.trials.get(session.id, base)
    if record.status == "stopped":
        raise SessionError(
            f"base={base!r} was stopped early and has no model to compare with; run its configuration again to finish "
            "it, or choose 'incumbent', 'default' or a finished trial"
        )
    if record.status != "finished":
        raise SessionError(f"base={base!r} is {record.status}; choose 'incumbent', 'default' or a finished trial")
    return record.handle, record.configuration


def _spec(
    ws: Workspace,
    session: SessionRecord,
    trial: TrialRecord,
    dataset_dir: Path,
    trained: Path | None,
    members: Sequence[NamedModel],
    teachers: Sequence[NamedModel],
) -> TrialSpec:
    """The specification for the worker. What the session has trained already is not trained again."""
    cached = None if members else trained
    share = share_of(ws, session, trial)
    begun = None if cached or members else state_to_continue(ws, trial, share)
    protocol = ws.session_protocol(session)
    return TrialSpec(
        session=session.id,
        trial=trial.handle,
        dataset_dir=str(dataset_dir),
        config=trial.config,
        seed=_seed(session, cached),
        device=share.device,
        threads=share.threads,
        wall_seconds=protocol.trial_seconds,
        judge_epochs=protocol.racing,
        rescore_from=str(cached) if cached else None,
        resume_from=str(begun) if begun else None,
        members=list(members),
        teachers=list(teachers),
        baselines=not _has_baselines(ws, session),
        settings=trial.sweep.settings if trial.sweep else [],
    )


def _has_baselines(ws: Workspace, session: SessionRecord) -> bool:
    """Whether a trial of the session has measured the baselines, which are the same for all of them."""
    outcomes = (trial.outcome for trial in ws.memory.trials.all(session.id))
    return any(outcome and outcome.details.get("baselines") for outcome in outcomes)


def _seed(session: SessionRecord, cached: Path | None) -> int:
    """The seed of the session, or that of the model to re-score: earlier versions drew one for each configuration."""
    with contextlib.suppress(TrialError):  # damaged files of the model: the worker reports them
        if cached:
            return read_spec(cached).seed
    return trial_seed(session.seed, session.dataset_id)


def _override_record(admission: str, reason: str) -> str | None:
    """The discard heuristic that the trial overrides, and the reason; None if no heuristic matched."""
    return f"{admission}: {clean_text(reason, REASON_LENGTH)}" if admission else None


def cleaned(hypothesis: Hypothesis | None) -> Hypothesis | None:
    """The hypothesis with its texts sanitised and shortened."""
    if hypothesis is None:
        return None
    dimension, reason = clean_text(hypothesis.dimension, 40), clean_text(hypothesis.reason, REASON_LENGTH)
    return hypothesis.model_copy(update={"dimension": dimension, "reason": reason, "size": hypothesis.size or None})

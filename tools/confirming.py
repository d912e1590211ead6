"""Confirmation before the selection: the best trials of a session are trained again under fresh seeds.

Repetitions are rows and directories like those of trials (`t003r1` is the first repetition of t003), but no trial of
the session: they use none of its budget, get no verdict, and are no evidence. Each step reads and changes only what is
stored, so a confirmation continues in any process after a kill.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..data.errors import MachineError, SessionError, TrialError
from ..memory.records import Confirmation, SessionRecord, TrialOutcome, TrialRecord
from ..sandbox.confirmation import confirmed_trials, reason_of
from ..sandbox.statistics import metric_errors, standard_error
from ..training.member_files import beside
from ..training.spec import STATE, TrialProgress, TrialSpec, read_progress, read_spec
from ..trials.launcher import TrialState
from .cognition import best_first
from .places import places_of, share_of, started_at
from .recording import finish_recorded, start_recorded
from .signatures import load_ranks, measured, signature_of_end, signed_ranks, signed_result
from .sync import MEASURED_DETAILS
from .workspace import Workspace, trial_seed

ATTEMPTS = 3
"""How often a repetition is started whose process ends without a result, e.g. because it was killed."""
POLL_SECONDS = 0.25


class Standing(NamedTuple):
    """How far a confirmation is: repetitions that are over, all of them, and those that run, with their progress."""

    done: int
    total: int
    running: list[tuple[TrialRecord, TrialProgress]]

    @property
    def position(self) -> float:
        """`done` plus the share of their epochs that the running ones have trained."""
        return self.done + sum(min(1.0, p.epoch / p.epochs) if p.epochs else 0.0 for _, p in self.running)

    @property
    def is_over(self) -> bool:
        """Whether every repetition has ended."""
        return self.done == self.total


def confirm_until(ws: Workspace, session: SessionRecord, wait_seconds: float | None) -> Standing:
    """Run the repetitions that the session's protocol wants, for up to `wait_seconds`; None = until they are over.

    Raises MachineError if this machine cannot run one: repair it and call again.
    """
    deadline = None if wait_seconds is None else time.monotonic() + wait_seconds
    while True:
        standing = _step(ws, session)
        out_of_time = deadline is not None and time.monotonic() >= deadline
        if standing.is_over or out_of_time or ws.memory.sessions.get(session.id).state != "open":
            return standing
        time.sleep(POLL_SECONDS)


def confirmation_of(ws: Workspace, session: SessionRecord) -> Confirmation | None:
    """The outcome of a confirmation that is over, from the ranks of all repetitions; None if none is wanted."""
    candidates = _candidates(ws, session)
    if not candidates:
        return None
    repetitions = sorted(ws.memory.trials.repetitions(session.id), key=lambda record: record.repetition)
    wanted = ws.session_protocol(session).confirm_repetitions
    before = {trial.handle: trial.outcome.metrics["ndcg@10"] for trial in candidates if trial.outcome}
    measured, failures = {}, {}
    for handle in before:
        finished = [r for r in repetitions if r.repeats == handle and r.status == "finished"]
        if len(finished) == wanted:
            measured[handle] = [load_ranks(ws, r) for r in finished]
        else:
            causes = [r.outcome.cause for r in repetitions if r.repeats == handle and r.outcome and r.outcome.cause]
            failures[handle] = (causes or ["it was not repeated"])[-1].rstrip(".")
    trials = confirmed_trials(before, measured, failures)
    return Confirmation(
        repetitions=wanted,
        trials=trials,
        selected=trials[0].trial if measured else None,
        train_seconds=sum(r.outcome.train_seconds for r in repetitions if r.outcome),
        reason=reason_of(trials, wanted),
    )


def repetition_directories(ws: Workspace, session: SessionRecord, trial: str) -> list[Path]:
    """The directories of the repetitions that confirmed `trial`, in order; none if it was not confirmed."""
    found = [r for r in ws.memory.trials.repetitions(session.id) if r.repeats == trial and r.status == "finished"]
    complete = len(found) == ws.session_protocol(session).confirm_repetitions
    found.sort(key=lambda record: record.repetition)
    return [ws.trial_directory(session.id, record.handle) for record in found] if complete else []


def _candidates(ws: Workspace, session: SessionRecord) -> list[TrialRecord]:
    """The trials to confirm, best first. They do not change: a session that confirms takes no more trials.

    Ensembles are left out: they train no model that fresh seeds could change, and their members are trials of their
    own. A session that confirms therefore selects one of its trained trials.
    """
    protocol = ws.session_protocol(session)
    if session.replay or not protocol.confirm_repetitions:
        return []
    trained = [trial for trial in ws.memory.trials.all(session.id) if not trial.is_ensemble]
    return best_first(trained)[: protocol.confirm_top]


def _wanted(ws: Workspace, session: SessionRecord) -> Iterator[tuple[TrialRecord, int]]:
    """Every candidate with every repetition, the first repetition of all of them first."""
    candidates = _candidates(ws, session)
    for repetition in range(1, ws.session_protocol(session).confirm_repetitions + 1):
        for trial in candidates:
            yield trial, repetition


def _step(ws: Workspace, session: SessionRecord) -> Standing:
    """Record the repetitions that have ended, start those for which there is a place, and count."""
    _record_ended(ws, session)
    wanted = list(_wanted(ws, session))
    for trial, repetition in wanted:
        _start_if_free(ws, session, trial, repetition)
    known = ws.memory.trials.repetitions(session.id)
    running = [record for record in known if record.status == "running"]
    progress = [(r, read_progress(ws.trial_directory(session.id, r.handle))) for r in running]
    return Standing(sum(_is_over(_attempts(known, t, n)) for t, n in wanted), len(wanted), progress)


def _attempts(known: Sequence[TrialRecord], trial: TrialRecord, repetition: int) -> list[TrialRecord]:
    return [r for r in known if (r.repeats, r.repetition) == (trial.handle, repetition)]


def _is_over(attempts: Sequence[TrialRecord]) -> bool:
    """Whether a repetition has finished, has failed, or has ended without a result as often as it may."""
    ended = [r.outcome for r in attempts if r.outcome and not r.machine_fault]
    return any(o.status == "finished" or o.details.get("failed") for o in ended) or len(ended) >= ATTEMPTS


def _start_if_free(ws: Workspace, session: SessionRecord, trial: TrialRecord, repetition: int) -> None:
    """Start a repetition unless it runs or is over, the places are taken, or its model is being trained right now."""
    known = ws.memory.trials.repetitions(session.id)
    running = [record for record in known if record.status == "running"]
    attempts = _attempts(known, trial, repetition)
    same_model = any((r.train_hash, r.repetition) == (trial.train_hash, repetition) for r in running)
    if _is_over(attempts) or same_model or len(running) >= places_of(ws, session, running):
        return
    with contextlib.suppress(SessionError):  # another process has started it, or has frozen the session
        _start(ws, session, trial, repetition, known)


def _start(
    ws: Workspace, session: SessionRecord, trial: TrialRecord, repetition: int, known: Sequence[TrialRecord]
) -> None:
    row = {"repetition": repetition, "repeats": trial.handle, "sweep": None, "proposal": None, "hypothesis": None}
    started = start_recorded(ws, trial.model_copy(update={**row, "created_at": ""}))
    directory = ws.trial_directory(session.id, started.handle)
    spec = _spec(ws, session, started, known)
    try:
        ws.launcher(started).submit(spec, directory)
    except TrialError as error:
        finish_recorded(ws, session.id, started.handle, _crash(str(error), isinstance(error, MachineError)))
        raise


def _spec(
    ws: Workspace, session: SessionRecord, record: TrialRecord, known: Sequence[TrialRecord]
) -> TrialSpec:
    """The specification of a repetition: it takes over what earlier ones with its seed and training knobs left."""
    share = share_of(ws, session, record)
    ends = {trial.handle: trial.ended_after for trial in ws.memory.trials.all(session.id)}
    end = ends.get(record.repeats or "")
    same = [r for r in known if (r.train_hash, r.repetition) == (record.train_hash, record.repetition)]
    equal = [r for r in same if ends.get(r.repeats or "") == end]
    trained = [r for r in equal if r.status == "finished"]
    directories = [ws.trial_directory(session.id, r.handle) for r in reversed(equal)]
    unfinished = next((str(path) for path in directories if (path / STATE).exists()), None)
    confirmed = ws.trial_directory(session.id, record.repeats or record.handle)
    return TrialSpec(
        session=session.id,
        trial=record.handle,
        dataset_dir=str(ws.session_dataset(session)),
        config=record.config,
        seed=trial_seed(session.seed, session.dataset_id, record.repetition),
        device=share.device,
        threads=share.threads,
        wall_seconds=ws.session_protocol(session).trial_seconds,
        rescore_from=str(ws.trial_directory(session.id, trained[0].handle)) if trained else None,
        resume_from=None if trained else unfinished,
        end_after=end,
        teachers=beside(confirmed, read_spec(confirmed).teachers),
    )


def _record_ended(ws: Workspace, session: SessionRecord) -> None:
    """Store the outcome of every repetition that has ended; MachineError if this machine is the cause of a crash."""
    for record in ws.memory.trials.repetitions(session.id):
        if record.status != "running":
            continue
        directory = ws.trial_directory(session.id, record.handle)
        state = ws.launcher_of(session.id, directory).look(directory, asked_at=started_at(record))
        if state.status == "running":
            continue
        outcome = _outcome(ws, session, record, state)
        stored = finish_recorded(ws, session.id, record.handle, outcome)
        if stored and outcome.details.get("machine_fault"):
            raise MachineError(f"{record.handle} could not run: {outcome.cause}; repair this and call finalize again")


def _outcome(ws: Workspace, session: SessionRecord, record: TrialRecord, state: TrialState) -> TrialOutcome:
    directory = ws.trial_directory(record.session, record.handle)
    if state.result is None:
        return _crash(state.cause or "the worker ended without a result", state.machine_fault, seconds=state.seconds)
    try:
        signature = signature_of_end(ws, session, record)
        result = signed_result(directory, signature)
        if result.status != "finished":
            failed, cause = not result.machine_fault, result.cause or "the worker gave no cause"
            return _crash(cause, result.machine_fault, failed=failed, seconds=state.seconds)
        ranks, spec = signed_ranks(directory, signature), read_spec(directory)
        metrics = measured(session, ranks, result)
        if spec.config != record.config or spec.trial != record.handle:
            raise TrialError(f"{directory} holds a trial other than {record.handle}")
    except TrialError as error:
        return _crash(str(error), seconds=state.seconds)
    return TrialOutcome(
        status="finished",
        reason=f"repetition {record.repetition} of {record.repeats}",
        metrics=metrics,
        ndcg_se=standard_error(ranks),
        curve=[epoch.model_dump() for epoch in result.curve],
        details={
            **result.model_dump(include=MEASURED_DETAILS),
            "signature": signature.mac,
            "metrics_se": metric_errors(ranks),
            "rescored": spec.rescore_from is not None,
        },
        parameters=result.parameters,
        train_seconds=result.train_seconds + result.evaluate_seconds,
        wall_seconds=state.seconds,
    )


def _crash(cause: str, machine_fault: bool = False, *, failed: bool = False, seconds: float = 0.0) -> TrialOutcome:
    """failed: the configuration itself failed under this seed, so that another attempt would fail as well."""
    details = {"machine_fault": True} if machine_fault else {"failed": True} if failed else {}
    spent = 0.0 if machine_fault else seconds
    return TrialOutcome(
        status="crashed", verdict="crash", reason=cause, cause=cause, details=details, train_seconds=spent,
        wall_seconds=seconds,
    )  # fmt: skip

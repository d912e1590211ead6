"""The state of a session in numbers, and one sentence of advice; shared by every tool that reports them."""

from collections.abc import Sequence

from ..data.wording import counted, listed
from ..memory.records import SessionRecord, TrialRecord
from ..sandbox.diagnosis import diagnose
from ..sandbox.program import Stop, stop, trials_used
from ..sandbox.reflection import needs_reflection
from .places import free_places
from .results import Budget
from .stopping import stopped_trial
from .withholding import LATER, shown_state
from .workspace import Workspace


def budget_of(session: SessionRecord, trials: list[TrialRecord]) -> Budget:
    """The budget of the session: used and maximum."""
    return Budget(
        trials_used=trials_used(trials),
        trials_max=session.max_trials,
        train_seconds_used=round(sum(t.outcome.train_seconds for t in trials if t.outcome), 1),
        train_seconds_max=session.max_train_seconds,
        llm_usd_used=session.llm_usd,
        llm_usd_max=session.max_llm_usd,
    )


def pending_reflection(ws: Workspace, session: SessionRecord, trials: list[TrialRecord]) -> str | None:
    """Handle of the last concluded trial if its reflection is still missing; a re-scoring within noise needs none.

    If several trials may run at a time, several may have ended since the last reflection: the first of them.
    """
    if not session.with_reflection:
        return None
    concluded = sorted((t for t in trials if t.concluded), key=lambda trial: trial.order)
    if session.parallel == 1:
        concluded = concluded[-1:]
    keep_z = ws.session_protocol(session).keep_z
    return next((trial.handle for trial in concluded if needs_reflection(trial, keep_z)), None)


def stop_of(ws: Workspace, session: SessionRecord, trials: list[TrialRecord]) -> Stop:
    """The decision of the Program's stop rules for the current trials."""
    protocol = ws.session_protocol(session)
    return stop(
        trials,
        max_trials=session.max_trials,
        max_train_seconds=session.max_train_seconds,
        patience=protocol.patience,
        target_ndcg=protocol.target_ndcg,
        llm_usd=session.llm_usd,
        max_llm_usd=session.max_llm_usd,
        patience_after=session.patience_after,
    )


def _first_trial(trials: list[TrialRecord]) -> str:
    """The advice before the first trial, or after a crash that the machine caused."""
    if trials and trials[-1].outcome and trials[-1].outcome.details.get("lost"):
        return (
            f"The node that ran trial {trials[-1].handle} is gone, and no budget was used: run the same trial again. "
            "It continues where the last saved state of its training is."
        )
    if trials:
        return (
            f"The machine caused the crash of trial {trials[-1].handle}, not its configuration, and no budget was "
            "used. Report the trial's reason to the person who runs the server; run the same trial again after the "
            "repair."
        )
    return "Measure the default configuration first: run_trial with changes={}. Later trials are compared with it."


def _takes_no_trials(ws: Workspace, session: SessionRecord) -> str:
    """The advice for a session that is closed or being confirmed; empty for another."""
    if session.state != "open":
        state = shown_state(ws.home, ws.memory, session)
        later = f" Its test result is {LATER}." if state == "withheld" else ""
        return f"The session is {state} and takes no more trials.{later} open_session(new=true) opens another session."
    if ws.memory.trials.repetitions(session.id):
        return "The session confirms its best trials and takes no more: call finalize again to continue."
    return ""


def next_step(ws: Workspace, session: SessionRecord, trials: list[TrialRecord]) -> str:
    """One sentence that says which tool to call now."""
    closed = _takes_no_trials(ws, session)
    if closed:
        return closed
    running = [t.handle for t in trials if t.status == "running"]
    if not running and (not trials or trials[-1].machine_fault):
        return _first_trial(trials)
    pending = pending_reflection(ws, session, trials)
    if pending:
        limit = _stopped(trials, pending) or _limit(ws, session, trials, pending)
        return f"Call write_reflection for {pending}{limit or ': did the change help, by which dimension?'}"
    decision = stop_of(ws, session, trials)
    if running:
        full = session.parallel == 1 or decision.stop
        return _wait_or_fill(session, running, 0 if full else free_places(ws, session, trials))
    if decision.stop:
        return f"{decision.reason}. Call finalize with your Cognition Summary and confirm=true."
    return _plan(ws, session, trials)


def _wait(session: SessionRecord, running: Sequence[str]) -> str:
    if len(running) == 1:
        return (
            f"Trial {running[0]} is running and nothing has failed: call wait_trial('{session.id}', '{running[0]}'). "
            "Do not start it again."
        )
    return (
        f"Trials {listed(running)} are running and nothing has failed: call wait_trial('{session.id}') for the first "
        "one to end. Do not start them again."
    )


def _wait_or_fill(session: SessionRecord, running: Sequence[str], free: int) -> str:
    """The advice while trials run and nothing else is due; `free`: how many more may start."""
    if not free:
        return _wait(session, running)
    verb = "is" if len(running) == 1 else "are"
    return (
        f"{listed(running)} {verb} running, and {counted(free, 'more trial')} may start: run one that changes another "
        f"dimension, or call wait_trial('{session.id}') for the first one to end."
    )


def _plan(ws: Workspace, session: SessionRecord, trials: list[TrialRecord]) -> str:
    """The advice when a trial may run: what limits the incumbent, and where the proposals are."""
    incumbent = ws.memory.trials.incumbent(session.id)
    limit = _limit(ws, session, trials, incumbent.handle) if incumbent else ""
    if limit:
        return f"{limit.lstrip(' .')} Proposals: read_memory(view='state')."
    return "Plan the next trial: read_memory(view='state') shows knob effects and untried knobs; then call run_trial."


def _stopped(trials: list[TrialRecord], handle: str) -> str:
    """What a stopped trial says about its change, as the continuation of a sentence; empty for any other trial."""
    found = stopped_trial(next(t for t in trials if t.handle == handle), trials)
    if found is None:
        return ""
    delta = found.base_delta_at_most
    if delta is None or delta >= 0:
        return ". It was stopped early and may be as good as its base: helped='unclear'; run it again to finish it"
    return f". It was stopped early, at most {delta:+.4f} against its base: helped='no', and no effect can be claimed"


def _limit(ws: Workspace, session: SessionRecord, trials: list[TrialRecord], handle: str) -> str:
    """What limits a trial, as the continuation of a sentence: its first diagnosis; empty without one or a memory."""
    trial = next((t for t in trials if t.handle == handle), None)
    if trial is None or not session.with_memory:
        return ""
    found = diagnose(trial, ws.session_protocol(session).space)
    return f". {found[0].kind.capitalize()}: {found[0].short}." if found else ""

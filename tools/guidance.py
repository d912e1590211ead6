"""Where a session stands, in numbers and in one sentence of advice: shared by every tool that reports it."""

from ..memory.records import SessionRecord, TrialRecord
from ..sandbox.program import Stop, stop, trials_used
from .results import Budget
from .workspace import Workspace


def budget_of(session: SessionRecord, trials: list[TrialRecord]) -> Budget:
    """What the session has spent and may spend."""
    return Budget(
        trials_used=trials_used(trials),
        trials_max=session.max_trials,
        train_seconds_used=round(sum(t.outcome.train_seconds for t in trials if t.outcome), 1),
        train_seconds_max=session.max_train_seconds,
        llm_usd_used=session.llm_usd,
        llm_usd_max=session.max_llm_usd,
    )


def pending_reflection(session: SessionRecord, trials: list[TrialRecord]) -> str | None:
    """The last finished trial, if it still waits for its reflection."""
    finished = [t for t in trials if t.status == "finished"]
    if not session.with_reflection or not finished or finished[-1].reflected:
        return None
    return finished[-1].handle


def stop_of(ws: Workspace, session: SessionRecord, trials: list[TrialRecord]) -> Stop:
    """What the Program's stop rules say now."""
    protocol = ws.session_protocol(session)
    return stop(
        trials,
        max_trials=session.max_trials,
        max_train_seconds=session.max_train_seconds,
        patience=protocol.patience,
        target_ndcg=protocol.target_ndcg,
        llm_usd=session.llm_usd,
        max_llm_usd=session.max_llm_usd,
    )


def _first(trials: list[TrialRecord]) -> str:
    """What to do before any trial has run, or after one that the machine failed."""
    if trials:
        return (
            f"The machine failed trial {trials[-1].handle}, not its configuration, and no budget was spent. Tell the "
            "person who runs the server the trial's reason; once the machine is mended, run the same trial again."
        )
    return "Run the plain default first: run_trial with changes={}. Every later trial is compared with it."


def next_step(ws: Workspace, session: SessionRecord, trials: list[TrialRecord]) -> str:
    """One sentence that says which tool to call now."""
    if session.state != "open":
        return f"The session is {session.state}: nothing is left to do in it. open_session(new=true) starts another."
    running = next((t for t in trials if t.status == "running"), None)
    if running:
        return (
            f"Trial {running.handle} is running and nothing has failed: call wait_trial('{session.id}', "
            f"'{running.handle}'). Do not start it again."
        )
    if not trials or trials[-1].machine_fault:
        return _first(trials)
    pending = pending_reflection(session, trials)
    decision = stop_of(ws, session, trials)
    if pending:
        return f"Call write_reflection for {pending}: what changed, whether it helped, which dimension explains it."
    if decision.stop:
        return f"{decision.reason}. Call finalize with your Cognition Summary and confirm=true."
    return "Plan the next trial: read_memory(view='state') shows effects and what was never tried; then run_trial."

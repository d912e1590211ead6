"""finalize: close the session and, only then, let the examiner look at the test set once.

The states go one way: open → frozen → attempted → revealed | void. Whatever is killed in between is taken up where
it stood, except the look itself: an examiner that started has used it.
"""

from typing import Annotated

from pydantic import Field

from ..data.errors import SealError, SessionError
from ..examiner.request import TestResult, examine, has_looked, in_progress, read_revealed
from ..memory.records import SessionRecord, SummaryRecord
from ..sandbox.statistics import selection_inflation
from ..training.spec import CHECKPOINT
from ..trials.warm import retire
from .cognition import computed_summary, good_configurations, select, session_effects
from .results import FinalResult
from .rule_counts import count_rules
from .sync import sync_session
from .workspace import Workspace
from .write_reflection import RuleInput, prepare_rule, written

SUMMARY_LENGTH = 4000
EXAMINER_SECONDS = 3600.0


def finalize(
    ws: Workspace,
    session: Annotated[str, Field(description="session id")],
    cognition_summary: Annotated[
        str, Field(description="what this session taught about dataset and backbone, for later sessions", min_length=1)
    ],
    rules: Annotated[list[RuleInput] | None, Field(description="rules worth carrying to other datasets")] = None,
    confirm: Annotated[
        bool, Field(description="must be true: it ends the session and spends its one look at the test set")
    ] = False,
) -> FinalResult:
    """End the session: store the Cognition Summary, freeze, and evaluate the selected trial on the test set, once.

    The selected trial is the best validation NDCG@10 among the finished ones. `confirm` protects against accidents;
    it is not an authorisation.
    """
    record = ws.memory.sessions.get(session)
    running = sync_session(ws, session)
    if not confirm:
        raise SessionError("finalize ends the session and uses its only look at the test set; pass confirm=true")
    if record.state in ("revealed", "void"):
        raise SessionError(_already(ws, record))
    ws.session_dataset(record)  # refused here if it was replaced: before the freeze and the look
    if record.state == "open":
        if running:
            raise SessionError(f"trial {running.handle} is running; wait_trial or cancel_trial first")
        freeze(ws, record, cognition_summary, rules or [])
    return _look(ws, ws.memory.sessions.get(session))


def freeze(ws: Workspace, session: SessionRecord, text: str, rules: list[RuleInput]) -> None:
    """Close an open session: its selection stands, and what it taught is there for later ones. No look is taken."""
    trials = ws.memory.trials.all(session.id)
    selected = select(trials)
    checkpoint = ws.trial_directory(session.id, selected.handle) / CHECKPOINT
    if not checkpoint.exists():
        raise SessionError(f"{checkpoint} is gone, and {selected.handle} cannot be examined without it; restore it")
    summary = written(text, SUMMARY_LENGTH, "cognition_summary")
    prepared = [prepare_rule(ws, session, rule, trials) for rule in rules]
    for rule, _ in prepared:
        ws.memory.rules.add(rule)
    count_rules(ws, session, {knob for trial in trials for knob in trial.changes})
    ws.memory.summaries.add(
        SummaryRecord(
            session=session.id,
            dataset=session.dataset,
            dataset_id=session.dataset_id,
            backbone=session.backbone,
            text=summary,
            computed=computed_summary(ws, session, trials, selected),
            profile=session.profile,
        )
    )
    if not ws.memory.sessions.set_state(session.id, "open", "frozen", selected=selected.handle):
        raise SessionError(f"session {session.id} is being finalized by another process; see list_sessions")
    retire(ws.inbox(session.id))
    _learn(ws, ws.memory.sessions.get(session.id))


def _learn(ws: Workspace, session: SessionRecord) -> None:
    """Keep what a closed session measured; once more is to no effect."""
    trials = ws.memory.trials.all(session.id)
    ws.memory.measurements.add(good_configurations(ws, session, trials), session_effects(ws, session, trials))


def _look(ws: Workspace, session: SessionRecord) -> FinalResult:
    """From frozen to revealed or void. The look ledger says whether the look is used; only then can it be lost."""
    _learn(ws, session)  # a freeze that was killed may not have come to it
    ws.memory.sessions.set_state(session.id, "frozen", "attempted")
    at_work = in_progress(ws.home, session.id)  # asked first: it may end, with a result, between the two questions
    result = read_revealed(ws.home, session.id)
    if result is None and at_work:
        raise _at_work(session)
    if result is None and not has_looked(ws.home, session.id):
        result = _examine(ws, session)
    ws.memory.sessions.set_state(session.id, "attempted", "revealed" if result else "void")
    return final_result(ws, ws.memory.sessions.get(session.id), result)


def _at_work(session: SessionRecord) -> SessionError:
    return SessionError(f"the examiner of session {session.id} is at work; call finalize again in a minute")


def _already(ws: Workspace, session: SessionRecord) -> str:
    """What a second finalize is told; the result too, because a client may have lost the answer to the first.

    Not while another session on the same data is open: whoever drives that one must not learn test figures here.
    """
    others = ws.memory.sessions.all_open(session.dataset_id)
    result = None if others else read_revealed(ws.home, session.id)
    found = f" with test NDCG@10 {result.metrics['ndcg@10']:.4f} (look {result.look})" if result else ""
    return (
        f"session {session.id} is {session.state}: it has been finalized, {session.selected} was selected{found}; "
        "open_session(new=true) starts another"
    )


def _examine(ws: Workspace, session: SessionRecord) -> TestResult:
    """The examiner's result. Where it fails before its look, the session stays as it is: finalize may be repeated."""
    assert session.selected is not None  # set together with the state `frozen`
    directory = ws.trial_directory(session.id, session.selected)
    try:
        return examine(ws.home, session.id, directory, ws.session_dataset(session), EXAMINER_SECONDS)
    except SealError as error:
        if not has_looked(ws.home, session.id):
            raise SessionError(f"no look at the test set was used: {error}; mend this, then finalize again") from None
        at_work = in_progress(ws.home, session.id)
        result = read_revealed(ws.home, session.id)
        if result is not None:  # another process asked at the same time, and has it
            return result
        if at_work:
            raise _at_work(session) from None
        ws.memory.sessions.set_state(session.id, "attempted", "void")
        raise SessionError(f"the look at the test set was used without a result: {error}") from None


def final_result(ws: Workspace, session: SessionRecord, result: TestResult | None) -> FinalResult:
    """The closing values of a frozen session; test figures come from the examiner's vault, never from memory."""
    trials = ws.memory.trials.all(session.id)
    selected = ws.memory.trials.get(session.id, session.selected or "")
    assert selected.outcome is not None  # only finished trials are selected
    finished = sum(t.status == "finished" for t in trials)
    return FinalResult(
        session=session.id,
        state=session.state,
        selected=selected.handle,
        config=ws.settings_of(session, selected),
        validation=selected.outcome.metrics,
        selection_inflation=selection_inflation(selected.outcome.ndcg_se or 0.0, finished),
        test=result.metrics if result else None,
        look=result.look if result else None,
        next="The session is over. `virtualmle report` shows it whole."
        if result
        else "The look at the test set was used without a result; the session is void. Open another one to go on.",
    )

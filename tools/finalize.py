"""The tool finalize: close the session and only then let the examiner evaluate on the test set, once.

The states go one way: open → frozen → attempted → revealed | void. If the process is killed in between, the next call
continues from the recorded state. The look itself is never repeated: once an examiner has started, the look is used.

In operator mode the private key is elsewhere: the session stays frozen, and `revealing.py` goes on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ..data.errors import SealError, SessionError
from ..data.wording import listed
from ..examiner.examining import in_progress
from ..examiner.request import TestResult, awaits_holder, examine, has_looked, read_revealed
from ..memory.records import Confirmation, SessionRecord, SummaryRecord, TrialRecord
from ..sandbox.program import trials_measured
from ..sandbox.selection import selection_reason
from ..sandbox.statistics import selection_inflation
from ..trials.warm import retire
from .after_reveal import summary_text
from .beside import beside_to_freeze, default_test, frozen_beside
from .cognition import complete_curves, computed_summary, good_configurations, select, session_effects
from .confirming import Standing, confirm_until, confirmation_of, repetition_directories
from .help_text import described
from .keeping_rules import keep_rule
from .members import check_model
from .recording import end_recorded, freeze_recorded
from .results import ConfirmationProgress, FinalResult, RuleOutcome
from .rule_counts import count_rules
from .states import delete_states
from .sync import sync_session
from .wait_trial import WaitSeconds
from .withholding import LATER, open_beside, shown_result, shown_state, withheld_sentence
from .workspace import Workspace
from .write_reflection import RuleInput, prepare_rule, required_text

SUMMARY_LENGTH = 4000
EXAMINER_SECONDS = 3600.0
SEALED_CHOICE = (
    "The choice is sealed: the key of the test set is kept elsewhere. With access to this home, its holder runs "
    "`virtualmle reveal {session} --key-file FILE`; otherwise a person sends the choice with `virtualmle sessions "
    "seal-choice` and takes the answer with `bring-back`. An agent has nothing left to do here."
)


@described
def finalize(
    ws: Workspace,
    session: Annotated[str, Field(description="session id")],
    cognition_summary: Annotated[
        str,
        Field(description="what the session taught about dataset and backbone", min_length=1),
    ],
    rules: Annotated[list[RuleInput] | None, Field(description="rules for later sessions")] = None,
    confirm: Annotated[
        bool, Field(description="true: yes, end it and use its one look")
    ] = False,
    wait_seconds: WaitSeconds = None,
) -> FinalResult:
    """End the session for good, and evaluate its best trial on the test set, once.

    State 'confirming': the best trials are trained again first, and the wait is up; call finalize again. 'withheld':
    read_memory(view='state') shows the result once no other session on this data is open.
    """
    record = ws.memory.sessions.get(session)
    running = sync_session(ws, session)
    if not confirm:
        raise SessionError("finalize ends the session and uses its only look at the test set; pass confirm=true")
    if record.state in ("revealed", "void"):
        raise SessionError(_already_finalized(ws, record))
    ws.session_dataset(record)  # refuses a replaced dataset before the freeze and the look
    kept: list[RuleOutcome] = []
    if record.state == "open":
        if running:
            trials, verb = ("trial", "is") if len(running) == 1 else ("trials", "are")
            names = listed([trial.handle for trial in running])
            raise SessionError(f"{trials} {names} {verb} running; wait_trial or cancel_trial first")
        check_texts(ws, record, cognition_summary, rules or [])
        standing = confirm_until(ws, record, wait_seconds)
        if not standing.is_over:
            return _confirming(record, standing)
        kept = freeze(ws, record, cognition_summary, rules or [])
    delete_states(ws, session)
    closed = ws.memory.sessions.get(session)
    # a table has no test targets
    result = final_result(ws, closed, None) if record.replay else look_at_test(ws, closed)
    return result.model_copy(update={"rules": kept})


def check_texts(ws: Workspace, session: SessionRecord, text: str, rules: list[RuleInput]) -> None:
    """Raise the errors of what the agent wrote before hours are spent on a confirmation."""
    trials = ws.memory.trials.all(session.id)
    required_text(text, SUMMARY_LENGTH, "cognition_summary")
    for rule in rules:
        prepare_rule(ws, session, rule, trials)


def _confirming(session: SessionRecord, standing: Standing) -> FinalResult:
    running = ", ".join(
        f"{record.repeats} under seed {record.repetition}"
        + (f", epoch {progress.epoch}/{progress.epochs}" if progress.epochs else "")
        for record, progress in standing.running
    )
    return FinalResult(
        session=session.id,
        state="confirming",
        selected="",
        config={},
        validation={},
        selection_inflation=0.0,
        progress=ConfirmationProgress(
            done=standing.done, total=standing.total, position=standing.position, running=running
        ),
        next=f"Confirming {standing.done} of {standing.total}: the best trials are trained again under fresh seeds. "
        "Nothing failed; call finalize again with the same arguments to continue waiting.",
    )


def freeze(ws: Workspace, session: SessionRecord, text: str, rules: list[RuleInput]) -> list[RuleOutcome]:
    """Close an open session: fix the selection and store its knowledge. The test set stays sealed.

    Returns what became of the rules.
    """
    trials = ws.memory.trials.all(session.id)
    confirmation = confirmation_of(ws, session)
    selected = _selected(trials, confirmation)
    if not session.replay:
        for directory in examined_directories(ws, session, selected.handle):
            check_model(ws, selected, directory)
    summary = required_text(text, SUMMARY_LENGTH, "cognition_summary")
    kept = []
    for rule in rules:  # one after another: a later one must not contradict an earlier one
        checked = prepare_rule(ws, session, rule, trials)
        kept.append(keep_rule(ws, session, checked.rule, checked.restated_from, trials))
    count_rules(ws, session, {knob for trial in trials for knob in trial.changed})
    computed = computed_summary(ws, session, trials, selected)
    ws.memory.summaries.add(
        SummaryRecord(
            session=session.id,
            dataset=session.dataset,
            dataset_id=session.dataset_id,
            backbone=session.backbone,
            text=summary_text(ws, session, summary, computed),
            computed=computed | ({"confirmation": confirmation.model_dump()} if confirmation else {}),
            profile=session.profile,
        )
    )
    models = [] if session.replay else examined_directories(ws, session, selected.handle)
    if not freeze_recorded(ws, session, selected, models, beside_to_freeze(ws, session, selected, trials)):
        raise SessionError(f"session {session.id} is being finalized by another process; see list_sessions")
    for inbox in ws.inboxes(session):
        retire(inbox)
    _store_measurements(ws, ws.memory.sessions.get(session.id))
    return kept


def _selected(trials: list[TrialRecord], confirmation: Confirmation | None) -> TrialRecord:
    """The trial with the best mean over repetitions; without a confirmation, the one that is best on validation."""
    confirmed = confirmation.selected if confirmation else None
    return next(trial for trial in trials if trial.handle == confirmed) if confirmed else select(trials)


def examined_directories(ws: Workspace, session: SessionRecord, selected: str) -> list[Path]:
    """The directories of the models that the examiner evaluates: the repetitions of a confirmed trial, or the trial."""
    return repetition_directories(ws, session, selected) or [ws.trial_directory(session.id, selected)]


def _store_measurements(ws: Workspace, session: SessionRecord) -> None:
    """Store the measurements of a closed session in long-term memory; a second call has no effect."""
    trials = ws.memory.trials.all(session.id)
    ws.memory.measurements.add(
        good_configurations(ws, session, trials),
        session_effects(ws, session, trials),
        complete_curves(session, trials),
    )


def look_at_test(ws: Workspace, session: SessionRecord, key_file: Path | None = None) -> FinalResult:
    """Take the session from frozen to revealed, or to void if the look ledger records a look without a result.

    key_file: the private key in operator mode; without it, the session stays frozen there.
    """
    _store_measurements(ws, session)  # the process may have been killed between the freeze and this step
    if key_file is None and awaits_holder(ws.home, session.id):
        return final_result(ws, session, None)
    ws.memory.sessions.set_state(session.id, "frozen", "attempted")
    # Checked before the result is read: the examiner may finish between the two calls
    examining = in_progress(ws.home, session.id)
    result = read_revealed(ws.home, session.id)
    if result is None and examining:
        raise _still_examining(session)
    if result is None and not has_looked(ws.home, session.id):
        result = _examine(ws, session, key_file)
    end_recorded(ws, session.id, result)
    return final_result(ws, ws.memory.sessions.get(session.id), result)


def _still_examining(session: SessionRecord) -> SessionError:
    return SessionError(f"the examiner of session {session.id} is still running; call finalize again in a minute")


def _already_finalized(ws: Workspace, session: SessionRecord) -> str:
    """The refusal of a second finalize. It repeats the test result, because a client may have lost the first answer.

    While another session on the same content is open, the result is withheld.
    """
    state = shown_state(ws.home, ws.memory, session)
    result = shown_result(ws.home, ws.memory, session)
    found = f" with test NDCG@10 {result.metrics['ndcg@10']:.4f} (look {result.look})" if result else ""
    later = f"; its test result is {LATER}" if state == "withheld" else ""
    return (
        f"session {session.id} is {state}: it has been finalized, {session.selected} was selected{found}{later}; "
        "open_session(new=true) opens another session"
    )


def _examine(ws: Workspace, session: SessionRecord, key_file: Path | None) -> TestResult:
    """Run the examiner. If it fails before its look, the session keeps its state, and finalize can be repeated."""
    assert session.selected is not None  # set together with the state `frozen`
    models = examined_directories(ws, session, session.selected)
    try:
        dataset = ws.session_dataset(session)
        return examine(
            ws.home, session.id, session.selected, models, dataset, EXAMINER_SECONDS, key_file,
            beside=frozen_beside(ws, session),
        )  # fmt: skip
    except SealError as error:
        if not has_looked(ws.home, session.id):
            raise SessionError(f"no look at the test set was used: {error}; fix this and call finalize again") from None
        examining = in_progress(ws.home, session.id)
        result = read_revealed(ws.home, session.id)
        if result is not None:  # another process ran the examiner at the same time
            return result
        if examining:
            raise _still_examining(session) from None
        end_recorded(ws, session.id, None)
        raise SessionError(f"the look at the test set was used but gave no result: {error}") from None


def final_result(ws: Workspace, session: SessionRecord, result: TestResult | None) -> FinalResult:
    """The final result of a session; its test figures come from the examiner's vault, never from memory.db.

    They are withheld while another session on the same content is open.
    """
    others = open_beside(ws.home, ws.memory, session) if result else []
    shown = None if others else result
    trials = ws.memory.trials.all(session.id)
    selected = ws.memory.trials.get(session.id, session.selected or "")
    assert selected.outcome is not None  # only finished trials are selected
    confirmation = _stored_confirmation(ws, session)
    return FinalResult(
        session=session.id,
        state="withheld" if others else session.state,
        selected=selected.handle,
        selection=selection_reason(selected, trials, confirmation),
        config=ws.settings_of(session, selected),
        validation=selected.outcome.metrics,
        selection_inflation=selection_inflation(selected.outcome.ndcg_se or 0.0, trials_measured(trials)),
        confirmation=confirmation,
        test=shown.metrics if shown else None,
        test_se=(shown.metrics_se or None) if shown else None,
        test_sd=(shown.metrics_sd or None) if shown else None,
        default=default_test(shown) if shown else None,
        look=result.look if result else None,
        look_note=(shown.look_note or None) if shown else None,
        next=_withheld(session, others) if others else _advice(session, result),
    )


def _stored_confirmation(ws: Workspace, session: SessionRecord) -> Confirmation | None:
    """The confirmation as the freeze has stored it; None for a session without one."""
    stored = [summary.computed for summary in ws.memory.summaries.all() if summary.session == session.id]
    return next((Confirmation(**computed["confirmation"]) for computed in stored if "confirmation" in computed), None)


def _withheld(session: SessionRecord, others: Sequence[str]) -> str:
    return f"The session is over. {withheld_sentence(session.id, others)} End these sessions first."


def _advice(session: SessionRecord, result: TestResult | None) -> str:
    if result:
        return "The session is over. `virtualmle report` writes its full report."
    if session.replay:
        return "The session is over. A replay has no test set: train the selected configuration to look at it."
    if session.state != "void":
        return SEALED_CHOICE.format(session=session.id)
    return "The look at the test set was used but gave no result; the session is void. Open a new one to continue."

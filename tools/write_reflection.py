"""The tool write_reflection: check the agent's claims about a trial against the numbers, then store them."""

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from ..data.errors import ConfigError, SessionError
from ..memory.records import ReflectionRecord, RuleKind, RuleRecord, SessionRecord, TrialRecord
from ..memory.text import clean_text
from ..memory.trials import handle_of
from ..sandbox.conditions import parse_condition
from ..sandbox.reconciling import OPPOSITE, Claimed, reconciled
from ..sandbox.reflection import Claim, check_evidence, check_reflection, dimensions_of
from ..sandbox.rule_evidence import Move, check_rule, moves_of
from . import guidance
from .help_text import described
from .keeping_rules import keep_rule
from .results import ReflectionReceipt
from .rule_counts import parsed
from .sync import sync_session
from .withholding import is_looked_at
from .workspace import Workspace

LESSON_LENGTH = 1000
STATEMENT_LENGTH = 300
MAX_EVIDENCE = 50


class RuleInput(BaseModel):
    """A rule for long-term memory."""

    model_config = ConfigDict(extra="forbid")

    kind: RuleKind = Field(description="of its advice")
    statement: str = Field(description="one sentence; empty: no rule", min_length=1, max_length=2000)
    condition: str | None = Field(default=None, description="on a knob, e.g. lr >= 0.001, position in {absolute, both}")
    evidence: list[str] = Field(default=[], description="trials that show it", max_length=MAX_EVIDENCE)


class CheckedRule(NamedTuple):
    """A rule as it will be stored; `note` names the trials for and against it."""

    rule: RuleRecord
    note: str
    restated_from: str  # kind and condition as they were given, if a supported rule contradicts them; else empty


@described
def write_reflection(  # noqa: PLR0913, PLR0917 - one parameter per claim that is checked
    ws: Workspace,
    session: Annotated[str, Field(description="session id")],
    trial: Annotated[str, Field(description="e.g. t003")],
    helped: Annotated[
        Literal["yes", "no", "unclear"], Field(description="did it improve on its base? no: worse, or no effect")
    ],
    dimension: Annotated[
        str,
        Field(
            description="what explains the result: optimisation, regularisation, capacity, sequence_modelling, "
            "supervision, scoring; several with commas"
        ),
    ],
    lesson: Annotated[str, Field(description="what the trial taught, in one or two sentences", min_length=1)],
    next_step: Annotated[str, Field(description="what to try next, and why")] = "",
    evidence: Annotated[
        list[str] | None, Field(description="trials that support it", max_length=MAX_EVIDENCE)
    ] = None,
    cause: Annotated[str, Field(description="the probable mechanism")] = "",
    effect: Annotated[
        float | None, Field(description="claimed change of NDCG@10 against the base")
    ] = None,
    rule: Annotated[RuleInput | None, Field(description="a rule for later sessions")] = None,
    amend: Annotated[bool, Field(description="true: correct an earlier one")] = False,
) -> ReflectionReceipt:
    """Record what a trial taught; the server checks helped, effect, evidence and figures against its numbers.

    The receipt says supported, contradicted or unsupported, and why.
    """
    record = ws.memory.sessions.get(session)
    sync_session(ws, session)
    target = ws.memory.trials.get(session, trial)
    trial, evidence = target.handle, [handle_of(name) for name in evidence or []]
    if target.repeats:
        raise SessionError(
            f"{trial} repeats {target.repeats} for the confirmation and is no evidence; reflect on {target.repeats}"
        )
    if target.outcome is None:
        raise SessionError(f"trial {trial} is {target.status}; reflect on it once it has finished (wait_trial)")
    trials = ws.memory.trials.all(session)
    space = ws.session_protocol(record).space
    claim = Claim(helped, dimension, effect, evidence, required_text(lesson, LESSON_LENGTH, "lesson"))
    check, note = check_reflection(target, claim, trials, space)
    checked = prepare_rule(ws, record, rule, trials) if rule else None
    store = ws.memory.reflections.amend if amend else ws.memory.reflections.add
    stored = store(
        ReflectionRecord(
            session=session,
            trial=trial,
            what_changed=_what_changed(target),
            verdict=target.outcome.verdict or "discard",
            helped=helped,
            dimension=", ".join(dimensions_of(dimension)),
            effect=effect,
            evidence=evidence,
            cause=clean_text(cause, LESSON_LENGTH),
            lesson=claim.lesson,
            next_step=clean_text(next_step, LESSON_LENGTH),
            check=check,
            check_note=note,
            after_reveal=is_looked_at(ws.home, record.dataset_id),
        )
    )
    kept = keep_rule(ws, record, checked.rule, checked.restated_from, trials) if checked else None
    return ReflectionReceipt(
        session=session,
        trial=trial,
        check=check,
        note=note,
        merged_into=stored.merged_into,
        times_said=stored.times_said,
        amended_from=stored.amended_from.check if stored.amended_from else None,
        rule=kept,
        rule_note=checked.note if checked else "",
        next=guidance.next_step(ws, record, ws.memory.trials.all(session)),
    )


def prepare_rule(
    ws: Workspace, session: SessionRecord, rule: RuleInput, trials: list[TrialRecord]
) -> CheckedRule:
    """The rule as it will be stored, its condition parsed and its trials counted.

    Raises ConfigError for a condition that cannot be parsed, SessionError for evidence that names no trial.
    """
    given = Claimed(rule.kind, parse_condition(rule.condition)) if rule.condition else None
    default = ws.session_protocol(session).space.default(session.backbone)
    statement = required_text(rule.statement, STATEMENT_LENGTH, "statement")
    stated = _reconciled(ws, session, given, moves_of(trials, default)) if given else None
    kind, condition = (stated.kind, str(stated.condition)) if stated else (rule.kind, None)
    check = check_rule(kind, condition, trials, default)
    evidence = [handle_of(name) for name in rule.evidence]
    check_evidence(evidence, trials)
    note = check.note
    if stated != given:
        statement += f" (Stated as: {given}.)"
        note += f"; stored as '{stated}', because '{given}' contradicts a supported rule on values that both hold for"
    record = RuleRecord(
        kind=kind,
        statement=statement,
        condition=condition,
        backbone=session.backbone,
        dataset=session.dataset,
        dataset_id=session.dataset_id,
        session=session.id,
        evidence=list(dict.fromkeys([*evidence, *check.evidence])),
        check=check.check,
        support=check.support,
        contradiction=check.contradiction,
        profile=session.profile,
    )
    return CheckedRule(record, note, f"{given}" if stated != given else "")


def _reconciled(ws: Workspace, session: SessionRecord, rule: Claimed, moves: list[Move]) -> Claimed:
    """`rule`, restated if it contradicts a supported rule that the session may read."""
    if rule.kind not in OPPOSITE:
        return rule
    known = ws.memory.rules.about(session.backbone, [rule.condition.knob])
    if not session.with_memory or session.memory_from:
        known = [other for other in known if other.session == session.id]
    supported = [Claimed(other.kind, c) for other in known if other.check == "supported" and (c := parsed(other))]
    return reconciled(rule, supported, moves)


def required_text(text: str, limit: int, argument: str) -> str:
    """The text cleaned and truncated for storage; ConfigError if no visible character is left."""
    cleaned = clean_text(text, limit)
    if not cleaned.strip():
        raise ConfigError(f"{argument} has no visible characters; write at least one sentence")
    return cleaned


def _what_changed(trial: TrialRecord) -> str:
    if not trial.changes:
        return f"nothing over {trial.base}"
    return ", ".join(f"{knob}={value!r}" for knob, value in trial.changes.items()) + f" over {trial.base}"

"""What becomes of a rule that an agent states: it is stored, merged with a known one, or kept with the session only."""

from collections.abc import Sequence

from ..data.wording import counted
from ..memory.records import RuleRecord, SessionRecord, TrialRecord
from .after_reveal import add_rule
from .results import RuleOutcome
from .workspace import Workspace


def keep_rule(
    ws: Workspace, session: SessionRecord, checked: RuleRecord, stated: str, trials: Sequence[TrialRecord]
) -> RuleOutcome:
    """Store a checked rule and say what became of it; `stated`: kind and condition as given, if they were restated.

    The counts are those of all sessions, and of this one alone if it runs without long-term memory.
    """
    saved = add_rule(ws, session, checked, trials)
    rule = saved if saved and session.with_memory else checked
    merged = saved is not None and saved.times_said > 1
    outcome = RuleOutcome(
        outcome="kept with the session" if saved is None else "merged" if merged else "stored",
        rule_id=saved.id if saved else None,
        kind=rule.kind,
        condition=rule.condition,
        restated_from=stated,
        times_said=saved.times_said if saved else 1,
        check=rule.check,
        support=rule.support,
        contradiction=rule.contradiction,
        summary="",
    )
    return outcome.model_copy(update={"summary": summary_of(outcome)})


def summary_of(rule: RuleOutcome) -> str:
    """The outcome in one sentence."""
    what = {
        "stored": f"stored as rule {rule.rule_id}",
        "merged": f"merged with rule {rule.rule_id}, which was stated {rule.times_said} times",
        "kept with the session": "kept with the session only: the test set of this data was looked at before, and then "
        "long-term memory takes conditions that trials support",
    }[rule.outcome]
    name = f"{rule.kind} {rule.condition}" if rule.condition else f"{rule.kind} without a condition"
    restated = f", restated from '{rule.restated_from}', which contradicts a known rule" if rule.restated_from else ""
    counts = f"{counted(rule.support, 'trial')} for it, {rule.contradiction} against"
    return f"'{name}' {what}{restated}: {rule.check}, {counts}."

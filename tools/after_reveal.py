"""What an agent writes after a look at the test set of its data, and what of it long-term memory takes.

The agent may know test figures then, and any of its words may carry them. Its texts stay with the session
(memory/kept_texts.py; reflections are marked). Long-term memory takes what the server checked or computed: rules that
recorded trials support, with a condition on values that were tried and in the server's words, and a computed summary.
Limit: a knob value can carry a few bits, as many as its resolution leaves.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.wording import counted
from ..memory.records import RuleRecord, SessionRecord, TrialRecord
from ..sandbox.conditions import Condition, parse_condition
from .withholding import is_looked_at
from .workspace import Workspace

SHOWN_TRIALS = 3


def add_rule(
    ws: Workspace, session: SessionRecord, stated: RuleRecord, trials: Sequence[TrialRecord]
) -> RuleRecord | None:
    """Store a checked rule; returns it as stored, or None if its words stay with the session only."""
    if not is_looked_at(ws.home, session.dataset_id):
        return ws.memory.rules.add(stated)
    rule = passed_on(stated, trials)
    with ws.memory.database.writing():
        ws.memory.kept_texts.add(session.id, "rule", f"{stated.kind} {stated.condition or ''}: {stated.statement}")
        return ws.memory.rules.add(rule) if rule else None


def summary_text(ws: Workspace, session: SessionRecord, text: str, computed: Mapping[str, Any]) -> str:
    """The text of the Cognition Summary for long-term memory: the agent's, or after a look the server's."""
    if not is_looked_at(ws.home, session.dataset_id):
        return text
    ws.memory.kept_texts.add(session.id, "summary", text)
    return _computed_text(session, computed)


def passed_on(stated: RuleRecord, trials: Sequence[TrialRecord]) -> RuleRecord | None:
    """The rule as the trials bear it out, in the server's words; None unless they support it."""
    if stated.check != "supported" or stated.condition is None:
        return None
    condition = on_tried_values(parse_condition(stated.condition), trials)
    if condition is None:
        return None
    shown = [_effect(trial) for trial in trials if trial.handle in stated.evidence]
    effects = ", ".join([effect for effect in shown if effect][:SHOWN_TRIALS])
    words = f"{stated.kind} {condition}" + (f": validation NDCG@10 {effects}" if effects else "")
    return stated.model_copy(update={"condition": str(condition), "statement": words})


def on_tried_values(condition: Condition, trials: Sequence[TrialRecord]) -> Condition | None:
    """The condition with values that trials had, so that no other number is passed on; None if none had one.

    It holds for the same trials as before.
    """
    tried = {trial.config[condition.knob] for trial in trials if trial.concluded and condition.knob in trial.config}
    if condition.operator in ("==", "!=", "in"):
        values = tuple(value for value in condition.values if value in tried)
        return Condition(condition.knob, condition.operator, values) if values else None
    matching = [value for value in tried if condition.matches({condition.knob: value})]
    if not matching:
        return None
    upwards = condition.operator in (">", ">=")
    return Condition(condition.knob, ">=" if upwards else "<=", (min(matching) if upwards else max(matching),))


def _effect(trial: TrialRecord) -> str:
    outcome = trial.outcome
    if outcome is None or outcome.base_delta is None or outcome.base_delta_se is None:
        return ""
    return f"{outcome.base_delta:+.5f} ± {outcome.base_delta_se:.5f} ({trial.handle} over {trial.base})"


def _computed_text(session: SessionRecord, computed: Mapping[str, Any]) -> str:
    """The computed part of a Cognition Summary in words."""
    settings = ", ".join(f"{knob}={value}" for knob, value in computed["settings"].items()) or "the default"
    gain = computed["gain"]
    over = "" if gain is None else f", {gain:+.1%} over the default"
    effects = "; ".join(
        f"{knob} {effect['mean_delta']:+.5f} ± {effect['se']:.5f}" for knob, effect in computed["effects"].items()
    )
    return (
        f"{session.backbone} on {session.dataset}, computed by the server: best of "
        f"{counted(computed['trials'], 'trial')} is {computed['selected']} ({settings}) with validation NDCG@10 "
        f"{computed['validation'].get('ndcg@10', 0.0):.5f}{over}." + (f" Mean effects: {effects}." if effects else "")
    )

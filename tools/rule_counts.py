"""Count the trials of each session that support or contradict the rules in long-term memory."""

from collections.abc import Collection

from ..data.errors import ConfigError
from ..memory.records import RuleRecord, SessionRecord
from ..sandbox.conditions import Condition, parse_condition
from ..sandbox.joint import model_of
from ..sandbox.rule_evidence import count_rule, moves_of
from .workspace import Workspace


def count_rules(ws: Workspace, session: SessionRecord, knobs: Collection[str]) -> int:
    """Update support and contradiction of every rule on `knobs` from the session's trials; returns how many changed.

    Counting is idempotent: it replaces the session's earlier counts. If a process is killed before it counts, the next
    call therefore repairs the counts. Sessions that may not read long-term memory update the counts, too.
    """
    rules = ws.memory.rules.about(session.backbone, knobs)
    if not rules:
        return 0
    trials, default = ws.memory.trials.all(session.id), ws.session_protocol(session).space.default(session.backbone)
    moves, model = moves_of(trials, default), model_of(trials, default)
    counts = {}
    for rule in rules:
        condition = parsed(rule)
        found = count_rule(rule.kind, condition, moves, model) if condition else None
        if found and found.evidence:
            counts[rule.id] = (found.support, found.contradiction, found.evidence)
    return ws.memory.rules.count(session.id, counts)


def parsed(rule: RuleRecord) -> Condition | None:
    """The condition of a rule; None if it has none that this engine knows."""
    try:
        return parse_condition(rule.condition or "")
    except ConfigError:  # a rule that was written for an engine with other knobs
        return None

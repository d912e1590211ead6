"""Rules meet the trials of every later session: what each trial has to say for and against them is counted."""

from collections.abc import Collection

from ..data.errors import ConfigError
from ..memory.records import SessionRecord
from ..sandbox.conditions import Condition, parse_condition
from ..sandbox.reflection import count_rule, moves_of
from .workspace import Workspace


def count_rules(ws: Workspace, session: SessionRecord, knobs: Collection[str]) -> int:
    """Count for and against every rule on `knobs` what the session's trials say now; returns how many rules changed.

    Counting again replaces the session's earlier counts, so a count that was missed (a killed process) is made up for
    by the next one, and none is made twice. Long-term memory is kept up to date by sessions that may not read it, too.
    """
    moves = moves_of(ws.memory.trials.all(session.id), ws.session_protocol(session).space.default(session.backbone))
    counts = {}
    for rule in ws.memory.rules.about(session.backbone, knobs):
        condition = _parsed(rule.condition or "")
        found = count_rule(rule.kind, condition, moves) if condition else None
        if found and found.evidence:
            counts[rule.id] = (found.support, found.contradiction, found.evidence)
    return ws.memory.rules.count(session.id, counts)


def _parsed(condition: str) -> Condition | None:
    try:
        return parse_condition(condition)
    except ConfigError:  # a rule from an engine with other knobs says nothing about this one
        return None

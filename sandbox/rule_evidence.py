"""Count the trials that support and contradict rules with a condition on a knob. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..data.wording import counted
from ..memory.records import Check, RuleKind, TrialOutcome, TrialRecord
from ..models.config import TrialConfig
from .conditions import Condition, parse_condition
from .effects import base_config, changed_knobs, isolates
from .statistics import z_score

CLEAR_Z = 1.0  # one standard error, like the default keep_z of the Program


class RuleCheck(NamedTuple):
    """How many trials support and contradict a rule, with a note that names their handles."""

    check: Check
    support: int
    contradiction: int
    note: str
    evidence: tuple[str, ...] = ()  # the trials that were counted


class Move(NamedTuple):
    """A trial with its base, the effective changes, and the z score of the paired difference."""

    trial: TrialRecord
    base: TrialConfig
    changed: Mapping[str, Any]
    z: float


def check_rule(
    kind: RuleKind, condition: str | None, trials: Sequence[TrialRecord], default: TrialConfig | None = None
) -> RuleCheck:
    """Count the trials for and against a rule: those that made `condition` true over a base where it was false.

    A gain in NDCG@10 supports a prefer rule and contradicts an avoid rule; a loss does the reverse. A trial counts if
    its difference is at least one standard error and it isolates the knob of the condition (`effects.isolates`),
    because several changes at once are confounded. Insights and rules without a condition are unverified. `default` is
    the configuration of base "default"; if it is None, the session's default trial provides it. Raises ConfigError for
    a condition that does not parse.
    """
    if kind == "insight" or condition is None:
        return RuleCheck("unverified", 0, 0, "only prefer and avoid rules with a condition are checked against trials")
    return count_rule(kind, parse_condition(condition), moves_of(trials, default))


def moves_of(trials: Sequence[TrialRecord], default: TrialConfig | None = None) -> list[Move]:
    """All trials that have a paired difference against a known base."""
    moves = []
    for trial in trials:
        z = base_z(trial.outcome) if trial.outcome else None
        base = base_config(trial, trials, default)
        if z is not None and base is not None:
            moves.append(Move(trial, base, changed_knobs(trial, base), z))
    return moves


def count_rule(kind: RuleKind, condition: Condition, moves: Sequence[Move]) -> RuleCheck:
    """Count the moves for and against a rule to prefer or avoid a condition."""
    entering = [m for m in moves if condition.matches(m.trial.config) and not condition.matches(m.base)]
    isolated = [m for m in entering if isolates(condition.knob, m.trial, m.base, m.changed)]
    improved = [m.trial.handle for m in isolated if m.z >= CLEAR_Z]
    worsened = [m.trial.handle for m in isolated if m.z <= -CLEAR_Z]
    support, against = (improved, worsened) if kind == "prefer" else (worsened, improved)
    note = (
        f"{counted(len(isolated), 'trial')} made '{condition}' true over a base without it: "
        f"{support or 'none'} support the rule, {against or 'none'} contradict it"
    )
    if len(entering) > len(isolated):
        note += f"; {len(entering) - len(isolated)} more changed other knobs too and are not counted"
    evidence = tuple(sorted([*support, *against]))
    return RuleCheck(_majority(len(support), len(against)), len(support), len(against), note, evidence)


def base_z(outcome: TrialOutcome) -> float | None:
    """The paired difference to the base in standard errors; None without a comparison."""
    if outcome.base_delta is None or outcome.base_delta_se is None:
        return None
    return z_score(outcome.base_delta, outcome.base_delta_se)


def _majority(support: int, against: int) -> Check:
    if support == against:
        return "unverified"
    return "supported" if support > against else "contradicted"

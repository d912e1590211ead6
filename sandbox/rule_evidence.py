"""Count the trials that support and contradict rules with a condition on a knob. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..data.wording import counted
from ..memory.records import Check, RuleKind, TrialOutcome, TrialRecord
from ..models.config import TrialConfig
from .conditions import Condition, parse_condition
from .effects import base_config, changed_knobs, isolates
from .joint import model_of, shares
from .statistics import z_score
from .surrogate import Surrogate

CLEAR_Z = 1.0  # one standard error, like the default keep_z of the Program
SHARE_Z = 1.645  # the 90 % interval of a share excludes zero


class RuleCheck(NamedTuple):
    """How many trials support and contradict a rule, with a note that names their handles."""

    check: Check
    support: int
    contradiction: int
    note: str
    evidence: tuple[str, ...] = ()  # the trials that were counted


class Move(NamedTuple):
    """A trial with its base, the effective changes, and the z score of the paired difference.

    A stopped trial has the z score of its upper bound: it can show a loss, never a gain.
    """

    trial: TrialRecord
    base: TrialConfig
    changed: Mapping[str, Any]
    z: float


def check_rule(
    kind: RuleKind, condition: str | None, trials: Sequence[TrialRecord], default: TrialConfig | None = None
) -> RuleCheck:
    """Count the trials for and against a rule: those that made `condition` true over a base where it was false.

    A gain in NDCG@10 supports a prefer rule and contradicts an avoid rule; a loss does the reverse. A trial that made
    the condition false over a base where it was true counts the other way round. Insights and rules
    without a condition are unverified. `default` is the configuration of base "default"; if it is None, the session's
    default trial provides it. Raises ConfigError for a condition that does not parse.
    """
    if kind == "insight" or condition is None:
        return RuleCheck("unverified", 0, 0, "only prefer and avoid rules with a condition are checked against trials")
    return count_rule(kind, parse_condition(condition), moves_of(trials, default), model_of(trials, default))


def moves_of(trials: Sequence[TrialRecord], default: TrialConfig | None = None) -> list[Move]:
    """All trials that have a paired difference, or an upper bound below its base, against a known base."""
    moves = []
    for trial in trials:
        z = base_z(trial.outcome) if trial.bound is None and trial.outcome else bound_z(trial, trials)
        base = base_config(trial, trials, default)
        if z is not None and base is not None:
            moves.append(Move(trial, base, changed_knobs(trial, base), z))
    return moves


def count_rule(
    kind: RuleKind, condition: Condition, moves: Sequence[Move], model: Surrogate | None = None
) -> RuleCheck:
    """Count the moves for and against a rule to prefer or avoid a condition.

    A trial that isolates the knob of the condition (`effects.isolates`) counts if its paired difference is at least one
    standard error. A trial that changed other knobs too counts by the share of its difference that `model` attributes
    to the knob, if the 90 % interval of the share excludes zero. `model` is the joint estimate without the history of
    other sessions, which must not count twice. Several such trials that made the same step share one estimate, so
    only the first counts, and none if a trial isolates the step. A stopped trial counts as a loss if its upper bound is
    as far below its base, and not at all otherwise.
    """
    crossing = [m for m in moves if condition.matches(m.trial.config) != condition.matches(m.base)]
    isolated = [m for m in crossing if isolates(condition.knob, m.trial, m.base, m.changed)]
    bundled = [m for m in crossing if m not in isolated]
    entered = {m.trial.handle: 1 if condition.matches(m.trial.config) else -1 for m in crossing}
    measured = [(m.trial.handle, entered[m.trial.handle] * m.z / CLEAR_Z) for m in isolated]
    shared = _attributed(condition.knob, isolated, bundled, model) if model else []
    attributed = [(handle, entered[handle] * z) for handle, z in shared]
    clear = [(handle, z) for handle, z in [*measured, *((h, z / SHARE_Z) for h, z in attributed)] if abs(z) >= 1]
    improved, worsened = [h for h, z in clear if z > 0], [h for h, z in clear if z < 0]
    support, against = (improved, worsened) if kind == "prefer" else (worsened, improved)
    note = (
        f"{counted(len(isolated), 'trial')} made '{condition}' true over a base without it, or false over one with it: "
        f"{support or 'none'} support the rule, {against or 'none'} contradict it"
    )
    if bundled:
        shares = ", ".join(f"{handle} {z:+.1f}" for handle, z in attributed)
        note += f"; {len(bundled)} more changed other knobs too: one counts if the share of {condition.knob} in its "
        note += f"difference is at least {SHARE_Z:g} standard errors (90 %); the shares: {shares or 'none'}"
    evidence = tuple(sorted([*support, *against]))
    return RuleCheck(_majority(len(support), len(against)), len(support), len(against), note, evidence)


def _attributed(
    knob: str, isolated: Sequence[Move], bundled: Sequence[Move], model: Surrogate
) -> list[tuple[str, float]]:
    """(handle, share in standard errors) of the first bundled trial of every step of `knob` that no trial isolates."""
    known = {(getattr(m.base, knob), m.trial.config[knob]) for m in isolated}
    found = []
    for move in bundled:
        step = getattr(move.base, knob), move.trial.config[knob]
        share = next((s for s in shares(model, move.trial, move.base) if s.knob == knob), None)
        if step not in known and share is not None:
            known.add(step)
            found.append((move.trial.handle, share.z))
    return found


def base_z(outcome: TrialOutcome) -> float | None:
    """The paired difference to the base in standard errors; None without a comparison."""
    if outcome.base_delta is None or outcome.base_delta_se is None:
        return None
    return z_score(outcome.base_delta, outcome.base_delta_se)


def bound_delta(trial: TrialRecord, trials: Sequence[TrialRecord]) -> float | None:
    """The upper bound of a stopped trial minus NDCG@10 of its base; None if either is unknown."""
    base = next((t for t in trials if t.handle == trial.base or (trial.base == "default" and _is_default(t))), None)
    measured = base.outcome.metrics.get("ndcg@10") if base and base.outcome else None
    return None if trial.bound is None or measured is None else trial.bound - measured


def bound_z(trial: TrialRecord, trials: Sequence[TrialRecord]) -> float | None:
    """`bound_delta` in standard errors of the paired comparison that stopped the trial; None if it is not negative."""
    delta = bound_delta(trial, trials)
    se = trial.outcome.details.get("bound_se") if trial.outcome else None
    return None if delta is None or delta >= 0 or se is None else z_score(delta, se)


def _is_default(trial: TrialRecord) -> bool:
    return trial.base == "default" and not trial.changes and trial.status == "finished"


def _majority(support: int, against: int) -> Check:
    if support == against:
        return "unverified"
    return "supported" if support > against else "contradicted"

"""Checks of what an agent claims, in reflections and rules, against what the trials measured. Pure."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from ..data.errors import ConfigError, SessionError
from ..memory.records import Check, RuleKind, TrialOutcome, TrialRecord
from ..models.config import TrialConfig
from .action_space import DIMENSIONS, ActionSpace
from .conditions import Condition, parse_condition
from .effects import base_config, changed_knobs
from .statistics import z_score

Helped = Literal["yes", "no", "unclear"]
CLEAR_Z = 1.0  # a difference of one standard error, as the Program's default keep_z
OBVIOUS_Z = 2.0  # beyond this, "unclear" contradicts the numbers


class RuleCheck(NamedTuple):
    """How the trials bear out a rule: the numbers of trials for and against it, and a note with the handles."""

    check: Check
    support: int
    contradiction: int
    note: str


def check_reflection(
    trial: TrialRecord,
    helped: Helped,
    dimension: str,
    evidence: Sequence[str],
    trials: Sequence[TrialRecord],
    space: ActionSpace,
) -> tuple[Check, str]:
    """Whether the numbers of `trial` bear out that its change helped (against its base) through `dimension`.

    Returns the check and a note with the figures. Raises ConfigError for an unknown dimension, SessionError for a
    trial that is still running and for evidence that names no trial.
    """
    if dimension not in DIMENSIONS:
        raise ConfigError(f"dimension={dimension!r:.60} is unknown; choose one of {', '.join(DIMENSIONS)}")
    handles = {t.handle for t in trials}
    unknown = [handle for handle in evidence if handle not in handles]
    if unknown:
        named = ", ".join(f"{handle!r:.60}" for handle in unknown[:5])
        raise SessionError(f"evidence {named} names no trial of this session; its trials are {sorted(handles)}")
    if trial.outcome is None:
        raise SessionError(f"{trial.handle} is {trial.status}: there is nothing to reflect on yet; call wait_trial")
    check, note = _check_helped(trial, trial.outcome, helped)
    stray = _stray_dimension(trial, dimension, trials, space)
    if stray:
        return ("unverified" if check == "supported" else check), f"{note}; {stray}"
    return check, note


def check_rule(
    kind: RuleKind, condition: str | None, trials: Sequence[TrialRecord], default: TrialConfig | None = None
) -> RuleCheck:
    """How often making `condition` true, over a base where it was false, did harm (avoid) or good (prefer).

    A difference counts from one standard error. Insights and rules without a condition are unverified. `default` is
    the configuration behind base "default"; without it, that of the session's default trial. ConfigError for a
    condition that does not parse.
    """
    if kind == "insight" or condition is None:
        return RuleCheck("unverified", 0, 0, "only prefer and avoid rules with a condition are checked against trials")
    moves = _moves_into(parse_condition(condition), trials, default)
    up = [trial.handle for trial, z in moves if z >= CLEAR_Z]
    down = [trial.handle for trial, z in moves if z <= -CLEAR_Z]
    support, against = (up, down) if kind == "prefer" else (down, up)
    confounded = sum(len(changed_knobs(t, base_config(t, trials, default))) > 1 for t, _ in moves)
    note = (
        f"{len(moves)} trials made '{condition}' true over a base without it: "
        f"for the rule {support or 'none'}, against it {against or 'none'}"
    )
    if confounded:
        note += f"; {confounded} of them changed other knobs too"
    return RuleCheck(_majority(len(support), len(against)), len(support), len(against), note)


def _check_helped(trial: TrialRecord, outcome: TrialOutcome, helped: Helped) -> tuple[Check, str]:
    if outcome.status == "crashed":
        verdicts: dict[Helped, Check] = {"yes": "contradicted", "no": "supported", "unclear": "unverified"}
        return verdicts[helped], f"{trial.handle} crashed: {outcome.cause or 'no cause known'}"
    z = _base_z(outcome)
    if z is None:
        return "unverified", f"{trial.handle} has no paired difference against its base {trial.base}"
    numbers = (
        f"NDCG@10 of {trial.handle} against its base {trial.base}: "
        f"{outcome.base_delta:+.4f} ± {outcome.base_delta_se:.4f} (z = {z:+.2f})"
    )
    if helped == "unclear":
        return _check_unclear(z), f"{numbers}; {'within noise' if abs(z) < CLEAR_Z else 'not within noise'}"
    signed = z if helped == "yes" else -z
    if signed >= CLEAR_Z:
        return "supported", numbers
    if signed <= -CLEAR_Z:
        return "contradicted", f"{numbers}; helped={helped!r} says the opposite"
    return "unverified", f"{numbers}; within noise, 'unclear' is right"


def _check_unclear(z: float) -> Check:
    if abs(z) < CLEAR_Z:
        return "supported"
    return "unverified" if abs(z) < OBVIOUS_Z else "contradicted"


def _stray_dimension(
    trial: TrialRecord, dimension: str, trials: Sequence[TrialRecord], space: ActionSpace
) -> str | None:
    """Why `dimension` cannot explain the trial: none of the knobs that it changed belongs to it."""
    base = base_config(trial, trials, space.default(trial.config["backbone"]))
    changed = {knob: space.dimension(knob) for knob in changed_knobs(trial, base)}
    if not changed or dimension in changed.values():
        return None
    knobs = ", ".join(f"{knob} ({of})" for knob, of in changed.items())
    return f"nothing of dimension {dimension} was changed, only {knobs}"


def _moves_into(
    condition: Condition, trials: Sequence[TrialRecord], default: TrialConfig | None
) -> list[tuple[TrialRecord, float]]:
    """Trials that made the condition true over a base where it was false, with z against that base."""
    moves = []
    for trial in trials:
        z = _base_z(trial.outcome) if trial.outcome else None
        base = base_config(trial, trials, default)
        if z is not None and base is not None and condition.matches(trial.config) and not condition.matches(base):
            moves.append((trial, z))
    return moves


def _base_z(outcome: TrialOutcome) -> float | None:
    if outcome.base_delta is None or outcome.base_delta_se is None:
        return None
    return z_score(outcome.base_delta, outcome.base_delta_se)


def _majority(support: int, against: int) -> Check:
    if support == against:
        return "unverified"
    return "supported" if support > against else "contradicted"

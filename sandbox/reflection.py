"""Checks of what an agent claims, in reflections and rules, against what the trials measured. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ..data.errors import ConfigError, SessionError
from ..data.wording import counted
from ..memory.records import Check, ReflectionCheck, RuleKind, TrialOutcome, TrialRecord
from ..models.config import TrialConfig
from ..models.knobs.declaration import DIMENSIONS
from .action_space import ActionSpace
from .conditions import Condition, parse_condition
from .effects import alone, base_config, changed_knobs
from .statistics import z_score

Helped = Literal["yes", "no", "unclear"]
CLEAR_Z = 1.0  # a difference of one standard error, as the Program's default keep_z
OBVIOUS_Z = 2.0  # beyond this, "unclear" contradicts the numbers
SIZE_Z = 2.0  # a claimed size may be off by this many standard errors
SIZE_SHARE = 0.25  # or by this share of the recorded size: nobody recalls four digits


class Claim(NamedTuple):
    """What a reflection says about a trial: did its change help, through what, by how much, seen in which trials."""

    helped: Helped
    dimension: str
    effect: float | None = None  # change of NDCG@10 against the base
    evidence: Sequence[str] = ()  # trial handles


class RuleCheck(NamedTuple):
    """How the trials bear out a rule: the numbers of trials for and against it, and a note with the handles."""

    check: Check
    support: int
    contradiction: int
    note: str
    evidence: tuple[str, ...] = ()  # the trials that were counted


class Move(NamedTuple):
    """A trial that changed its base, and how sure the difference is."""

    trial: TrialRecord
    base: TrialConfig
    changed: Mapping[str, Any]
    z: float


def check_reflection(
    trial: TrialRecord, claim: Claim, trials: Sequence[TrialRecord], space: ActionSpace
) -> tuple[ReflectionCheck, str]:
    """Whether the numbers bear out the claim; returns the check and a note with the figures.

    contradicted   the recorded difference has the other sign, or is far from the claimed size
    unsupported    it is within noise, of another dimension, not measured, or the trials cited do not show it
    supported      otherwise
    Raises ConfigError for an unknown dimension, SessionError for a trial that is still running and for evidence that
    names no trial.
    """
    if claim.dimension not in DIMENSIONS:
        raise ConfigError(f"dimension={claim.dimension!r:.60} is unknown; choose one of {', '.join(DIMENSIONS)}")
    check_evidence(claim.evidence, trials)
    if trial.outcome is None:
        raise SessionError(f"{trial.handle} is {trial.status}: there is nothing to reflect on yet; call wait_trial")
    check, note = _check_helped(trial, trial.outcome, claim.helped)
    notes = [note]
    wrong_size = _wrong_size(trial.outcome, claim.effect)
    if wrong_size:
        check = "contradicted"
        notes.append(wrong_size)
    default = space.default(trial.config["backbone"])
    doubts = [_stray_dimension(trial, claim.dimension, trials, space), *_idle_evidence(trial, claim, trials, default)]
    said = [doubt for doubt in doubts if doubt]
    if said and check == "supported":
        check = "unsupported"
    return check, "; ".join([*notes, *said])


def check_evidence(evidence: Sequence[str], trials: Sequence[TrialRecord]) -> None:
    """SessionError where evidence names a trial that the session does not have."""
    handles = {t.handle for t in trials}
    unknown = [handle for handle in evidence if handle not in handles]
    if unknown:
        named = ", ".join(f"{handle!r:.60}" for handle in unknown[:5])
        raise SessionError(f"evidence {named} names no trial of this session; its trials are {sorted(handles)}")


def check_rule(
    kind: RuleKind, condition: str | None, trials: Sequence[TrialRecord], default: TrialConfig | None = None
) -> RuleCheck:
    """How often making `condition` true, over a base where it was false, did harm (avoid) or good (prefer).

    A difference counts from one standard error, and if the trial changed the knob of the condition alone: whole
    configurations bear out no rule on one of their knobs. Insights and rules without a condition are unverified.
    `default` is the configuration behind base "default"; without it, that of the session's default trial. ConfigError
    for a condition that does not parse.
    """
    if kind == "insight" or condition is None:
        return RuleCheck("unverified", 0, 0, "only prefer and avoid rules with a condition are checked against trials")
    return count_rule(kind, parse_condition(condition), moves_of(trials, default))


def moves_of(trials: Sequence[TrialRecord], default: TrialConfig | None = None) -> list[Move]:
    """Every trial with a paired difference against a base that is known."""
    moves = []
    for trial in trials:
        z = _base_z(trial.outcome) if trial.outcome else None
        base = base_config(trial, trials, default)
        if z is not None and base is not None:
            moves.append(Move(trial, base, changed_knobs(trial, base), z))
    return moves


def count_rule(kind: RuleKind, condition: Condition, moves: Sequence[Move]) -> RuleCheck:
    """The counts of a rule to prefer or avoid a condition, from moves that are known already."""
    into = [m for m in moves if condition.matches(m.trial.config) and not condition.matches(m.base)]
    clear = [m for m in into if alone(condition.knob, m.trial, m.base, m.changed)]
    up = [m.trial.handle for m in clear if m.z >= CLEAR_Z]
    down = [m.trial.handle for m in clear if m.z <= -CLEAR_Z]
    support, against = (up, down) if kind == "prefer" else (down, up)
    note = (
        f"{counted(len(clear), 'trial')} made '{condition}' true over a base without it: "
        f"for the rule {support or 'none'}, against it {against or 'none'}"
    )
    if len(into) > len(clear):
        note += f"; {len(into) - len(clear)} more changed other knobs too and are not counted"
    shown = tuple(sorted([*support, *against]))
    return RuleCheck(_majority(len(support), len(against)), len(support), len(against), note, shown)


def _check_helped(trial: TrialRecord, outcome: TrialOutcome, helped: Helped) -> tuple[ReflectionCheck, str]:
    if outcome.status == "crashed":
        verdicts: dict[Helped, ReflectionCheck] = {"yes": "contradicted", "no": "supported", "unclear": "unsupported"}
        return verdicts[helped], f"{trial.handle} crashed: {outcome.cause or 'no cause known'}"
    z = _base_z(outcome)
    if z is None:
        fits = helped == "unclear" and outcome.status == "finished" and not trial.changes
        note = f"{trial.handle} has no paired difference against its base {trial.base}"
        return ("supported" if fits else "unsupported"), note
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
    return "unsupported", f"{numbers}; within noise, 'unclear' is right"


def _check_unclear(z: float) -> ReflectionCheck:
    if abs(z) < CLEAR_Z:
        return "supported"
    return "unsupported" if abs(z) < OBVIOUS_Z else "contradicted"


def _wrong_size(outcome: TrialOutcome, claimed: float | None) -> str | None:
    """How the claimed effect differs from the recorded one by more than memory and noise excuse."""
    if claimed is None:
        return None
    if outcome.base_delta is None or outcome.base_delta_se is None:
        return f"an effect of {claimed:+.4f} is claimed, and none was measured"
    allowed = max(SIZE_Z * outcome.base_delta_se, SIZE_SHARE * abs(outcome.base_delta))
    if abs(claimed - outcome.base_delta) <= allowed:
        return None
    return f"an effect of {claimed:+.4f} is claimed, {outcome.base_delta:+.4f} ± {outcome.base_delta_se:.4f} recorded"


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


def _idle_evidence(
    trial: TrialRecord, claim: Claim, trials: Sequence[TrialRecord], default: TrialConfig
) -> list[str]:
    """What is wrong with the trials that are cited beside the trial itself and its base."""
    moves = {move.trial.handle: move for move in moves_of(trials, default)}
    own = moves.get(trial.handle)
    if own is None or claim.helped == "unclear":
        return []
    before = own.base.model_dump()
    cited = [t for t in trials if t.handle in claim.evidence and t.handle != trial.handle and t.config != before]
    return [doubt for t in cited if (doubt := _doubt(t, moves.get(t.handle), own, claim.helped))]


def _doubt(cited: TrialRecord, move: Move | None, own: Move, helped: Helped) -> str | None:
    """Why a cited trial does not show what is claimed of the change in `own`."""
    shared = set(own.changed) & set(move.changed) if move else set()
    if move is None or not shared:
        return f"{cited.handle} is cited and changed none of {', '.join(own.changed) or 'the same knobs'}"
    ways = [_same_way(own, move, knob) for knob in sorted(shared)]
    way = ways[0] if len(set(ways)) == 1 else 0
    if way * move.z * (1 if helped == "yes" else -1) <= -CLEAR_Z:
        return f"{cited.handle} is cited and shows the opposite (z = {move.z:+.2f})"
    return None


def _same_way(a: Move, b: Move, knob: str) -> int:
    """1 if both moved the knob to the same value or side, -1 if to opposite sides, 0 if that cannot be said."""
    before, after = getattr(a.base, knob), a.changed[knob]
    other_before, other_after = getattr(b.base, knob), b.changed[knob]
    if after == other_after:
        return 1
    if isinstance(after, bool | str):
        return -1 if after == other_before and before == other_after else 0
    return 1 if (after > before) == (other_after > other_before) else -1


def _base_z(outcome: TrialOutcome) -> float | None:
    if outcome.base_delta is None or outcome.base_delta_se is None:
        return None
    return z_score(outcome.base_delta, outcome.base_delta_se)


def _majority(support: int, against: int) -> Check:
    if support == against:
        return "unverified"
    return "supported" if support > against else "contradicted"

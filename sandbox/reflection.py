"""Check the claims of a reflection against the measured differences of trials. Pure.

Checked are claims, not their presence: the direction, the dimensions, the size, the figures that the lesson names, and
cited trials that show the opposite. That a text was written before the result cannot be seen; the note therefore lists
what was checked, so that "supported" says no more than that.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from ..data.errors import ConfigError, SessionError
from ..data.wording import british, counted
from ..memory.records import ReflectionCheck, TrialOutcome, TrialRecord
from ..models.config import TrialConfig
from ..models.knobs.declaration import DIMENSIONS
from .action_space import ActionSpace
from .effects import INTERVAL_Z, base_config, changed_knobs, revealing
from .figures import unrecorded_figures
from .rule_evidence import CLEAR_Z, Move, base_z, bound_delta, moves_of
from .statistics import sweep_inflation

Helped = Literal["yes", "no", "unclear"]
OBVIOUS_Z = 2.0  # from this |z| on, helped="unclear" contradicts the numbers


class Claim(NamedTuple):
    """The claims of a reflection: whether the change helped, by which dimensions, by how much, and the trials cited."""

    helped: Helped
    dimension: str  # one dimension, or several separated by commas
    effect: float | None = None  # claimed change of NDCG@10 against the base
    evidence: Sequence[str] = ()  # trial handles
    lesson: str = ""


def check_reflection(
    trial: TrialRecord, claim: Claim, trials: Sequence[TrialRecord], space: ActionSpace
) -> tuple[ReflectionCheck, str]:
    """Check the claim against the recorded numbers; returns the check and a note with the numbers and what was checked.

    contradicted   the recorded difference has the opposite sign, or the claimed effect is outside its 95 % interval
    unsupported    an effect is claimed within noise or without a measurement, no knob of a claimed dimension was
                   changed, the lesson names a figure that no record bears out, or a cited trial moved the same knobs in
                   the same direction with the opposite outcome
    supported      otherwise; helped="no" within noise is true, because the change did not help measurably
    A stopped trial has an upper bound instead of a difference. If the bound is below the base, "no" is supported and
    "yes" contradicted; a size is contradicted above the bound, and cannot be verified at or below it.
    Raises ConfigError for an unknown dimension, SessionError for a running trial and for evidence that names no trial.
    """
    dimensions = dimensions_of(claim.dimension)
    check_evidence(claim.evidence, trials)
    if trial.outcome is None:
        raise SessionError(f"{trial.handle} is {trial.status}: there is no result to reflect on yet; call wait_trial")
    limit = bound_delta(trial, trials)
    if trial.status == "stopped":
        check, note = _check_stopped(trial, claim.helped, limit)
    else:
        check, note = _check_helped(trial, trial.outcome, claim.helped)
    notes = [note]
    if trial.bound is None and (mismatch := _effect_mismatch(trial.outcome, claim.effect)):
        check = "contradicted"
        notes.append(mismatch)
    if limit is not None and claim.effect is not None and claim.effect > limit:
        check = "contradicted"
        notes.append(f"an effect of {claim.effect:+.4f} is claimed, but at most {limit:+.4f} is expected")
    default = space.default(trial.config["backbone"])
    doubts = [
        *_unverifiable_size(trial, claim.effect),
        *_dimension_doubts(trial, dimensions, trials, space),
        *unrecorded_figures(claim.lesson, trial, trials),
        *_evidence_doubts(trial, claim, trials, default),
    ]
    if doubts and check == "supported":
        check = "unsupported"
    return check, "; ".join([*notes, *doubts, _checked(claim)])


def dimensions_of(text: str) -> tuple[str, ...]:
    """The dimensions of a comma-separated text, each once; ConfigError for one that does not exist, or for none."""
    named = named_dimensions(text)
    unknown = [name for name in named if name not in DIMENSIONS]
    if unknown or not named:
        wrong = unknown[0] if unknown else text
        raise ConfigError(
            f"dimension={wrong!r:.60} is unknown; choose one of {', '.join(DIMENSIONS)}, or several separated by commas"
        )
    return named


def named_dimensions(text: str) -> tuple[str, ...]:
    """The names in a comma-separated text, each once and as dimensions are spelt: "Sequence modeling" is
    sequence_modelling. They need not exist."""
    parts = (part.strip().lower().replace("-", "_").replace(" ", "_") for part in text.split(","))
    return tuple(dict.fromkeys(british(part) for part in parts if part))


def check_evidence(evidence: Sequence[str], trials: Sequence[TrialRecord]) -> None:
    """Raise SessionError if evidence names a trial that the session does not have."""
    handles = {t.handle for t in trials}
    unknown = [handle for handle in evidence if handle not in handles]
    if unknown:
        named = ", ".join(f"{handle!r:.60}" for handle in unknown[:5])
        raise SessionError(f"evidence {named} names no trial of this session; its trials are {sorted(handles)}")


def needs_reflection(trial: TrialRecord, keep_z: float) -> bool:
    """Whether the next trial waits for a reflection on this finished or stopped one.

    A re-scoring within noise of its base that was not kept teaches nothing that the numbers do not say. The noise of a
    sweep includes that of choosing the best setting.
    """
    outcome = trial.outcome
    if not trial.concluded or outcome is None or trial.reflected:
        return False
    z, noise = base_z(outcome), keep_z + sweep_inflation(len(trial.settings))
    uneventful = outcome.details.get("rescored") and outcome.verdict != "keep" and z is not None and abs(z) < noise
    return not uneventful


def _check_helped(trial: TrialRecord, outcome: TrialOutcome, helped: Helped) -> tuple[ReflectionCheck, str]:
    if outcome.status == "crashed":
        verdicts: dict[Helped, ReflectionCheck] = {"yes": "contradicted", "no": "supported", "unclear": "unsupported"}
        return verdicts[helped], f"{trial.handle} crashed: {outcome.cause or 'unknown cause'}"
    z = base_z(outcome)
    if z is None:
        is_consistent = helped == "unclear" and outcome.status == "finished"
        note = f"{trial.handle} has no paired difference against its base {trial.base}"
        return ("supported" if is_consistent else "unsupported"), note
    numbers = (
        f"NDCG@10 of {trial.handle} against its base {trial.base}: "
        f"{outcome.base_delta:+.4f} ± {outcome.base_delta_se:.4f} (z = {z:+.2f})"
    )
    if -CLEAR_Z < z < CLEAR_Z + sweep_inflation(len(trial.settings)):  # the best of N settings gains by chance
        return _within_noise(numbers, helped)
    if helped == "unclear":
        return ("unsupported" if abs(z) < OBVIOUS_Z else "contradicted"), f"{numbers}; not within noise"
    if (z > 0) == (helped == "yes"):
        return "supported", numbers
    return "contradicted", f"{numbers}; helped={helped!r} claims the opposite"


def _check_stopped(trial: TrialRecord, helped: Helped, limit: float | None) -> tuple[ReflectionCheck, str]:
    """Check "helped" against the upper bound of a stopped trial; `limit` is the bound minus NDCG@10 of the base."""
    note = f"{trial.handle} was stopped early"
    if limit is None or trial.bound is None:
        return ("supported" if helped == "unclear" else "unsupported"), f"{note}: nothing is known against its base"
    note += f": NDCG@10 is expected to reach at most {trial.bound:.4f}, {limit:+.4f} against its base {trial.base}"
    if limit >= 0:
        unknown = f"{note}, so whether the change helped is not known; run the same configuration again to find out"
        return ("supported" if helped == "unclear" else "unsupported"), unknown
    verdicts: dict[Helped, ReflectionCheck] = {"yes": "contradicted", "no": "supported", "unclear": "unsupported"}
    return verdicts[helped], note


def _unverifiable_size(trial: TrialRecord, claimed: float | None) -> list[str]:
    """A doubt about an effect that is claimed for a stopped trial, of which only a bound is known."""
    if trial.bound is None or claimed is None:
        return []
    return [f"the size {claimed:+.4f} cannot be verified, because {trial.handle} was stopped: only a bound is known"]


def _within_noise(numbers: str, helped: Helped) -> tuple[ReflectionCheck, str]:
    if helped == "yes":
        return "unsupported", f"{numbers}; within noise, so helped='no' or 'unclear' would be right"
    return "supported", f"{numbers}; within noise" + (": no effect, neither gain nor loss" if helped == "no" else "")


def _effect_mismatch(outcome: TrialOutcome, claimed: float | None) -> str | None:
    """An error text if the claimed effect is outside the 95 % interval and is not the recorded one in one digit."""
    if claimed is None:
        return None
    if outcome.base_delta is None or outcome.base_delta_se is None:
        return f"an effect of {claimed:+.4f} is claimed, but none was measured"
    recorded, reach = outcome.base_delta, INTERVAL_Z * outcome.base_delta_se
    if abs(claimed - recorded) <= reach or claimed == float(f"{recorded:.1g}"):
        return None
    return (
        f"an effect of {claimed:+.4f} is claimed, {recorded:+.4f} ± {outcome.base_delta_se:.4f} recorded "
        f"(95 %: {recorded - reach:+.4f} to {recorded + reach:+.4f})"
    )


def _dimension_doubts(
    trial: TrialRecord, dimensions: Sequence[str], trials: Sequence[TrialRecord], space: ActionSpace
) -> list[str]:
    """A doubt for each named dimension of which no knob was changed, so that it cannot explain the result.

    Limits that were only raised (`effects.revealing`) explain nothing either.
    """
    base = base_config(trial, trials, space.default(trial.config["backbone"]))
    changed = changed_knobs(trial, base)
    ignored = revealing(trial, base, changed) if base else set()
    of = {knob: space.dimension(knob) for knob in changed if knob not in ignored}
    knobs = ", ".join(f"{knob} ({dimension})" for knob, dimension in of.items())
    return [
        f"no knob of dimension {dimension} was changed, only {knobs}"
        for dimension in dimensions
        if of and dimension not in of.values()
    ]


def _evidence_doubts(
    trial: TrialRecord, claim: Claim, trials: Sequence[TrialRecord], default: TrialConfig
) -> list[str]:
    """Doubts about cited trials that show the opposite. A trial that is cited for comparison raises none."""
    moves = {move.trial.handle: move for move in moves_of(trials, default)}
    own = moves.get(trial.handle)
    if own is None or claim.helped == "unclear":
        return []
    cited = [moves[handle] for handle in dict.fromkeys(claim.evidence) if handle in moves and handle != trial.handle]
    sign = 1 if claim.helped == "yes" else -1
    return [
        f"{move.trial.handle} is cited but shows the opposite (z = {move.z:+.2f})"
        for move in cited
        if sign * move.z <= -CLEAR_Z and _same_moves(own, move)
    ]


def _same_moves(own: Move, other: Move) -> bool:
    """Whether the other trial moved some of the own trial's knobs in the same direction, and no knob besides."""
    here, there = _counted_changes(own), _counted_changes(other)
    return bool(there) and there <= here and all(_same_direction(own, other, knob) for knob in there)


def _counted_changes(move: Move) -> set[str]:
    return set(move.changed) - revealing(move.trial, move.base, move.changed)


def _same_direction(a: Move, b: Move, knob: str) -> bool:
    before, after = getattr(a.base, knob), a.changed[knob]
    other_before, other_after = getattr(b.base, knob), b.changed[knob]
    if isinstance(after, bool | str):
        return bool(after == other_after)
    return bool((after > before) == (other_after > other_before))


def _checked(claim: Claim) -> str:
    """What the check covers, because no check can cover the words of a lesson."""
    parts = ["direction", "dimension"]
    parts += ["size"] if claim.effect is not None else []
    parts += [counted(len(set(claim.evidence)), "cited trial")] if claim.evidence else []
    parts += ["figures in the lesson"] if any(character.isdigit() for character in claim.lesson) else []
    return f"checked: {', '.join(parts)}"

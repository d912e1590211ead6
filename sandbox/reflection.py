"""Check the claims of reflections against the measured differences of trials; rules: `rule_evidence.py`. Pure."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from ..data.errors import ConfigError, SessionError
from ..memory.records import ReflectionCheck, TrialOutcome, TrialRecord
from ..models.config import TrialConfig
from ..models.knobs.declaration import DIMENSIONS
from .action_space import ActionSpace
from .effects import base_config, changed_knobs
from .rule_evidence import CLEAR_Z, Move, base_z, moves_of

Helped = Literal["yes", "no", "unclear"]
OBVIOUS_Z = 2.0  # from this |z| on, helped="unclear" contradicts the numbers
SIZE_Z = 2.0  # a claimed effect may differ from the recorded one by this many standard errors
SIZE_SHARE = 0.25  # it may also differ by this share of the recorded effect, because agents round


class Claim(NamedTuple):
    """The claims of a reflection: whether the change helped, by which dimension, by how much, and the trials cited."""

    helped: Helped
    dimension: str
    effect: float | None = None  # claimed change of NDCG@10 against the base
    evidence: Sequence[str] = ()  # trial handles


def check_reflection(
    trial: TrialRecord, claim: Claim, trials: Sequence[TrialRecord], space: ActionSpace
) -> tuple[ReflectionCheck, str]:
    """Check the claim against the recorded numbers; returns the check and a note with the numbers.

    contradicted   the recorded difference has the opposite sign, or its size is far from the claimed effect
    unsupported    the difference is within noise or was not measured, no knob of the claimed dimension was changed, or
                   a cited trial does not show the claimed effect
    supported      otherwise
    Raises ConfigError for an unknown dimension, SessionError for a running trial and for evidence that names no trial.
    """
    if claim.dimension not in DIMENSIONS:
        raise ConfigError(f"dimension={claim.dimension!r:.60} is unknown; choose one of {', '.join(DIMENSIONS)}")
    check_evidence(claim.evidence, trials)
    if trial.outcome is None:
        raise SessionError(f"{trial.handle} is {trial.status}: there is no result to reflect on yet; call wait_trial")
    check, note = _check_helped(trial, trial.outcome, claim.helped)
    notes = [note]
    mismatch = _effect_mismatch(trial.outcome, claim.effect)
    if mismatch:
        check = "contradicted"
        notes.append(mismatch)
    default = space.default(trial.config["backbone"])
    dimension_doubt = _dimension_doubt(trial, claim.dimension, trials, space)
    doubts = [*([dimension_doubt] if dimension_doubt else []), *_evidence_doubts(trial, claim, trials, default)]
    if doubts and check == "supported":
        check = "unsupported"
    return check, "; ".join([*notes, *doubts])


def check_evidence(evidence: Sequence[str], trials: Sequence[TrialRecord]) -> None:
    """Raise SessionError if evidence names a trial that the session does not have."""
    handles = {t.handle for t in trials}
    unknown = [handle for handle in evidence if handle not in handles]
    if unknown:
        named = ", ".join(f"{handle!r:.60}" for handle in unknown[:5])
        raise SessionError(f"evidence {named} names no trial of this session; its trials are {sorted(handles)}")


def _check_helped(trial: TrialRecord, outcome: TrialOutcome, helped: Helped) -> tuple[ReflectionCheck, str]:
    if outcome.status == "crashed":
        verdicts: dict[Helped, ReflectionCheck] = {"yes": "contradicted", "no": "supported", "unclear": "unsupported"}
        return verdicts[helped], f"{trial.handle} crashed: {outcome.cause or 'unknown cause'}"
    z = base_z(outcome)
    if z is None:
        is_consistent = helped == "unclear" and outcome.status == "finished" and not trial.changes
        note = f"{trial.handle} has no paired difference against its base {trial.base}"
        return ("supported" if is_consistent else "unsupported"), note
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
        return "contradicted", f"{numbers}; helped={helped!r} claims the opposite"
    return "unsupported", f"{numbers}; within noise, so helped='unclear' would be right"


def _check_unclear(z: float) -> ReflectionCheck:
    if abs(z) < CLEAR_Z:
        return "supported"
    return "unsupported" if abs(z) < OBVIOUS_Z else "contradicted"


def _effect_mismatch(outcome: TrialOutcome, claimed: float | None) -> str | None:
    """An error text if the claimed effect differs from the recorded one by more than noise and rounding explain."""
    if claimed is None:
        return None
    if outcome.base_delta is None or outcome.base_delta_se is None:
        return f"an effect of {claimed:+.4f} is claimed, but none was measured"
    allowed = max(SIZE_Z * outcome.base_delta_se, SIZE_SHARE * abs(outcome.base_delta))
    if abs(claimed - outcome.base_delta) <= allowed:
        return None
    return f"an effect of {claimed:+.4f} is claimed, {outcome.base_delta:+.4f} ± {outcome.base_delta_se:.4f} recorded"


def _dimension_doubt(
    trial: TrialRecord, dimension: str, trials: Sequence[TrialRecord], space: ActionSpace
) -> str | None:
    """A doubt if no knob of `dimension` was changed, so that the dimension cannot explain the result."""
    base = base_config(trial, trials, space.default(trial.config["backbone"]))
    changed = {knob: space.dimension(knob) for knob in changed_knobs(trial, base)}
    if not changed or dimension in changed.values():
        return None
    knobs = ", ".join(f"{knob} ({of})" for knob, of in changed.items())
    return f"no knob of dimension {dimension} was changed, only {knobs}"


def _evidence_doubts(
    trial: TrialRecord, claim: Claim, trials: Sequence[TrialRecord], default: TrialConfig
) -> list[str]:
    """Doubts about the cited trials, other than the trial itself and its base."""
    moves = {move.trial.handle: move for move in moves_of(trials, default)}
    own = moves.get(trial.handle)
    if own is None or claim.helped == "unclear":
        return []
    before = own.base.model_dump()
    cited = [t for t in trials if t.handle in claim.evidence and t.handle != trial.handle and t.config != before]
    return [doubt for t in cited if (doubt := _doubt(t, moves.get(t.handle), own, claim.helped))]


def _doubt(cited: TrialRecord, move: Move | None, own: Move, helped: Helped) -> str | None:
    """Why a cited trial does not support the claim about the changes of `own`; None if there is no conflict."""
    shared = set(own.changed) & set(move.changed) if move else set()
    if move is None or not shared:
        return f"{cited.handle} is cited but changed none of {', '.join(own.changed) or 'the same knobs'}"
    directions = [_relative_direction(own, move, knob) for knob in sorted(shared)]
    direction = directions[0] if len(set(directions)) == 1 else 0
    if direction * move.z * (1 if helped == "yes" else -1) <= -CLEAR_Z:
        return f"{cited.handle} is cited but shows the opposite (z = {move.z:+.2f})"
    return None


def _relative_direction(a: Move, b: Move, knob: str) -> int:
    """1 if both moves changed the knob in the same direction, -1 if in opposite directions, 0 if undefined."""
    before, after = getattr(a.base, knob), a.changed[knob]
    other_before, other_after = getattr(b.base, knob), b.changed[knob]
    if after == other_after:
        return 1
    if isinstance(after, bool | str):
        return -1 if after == other_before and before == other_after else 0
    return 1 if (after > before) == (other_after > other_before) else -1

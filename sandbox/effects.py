"""Measured effects of knobs: paired differences against the base, from trials that changed a single knob."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.errors import ConfigError
from ..memory.records import TrialRecord
from ..models.config import TrialConfig, check_combination
from ..models.knobs.declaration import DIMENSIONS
from .action_space import ActionSpace, inert_changes
from .sweeping import each_setting

INTERVAL_Z = 1.96  # 95 %
REVEALING = ("epochs", "patience")
SMALLEST_RELATIVE_SE = 1e-3
"""Lower bound on the standard error of a relative effect, for differences with zero variance over users."""


def base_config(
    trial: TrialRecord, trials: Sequence[TrialRecord], default: TrialConfig | None = None
) -> TrialConfig | None:
    """The configuration that the changes of `trial` were applied to.

    For base "default" this is `default` if given, otherwise the configuration of the trial that ran the unchanged
    default. None if the base is unknown.
    """
    if trial.base == "default" and default is not None:
        return default
    for other in trials:
        is_default = other.base == "default" and not other.changes
        if other.handle == trial.base or (trial.base == "default" and is_default):
            return other.configuration
    return None


def changed_knobs(trial: TrialRecord, base: TrialConfig | None) -> dict[str, Any]:
    """The changes that are not inert and whose values differ from those of the base (if it is known)."""
    config = trial.configuration
    inert = inert_changes(config, trial.changes)
    return {
        knob: trial.config[knob]
        for knob in trial.changes
        if knob not in inert and (base is None or getattr(base, knob) != trial.config[knob])
    }


def revealing(trial: TrialRecord, base: TrialConfig, changed: Mapping[str, Any]) -> set[str]:
    """Those of the changed knobs that cannot explain the outcome of a trial that changed others too.

    Raising `epochs` or `patience` trains the same model for longer and then keeps its best epoch: every epoch that the
    base's limits allowed is reached unchanged, so a higher limit cannot help or hurt a change, only reveal what it does
    later on. Such a trial therefore counts as one that changed the other knobs only. With a schedule that decays over
    `epochs`, raising them changes every step, so there `epochs` is a change like any other.
    """
    limits = REVEALING if trial.config["schedule"] == "constant" else ("patience",)
    raised = {knob for knob in limits if knob in changed and trial.config[knob] > getattr(base, knob)}
    return raised if set(changed) - raised else set()


def isolates(knob: str, trial: TrialRecord, base: TrialConfig, changed: Mapping[str, Any]) -> bool:
    """Whether the trial isolates the effect of `knob`: the knob is the only change, or it cannot change alone.

    Example: causal=false is only valid with supervision='last', so the two knobs can only be changed together.
    """
    if set(changed) == {knob}:
        return True
    try:
        check_combination(base.model_copy(update={knob: trial.config[knob]}))
    except ConfigError:
        return True
    return False


def interval(mean: float, se: float) -> list[float]:
    """The 95 % confidence interval of a mean."""
    return [mean - INTERVAL_Z * se, mean + INTERVAL_Z * se]


def coverage(trials: Sequence[TrialRecord], space: ActionSpace, backbone: str) -> dict[str, dict[str, int]]:
    """Per dimension: the number of its knobs (`knobs`), and how many of them some trial has changed (`tried`)."""
    tried = {knob for trial in trials for knob in trial.changed}
    counts_of = {dimension: {"tried": 0, "knobs": 0} for dimension in DIMENSIONS}
    for knob in space.knobs(backbone):
        counts_of[knob.dimension]["knobs"] += 1
        counts_of[knob.dimension]["tried"] += knob.name in tried
    return {dimension: counts for dimension, counts in counts_of.items() if counts["knobs"]}


def untried(trials: Sequence[TrialRecord], space: ActionSpace, backbone: str) -> dict[str, list[str]]:
    """Per dimension, the knobs that no trial has changed."""
    tried = {knob for trial in trials for knob in trial.changed}
    knobs = space.knobs(backbone)
    left = {d: [k.name for k in knobs if k.dimension == d and k.name not in tried] for d in DIMENSIONS}
    return {dimension: names for dimension, names in left.items() if names}


def relative_effects(
    trials: Sequence[TrialRecord], default: TrialConfig | None = None
) -> list[tuple[str, Any, float, float]]:
    """(knob, value, effect, se) of every trial that changed a single knob, relative to the NDCG@10 of its base."""
    found = []
    for trial in each_setting(trials):
        outcome = trial.outcome
        if outcome is None or outcome.base_delta is None or outcome.base_delta_se is None:
            continue
        changed = changed_knobs(trial, base_config(trial, trials, default))
        base_ndcg = outcome.metrics["ndcg@10"] - outcome.base_delta
        if len(changed) == 1 and base_ndcg > 0:
            knob, value = next(iter(changed.items()))
            se = max(outcome.base_delta_se / base_ndcg, SMALLEST_RELATIVE_SE)
            found.append((knob, value, outcome.base_delta / base_ndcg, se))
    return found


def knob_effects(
    trials: Sequence[TrialRecord], default: TrialConfig | None = None
) -> dict[str, dict[str, Any]]:
    """Per knob: {n, mean_delta, se, interval, values, confounded}, from trials with a measured `base_delta`.

    values       [{value, delta, se, trial}, …]: the trials that changed only this knob; n is their number
    mean_delta   their mean, weighted by 1/se² (None if n is 0), with its standard error `se` and 95 % `interval`
    confounded   number of trials that changed this knob together with others; excluded from the mean
    """
    effects: dict[str, dict[str, Any]] = {}
    for trial in each_setting(trials):
        outcome = trial.outcome
        if outcome is None or outcome.base_delta is None or outcome.base_delta_se is None:
            continue
        changed = changed_knobs(trial, base_config(trial, trials, default))
        for knob, value in changed.items():
            entry = effects.setdefault(knob, {"values": [], "confounded": 0})
            if len(changed) > 1:
                entry["confounded"] += 1
            else:
                entry["values"].append(
                    {"value": value, "delta": outcome.base_delta, "se": outcome.base_delta_se, "trial": trial.handle}
                )
    return {knob: _pooled(entry) for knob, entry in effects.items()}


def _pooled(entry: dict[str, Any]) -> dict[str, Any]:
    """Inverse-variance mean. A standard error of 0 is replaced by the smallest nonzero one of the values."""
    values = entry["values"]
    smallest_se = min((v["se"] for v in values if v["se"] > 0), default=0.0)
    weights = [max(v["se"], smallest_se) ** -2 if smallest_se else 1.0 for v in values]
    total = sum(weights)
    mean = sum(w * v["delta"] for w, v in zip(weights, values, strict=True)) / total if values else None
    se = (total**-0.5 if smallest_se else 0.0) if values else None
    bounds = None if mean is None or se is None else interval(mean, se)
    return {"n": len(values), "mean_delta": mean, "se": se, "interval": bounds, **entry}

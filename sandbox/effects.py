"""What each knob did so far: paired differences against the base, from trials that changed one knob alone."""

from collections.abc import Sequence
from typing import Any

from ..memory.records import TrialRecord
from ..models.config import TrialConfig
from .action_space import inert_changes


def base_config(
    trial: TrialRecord, trials: Sequence[TrialRecord], default: TrialConfig | None = None
) -> TrialConfig | None:
    """The configuration that the changes of `trial` were applied to.

    For base "default" it is `default`, or else that of the trial that ran the default; None where neither is known.
    """
    if trial.base == "default" and default is not None:
        return default
    for other in trials:
        is_default = other.base == "default" and not other.changes
        if other.handle == trial.base or (trial.base == "default" and is_default):
            return TrialConfig(**other.config)
    return None


def changed_knobs(trial: TrialRecord, base: TrialConfig | None) -> dict[str, Any]:
    """The changes that made a difference: values unlike the base's (where it is known), and not without effect."""
    config = TrialConfig(**trial.config)
    inert = inert_changes(config, trial.changes)
    return {
        knob: trial.config[knob]
        for knob in trial.changes
        if knob not in inert and (base is None or getattr(base, knob) != trial.config[knob])
    }


def knob_effects(
    trials: Sequence[TrialRecord], default: TrialConfig | None = None
) -> dict[str, dict[str, Any]]:
    """Per knob: {n, mean_delta, se, values, confounded}, from finished trials with a measured `base_delta`.

    values       [{value, delta, se, trial}, …]: the trials that changed this knob alone; n is their number
    mean_delta   their mean, weighted by 1/se² (None if n is 0), and its standard error `se`
    confounded   number of trials that changed this knob together with others: counted, never averaged
    """
    effects: dict[str, dict[str, Any]] = {}
    for trial in trials:
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
    """Inverse-variance mean. A difference without spread (se 0) weighs as much as the surest of the others."""
    values = entry["values"]
    surest = min((v["se"] for v in values if v["se"] > 0), default=0.0)
    weights = [max(v["se"], surest) ** -2 if surest else 1.0 for v in values]
    total = sum(weights)
    mean = sum(w * v["delta"] for w, v in zip(weights, values, strict=True)) / total if values else None
    se = (total**-0.5 if surest else 0.0) if values else None
    return {"n": len(values), "mean_delta": mean, "se": se, **entry}

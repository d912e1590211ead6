"""Effects of knobs in a session, estimated jointly from its finished and stopped trials (`surrogate.py`). Pure."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..data.errors import ConfigError
from ..memory.records import TrialRecord
from ..models.config import TrialConfig, check_combination
from ..models.knobs.declaration import DIMENSIONS
from .action_space import ActionSpace, inert_changes
from .observations import NDCG10, still_stopped
from .surrogate import REVEALING, Posterior, Steps, Surrogate, engine_knobs
from .sweeping import each_setting

INTERVAL_Z = 1.96  # 95 %


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
    """Whether the trial isolates the effect of `knob`: it is the only change that counts, or it cannot change alone.

    Raised limits do not count (`revealing`). Example of the second: causal=false is only valid with supervision='last',
    so the two knobs can only be changed together.
    """
    if set(changed) - revealing(trial, base, changed) == {knob}:
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


def knob_effects(
    trials: Sequence[TrialRecord], default: TrialConfig | None = None, model: Surrogate | None = None
) -> dict[str, dict[str, Any]]:
    """Per knob that such a trial changed: {n, mean_delta, se, interval, attributed, over, values, confounded}.

    values       [{value, delta, se, n, stopped, trial, attributed}, ...]: the effect of each tried value over the value
                 `over` (the default's, if a trial had it), estimated from all trials; n trials changed the knob to it,
                 the first of them is `trial`, and `stopped` of them were stopped early, so that they give bounds only
    mean_delta   their mean, weighted by 1/se^2, with its standard error `se` and 95 % `interval`
    attributed   "alone" if a trial isolates the step (`isolates`), otherwise "jointly": it is a share of the difference
                 of trials that changed other knobs too
    n            number of trials that changed the knob; `confounded` of them changed others too
    Deltas are changes of NDCG@10. `model`: the joint model of these trials; the default has no history.
    """
    moved = [_Change(*found) for found in _changes(trials, default)]
    if not moved:
        return {}
    model = model or Surrogate(trials, engine_knobs(moved[0].trial.config["backbone"]), {}, default)
    tried = _tried_values(moved, model, default)
    steps = [{knob: (over, value)} for knob, (over, values) in tried.items() for value in values]
    posterior = scaled(model.posterior(steps), model.reference_ndcg)
    effects, start = {}, 0
    for knob, (over, values) in tried.items():
        part = slice(start, start + len(values))
        start += len(values)
        rows = [change for change in moved if change.knob == knob]
        own = Posterior(posterior.mean[part], posterior.covariance[part, part])
        effects[knob] = _effect_of(own, over, values, rows)
    return effects


def scaled(posterior: Posterior, factor: float) -> Posterior:
    """The posterior in other units, e.g. of NDCG@10 instead of relative to the first trial's."""
    return Posterior(posterior.mean * factor, posterior.covariance * factor**2)


def steps_of(trial: TrialRecord, base: TrialConfig) -> Steps:
    """The steps that a trial made over its base, by knob; raised limits that can only reveal are left out."""
    changed = changed_knobs(trial, base)
    hidden = revealing(trial, base, changed)
    return {knob: (getattr(base, knob), value) for knob, value in changed.items() if knob not in hidden}


class _Change(NamedTuple):
    """One knob that a finished or stopped trial changed, and whether the trial isolates its effect."""

    trial: TrialRecord
    knob: str
    value: Any
    alone: bool


def _changes(
    trials: Sequence[TrialRecord], default: TrialConfig | None
) -> Iterator[tuple[TrialRecord, str, Any, bool]]:
    bounded = {trial.handle for trial in still_stopped(trials)}
    for trial in each_setting(trials):
        outcome = trial.outcome
        measured = outcome and outcome.base_delta is not None and NDCG10 in outcome.metrics
        if not measured and trial.handle not in bounded:
            continue
        base = base_config(trial, trials, default)
        if trial.uses_models or (base and base.uses_models):
            continue  # the joint model describes what knobs do alone
        changed = changed_knobs(trial, base)
        for knob, value in changed.items():
            yield trial, knob, value, base is not None and isolates(knob, trial, base, changed)


def _tried_values(
    moved: Sequence[_Change], model: Surrogate, default: TrialConfig | None
) -> dict[str, tuple[Any, list[Any]]]:
    """Per changed knob, the value that its effects are relative to, and the other values that trials had."""
    tried: dict[str, tuple[Any, list[Any]]] = {}
    for knob in dict.fromkeys(change.knob for change in moved):
        values = list(dict.fromkeys(trial.config[knob] for trial in model.observed.all_trials))
        usual = getattr(default or model.first, knob)
        over = usual if usual in values else values[0]
        tried[knob] = over, [value for value in values if value != over]
    return {knob: found for knob, found in tried.items() if found[1]}


def _effect_of(own: Posterior, over: Any, values: Sequence[Any], rows: Sequence[_Change]) -> dict[str, Any]:
    ses = own.sd
    weights = ses**-2 / (ses**-2).sum()
    mean, se = float(weights @ own.mean), math.sqrt(max(float(weights @ own.covariance @ weights), 0.0))
    entries = [
        {"value": value, "delta": float(delta), "se": float(error), **_origin(value, rows)}
        for value, delta, error in zip(values, own.mean, ses, strict=True)
    ]
    return {
        "n": len({row.trial.handle for row in rows}),
        "mean_delta": mean,
        "se": se,
        "interval": interval(mean, se),
        "attributed": "alone" if any(row.alone for row in rows) else "jointly",
        "over": over,
        "values": entries,
        "confounded": sum(not row.alone for row in rows),
    }


def _origin(value: Any, rows: Sequence[_Change]) -> dict[str, Any]:
    """The trials that changed the knob to this value; none if it is only a base's."""
    found = [row for row in rows if row.value == value]
    alone = any(row.alone for row in found)
    return {
        "n": len(found),
        "stopped": sum(row.trial.status == "stopped" for row in found),
        "trial": found[0].trial.handle if found else None,
        "attributed": "alone" if alone else "jointly",
    }

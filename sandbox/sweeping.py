"""The rules and figures of a sweep: many settings of the scoring knobs over one trained model, in one trial. Pure."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from ..data.errors import ConfigError, SweepError
from ..memory.records import Choice, TrialRecord
from ..models.config import KNOBS, SCORING_KNOBS, TrialConfig, fingerprint
from ..models.knobs.trial_names import ENSEMBLE
from ..training.metrics import ndcg_per_user
from .action_space import ActionSpace, effective
from .statistics import compare

Values = dict[str, Any]


def plan_settings(
    space: ActionSpace, base: TrialConfig, settings: Sequence[Mapping[str, Any]], max_sweep: int
) -> list[TrialConfig]:
    """The configuration of each setting over `base`, without those that are equivalent to an earlier one.

    Raises SweepError for an empty list, for more than `max_sweep` settings and for a knob that needs training, and
    ConfigError for an invalid value; both name the setting, counting from 1.
    """
    if not settings:
        raise SweepError("settings is empty; give partial configurations of scoring knobs, e.g. "
                         "[{\"transition_weight\": 2}, {\"transition_weight\": 4}]")  # fmt: skip
    if len(settings) > max_sweep:
        raise SweepError(f"{len(settings)} settings exceed max_sweep = {max_sweep} of the protocol; split the list")
    configs: list[TrialConfig] = []
    for number, setting in enumerate(settings, 1):
        config = _resolved(space, base, setting, number)
        if all(effective(config) != effective(other) for other in configs):
            configs.append(config)
    return configs


def _resolved(space: ActionSpace, base: TrialConfig, setting: Mapping[str, Any], number: int) -> TrialConfig:
    if ENSEMBLE in setting:
        raise SweepError(
            f"setting {number} changes {ENSEMBLE}, and a sweep re-scores one model; call run_trial with the ensemble, "
            "and then sweep over that trial"
        )
    training = [knob for knob in setting if knob in KNOBS and knob not in SCORING_KNOBS]
    if training:
        raise SweepError(
            f"setting {number} changes {', '.join(training)}, and a sweep re-scores one trained model without training "
            "again; it can change scoring knobs only: call run_trial for a knob that needs training"
        )
    try:
        return space.resolve(base, setting)
    except ConfigError as error:
        raise ConfigError(f"setting {number}: {error}") from None


def complete(base: TrialConfig, configs: Sequence[TrialConfig]) -> list[Values]:
    """Each configuration as its values of all knobs in which any of `configs` differs from `base`."""
    swept = [knob for knob in KNOBS if any(getattr(config, knob) != getattr(base, knob) for config in configs)]
    return [{knob: getattr(config, knob) for knob in swept} for config in configs]


def differences(base: TrialConfig, setting: Mapping[str, Any]) -> Values:
    """The values of `setting` that differ from `base`."""
    return {knob: value for knob, value in setting.items() if value != getattr(base, knob)}


def setting_figures(base_ranks: npt.ArrayLike, swept_ranks: Sequence[npt.NDArray[Any]]) -> list[dict[str, float]]:
    """Per setting: `ndcg@10`, and its paired difference to the base, `delta`, with standard error `se`.

    base_ranks: (num_users,); swept_ranks: one array of the same shape per setting, which may be clipped above 10.
    """
    compared = [(ranks, compare(base_ranks, ranks)) for ranks in swept_ranks]
    return [{"ndcg@10": float(ndcg_per_user(r).mean()), "delta": c.delta, "se": c.se} for r, c in compared]


def chosen(trial: TrialRecord, base: TrialConfig, best: int) -> Choice:
    """The configuration that a sweep takes when it ends: that of setting number `best`, counting from 0."""
    config = trial.configurations[best].model_dump()
    return Choice(
        changes=differences(base, trial.settings[best]), config=config, config_hash=fingerprint(config)
    )


def each_setting(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """`trials`, with every finished sweep replaced by one trial per setting under the sweep's handle.

    Each has the setting's configuration, its changes over the base, its NDCG@10 and its paired difference to the base,
    so that effects of scoring knobs are estimated from all settings, not from the chosen one alone.
    """
    return [one for trial in trials for one in (_settings_of(trial, trials) if trial.sweep else [trial])]


def _settings_of(sweep: TrialRecord, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    outcome = sweep.outcome
    rows = outcome.details.get("sweep", []) if outcome else []
    if outcome is None or not rows:
        return [sweep]
    base = sweep.configuration.model_copy(update=outcome.details["base_values"])
    fields = {name: getattr(sweep, name) for name in TrialRecord.model_fields}  # model_copy would copy cached values
    found = []
    for setting, config, row in zip(sweep.settings, sweep.configurations, rows, strict=True):
        measured = {"base_delta": row["delta"], "base_delta_se": row["se"], "metrics": {"ndcg@10": row["ndcg@10"]}}
        own = {"sweep": None, "changes": differences(base, setting), "config": config.model_dump()}
        found.append(TrialRecord(**{**fields, **own, "outcome": outcome.model_copy(update=measured)}))
    return found


def sweep_table(settings: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, float]], limit: int) -> str:
    """The settings of a sweep, best first, as lines of text that take at most `limit` bytes as JSON.

    A column per knob that differs between settings, then NDCG@10, its difference to the base, and the standard error.
    If not all lines fit, the last line says how many are missing.
    """
    varying = [knob for knob in settings[0] if any(setting[knob] != settings[0][knob] for setting in settings)]
    constant = [f"{knob}={_short(value)}" for knob, value in settings[0].items() if knob not in varying]
    lines = [" ".join([*varying, "ndcg@10", "delta", "se"]) + (f" (all: {', '.join(constant)})" if constant else "")]
    order = sorted(range(len(rows)), key=lambda n: -rows[n]["ndcg@10"])
    lines += [" ".join([*(_short(settings[n][knob]) for knob in varying), *_figures(rows[n])]) for n in order]
    kept = len(lines)
    while kept > 1 and len(json.dumps(_cut(lines, kept), ensure_ascii=False).encode()) > limit:
        kept -= 1
    return _cut(lines, kept)


def _cut(lines: Sequence[str], kept: int) -> str:
    left = len(lines) - kept
    return "\n".join([*lines[:kept], *([f"… {left} more: read_memory(view='trial')"] if left else [])])


def _figures(row: Mapping[str, float]) -> list[str]:
    texts = f"{row['ndcg@10']:.4f}", f"{row['delta']:+.4f}", f"{row['se']:.4f}"
    return [text.replace("0.", ".", 1) for text in texts]


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

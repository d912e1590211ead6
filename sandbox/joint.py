"""What the joint estimate says about trials and about the session: shares of a difference, and evidence to pass on."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..memory.records import TrialRecord
from ..models.config import TrialConfig
from .action_space import Knob
from .effects import base_config, changed_knobs, interval, revealing, scaled, steps_of
from .observations import measured_models, still_stopped
from .surrogate import Surrogate, engine_knobs
from .sweeping import each_setting

LARGEST_SE = 0.5  # a step with a larger relative error was not measured, and is not passed on


class Share(NamedTuple):
    """The part of a trial's difference to its base that is attributed to one changed knob, in NDCG@10."""

    knob: str
    before: Any
    after: Any
    delta: float
    se: float

    @property
    def interval(self) -> list[float]:
        """The 95 % interval."""
        return interval(self.delta, self.se)

    @property
    def z(self) -> float:
        """The share in standard errors."""
        return self.delta / self.se if self.se > 0 else 0.0


class Evidence(NamedTuple):
    """What a session's trials alone say about one step over the default: a mean and its error, without any prior."""

    knob: str
    value: Any
    effect: float  # relative to NDCG@10 of the first trial
    se: float
    n: int  # number of trials that changed the knob to this value


def model_of(
    trials: Sequence[TrialRecord],
    default: TrialConfig | None = None,
    history: Mapping[str, Mapping[str, Any]] | None = None,
    knobs: Sequence[Knob] | None = None,
) -> Surrogate | None:
    """The joint model of a session, over the engine's knobs by default; None before a trial has finished."""
    first = next((t for t in measured_models(trials) if t.status == "finished"), None)
    if first is None:
        return None
    offered = engine_knobs(first.config["backbone"]) if knobs is None else knobs
    return Surrogate(trials, offered, history or {}, default)


def interaction_in_words(model: Surrogate | None) -> str:
    """The interaction that the trials demand, with its size in NDCG@10; empty if there is none."""
    found = model.interaction if model else None
    if model is None or found is None:
        return ""
    size, se = found.effect * model.reference_ndcg, found.se * model.reference_ndcg
    return (
        f"{found.knobs[0]} and {found.knobs[1]} together: {size:+.4f} ± {se:.4f} beyond the sum of both "
        f"(p = {found.p:.2g}, corrected for all pairs); their effects below are those of each one alone"
    )


def shares(model: Surrogate, trial: TrialRecord, base: TrialConfig) -> list[Share]:
    """The shares of a trial's difference to its base, by changed knob; raised limits get none (`revealing`).

    The difference of an ensemble or a student, or to one, has no shares: the model describes what knobs do alone.
    """
    steps = steps_of(trial, base)
    if not steps or trial.uses_models or base.uses_models:
        return []
    found = scaled(model.posterior([{knob: step} for knob, step in steps.items()]), model.reference_ndcg)
    numbers = zip(steps.items(), found.mean, found.sd, strict=True)
    return [Share(knob, before, after, float(delta), float(se)) for (knob, (before, after)), delta, se in numbers]


def evidence(trials: Sequence[TrialRecord], default: TrialConfig) -> list[Evidence]:
    """What the trials of a session say about each value that they tried, for pooling with other sessions.

    The marginal posterior N(m, v) of a step over its prior N(m0, v0) carries the information 1/v - 1/v0, at the mean
    (m/v - m0/v0) / (1/v - 1/v0). History is left out and the prior is divided out, so that nothing is counted twice
    when sessions are pooled. Steps that were only changed together have errors that are large and correlated; the
    marginals are stored, so that each one states its own uncertainty, and the correlation is lost. What a stopped trial
    says is passed on as the Gaussian measurement that stands for its bounds.
    """
    model = model_of(trials, default)
    if model is None:
        return []
    counts = _counts(trials, default)
    if not counts:
        return []
    steps = [{knob: (getattr(default, knob), value)} for knob, value in counts]
    prior, posterior = model.most_probable(steps)
    found = []
    for row, ((knob, value), n) in enumerate(counts.items()):
        before, after = prior.covariance[row, row], posterior.covariance[row, row]
        information = 1 / after - 1 / before
        if information > LARGEST_SE**-2:
            mean = (posterior.mean[row] / after - prior.mean[row] / before) / information
            found.append(Evidence(knob, value, float(mean), float(information**-0.5), n))
    return found


def _counts(trials: Sequence[TrialRecord], default: TrialConfig) -> dict[tuple[str, Any], int]:
    """(knob, value) -> number of finished or stopped trials that changed the knob to a value that is not the default's.
    """
    counts: dict[tuple[str, Any], int] = {}
    bounded = {trial.handle for trial in still_stopped(trials)}
    for trial in each_setting(trials):
        base = base_config(trial, trials, default)
        measured = trial.status == "finished" and trial.outcome and trial.outcome.base_delta is not None
        if base is None or base.uses_models or trial.uses_models or not (measured or trial.handle in bounded):
            continue
        changed = changed_knobs(trial, base)
        for knob in set(changed) - revealing(trial, base, changed):
            if changed[knob] != getattr(default, knob):
                counts[knob, changed[knob]] = counts.get((knob, changed[knob]), 0) + 1
    return counts

"""The observation of a trial as a language model reads it: the measured figures in a few short lines."""

from ..tools.results import StoppedTrial, TrialObservation
from ..tools.views import NDCG10, KnobValues

SHOWN = ("recall@10", NDCG10)
SWEEP_LENGTH = 900

def observation_text(observation: TrialObservation) -> str:
    """The figures of a trial that has ended: outcome, differences, learning curve, cost and hypothesis."""
    swept = observation.sweep
    lines = [
        _head(observation),
        observation.rounded,
        _differences(observation),
        _stopped(observation.stopped),
        f"settings of the sweep, best first:\n{swept.table[:SWEEP_LENGTH]}" if swept else "",
        _training(observation),
        _hypothesis(observation),
    ]
    return "\n".join(line for line in lines if line)


def settings_text(settings: KnobValues) -> str:
    """`lr=0.001 dropout=0.4`; `default` if nothing is changed."""
    return " ".join(f"{knob}={value_text(value)}" for knob, value in settings.items()) or "default"


def value_text(value: object) -> str:
    """A value as JSON would write it: true, 0.001, adamw."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def signed(delta: float, se: float) -> str:
    """`+0.0031±0.0012`."""
    return f"{delta:+.4f}±{se:.4f}"


def _head(observation: TrialObservation) -> str:
    changes = f"{settings_text(observation.changes)} over {observation.base}"
    verdict = "stopped early" if observation.stopped else observation.verdict or observation.status
    metrics = " ".join(f"{name}={value:.4f}" for name, value in observation.metrics.items() if name in SHOWN)
    se = f" (SE {observation.ndcg10_se:.4f})" if observation.metrics.get(NDCG10) and observation.ndcg10_se else ""
    return f"{observation.trial}: {changes}: {verdict}. {metrics}{se}".rstrip() + f"\nreason: {observation.reason}"


def _differences(observation: TrialObservation) -> str:
    named = {"incumbent": observation.delta, "base": observation.base_delta}
    parts = [
        f"against the {name} {signed(d['delta'], d['se'])} (z {d['z']:+.1f})" for name, d in named.items() if d
    ]
    return f"NDCG@10 {', '.join(parts)}" if parts else ""


def _stopped(stopped: StoppedTrial | None) -> str:
    """What a stopped trial teaches, and what stopping it saved; empty for any other trial."""
    if stopped is None:
        return ""
    delta = stopped.base_delta_at_most
    against = "not known" if delta is None else f"at most {delta:+.4f}"
    hurt = ": the change did not help" if delta is not None and delta < 0 else ": whether the change helps is not known"
    return f"NDCG@10 against the base {against}{hurt}; stopping saved about {stopped.saved_seconds:g} seconds"


def _training(observation: TrialObservation) -> str:
    curve = " ".join(f"{name}={value_text(value)}" for name, value in observation.curve.items())
    train = f" train_ndcg10={observation.train_ndcg10:.4f}" if observation.train_ndcg10 is not None else ""
    rescored = " re-scored without training" if observation.rescored else ""
    return f"{curve}{train} parameters={observation.parameters} seconds={observation.train_seconds:g}{rescored}".strip()


def _hypothesis(observation: TrialObservation) -> str:
    outcome = observation.hypothesis
    if outcome is None:
        return ""
    return f"hypothesis: predicted {outcome.predicted}, happened {outcome.happened}, held: {outcome.held}"

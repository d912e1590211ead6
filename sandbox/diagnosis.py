"""What limits a trial, read from its measured quantities: a few named conditions with their numbers. Pure.

    under-trained      validation NDCG@10 of the bare model still rises when its epochs end
    memorising         NDCG@10 on train targets far above that on validation, both without score priors
    popularity-bound   the bare model little better than one list by popularity for everybody
    prior-bound        most of the score comes from score priors, or a prior's weight is at the end of its range

A trial may have several; they are listed in this order, because the figures of a model that is still learning are
provisional, and what the priors add matters once the model is sound. `remedies.py` says which changes act on each.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ..memory.records import TrialOutcome, TrialRecord
from .action_space import ActionSpace

Kind = Literal["under-trained", "memorising", "popularity-bound", "prior-bound"]

RISING_SHARE = 0.02
"""Under-trained: the last quarter of the epochs raised NDCG@10 by at least this share. On Office (SASRec) it raised it
by 22 % and 19 % where 20 epochs were too few and by 0.8 % where early stopping had ended training; a paired standard
error is 1 to 2 %."""
MEMORISING_RATIO = 6.0
"""Memorising: train over validation NDCG@10. On Office (SASRec, lr 1e-3) the ratio is 8.2 with the default dropout;
dropout .5, and .3 on the embeddings, lower it to 5.8 and raise validation NDCG@10 by 11 %."""
MIN_TRAIN_NDCG = 0.1  # below, the model has not learnt its training data, so that it cannot have memorised them
POPULARITY_RATIO = 1.5
"""Popularity-bound: at 1.5 two thirds of the score are what the same list for everybody reaches. SASRec's default has
20 times the score of popularity on Office, where popularity says little."""
PRIOR_SHARE = 0.5  # prior-bound: at least half of NDCG@10 is lost if the priors are left out
END_OF_RANGE = 0.9  # a weight in the last tenth of its range: the best value may lie beyond it
WEIGHTS = ("popularity_weight", "transition_weight", "cooccurrence_weight")


class Diagnosis(NamedTuple):
    """A condition that holds, in short (with its figures) and with the threshold that it exceeds."""

    kind: Kind
    short: str
    text: str
    rise: float = 0.0  # of an under-trained model: the share by which the last quarter of its epochs raised NDCG@10


def diagnose(trial: TrialRecord, space: ActionSpace) -> list[Diagnosis]:
    """The conditions that hold for a finished trial; empty for any other trial, and where nothing was measured."""
    outcome = trial.outcome
    if outcome is None or trial.status != "finished":
        return []
    found = (
        _under_trained(outcome, trial.config),
        _memorising(outcome),
        _popularity_bound(outcome),
        _prior_bound(outcome, trial.config, space),
    )
    return [diagnosis for diagnosis in found if diagnosis]


def _under_trained(outcome: TrialOutcome, config: Mapping[str, Any]) -> Diagnosis | None:
    curve = {epoch["epoch"]: epoch["ndcg10"] for epoch in outcome.curve if "ndcg10" in epoch}  # the evaluated epochs
    epochs = max(curve, default=0)
    if len(curve) < 2 or epochs < config["epochs"]:
        return None  # early stopping ended training: it had stopped improving
    last = max(1, epochs // 4)
    before = max(ndcg10 for epoch, ndcg10 in curve.items() if epoch <= epochs - last)
    after = max(ndcg10 for epoch, ndcg10 in curve.items() if epoch > epochs - last)
    rise = after / before - 1 if before > 0 else 0.0
    if rise < RISING_SHARE:
        return None
    best = outcome.details.get("best_epoch", epochs)
    short = f"validation +{rise:.0%} in the last {last} of {epochs} epochs"
    text = f"{short}, best epoch {best}; still learning from +{RISING_SHARE:.0%} on"
    return Diagnosis("under-trained", short, text, rise)


def _memorising(outcome: TrialOutcome) -> Diagnosis | None:
    train, model = outcome.details.get("train_ndcg10"), outcome.details.get("model_ndcg10")
    if train is None or model is None or train < MIN_TRAIN_NDCG or train < MEMORISING_RATIO * model:
        return None
    short = f"NDCG@10 {train:.3f} on train, {model:.4f} on validation"
    ratio = f"{train / model:.1f} times" if model else "nothing"
    return Diagnosis("memorising", short, f"{short}, {ratio} as much; too far apart from {MEMORISING_RATIO:g} times on")


def _popularity_bound(outcome: TrialOutcome) -> Diagnosis | None:
    popular, model = outcome.details.get("popularity_ndcg10"), outcome.details.get("model_ndcg10")
    if popular is None or model is None or model >= POPULARITY_RATIO * popular:
        return None
    short = f"NDCG@10 {model:.4f} without priors, {popular:.4f} by popularity alone"
    return Diagnosis("popularity-bound", short, f"{short}; personal from {POPULARITY_RATIO:g} times popularity on")


def _prior_bound(outcome: TrialOutcome, config: Mapping[str, Any], space: ActionSpace) -> Diagnosis | None:
    ndcg, model = outcome.metrics.get("ndcg@10"), outcome.details.get("model_ndcg10")
    used = [name for name in WEIGHTS if config.get(name)]
    if not used or not ndcg or model is None:
        return None
    share = 1 - model / ndcg
    highs = {knob.name: knob.high for knob in space.knobs(config["backbone"])}
    ends = [
        f"{name} {config[name]:g} of at most {high:g}"
        for name in used
        if (high := highs.get(name)) and config[name] >= END_OF_RANGE * high
    ]
    if share < PRIOR_SHARE and not ends:
        return None
    parts = f"NDCG@10 {ndcg:.4f} with priors, {model:.4f} without"
    text = f"{'; '.join([parts, *ends])}; bound if {PRIOR_SHARE:.0%} come from priors or a weight is at its range's end"
    return Diagnosis("prior-bound", parts if share >= PRIOR_SHARE else ends[0], text)

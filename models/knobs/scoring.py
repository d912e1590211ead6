"""The scoring knobs: priors counted on the train split, and how they are added to finished scores.

A trial that changes no other knobs re-scores a checkpoint instead of training again; an ensemble scores several.
"""

from typing import Any, ClassVar, Literal

from pydantic import field_validator

from .declaration import Dimension, Inert, KnobGroup, knob
from .trial_names import ENSEMBLE, NAMING


def _no_prior(config: Any) -> bool:
    return bool(config.popularity_weight == config.transition_weight == config.cooccurrence_weight == 0)


def _no_transitions(config: Any) -> bool:
    return bool(config.transition_weight == 0)


def _no_cooccurrence(config: Any) -> bool:
    return bool(config.cooccurrence_weight == 0)


_NO_TRANSITIONS = Inert(_no_transitions, "transition_weight is 0")
_NO_COOCCURRENCE = Inert(_no_cooccurrence, "cooccurrence_weight is 0")
_KNN = "item-kNN (Sarwar et al. 2001)"


class Scoring(KnobGroup):
    """Score priors, and how they are added to the model's scores."""

    dimension: ClassVar[Dimension] = "scoring"

    ensemble: str = knob(
        "",
        "trials whose trained models are scored together, by the mean of their z-scores; the trial itself trains none",
        source="averaging of standardised scores (Fox & Shaw 1994, CombSUM)",
        helps="measured: SASRec together with HSTU, on Office; little for two similar models",
        cost="no training; scoring and serving cost the sum over the members",
        note="a list of 2 to 4 trials; knobs that need training have no effect",
        aliases=("ensembles", "members", "blend_models", "model_average"),
    )
    score_normalisation: Literal["none", "zscore", "minmax", "softmax"] = knob(
        "zscore",
        "normalisation of the model's scores before a prior is added; only with a prior",
        inert=Inert(_no_prior, "scores are normalised only if a prior has a non-zero weight"),
        helps="makes the weights of priors comparable between models",
        aliases=("score_normalization", "score_norm"),
    )
    fusion: Literal["blend", "rerank"] = knob(
        "blend",
        "priors act on the whole catalogue (blend), or only reorder the model's best items (rerank)",
        inert=Inert(_no_prior, "no prior has a non-zero weight"),
        source="two-stage ranking",
        helps="none known",
        cost="rerank: one top-k selection per user",
    )
    rerank_top: int = knob(
        100,
        "number of best items that `fusion = rerank` reorders",
        low=10, high=1000, log=True, ge=1, le=100000,
        inert=Inert(lambda c: c.fusion != "rerank" or _no_prior(c), "no prior reorders items"),
        source="two-stage ranking",
        helps="none known",
        aliases=("rerank_k", "top_k", "topk"),
    )
    popularity_weight: float = knob(
        0.0,
        "what the popularity prior adds to the most popular item's score, in units of the normalised scores (zscore: "
        "standard deviations); to others in proportion to log(1 + count)",
        low=0, high=20, ge=-100, le=100,
        helps="short histories",
        aliases=("pop_weight", "popularity"),
    )
    popularity_window: float = knob(
        1.0,
        "most recent share of the train events that the popularity prior counts",
        low=0.01, high=1, log=True, gt=0, le=1,
        inert=Inert(lambda c: c.popularity_weight == 0, "popularity_weight is 0"),
        helps="preferences that drift over time",
    )
    transition_weight: float = knob(
        0.0,
        "weight of the item-transition prior: at 8, an item that followed the user's latest one in 10 % of the cases "
        "gains .8, in units of the normalised scores (zscore: standard deviations)",
        low=0, high=20, ge=-100, le=100,
        source="first-order Markov chain (Rendle et al. 2010, FPMC)",
        helps="measured: on Beauty and Office",
        cost="seconds, no training",
        note="that is with `transition_normalisation = row`; sqrt and none give larger sums, and smaller weights fit",
        aliases=("markov_weight", "transitions"),
    )
    transition_window: int = knob(
        1,
        "largest distance in events that counts as a transition",
        high=10, ge=1, le=50,
        inert=_NO_TRANSITIONS,
        source="skip-grams",
        helps="measured: 3 on Beauty, with `transition_normalisation = sqrt`",
    )
    transition_decay: float = knob(
        1.0,
        "a transition over a distance of s events counts s^-`transition_decay`",
        high=3, ge=0, le=10, step="0.01",
        inert=Inert(lambda c: _no_transitions(c) or c.transition_window == 1, "all transitions span one event"),
        source="skip-grams",
    )
    transition_direction: Literal["forward", "backward", "both"] = knob(
        "forward",
        "count what followed an item, what preceded it, or both",
        inert=_NO_TRANSITIONS,
        helps="purchases within one day, which have no order",
    )
    transition_recent: int = knob(
        1,
        "number of most recent events whose transitions are summed",
        high=20, ge=1, le=50,
        inert=_NO_TRANSITIONS,
        helps="measured: the last 3 events at .5 on Beauty",
        cost="more table rows per user",
    )
    transition_recency: float = knob(
        1.0,
        "weight of each of the `transition_recent` events relative to the one after it",
        low=0.1, gt=0, le=1, step="0.01",
        inert=Inert(lambda c: _no_transitions(c) or c.transition_recent == 1, "only one event is used"),
        helps="measured: the last 3 events at .5 on Beauty",
    )
    transition_neighbours: int = knob(
        0,
        "number of strongest transitions kept per item; 0 = all",
        high=500, ge=0, le=100000,
        inert=_NO_TRANSITIONS,
        source=_KNN,
        helps="none known; meant for noisy counts",
        cost="faster",
        aliases=("transition_neighbors",),
    )
    transition_normalisation: Literal["row", "sqrt", "cosine", "none"] = knob(
        "row",
        "normalisation of the transition counts",
        inert=_NO_TRANSITIONS,
        source=_KNN,
        helps="measured: `sqrt`",
        aliases=("transition_normalization",),
    )
    cooccurrence_weight: float = knob(
        0.0,
        "weight of the item co-occurrence prior: at 8, an item whose cosine with one of the user's latest items is .1 "
        "gains .8 from it, in units of the normalised scores (zscore: standard deviations)",
        low=0, high=20, ge=-100, le=100,
        source=_KNN,
        helps="measured: on Beauty and Office",
        cost="seconds, no training",
        note="that is with `cooccurrence_normalisation = cosine`; the items are `cooccurrence_window` events",
        aliases=("cooc_weight", "item_knn", "knn_weight", "itemknn_weight"),
    )
    cooccurrence_window: int = knob(
        5,
        "number of most recent events whose co-occurrences are summed",
        high=50, ge=1, le=50,
        inert=_NO_COOCCURRENCE,
        source=_KNN,
    )
    cooccurrence_recency: float = knob(
        1.0,
        "weight of each of the `cooccurrence_window` events relative to the one after it",
        low=0.1, gt=0, le=1, step="0.01",
        inert=Inert(lambda c: _no_cooccurrence(c) or c.cooccurrence_window == 1, "only one event is used"),
        source=_KNN,
    )
    cooccurrence_span: int = knob(
        0,
        "largest distance in events at which two items co-occur; 0 = anywhere in the history",
        high=50, ge=0, le=4096,
        inert=_NO_COOCCURRENCE,
        source=_KNN,
    )
    cooccurrence_neighbours: int = knob(
        0,
        "number of strongest co-occurrences kept per item; 0 = all",
        high=500, ge=0, le=100000,
        inert=_NO_COOCCURRENCE,
        source=_KNN,
        helps="none known; meant for noisy counts",
        cost="faster",
        aliases=("cooccurrence_neighbors", "knn_k"),
    )
    cooccurrence_normalisation: Literal["cosine", "row", "sqrt", "none"] = knob(
        "cosine",
        "normalisation of the co-occurrence counts",
        inert=_NO_COOCCURRENCE,
        source=_KNN,
        helps="measured: `cosine`",
        aliases=("cooccurrence_normalization",),
    )

    @field_validator("ensemble", mode="before")
    @classmethod
    def _canonical_ensemble(cls, given: object) -> str:
        return NAMING[ENSEMBLE].canonical(given)

"""Find the figures that a text names and no record of the session bears out: NDCG@10, changes of it, trials. Pure.

Only unmistakable figures are read: decimals with at least three places that follow "NDCG", such decimals with a sign,
and trial handles. A figure is borne out if a recorded one rounds to it; the values of knobs count as recorded.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from ..memory.records import TrialOutcome, TrialRecord

_DECIMAL = r"0?\.\d{3,}(?![\d%])(?!\s*%)"
_LEVEL = re.compile(rf"(?<![\w.+\-−–±])(?<!± )({_DECIMAL})")  # what follows ± is an error
_CHANGE = re.compile(rf"(?<![\w.])([+\-−–])\s?({_DECIMAL})")
_HANDLE = re.compile(r"\bt\d{3,}\b")
_CLAUSE = re.compile(r"(?:[;!?\n]|\.(?=\s|$))")  # a full stop inside a number ends no clause
NDCG_REACH = 60
"""A decimal is read as an NDCG@10 if the word NDCG stands at most this many characters before it in its clause."""


def unrecorded_figures(text: str, trial: TrialRecord, trials: Sequence[TrialRecord]) -> list[str]:
    """One sentence per figure of `text` that the records contradict, with what is recorded for `trial`."""
    handles = {t.handle for t in trials}
    named = list(dict.fromkeys(_HANDLE.findall(text)))
    levels, settings, changes = [*_levels(trials)], [*_settings(trials)], [*_changes(trial, trials, named)]
    found = [f"{handle}, which is no trial of this session" for handle in named if handle not in handles]
    for figure in _named_levels(text):
        if not _borne_out(figure, [*levels, *settings]):
            found.append(f"NDCG@10 {figure}, recorded for {trial.handle} is {_recorded_level(trial)}")
    for sign, figure in dict.fromkeys(_CHANGE.findall(text)):
        signed = figure if sign == "+" else f"-{figure}"
        if not _borne_out(signed, changes) and not _borne_out(figure, settings):
            found.append(f"a change of {sign}{figure}, recorded for {trial.handle} is {_recorded(trial)}")
    return [f"the lesson names {figure}" for figure in found]


def _named_levels(text: str) -> list[str]:
    """The unsigned decimals that follow NDCG in one clause."""
    found = []
    for clause in _CLAUSE.split(text):
        for match in _LEVEL.finditer(clause):
            before = clause[max(0, match.start() - NDCG_REACH) : match.start()]
            if "ndcg" in before.lower():
                found.append(match[1])
    return list(dict.fromkeys(found))


def _levels(trials: Iterable[TrialRecord]) -> Iterator[float]:
    """All recorded levels: metrics, NDCG@10 of the bare model on train and validation, curves, losses, errors."""
    for outcome in (trial.outcome for trial in trials if trial.outcome):
        yield from outcome.metrics.values()
        yield from outcome.details.get("metrics_se", {}).values()
        yield from _figures_of_stop(outcome)
        for name in ("model_ndcg10", "train_ndcg10", "popularity_ndcg10"):
            if (value := outcome.details.get(name)) is not None:
                yield value
        for epoch in outcome.curve:
            yield from (
                value for name, value in epoch.items() if name in ("ndcg10", "judged", "loss") and value is not None
            )


def _figures_of_stop(outcome: TrialOutcome) -> Iterator[float]:
    """The bounds of a stopped trial, and the figures of why it was stopped."""
    stop = outcome.details.get("stopped", {})
    figures = [outcome.details.get("bound"), outcome.details.get("floor"), *stop.values()]
    yield from (float(value) for value in figures if isinstance(value, int | float) and not isinstance(value, bool))


def _settings(trials: Iterable[TrialRecord]) -> Iterator[float]:
    for trial in trials:
        values = [*trial.config.values(), *trial.changes.values()]
        yield from (float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool))


def _changes(trial: TrialRecord, trials: Sequence[TrialRecord], named: Sequence[str]) -> Iterator[float]:
    """The recorded changes of all trials, and the differences of NDCG@10 from `trial` and the named trials to all."""
    ndcg = {t.handle: t.outcome.metrics["ndcg@10"] for t in trials if t.outcome and "ndcg@10" in t.outcome.metrics}
    for outcome in (t.outcome for t in trials if t.outcome):
        yield from (value for value in (outcome.base_delta, outcome.delta) if value is not None)
        train, model = outcome.details.get("train_ndcg10"), outcome.details.get("model_ndcg10")
        if train is not None and model is not None:
            yield from (train - model, model - train)
    about = {trial.handle, *named}
    for handle in about & ndcg.keys():
        yield from (ndcg[handle] - other for other in ndcg.values())
    for bound in (t.bound for t in trials if t.handle in about and t.bound is not None):
        yield from (bound - other for other in ndcg.values())


def _borne_out(figure: str, recorded: Iterable[float]) -> bool:
    """Whether a recorded value, rounded to the places of the figure, is the figure."""
    half = 0.5 * 10.0 ** -len(figure.partition(".")[2])
    return any(abs(value - float(figure)) <= half * (1 + 1e-6) for value in recorded)


def _recorded_level(trial: TrialRecord) -> str:
    ndcg = trial.outcome.metrics.get("ndcg@10") if trial.outcome else None
    if trial.bound is not None:
        return f"at most {trial.bound:.5f}"
    return "none" if ndcg is None else f"{ndcg:.5f}"


def _recorded(trial: TrialRecord) -> str:
    outcome = trial.outcome
    if outcome is None or outcome.base_delta is None or outcome.base_delta_se is None:
        return "none"
    return f"{outcome.base_delta:+.5f} ± {outcome.base_delta_se:.5f} against {trial.base}"

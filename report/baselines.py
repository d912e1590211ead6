"""The selected model beside scorers that need no training, so that a gain over a weak default is not taken for more.

Validation figures are measured by a worker in the first trial of a session; test figures by the examiner, in the one
look of the session.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..examiner.request import TestResult
from ..memory.records import TrialRecord

TITLES = {
    "popularity": "popularity alone",
    "transitions": "item transitions alone",
    "cooccurrence": "item co-occurrence alone",
}
"""What a reader calls the baselines of training/baselines.py."""

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Scorer:
    """One line of the comparison; `test` is empty before the reveal, and for a default that the look left out."""

    title: str
    validation: Metrics
    test: Metrics
    is_baseline: bool = True


def measured_baselines(trials: Sequence[TrialRecord]) -> dict[str, dict[str, float]]:
    """The validation metrics of every baseline, from the trial that measured them; empty if none did."""
    found = (trial.outcome.details.get("baselines") for trial in trials if trial.outcome)
    return next((dict(baselines) for baselines in found if baselines), {})


def scorers(
    validation: Mapping[str, Metrics],
    default: TrialRecord | None,
    selected: TrialRecord | None,
    test: TestResult | None,
) -> list[Scorer]:
    """The baselines, the default and the selected trial, in this order; without baselines, nothing to compare with."""
    if not validation or selected is None:
        return []
    tested = test.baselines if test else {}
    lines = [Scorer(title, validation.get(name, {}), tested.get(name, {})) for name, title in TITLES.items()]
    if default is not None and default.handle != selected.handle:
        looked = test.default.metrics if test and test.default else {}
        lines.append(Scorer(f"{default.handle}, the default", _metrics(default), looked, is_baseline=False))
    final = test.metrics if test else {}
    return [*lines, Scorer(f"{selected.handle}, selected", _metrics(selected), final, is_baseline=False)]


def strongest(validation: Mapping[str, Metrics]) -> tuple[str, float] | None:
    """The title and the NDCG@10 of the best baseline; None if none was measured."""
    if not validation:
        return None
    name = max(validation, key=lambda one: validation[one]["ndcg@10"])
    return TITLES.get(name, name), validation[name]["ndcg@10"]


def _metrics(trial: TrialRecord) -> Metrics:
    return trial.outcome.metrics if trial.outcome else {}

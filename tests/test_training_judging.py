"""Judged ranks: an epoch is ranked with the score priors as well, which changes nothing of the training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from virtualmle.data.prepared import PreparedDataset
from virtualmle.models.config import TrialConfig, make_config
from virtualmle.models.priors import PriorTables, RepeatedPriors, ScorePriors
from virtualmle.training.checkpoint import copy_weights
from virtualmle.training.epoch_ranks import RanksByEpoch
from virtualmle.training.evaluate import evaluate_validation
from virtualmle.training.judging import Judging
from virtualmle.training.metrics import clip_ranks, ndcg_per_user
from virtualmle.training.spec import EpochRecord
from virtualmle.training.trainer import FitResult, fit

CPU = torch.device("cpu")
PRIORS = {"transition_weight": 4.0, "cooccurrence_weight": 2.0, "popularity_weight": 0.5}


@pytest.fixture(scope="module")
def dataset(tiny_dataset_dir: Path) -> PreparedDataset:
    return PreparedDataset.load(tiny_dataset_dir)


def small(**knobs: Any) -> TrialConfig:
    defaults = {"hidden_dim": 16, "lr": 0.01, "epochs": 6, "patience": 6, "batch_size": 32, "num_negatives": 20}
    return make_config("sasrec", **{**defaults, **PRIORS, **knobs})


class Watched:
    """A race that stops nothing, and keeps the judged ranks that it was asked about."""

    def __init__(self) -> None:
        self.judged: list[RanksByEpoch] = []

    def __call__(self, curve: Any, bare: Any, judged: RanksByEpoch, parameters: int) -> None:
        assert len(curve) == len(bare)
        self.judged.append(dict(judged))


def judged_fit(config: TrialConfig, dataset: PreparedDataset, **options: Any) -> tuple[FitResult, Watched]:
    race = Watched()
    return fit(config, dataset, 7, CPU, judging=Judging(PriorTables(dataset, CPU), race), **options), race


def judged(curve: list[EpochRecord]) -> dict[int, float | None]:
    return {record.epoch: record.judged for record in curve}


def test_judging_changes_neither_the_weights_nor_the_curve(dataset: PreparedDataset) -> None:
    plain = fit(small(), dataset, 7, CPU)
    found, _ = judged_fit(small(), dataset)
    assert [(r.loss, r.ndcg10) for r in found.curve] == [(r.loss, r.ndcg10) for r in plain.curve]
    assert np.array_equal(found.epoch_ranks, plain.epoch_ranks) and found.best_epoch == plain.best_epoch
    weights, expected = copy_weights(found.model), copy_weights(plain.model)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert plain.judged_ranks == [] and set(judged(plain.curve).values()) == {None}


def test_the_judged_ranks_are_those_of_the_scores_with_priors_after_every_second_epoch(
    dataset: PreparedDataset,
) -> None:
    found, race = judged_fit(small(epochs=2), dataset)
    assert found.best_epoch == 2, "so that its model is the one that was judged last"
    expected, _ = evaluate_validation(found.model, dataset, small(), ScorePriors.from_dataset(dataset, small()))
    assert np.array_equal(found.judged_ranks, [clip_ranks(expected)])
    assert not np.array_equal(found.judged_ranks[0], found.epoch_ranks[1]), "priors matter here"
    assert judged(found.curve) == {1: None, 2: pytest.approx(ndcg_per_user(expected).mean())}
    longer, race = judged_fit(small(), dataset)
    assert [list(ranks) for ranks in race.judged] == [[2], [2], [2, 4], [2, 4]], "not before epoch 2"
    assert len(longer.judged_ranks) == 3


def test_without_score_priors_the_bare_ranks_are_the_judged_ones(dataset: PreparedDataset) -> None:
    config = small(**dict.fromkeys(PRIORS, 0.0))
    found, race = judged_fit(config, dataset)
    assert found.judged_ranks == [] and judged(found.curve) == {r.epoch: r.ndcg10 for r in found.curve}
    assert [list(ranks) for ranks in race.judged] == [list(range(1, count + 1)) for count in range(1, 6)]
    assert all(race.judged[-1][epoch] is found.epoch_ranks[epoch - 1] for epoch in range(1, 6))


def test_a_continued_training_knows_its_judged_ranks_if_the_scores_are_the_same(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    judged_fit(small(epochs=4), dataset, save_to=state, save_every=0)
    whole, _ = judged_fit(small(), dataset)
    continued, race = judged_fit(small(), dataset, resume_from=state)
    assert np.array_equal(continued.judged_ranks, whole.judged_ranks) and judged(continued.curve) == judged(whole.curve)
    assert [list(ranks) for ranks in race.judged] == [[2, 4]]


@pytest.mark.parametrize(
    "saved, resumed", [({}, {"transition_weight": 1.0}), (dict.fromkeys(PRIORS, 0.0), {})], ids=str
)
def test_a_continued_training_with_other_scores_is_not_judged_and_not_raced(
    saved: dict[str, Any], resumed: dict[str, Any], dataset: PreparedDataset, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    judged_fit(small(epochs=4, **saved), dataset, save_to=state, save_every=0)
    continued, race = judged_fit(small(**resumed), dataset, resume_from=state)
    assert continued.resumed_epochs == 4 and len(continued.curve) == 6
    assert race.judged == [] and continued.judged_ranks == [] and set(judged(continued.curve).values()) == {None}


@pytest.mark.parametrize(
    "knobs", [{}, {"fusion": "rerank", "rerank_top": 20}, {"score_normalisation": "minmax"}], ids=str
)
def test_repeated_priors_add_what_the_priors_add(knobs: dict[str, Any], dataset: PreparedDataset) -> None:
    priors = ScorePriors.from_dataset(dataset, small(**knobs))
    assert priors is not None
    repeated = RepeatedPriors.of(priors)
    for first, last in ((0, 60), (60, 150), (0, 60)):
        offsets = torch.tensor(dataset.offsets[first : last + 1])
        items = torch.tensor(dataset.items[int(offsets[0]) : int(offsets[-1])])
        scores = torch.randn(last - first, dataset.num_items, generator=torch.Generator().manual_seed(first))
        expected = priors.add_to(scores.clone(), items, offsets - offsets[0])
        torch.testing.assert_close(repeated.add_to(scores, items, offsets - offsets[0]), expected)

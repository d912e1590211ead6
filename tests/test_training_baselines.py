"""The baselines without a model, against dense score matrices counted by plain loops."""

import numpy as np
import pytest
import torch

from virtualmle.data.prepared import PreparedDataset
from virtualmle.models.priors import PriorTables
from virtualmle.training.baselines import TIE_WEIGHT, baseline_metrics, baseline_ranks
from virtualmle.training.evaluate import train_histories
from virtualmle.training.metrics import metrics_from_ranks
from virtualmle.training.popularity import popularity_ndcg10
from virtualmle.training.ranking import rank_targets


@pytest.fixture
def dataset(tiny_dataset_dir):
    return PreparedDataset.load(tiny_dataset_dir)


def histories_of(dataset):
    return [dataset.items[a:b].tolist() for a, b in zip(dataset.offsets, dataset.offsets[1:], strict=False)]


def transition_scores(histories, num_items):
    counts = np.zeros((num_items, num_items))
    for history in histories:
        for first, second in zip(history, history[1:], strict=False):
            counts[first, second] += 1
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return np.stack([shares[history[-1]] for history in histories])


def cooccurrence_scores(histories, num_items):
    contains = np.zeros((len(histories), num_items))
    for user, history in enumerate(histories):
        contains[user, history] = 1
    together = contains.T @ contains
    size = np.diag(together).copy()
    np.fill_diagonal(together, 0)
    cosine = together / np.sqrt(np.maximum(np.outer(size, size), 1))
    return np.stack([sum(cosine[item] for item in history[-5:]) for history in histories])


def ranks_of(scores, dataset):
    counts = np.bincount(dataset.items, minlength=dataset.num_items)
    popular = np.log1p(counts) / np.log1p(counts).max()
    dense = torch.tensor(scores + TIE_WEIGHT * popular, dtype=torch.float32)
    items, offsets = torch.tensor(np.array(dataset.items)), torch.tensor(np.array(dataset.offsets))
    targets = torch.tensor(np.array(dataset.valid_items))
    return rank_targets(lambda first, last: dense[first:last].clone(), items, offsets, targets)[0]


def test_the_baselines_equal_dense_counts_ranked_in_full(dataset):
    found = baseline_ranks(dataset, train_histories(dataset), dataset.valid_items, PriorTables(dataset))
    histories = histories_of(dataset)
    expected = {
        "transitions": ranks_of(transition_scores(histories, dataset.num_items), dataset),
        "cooccurrence": ranks_of(cooccurrence_scores(histories, dataset.num_items), dataset),
    }
    for name, ranks in expected.items():
        differing = np.flatnonzero(found[name] != ranks)
        assert len(differing) <= 2, name  # sums in another order may swap two items of equal score
        assert abs(found[name][differing] - ranks[differing]).max(initial=0) <= 1


def test_the_popularity_baseline_is_the_one_that_trials_record(dataset):
    found = baseline_metrics(dataset, train_histories(dataset), dataset.valid_items, PriorTables(dataset))
    assert list(found) == ["popularity", "transitions", "cooccurrence"]
    assert found["popularity"]["ndcg@10"] == popularity_ndcg10(dataset)
    assert set(found["transitions"]) == set(metrics_from_ranks(np.array([1], dtype=np.int32)))

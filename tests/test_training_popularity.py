"""The popularity baseline agrees with the full ranking of evaluation."""

import numpy as np
import torch

from virtualmle.data.prepared import PreparedDataset
from virtualmle.training.metrics import metrics_from_ranks
from virtualmle.training.popularity import popularity_ndcg10, popularity_ranks
from virtualmle.training.ranking import rank_targets


def test_popularity_ranks_equal_a_full_ranking_with_popularity_as_scores(tiny_dataset_dir):
    dataset = PreparedDataset.load(tiny_dataset_dir)
    counts = np.bincount(dataset.items, minlength=dataset.num_items)
    scores = torch.tensor(counts, dtype=torch.float32)
    items, offsets = torch.tensor(np.array(dataset.items)), torch.tensor(np.array(dataset.offsets))
    targets = np.array(dataset.valid_items)
    expected, ties = rank_targets(
        lambda first, last: scores.repeat(last - first, 1), items, offsets, torch.tensor(targets)
    )
    assert ties > 0  # equally popular items are the usual case
    assert popularity_ranks(counts, dataset.items, dataset.offsets, targets).tolist() == expected.tolist()
    assert popularity_ndcg10(dataset) == metrics_from_ranks(expected)["ndcg@10"]


def test_a_target_in_its_own_history_and_repeated_history_items_count_once():
    counts = np.array([5, 4, 3, 2])
    items, offsets = np.array([0, 0, 1, 2], dtype=np.int32), np.array([0, 3, 4])
    ranks = popularity_ranks(counts, items, offsets, np.array([1, 3], dtype=np.int32))
    assert ranks.tolist() == [1, 3]  # user 0: item 0 is masked once, the target itself not; user 1: item 2 is masked

"""Ranking and metrics against a simple float64 implementation, and NDCG against scikit-learn."""

import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from virtualmle.training.errors import TrainingError
from virtualmle.training.metrics import metrics_from_ranks, ndcg_per_user
from virtualmle.training.ranking import rank_targets


@st.composite
def ranking_problems(draw):
    """Scores with few distinct values (many ties), histories with repeats, targets that may be in the history."""
    num_users, num_items = draw(st.integers(1, 7)), draw(st.integers(2, 12))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([2, 5, 1000]))
    scores = generator.integers(0, levels, (num_users, num_items)).astype(np.float32) / 7
    histories = [generator.integers(0, num_items, generator.integers(0, 9)).tolist() for _ in range(num_users)]
    return scores, histories, generator.integers(0, num_items, num_users)


def plain_rank(scores, history, target):
    candidates = [i for i in range(len(scores)) if i not in set(history) or i == target]
    above = sum(float(scores[i]) > float(scores[target]) for i in candidates)
    equal = sum(float(scores[i]) == float(scores[target]) for i in candidates if i != target)
    return 1 + above + equal, equal > 0


def rank(scores, histories, targets, block_users=3):
    items = torch.tensor([i for history in histories for i in history], dtype=torch.int32)
    offsets = torch.tensor([0, *np.cumsum([len(history) for history in histories])], dtype=torch.int64)
    table = torch.tensor(np.asarray(scores, dtype=np.float32))
    return rank_targets(lambda a, b: table[a:b].clone(), items, offsets, torch.tensor(targets), block_users)


@given(ranking_problems())
@settings(max_examples=150, deadline=None)
def test_ranks_and_ties_equal_a_simple_float64_count(problem):
    scores, histories, targets = problem
    expected = [plain_rank(*row) for row in zip(scores, histories, targets, strict=True)]
    ranks, ties = rank(scores, histories, targets)
    assert ranks.dtype == np.int32
    assert ranks.tolist() == [row[0] for row in expected]
    assert ties == sum(row[1] for row in expected)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_metrics_equal_their_definitions(ranks):
    metrics = metrics_from_ranks(np.array(ranks, dtype=np.int32))
    expected = {f"recall@{k}": sum(r <= k for r in ranks) / len(ranks) for k in (5, 10)}
    for k in (5, 10):
        expected[f"ndcg@{k}"] = math.fsum(1 / math.log2(1 + r) for r in ranks if r <= k) / len(ranks)
    expected["mrr"] = math.fsum(1 / r for r in ranks) / len(ranks)
    assert metrics == pytest.approx(expected, rel=1e-12)


def test_ndcg_equals_that_of_scikit_learn_without_ties():
    from sklearn.metrics import ndcg_score  # noqa: PLC0415 (slow to load)

    generator = np.random.default_rng(0)
    scores = generator.permuted(np.tile(np.arange(50.0), (40, 1)), axis=1)
    targets = generator.integers(0, 50, 40)
    relevance = np.eye(50)[targets]
    ranks, ties = rank(scores, [[]] * 40, targets)
    assert ties == 0
    for k in (5, 10):
        assert metrics_from_ranks(ranks)[f"ndcg@{k}"] == pytest.approx(ndcg_score(relevance, scores, k=k), rel=1e-12)


def test_a_constant_scorer_ranks_the_target_last():
    ranks, ties = rank(np.zeros((2, 10)), [[1, 2, 2], []], [0, 9])
    assert ranks.tolist() == [8, 10]
    assert ties == 2


def test_per_user_ndcg_averages_to_the_metric():
    ranks = np.array([1, 2, 10, 11, 400], dtype=np.int32)
    per_user = ndcg_per_user(ranks)
    assert per_user.shape == (5,) and per_user.dtype == np.float64
    assert per_user.mean() == metrics_from_ranks(ranks)["ndcg@10"]
    assert per_user[0] == 1.0 and per_user[3] == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("item", [pytest.param(3, id="target"), pytest.param(0, id="other-candidate")])
def test_a_candidate_score_that_is_not_finite_is_an_error(bad, item):
    scores = np.ones((2, 5), dtype=np.float32)
    scores[1, item] = bad
    with pytest.raises(TrainingError, match="must be finite"):
        rank(scores, [[], [1]], [3, 3])


def test_a_masked_score_may_be_nan_or_infinite():
    scores = np.array([[math.nan, 2.0, 3.0, math.inf]], dtype=np.float32)
    ranks, ties = rank(scores, [[0, 3]], [1])
    assert (ranks.tolist(), ties) == ([2], 0)


def test_ranks_do_not_depend_on_the_block_size():
    generator = np.random.default_rng(1)
    scores = generator.normal(size=(11, 30))
    histories = [generator.integers(0, 30, 6).tolist() for _ in range(11)]
    targets = generator.integers(0, 30, 11)
    small, large = rank(scores, histories, targets, 1), rank(scores, histories, targets, 100)
    assert small[0].tolist() == large[0].tolist() and small[1] == large[1]


def test_blocks_run_in_as_many_threads_as_torch_has_and_the_setting_is_restored():
    scores, seen = torch.rand(12, 30), []
    barrier = threading.Barrier(3, timeout=30)  # breaks unless three blocks run at the same time

    def score_block(first, last):
        barrier.wait()
        seen.append((threading.get_ident(), torch.get_num_threads()))
        return scores[first:last].clone()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        no_items, offsets = torch.zeros(0, dtype=torch.int32), torch.zeros(13, dtype=torch.int64)
        ranks, _ = rank_targets(score_block, no_items, offsets, torch.arange(12), 1)
        assert torch.get_num_threads() == 3
        assert len({thread for thread, _ in seen}) == 3 and {count for _, count in seen} == {1}
        with pytest.raises(IndexError):
            rank_targets(lambda first, last: scores[99], no_items, offsets, torch.arange(12), 1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert ranks.tolist() == rank(scores, [[]] * 12, torch.arange(12).tolist())[0].tolist()

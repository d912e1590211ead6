"""Score priors against ten-line definitions over Python lists, and on Amazon Beauty against a plain script."""

import gzip
import math
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from virtualmle.data.prepare import prepare
from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.data.readers import read_log
from virtualmle.models import priors as priors_module
from virtualmle.models.config import make_config
from virtualmle.models.priors import ScorePriors, standardise
from virtualmle.training.metrics import metrics_from_ranks
from virtualmle.training.ranking import rank_targets

histories_strategy = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=8), min_size=1, max_size=8)
NUM_ITEMS = 7


def dataset_of(histories):
    return SimpleNamespace(
        items=np.concatenate(histories).astype(np.int32),
        offsets=np.cumsum([0, *map(len, histories)]),
        num_items=NUM_ITEMS,
    )


def fused(histories, scores=None, **knobs):
    """The scores that the priors counted on `histories` give to the same users."""
    dataset = dataset_of(histories)
    config = make_config("sasrec", **{"score_normalisation": "none", **knobs})
    scores = torch.zeros(len(histories), NUM_ITEMS) if scores is None else scores.clone()
    items, offsets = torch.tensor(dataset.items), torch.tensor(dataset.offsets)
    return ScorePriors.from_dataset(dataset, config).add_to(scores, items, offsets).numpy()


def plain_transitions(histories, window, normalisation):
    table = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for history in histories:
        for i, first in enumerate(history):
            for step in range(1, window + 1):
                if i + step < len(history):
                    table[first, history[i + step]] += 1 / step
    sums = np.where(table.sum(1, keepdims=True) == 0, 1, table.sum(1, keepdims=True))
    return {"row": table / sums, "sqrt": table / np.sqrt(sums), "none": table}[normalisation]


def plain_cooccurrence(histories, normalisation):
    held = np.array([[item in history for item in range(NUM_ITEMS)] for history in histories], dtype=float)
    table = held.T @ held
    counts = np.maximum(np.diag(table).copy(), 1)
    np.fill_diagonal(table, 0)
    sums = np.maximum(table.sum(1, keepdims=True), 1)
    return {"row": table / sums, "cosine": table / np.sqrt(np.outer(counts, counts)), "none": table}[normalisation]


@given(histories_strategy, st.integers(1, 4), st.sampled_from(["row", "sqrt", "none"]))
@settings(max_examples=60, deadline=None)
def test_transition_adds_the_row_of_the_last_item(histories, window, normalisation):
    table = plain_transitions(histories, window, normalisation)
    expected = [3.0 * table[history[-1]] for history in histories]
    knobs = {"transition_weight": 3.0, "transition_window": window, "transition_normalisation": normalisation}
    np.testing.assert_allclose(fused(histories, **knobs), expected, rtol=1e-5)


@given(histories_strategy, st.integers(1, 4), st.sampled_from(["cosine", "row", "none"]))
@settings(max_examples=60, deadline=None)
def test_cooccurrence_adds_the_rows_of_the_last_items(histories, window, normalisation):
    table = plain_cooccurrence(histories, normalisation)
    expected = [-2.0 * table[history[-window:]].sum(0) for history in histories]
    knobs = {"cooccurrence_weight": -2.0, "cooccurrence_window": window, "cooccurrence_normalisation": normalisation}
    np.testing.assert_allclose(fused(histories, **knobs), expected, rtol=1e-5, atol=1e-6)


def test_popularity_is_the_log_count_scaled_to_one():
    histories = [[0, 1, 1], [1, 2], [1]]
    expected = [2 * math.log1p(count) / math.log1p(4) for count in (1, 4, 1, 0, 0, 0, 0)]
    np.testing.assert_allclose(fused(histories, popularity_weight=2.0), [expected] * 3, rtol=1e-6)


def test_priors_add_up_on_top_of_standardised_scores():
    histories = [[0, 1, 2], [2, 1], [3, 0, 0]]
    scores = torch.randn(3, NUM_ITEMS, generator=torch.Generator().manual_seed(0)) * 9 + 4
    weights = {"popularity_weight": 0.5, "transition_weight": 2.0, "cooccurrence_weight": 1.0}
    alone = [fused(histories, **{knob: weight}) for knob, weight in weights.items()]
    plain = scores.double().numpy()
    standard = (plain - plain.mean(1, keepdims=True)) / plain.std(1, keepdims=True)
    both = fused(histories, scores, score_normalisation="zscore", **weights)
    np.testing.assert_allclose(both, standard + sum(alone), rtol=1e-4, atol=1e-5)
    raw = fused(histories, scores, score_normalisation="none", **weights)
    np.testing.assert_allclose(raw, plain + sum(alone), rtol=1e-5)


def test_without_a_weight_there_are_no_priors_whatever_the_other_knobs_say():
    config = make_config("hstu", score_normalisation="zscore", transition_window=5, cooccurrence_window=2)
    assert ScorePriors.from_dataset(dataset_of([[0, 1]]), config) is None


def test_a_model_that_scores_all_items_alike_keeps_finite_scores():
    scores = torch.full((2, 9), 3.0)
    standardise(scores)
    assert scores.eq(0).all()


def test_merging_in_several_rounds_counts_the_same(monkeypatch):
    generator = np.random.default_rng(0)
    histories = [generator.integers(0, NUM_ITEMS, 12).tolist() for _ in range(20)]
    knobs = {"transition_weight": 1.0, "transition_window": 6, "cooccurrence_weight": 1.0}
    at_once = fused(histories, **knobs)
    monkeypatch.setattr(priors_module, "MERGE_ABOVE", 10)
    np.testing.assert_allclose(fused(histories, **knobs), at_once, rtol=1e-6)


def test_priors_read_train_events_only(tiny_dataset_dir):
    dataset = PreparedDataset.load(tiny_dataset_dir)
    visible = SimpleNamespace(items=dataset.items, offsets=dataset.offsets, num_items=dataset.num_items)
    config = make_config("sasrec", popularity_weight=1.0, transition_weight=1.0, cooccurrence_weight=1.0)
    whole, train = ScorePriors.from_dataset(dataset, config), ScorePriors.from_dataset(visible, config)
    assert torch.equal(whole.transition.values, train.transition.values)
    assert torch.equal(whole.popularity, train.popularity)


def plain_beauty(path: Path):
    """NDCG@10 and Recall@10 of the bare transition table on validation, straight from the log, in plain Python."""
    sequences = defaultdict(list)
    with gzip.open(path, "rt") as log:
        for line in log:
            user, item, _ = map(int, line.split())
            sequences[user].append(item)
    table, catalogue = defaultdict(Counter), {item for sequence in sequences.values() for item in sequence}
    kept = [sequence[-50:] for sequence in sequences.values()]
    for sequence in kept:
        for first, second in zip(sequence[:-3], sequence[1:-2], strict=True):
            table[first][second] += 1
    gains = []
    for sequence in kept:
        history, target, row = set(sequence[:-2]), sequence[-2], table[sequence[-3]]
        candidates = {item: count for item, count in row.items() if item not in history or item == target}
        own = candidates.pop(target, 0)
        above = sum(count > own for count in candidates.values())
        equal = sum(count == own for count in candidates.values())
        if own == 0:  # ties with everything that never followed the last item
            equal = len(catalogue) - len(history - {target}) - len(candidates) - 1
        gains.append(1 / math.log2(2 + above + equal) if above + equal < 10 else 0.0)
    return np.mean(gains), np.mean(np.array(gains) > 0)


def test_the_bare_transition_table_on_beauty_scores_what_a_plain_script_says(shared_data, tmp_path):
    key = X25519PrivateKey.generate().public_key().public_bytes_raw()
    prepare(read_log(shared_data / "beauty.tsv.gz"), "beauty", tmp_path / "beauty", PrepareOptions(), key)
    dataset = PreparedDataset.load(tmp_path / "beauty")
    items, offsets = torch.tensor(np.array(dataset.items)), torch.tensor(np.array(dataset.offsets))
    priors = ScorePriors.from_dataset(dataset, make_config("sasrec", transition_weight=1.0, score_normalisation="none"))

    def score_block(first, last):
        bounds = offsets[first : last + 1]
        scores = torch.zeros(last - first, dataset.num_items)
        return priors.add_to(scores, items[int(bounds[0]) : int(bounds[-1])], bounds - bounds[0])

    ranks, _ = rank_targets(score_block, items, offsets, torch.tensor(np.array(dataset.valid_items)))
    metrics = metrics_from_ranks(ranks)
    ndcg, recall = plain_beauty(shared_data / "beauty.tsv.gz")
    assert metrics["ndcg@10"] == pytest.approx(ndcg, rel=1e-9)
    assert metrics["recall@10"] == pytest.approx(recall, rel=1e-9)
    assert metrics["ndcg@10"] == pytest.approx(0.0438277, abs=1e-6)

"""Score priors against short definitions over Python lists, and on Amazon Beauty against a plain Python script."""

import gzip
import itertools
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
from virtualmle.models import prior_tables
from virtualmle.models.config import make_config, train_hash
from virtualmle.models.priors import ScorePriors, normalise
from virtualmle.training.metrics import metrics_from_ranks
from virtualmle.training.ranking import rank_targets

histories_strategy = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=8), min_size=1, max_size=8)
NUM_ITEMS = 7


def dataset_of(histories):
    return SimpleNamespace(
        items=np.concatenate(histories).astype(np.int32),
        timestamps=np.arange(sum(map(len, histories))),
        offsets=np.cumsum([0, *map(len, histories)]),
        num_items=NUM_ITEMS,
    )


def fused(histories, scores=None, **knobs):
    """`scores` (default: zeros) of the users of `histories`, with priors counted on `histories` added."""
    dataset = dataset_of(histories)
    config = make_config("sasrec", **{"score_normalisation": "none", **knobs})
    scores = torch.zeros(len(histories), NUM_ITEMS) if scores is None else scores.clone()
    items, offsets = torch.tensor(dataset.items), torch.tensor(dataset.offsets)
    return ScorePriors.from_dataset(dataset, config).add_to(scores, items, offsets).numpy()


def expected_transitions(histories, config):
    table = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for history in histories:
        for i, first in enumerate(history):
            for step, second in enumerate(history[i + 1 : i + 1 + config.transition_window], 1):
                if config.transition_direction in ("forward", "both"):
                    table[first, second] += step**-config.transition_decay
                if config.transition_direction in ("backward", "both"):
                    table[second, first] += step**-config.transition_decay
    return strongest(normalised(table, config.transition_normalisation), config.transition_neighbours)


def expected_cooccurrence(histories, config):
    contained = np.array([[item in history for item in range(NUM_ITEMS)] for history in histories], dtype=float)
    counts, table = np.maximum(contained.sum(0), 1), contained.T @ contained
    if config.cooccurrence_span:
        table = np.zeros((NUM_ITEMS, NUM_ITEMS))
        for history in histories:
            for i, j in itertools.permutations(range(len(history)), 2):
                table[history[i], history[j]] += abs(i - j) <= config.cooccurrence_span
    np.fill_diagonal(table, 0)
    if config.cooccurrence_normalisation == "cosine":
        table = table / np.sqrt(np.outer(counts, counts))
    else:
        table = normalised(table, config.cooccurrence_normalisation)
    return strongest(table, config.cooccurrence_neighbours)


def normalised(table, normalisation):
    rows, columns = (np.where((total := table.sum(axis)) == 0, 1, total) for axis in (1, 0))
    divisors = {"row": rows[:, None], "sqrt": np.sqrt(rows)[:, None], "cosine": np.sqrt(np.outer(rows, columns))}
    return table / divisors.get(normalisation, 1)


def strongest(table, neighbours):
    if neighbours:
        for row in table:
            row[np.argsort(-row.astype(np.float32), kind="stable")[neighbours:]] = 0
    return table


def expected_prior(histories, table, num_recent, recency):
    return [
        sum(recency**age * table[item] for age, item in enumerate(history[::-1][:num_recent])) for history in histories
    ]


@given(
    histories_strategy,
    st.fixed_dictionaries({
        "transition_window": st.integers(1, 4),
        "transition_decay": st.sampled_from([0.0, 1.0, 2.5]),
        "transition_direction": st.sampled_from(["forward", "backward", "both"]),
        "transition_recent": st.integers(1, 4),
        "transition_recency": st.sampled_from([0.3, 1.0]),
        "transition_neighbours": st.integers(0, 3),
        "transition_normalisation": st.sampled_from(["row", "sqrt", "cosine", "none"]),
    }),
)
@settings(max_examples=150, deadline=None)
def test_the_transition_prior_adds_the_rows_of_the_latest_items(histories, knobs):
    config = make_config("sasrec", **knobs)
    table = expected_transitions(histories, config)
    expected = expected_prior(histories, table, config.transition_recent, config.transition_recency)
    scores = fused(histories, transition_weight=3.0, **knobs)
    np.testing.assert_allclose(scores, 3 * np.array(expected), rtol=1e-4, atol=1e-6)


@given(
    histories_strategy,
    st.fixed_dictionaries({
        "cooccurrence_window": st.integers(1, 4),
        "cooccurrence_recency": st.sampled_from([0.3, 1.0]),
        "cooccurrence_span": st.integers(0, 3),
        "cooccurrence_neighbours": st.integers(0, 3),
        "cooccurrence_normalisation": st.sampled_from(["cosine", "row", "sqrt", "none"]),
    }),
)
@settings(max_examples=150, deadline=None)
def test_the_cooccurrence_prior_adds_the_rows_of_the_latest_items(histories, knobs):
    config = make_config("sasrec", **knobs)
    table = expected_cooccurrence(histories, config)
    expected = expected_prior(histories, table, config.cooccurrence_window, config.cooccurrence_recency)
    scores = fused(histories, cooccurrence_weight=-2.0, **knobs)
    np.testing.assert_allclose(scores, -2 * np.array(expected), rtol=1e-4, atol=1e-6)


def test_a_popularity_window_counts_only_the_latest_events():
    dataset = dataset_of([[0, 1], [2, 2]])
    dataset.timestamps = np.array([5, 40, 30, 10])
    config = make_config("sasrec", popularity_weight=1.0, popularity_window=0.5)
    expected = np.zeros(NUM_ITEMS)
    expected[[1, 2]] = 1.0  # the events at 40 and 30
    np.testing.assert_allclose(ScorePriors.from_dataset(dataset, config).popularity.numpy(), expected)


@given(histories_strategy, st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_reranking_orders_the_models_best_items_and_keeps_the_others_below_in_the_models_order(histories, top, seed):
    scores = torch.randn(len(histories), NUM_ITEMS, generator=torch.Generator().manual_seed(seed))
    knobs = {"transition_weight": 5.0, "cooccurrence_weight": -3.0, "score_normalisation": "none"}
    blended = fused(histories, scores, **knobs)
    reranked = fused(histories, scores, fusion="rerank", rerank_top=top, **knobs)
    for history, model, blend, result in zip(histories, scores.tolist(), blended, reranked, strict=True):
        candidates = [item for item in range(NUM_ITEMS) if item not in history]
        best = set(sorted(candidates, key=lambda item: -model[item])[:top]) if top < NUM_ITEMS else range(NUM_ITEMS)
        if not candidates and top < NUM_ITEMS:
            continue  # nothing to recommend
        inside = sorted(best, key=lambda item: -blend[item])
        outside = sorted(set(range(NUM_ITEMS)) - set(best), key=lambda item: -model[item])
        assert np.argsort(-result, kind="stable").tolist() == [*inside, *outside]


@pytest.mark.parametrize("kind", ["zscore", "minmax", "softmax", "none"])
def test_scores_are_normalised_per_user(kind):
    scores = torch.randn(4, 9, generator=torch.Generator().manual_seed(1)) * 3 + 1
    plain = scores.double().numpy()
    expected = {
        "zscore": (plain - plain.mean(1, keepdims=True)) / plain.std(1, keepdims=True),
        "minmax": (plain - plain.min(1, keepdims=True)) / np.ptp(plain, axis=1, keepdims=True),
        "softmax": np.exp(plain) / np.exp(plain).sum(1, keepdims=True),
        "none": plain,
    }[kind]
    normalise(scores, kind)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_scoring_knobs_do_not_change_the_identity_of_the_training_run():
    scoring = {
        "score_normalisation": "none", "fusion": "rerank", "popularity_weight": 1.0, "transition_recent": 3,
        "cooccurrence_span": 2, "rerank_top": 20, "transition_direction": "both",
    }
    assert train_hash(make_config("hstu", **scoring)) == train_hash(make_config("hstu"))


def test_popularity_is_the_log_count_divided_by_its_maximum():
    histories = [[0, 1, 1], [1, 2], [1]]
    expected = [2 * math.log1p(count) / math.log1p(4) for count in (1, 4, 1, 0, 0, 0, 0)]
    np.testing.assert_allclose(fused(histories, popularity_weight=2.0), [expected] * 3, rtol=1e-6)


def test_several_priors_are_added_to_the_normalised_scores():
    histories = [[0, 1, 2], [2, 1], [3, 0, 0]]
    scores = torch.randn(3, NUM_ITEMS, generator=torch.Generator().manual_seed(0)) * 9 + 4
    weights = {"popularity_weight": 0.5, "transition_weight": 2.0, "cooccurrence_weight": 1.0}
    priors = sum(fused(histories, **{knob: weight}) for knob, weight in weights.items())
    raw = scores.double().numpy()
    standardised = (raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True)
    on_zscores = fused(histories, scores, score_normalisation="zscore", **weights)
    np.testing.assert_allclose(on_zscores, standardised + priors, rtol=1e-4, atol=1e-5)
    on_raw_scores = fused(histories, scores, score_normalisation="none", **weights)
    np.testing.assert_allclose(on_raw_scores, raw + priors, rtol=1e-5)


def test_without_a_weight_there_are_no_priors_whatever_the_values_of_the_other_knobs():
    config = make_config("hstu", score_normalisation="zscore", transition_window=5, cooccurrence_window=2)
    assert ScorePriors.from_dataset(dataset_of([[0, 1]]), config) is None


@pytest.mark.parametrize("kind", ["zscore", "minmax"])
def test_equal_scores_are_normalised_to_zero(kind):
    scores = torch.full((2, 9), 3.0)
    normalise(scores, kind)
    assert scores.eq(0).all()


def test_merging_pairs_in_several_rounds_gives_the_same_counts(monkeypatch):
    generator = np.random.default_rng(0)
    histories = [generator.integers(0, NUM_ITEMS, 12).tolist() for _ in range(20)]
    knobs = {"transition_weight": 1.0, "transition_window": 6, "cooccurrence_weight": 1.0}
    at_once = fused(histories, **knobs)
    monkeypatch.setattr(prior_tables, "MERGE_ABOVE", 10)
    np.testing.assert_allclose(fused(histories, **knobs), at_once, rtol=1e-6)


def test_priors_read_only_train_events(tiny_dataset_dir):
    dataset = PreparedDataset.load(tiny_dataset_dir)
    train_part = SimpleNamespace(
        items=dataset.items, offsets=dataset.offsets, timestamps=dataset.timestamps, num_items=dataset.num_items
    )
    config = make_config("sasrec", popularity_weight=1.0, transition_weight=1.0, cooccurrence_weight=1.0)
    priors, from_train = ScorePriors.from_dataset(dataset, config), ScorePriors.from_dataset(train_part, config)
    assert torch.equal(priors.transition.values, from_train.transition.values)
    assert torch.equal(priors.popularity, from_train.popularity)


def beauty_by_script(path: Path):
    """Validation NDCG@10 and Recall@10 of the transition table alone, computed from the log in plain Python."""
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


def test_the_transition_table_alone_scores_on_beauty_as_in_a_plain_script(shared_data, tmp_path):
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
    ndcg, recall = beauty_by_script(shared_data / "beauty.tsv.gz")
    assert metrics["ndcg@10"] == pytest.approx(ndcg, rel=1e-9)
    assert metrics["recall@10"] == pytest.approx(recall, rel=1e-9)
    assert metrics["ndcg@10"] == pytest.approx(0.0438277, abs=1e-6)

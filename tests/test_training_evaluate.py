"""Batched evaluation of real models against a reference that scores one user at a time."""

import numpy as np
import pytest
import torch

from virtualmle.data.prepared import PreparedDataset
from virtualmle.models.batch import make_batch
from virtualmle.models.build import build_model
from virtualmle.models.config import make_config
from virtualmle.models.priors import ScorePriors
from virtualmle.training import catalogue_scores
from virtualmle.training import evaluate as evaluate_module
from virtualmle.training.catalogue_scores import ItemFactors
from virtualmle.training.errors import TrainingError
from virtualmle.training.evaluate import (
    Histories,
    encode_users,
    evaluate_targets,
    evaluate_validation,
    train_histories,
    train_sample_ndcg,
)
from virtualmle.training.metrics import metrics_from_ranks


@pytest.fixture(scope="module")
def dataset(tiny_dataset_dir):
    return PreparedDataset.load(tiny_dataset_dir)


def small(backbone="sasrec", **knobs):
    return make_config(backbone, **{"hidden_dim": 16, "max_len": 4, **knobs})


def plain_ranks(model, config, dataset):
    ranks = []
    for user in range(dataset.num_users):
        history = dataset.items[dataset.offsets[user] : dataset.offsets[user + 1]].tolist()
        recent = torch.tensor(history[-config.max_len :])
        with torch.no_grad():
            states = model.eval()(make_batch(recent, torch.tensor([0, len(recent)]), config))
            scores = model.score(states[-1:])[0].tolist()
        target = int(dataset.valid_items[user])
        others = set(range(dataset.num_items)) - set(history) - {target}
        ranks.append(1 + sum(scores[item] >= scores[target] for item in others))
    return ranks


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_ranks_equal_those_of_scoring_each_user_alone(backbone, dataset):
    config = small(backbone)
    model = build_model(config, dataset.num_items, seed=3)
    ranks, _ = evaluate_validation(model, dataset, config, None)
    differing = np.flatnonzero(ranks != np.array(plain_ranks(model, config, dataset)))
    assert len(differing) <= 1  # two scores that differ by rounding only may swap ranks


def test_ranks_do_not_depend_on_how_users_are_blocked(dataset, monkeypatch):
    config = small()
    model = build_model(config, dataset.num_items, seed=3)
    at_once, _ = evaluate_validation(model, dataset, config, None)
    monkeypatch.setitem(evaluate_module.ENCODE_USERS, "cpu", 7)
    monkeypatch.setitem(catalogue_scores.BLOCK_SCORES, "cpu", 5 * dataset.num_items)
    in_blocks, _ = evaluate_validation(model, dataset, config, None)
    assert np.count_nonzero(at_once != in_blocks) <= 1


def test_priors_improve_the_ranks_of_an_untrained_model(dataset):
    config = small(transition_weight=8.0, cooccurrence_weight=4.0, popularity_weight=1.0)
    model = build_model(config, dataset.num_items, seed=3)
    bare, _ = evaluate_validation(model, dataset, config, None)
    fused, _ = evaluate_validation(model, dataset, config, ScorePriors.from_dataset(dataset, config))
    assert metrics_from_ranks(fused)["ndcg@10"] > 1.5 * metrics_from_ranks(bare)["ndcg@10"]


def test_events_before_max_len_are_masked_although_the_model_does_not_read_them(dataset):
    config = small(max_len=2)
    model = build_model(config, dataset.num_items, seed=3)
    everything = np.arange(dataset.num_items, dtype=np.int32)
    bounds = np.array([0, dataset.num_items, dataset.num_items + 2])
    histories = Histories(np.concatenate((everything, everything[:2])), bounds)
    ranks, ties = evaluate_targets(model, config, histories, np.array([5, 5], np.int32), None, dataset.num_items)
    assert ranks[0] == 1 and ranks[1] <= dataset.num_items - 2 and ties == 0


def test_a_model_for_another_catalogue_is_refused(dataset):
    config = small()
    with pytest.raises(TrainingError, match="another dataset"):
        evaluate_validation(build_model(config, 7, seed=0), dataset, config, None)


def test_an_empty_history_is_refused(dataset):
    config = small()
    model = build_model(config, dataset.num_items, seed=0)
    histories = Histories(np.array([1], np.int32), np.array([0, 1, 1]))
    with pytest.raises(TrainingError, match="at least one event"):
        evaluate_targets(model, config, histories, np.array([2, 3], np.int32), None, dataset.num_items)


def test_a_model_that_scores_nan_fails_instead_of_ranking(dataset):
    config = small()
    model = build_model(config, dataset.num_items, seed=0)
    with torch.no_grad():
        model.item_table()[3] = torch.nan
    with pytest.raises(TrainingError, match="must be finite"):
        evaluate_validation(model, dataset, config, None)


def test_the_train_sample_ranks_the_last_train_items_after_the_earlier_events(dataset, monkeypatch):
    config = small()
    model = build_model(config, dataset.num_items, seed=3)
    ends = dataset.offsets[1:]
    keep = np.ones(len(dataset.items), bool)
    keep[ends - 1] = False
    shorter = dataset.offsets - np.arange(len(dataset.offsets))
    histories = Histories(dataset.items[keep], shorter)
    ranks, _ = evaluate_targets(model, config, histories, dataset.items[ends - 1], None, dataset.num_items)
    assert train_sample_ndcg(model, dataset, config) == pytest.approx(metrics_from_ranks(ranks)["ndcg@10"])
    monkeypatch.setattr(evaluate_module, "TRAIN_SAMPLE", 20)
    assert train_sample_ndcg(model, dataset, config) == train_sample_ndcg(model, dataset, config)


def test_precomputed_states_give_the_same_ranks_as_encoding_again(dataset):
    config = small(transition_weight=2.0)
    model = build_model(config, dataset.num_items, seed=3)
    states = encode_users(model, config, train_histories(dataset))
    arguments = (train_histories(dataset), dataset.valid_items, ScorePriors.from_dataset(dataset, config))
    again, _ = evaluate_targets(model, config, *arguments, dataset.num_items)
    precomputed, _ = evaluate_targets(model, config, *arguments, dataset.num_items, states=states)
    np.testing.assert_array_equal(precomputed, again)


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_a_time_bias_makes_states_depend_on_the_times_of_the_history(dataset, backbone):
    config = make_config(backbone, hidden_dim=16, max_len=6, time_bias=True)
    model = build_model(config, dataset.num_items, seed=3)
    with torch.no_grad():
        for name, table in model.named_parameters():
            if name.endswith("time_table"):
                table.copy_(torch.arange(128.0) / 4)
    histories = train_histories(dataset)
    early = encode_users(model, config, histories)
    late = encode_users(model, config, histories._replace(times=histories.times * 1000))
    assert not torch.allclose(early, late)


@pytest.mark.parametrize("scores", ["dot", "cosine"])
def test_standardised_states_give_the_z_scores_of_the_whole_catalogue(dataset, scores):
    config = small(scores=scores, temperature=0.3)
    model = build_model(config, dataset.num_items, seed=3).double()
    with torch.no_grad():
        model.item_table().add_(0.7)  # a mean far from zero
    states = torch.randn(9, 16, dtype=torch.float64)
    raw = model.score(states)
    expected = (raw - raw.mean(1, keepdim=True)) / raw.std(1, unbiased=False, keepdim=True)
    factors = ItemFactors(model.items.catalogue())
    scaled = factors.standardised(model.items.scaled(states))
    torch.testing.assert_close(scaled @ factors.centred.T, expected)

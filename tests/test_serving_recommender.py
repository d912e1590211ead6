"""An exported model in use: ranks equal to those of evaluation, exact top-k, ids, popularity, candidates, tables."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from virtualmle.data.errors import ExportError
from virtualmle.data.prepared import PreparedDataset
from virtualmle.models.build import build_model
from virtualmle.models.config import make_config
from virtualmle.models.priors import ScorePriors
from virtualmle.serving import Recommender
from virtualmle.serving.artifact import Export, write_export
from virtualmle.serving.assembly import assemble
from virtualmle.serving.layout import TrainedModel
from virtualmle.training.checkpoint import save_checkpoint
from virtualmle.training.evaluate import Histories, evaluate_targets, train_histories
from virtualmle.training.spec import CHECKPOINT

PRIORS = {"transition_weight": 3.0, "cooccurrence_weight": 2.0, "popularity_weight": 0.5}
CASES = {
    "sasrec": ("sasrec", {}),
    "hstu": ("hstu", {}),
    "sasrec with priors": ("sasrec", PRIORS),
    "hstu with priors": ("hstu", {**PRIORS, "score_normalisation": "minmax"}),
    "rerank": ("sasrec", {**PRIORS, "fusion": "rerank", "rerank_top": 12}),
    "cosine scores": ("hstu", {**PRIORS, "scores": "cosine", "temperature": 0.1, "tie_embeddings": False}),
    "time bias": ("hstu", {"time_bias": True, "transition_weight": 2.0}),
}


@pytest.fixture(scope="module")
def dataset(tiny_dataset_dir):
    return PreparedDataset.load(tiny_dataset_dir)


def export(dataset_dir: Path, folder: Path, *members, **scoring) -> Path:
    """An export of untrained models, given as (backbone, knobs); with several, an ensemble."""
    num_items = PreparedDataset.load(dataset_dir).num_items
    models = []
    for number, (backbone, knobs) in enumerate(members):
        config = make_config(backbone, **{"hidden_dim": 16, "max_len": 6, **knobs})
        model = build_model(config, num_items, seed=number)
        with torch.no_grad():
            for name, table in model.named_parameters():
                if name.endswith("time_table"):  # these start at nearly zero
                    table.copy_(torch.arange(len(table[0])) / 4)
        directory = folder / f"t{number:03d}"
        directory.mkdir()
        save_checkpoint(directory / CHECKPOINT, model, config, num_items)
        models.append(TrainedModel(f"toy-1/t{number:03d}", directory))
        scoring = scoring or knobs
    config = make_config(members[0][0], **{name: value for name, value in scoring.items()})
    write_export(folder / "export", assemble(models, config, dataset_dir, "# Card\n"))
    return folder / "export"


def before_test(dataset: PreparedDataset) -> Histories:
    items = np.insert(dataset.items, dataset.offsets[1:], dataset.valid_items)
    times = np.insert(dataset.timestamps, dataset.offsets[1:], dataset.valid_timestamps)
    return Histories(items, dataset.offsets + np.arange(dataset.num_users + 1), times)


@pytest.mark.parametrize("case", CASES)
def test_ranks_equal_those_of_evaluation_and_the_top_items_are_those_of_these_ranks(
    case, dataset, tiny_dataset_dir, tmp_path
):
    backbone, knobs = CASES[case]
    recommender = Recommender.load(export(tiny_dataset_dir, tmp_path, (backbone, knobs)), "cpu")
    (member,) = recommender.export.members
    priors = ScorePriors.from_dataset(dataset, member.config)
    assert (priors is None) == (recommender.export.priors is None)
    for histories in (train_histories(dataset), before_test(dataset)):
        targets = dataset.valid_items
        expected = evaluate_targets(member.model, member.config, histories, targets, priors, dataset.num_items)
        found = recommender.ranks(histories.items, histories.offsets, targets, histories.times)
        np.testing.assert_array_equal(found[0], expected[0])
        assert found[1] == expected[1]
        numbers, scores = recommender.top(histories.items, histories.offsets, histories.times, k=15)
        assert (np.diff(scores, axis=1) <= 0).all()
        unseen = [target not in of_user(histories, user) for user, target in enumerate(targets)]
        for user in np.flatnonzero((found[0] <= 15) & unseen):
            assert numbers[user, found[0][user] - 1] == targets[user]
        assert not any(np.isin(row, of_user(histories, user)).any() for user, row in enumerate(numbers))


def of_user(histories: Histories, user: int) -> np.ndarray:
    return histories.items[histories.offsets[user] : histories.offsets[user + 1]]

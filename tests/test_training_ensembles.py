"""Ensembles in real trial directories, against their definition in numpy with float64."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from virtualmle.data.hashing import sha256_of
from virtualmle.data.prepared import PreparedDataset
from virtualmle.models.config import TrialConfig, make_config
from virtualmle.models.priors import ScorePriors
from virtualmle.serving import Recommender
from virtualmle.serving.artifact import write_export
from virtualmle.serving.assembly import TrainedModel, assemble
from virtualmle.training import catalogue_scores
from virtualmle.training.checkpoint import load_checkpoint
from virtualmle.training.ensembles import load_members, rank_ensemble
from virtualmle.training.errors import TrainingError
from virtualmle.training.evaluate import encode_users, train_histories
from virtualmle.training.metrics import best_setting, metrics_from_ranks
from virtualmle.training.spec import (
    CHECKPOINT,
    LOG,
    RANKS,
    RESULT,
    SPEC,
    SWEPT_RANKS,
    USERS,
    NamedModel,
    TrialSpec,
    read_result,
    read_spec,
    write_model,
)
from virtualmle.training.worker import main

SMALL = {"hidden_dim": 16, "num_negatives": 20, "batch_size": 32, "epochs": 1, "lr": 0.01}
PRIORS = {"transition_weight": 4.0, "popularity_weight": 0.5, "cooccurrence_weight": 1.0, "cooccurrence_window": 3}
TRAINED = {
    "t001": ("sasrec", {"scores": "cosine", "temperature": 0.1}, 7),
    "t002": ("hstu", {"hidden_dim": 24}, 7),
    "t003": ("sasrec", {"transition_weight": 2.0}, 8),
}


def write_trial(directory, dataset, config, seed=7, **fields):
    directory.mkdir()
    spec = TrialSpec(session="s", trial=directory.name, dataset_dir=str(dataset), config=config.model_dump(), seed=seed,
                     threads=1, device="cpu", **fields)  # fmt: skip
    write_model(directory / SPEC, spec)
    return directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_dataset_dir):
    """Three trained trials: two backbones, two widths, two seeds, dot and cosine scores."""
    folder = tmp_path_factory.mktemp("trained")
    for name, (backbone, knobs, seed) in TRAINED.items():
        config = make_config(backbone, **{**SMALL, **knobs})
        main(write_trial(folder / name, tiny_dataset_dir, config, seed))
    restore_torch()
    return folder


@pytest.fixture
def members(trained, tmp_path):
    """The three trained trials as members, copied, so that a test may damage them."""
    shutil.copytree(trained, tmp_path / "trained")
    return [member(tmp_path / "trained" / name) for name in TRAINED]


def member(directory):
    files = read_result(directory).files
    return NamedModel(name=directory.name, directory=str(directory), files=files)


def restore_torch():
    torch.set_deterministic_debug_mode("default")


@pytest.fixture(autouse=True)
def restored_torch_settings():
    threads = torch.get_num_threads()
    yield
    restore_torch()
    torch.set_num_threads(threads)


def ensemble(name, folder, dataset, members, settings=(), **knobs):
    """Run an ensemble in this process; returns its directory and its result."""
    config = make_config("sasrec", ensemble=[member.name for member in members], **knobs)
    directory = write_trial(folder / name, dataset, config, members=members, settings=list(settings))
    main(directory)
    return directory, read_result(directory)


def mean_of_z_scores(members, dataset):
    """The definition: each member's scores, standardised per user, in float64; (num_users, num_items)."""
    total = np.zeros((dataset.num_users, dataset.num_items))
    for each in members:
        model, config = load_checkpoint(f"{each.directory}/{CHECKPOINT}")
        with torch.inference_mode():
            states = encode_users(model, config, train_histories(dataset))
            users, items = model.items.scaled(states).double().numpy(), model.items.catalogue().double().numpy()
        scores = users @ items.T
        total += (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True) / len(members)
    return total


def ranks_of(scores, dataset):
    """Full ranking in numpy: history masked except the target, ties against the model."""
    ranks = []
    for user, target in enumerate(dataset.valid_items):
        row = scores[user].copy()
        own = row[target]
        row[dataset.items[dataset.offsets[user] : dataset.offsets[user + 1]]] = -np.inf
        row[target] = -np.inf
        ranks.append(1 + (row >= own).sum())
    return np.array(ranks)


def test_an_ensemble_ranks_by_the_mean_of_its_members_standardised_scores(members, tiny_dataset_dir, tmp_path):
    dataset = PreparedDataset.load(tiny_dataset_dir)
    directory, result = ensemble("mean", tmp_path, tiny_dataset_dir, members)
    expected = ranks_of(mean_of_z_scores(members, dataset), dataset)
    assert (np.load(directory / RANKS) == expected).all()
    assert result.metrics == pytest.approx(metrics_from_ranks(expected))
    assert result.model_ndcg10 == result.metrics["ndcg@10"]
    single = [read_result(tmp_path / "trained" / name) for name in TRAINED]
    assert result.parameters == sum(one.parameters for one in single)
    assert result.train_seconds == 0 and result.curve == [] and result.device == "cpu"
    written = {path.name for path in directory.iterdir()}
    assert written == {SPEC, RESULT, RANKS, "progress.json"} and set(result.files) == {RANKS}
    assert all(result.metrics != one.metrics for one in single)


@pytest.mark.parametrize("extra", [{}, {"score_normalisation": "none"}, {"fusion": "rerank", "rerank_top": 15}])
def test_its_own_priors_are_added_to_the_mean_and_those_of_its_members_are_not(
    members, tiny_dataset_dir, tmp_path, extra
):
    dataset = PreparedDataset.load(tiny_dataset_dir)
    directory, result = ensemble("priors", tmp_path, tiny_dataset_dir, members, **PRIORS, **extra)
    scores = torch.tensor(mean_of_z_scores(members, dataset), dtype=torch.float32)
    priors = ScorePriors.from_dataset(dataset, make_config("sasrec", **PRIORS, **extra))
    priors.add_to(scores, torch.tensor(np.asarray(dataset.items)), torch.tensor(np.asarray(dataset.offsets)))
    expected = ranks_of(scores.double().numpy(), dataset)
    assert (np.load(directory / RANKS) == expected).mean() > 0.98  # float32: a near tie may fall either way
    assert result.metrics["ndcg@10"] == pytest.approx(metrics_from_ranks(expected)["ndcg@10"], abs=2e-3)
    bare = ranks_of(mean_of_z_scores(members, dataset), dataset)
    assert result.model_ndcg10 == pytest.approx(metrics_from_ranks(bare)["ndcg@10"])


def test_blocks_of_users_and_missing_states_do_not_change_the_ranks(
    members, tiny_dataset_dir, tmp_path, monkeypatch
):
    first, _ = ensemble("whole", tmp_path, tiny_dataset_dir, members, **PRIORS)
    monkeypatch.setitem(catalogue_scores.BLOCK_SCORES, "cpu", 7 * 60)
    (tmp_path / "trained" / "t001" / USERS).unlink()
    (tmp_path / "trained" / "t002" / USERS).write_bytes(b"damaged")
    second, result = ensemble("blocks", tmp_path, tiny_dataset_dir, members, **PRIORS)
    assert result.status == "finished"
    assert (np.load(first / RANKS) == np.load(second / RANKS)).all()


def test_a_sweep_over_an_ensemble_equals_ensembles_with_each_setting(members, tiny_dataset_dir, tmp_path):
    settings = [{"transition_weight": weight, "popularity_weight": weight / 80} for weight in (0.0, 8.0)]
    alone = [ensemble(f"alone{n}", tmp_path, tiny_dataset_dir, members, **one)[0] for n, one in enumerate(settings)]
    directory, result = ensemble("sweep", tmp_path, tiny_dataset_dir, members, settings)
    swept = np.load(directory / SWEPT_RANKS)
    ranks = [np.load(one / RANKS) for one in alone]
    assert all((row == np.minimum(own, 255)).all() for row, own in zip(swept, ranks, strict=True))
    assert result.best_setting == best_setting(swept)
    assert (np.load(directory / RANKS) == ranks[result.best_setting]).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing; restore it, or leave t002 out"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is not the checkpoint that t002 wrote"),
        (lambda path: shutil.copy(path.parents[1] / "t001" / CHECKPOINT, path), "is not the checkpoint"),
    ],
)
def test_a_member_whose_checkpoint_is_lost_or_replaced_is_a_failure_that_names_it(
    members, tiny_dataset_dir, tmp_path, damage, message
):
    damage(tmp_path / "trained" / "t002" / CHECKPOINT)
    directory, result = ensemble("damaged", tmp_path, tiny_dataset_dir, members)
    assert result.status == "failed" and message in result.cause and "t002" in result.cause
    assert not (directory / RANKS).exists()


def test_a_spec_without_the_members_of_its_configuration_is_refused(members, tiny_dataset_dir, tmp_path):
    config = make_config("sasrec", ensemble=["t001", "t002", "t003"])
    directory = write_trial(tmp_path / "few", tiny_dataset_dir, config, members=members[:2])
    main(directory)
    assert "lacks members of its ensemble" in read_result(directory).cause


def test_members_of_another_catalogue_are_refused(members, tiny_dataset_dir):
    dataset = PreparedDataset.load(tiny_dataset_dir)
    with pytest.raises(TrainingError, match="another dataset"):
        rank_ensemble(
            load_members(members, "cpu"), train_histories(dataset), dataset.valid_items, [None], dataset.num_items + 1
        )


def test_two_equal_members_would_rank_as_one_does(members, tiny_dataset_dir):
    dataset = PreparedDataset.load(tiny_dataset_dir)
    loaded = load_members([members[0], members[0]], "cpu")
    [(ranks, _)] = rank_ensemble(loaded, train_histories(dataset), dataset.valid_items, [None], dataset.num_items)
    assert (ranks == np.load(f"{members[0].directory}/{RANKS}")).all()


def test_an_export_of_the_members_ranks_as_the_ensemble_does(members, tiny_dataset_dir, tmp_path):
    dataset = PreparedDataset.load(tiny_dataset_dir)
    directory, _ = ensemble("exported", tmp_path, tiny_dataset_dir, members, **PRIORS)
    models = [TrainedModel(f"s/{member.name}", Path(member.directory)) for member in members]
    config = TrialConfig(**read_spec(directory).config)
    write_export(tmp_path / "export", assemble(models, config, tiny_dataset_dir, "# Card\n"))
    histories = train_histories(dataset)
    served = Recommender.load(tmp_path / "export", "cpu")
    found, _ = served.ranks(histories.items, histories.offsets, dataset.valid_items, histories.times)
    assert (found == np.load(directory / RANKS)).all() and len(served.export.members) == 3


def test_the_worker_process_scores_an_ensemble(members, tiny_dataset_dir, tmp_path):
    config = TrialConfig(**make_config("hstu", ensemble=["t001", "t002", "t003"], **PRIORS).model_dump())
    here, _ = ensemble("here", tmp_path, tiny_dataset_dir, members, **PRIORS)
    directory = write_trial(tmp_path / "process", tiny_dataset_dir, config, members=members)
    command = [sys.executable, "-P", "-m", "virtualmle.training.worker", str(directory)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    assert sha256_of(directory / RANKS) == sha256_of(here / RANKS) == read_result(directory).files[RANKS]
    assert not (directory / LOG).exists()

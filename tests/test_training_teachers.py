"""Soft targets from trained models, against a plain float64 implementation that scores one prefix at a time."""

import shutil
from collections import Counter

import numpy as np
import pytest
import torch

from tests.small_parts import TABLES, train_part
from virtualmle.models.batch import make_batch
from virtualmle.models.build import build_model
from virtualmle.models.config import continuation_hash, make_config, teachers_of, train_hash
from virtualmle.training import teachers as module
from virtualmle.training.batches import TrainBatches
from virtualmle.training.checkpoint import LoadedModel
from virtualmle.training.errors import TrainingError
from virtualmle.training.objective import Objective
from virtualmle.training.spec import CHECKPOINT, NamedModel, TrialSpec, read_result, write_model
from virtualmle.training.teachers import SHARE, TeacherTargets
from virtualmle.training.trainer import fit
from virtualmle.training.whole import train_whole
from virtualmle.training.worker import main

torch.set_num_threads(1)

CPU = torch.device("cpu")
NUM_ITEMS = 9
HISTORIES = [[0, 1, 2, 3], [0, 1, 3], [8], [0, 2, 3, 0, 1, 4, 7], [0, 4], [5, 6], [1, 2, 0, 7], [3, 3, 3]]
DATASET = train_part(HISTORIES, NUM_ITEMS)
STARTS = np.cumsum([0, *map(len, HISTORIES)])
EVENTS = torch.tensor([s + k for s, h in zip(STARTS, HISTORIES, strict=False) for k in range(1, len(h))])
TARGETS = torch.tensor([item for history in HISTORIES for item in history])[EVENTS]
FULL = {"loss": "full_softmax", "dropout": 0.0, "hidden_dim": 8}


def teacher(backbone, seed, **knobs):
    config = make_config(backbone, hidden_dim=8, dropout=0.0, **knobs)
    model = build_model(config, NUM_ITEMS, seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():  # far from uniform predictions
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return LoadedModel(model.eval(), config)


BOTH = [teacher("sasrec", 1, scores="cosine", temperature=0.3, time_bias=True), teacher("hstu", 2, num_blocks=1)]
SHORT = [teacher("sasrec", 3, max_len=5), teacher("hstu", 4)]


def reference_shares(teachers, strongest):
    """The (events, items) distributions of the teachers: every prefix is scored alone, in float64."""
    rows = []
    for history, start in zip(HISTORIES, STARTS, strict=False):
        for k in range(1, len(history)):
            mean = np.zeros(NUM_ITEMS)
            for model, config in teachers:
                # the window of this target: those of `max_len` inputs that end with the user's last event
                over = (len(history) - 1 - k) // config.max_len
                last = len(history) - 1 - over * config.max_len
                prefix = torch.tensor(history[max(0, last - config.max_len) : k])
                times = torch.arange(start + max(0, last - config.max_len), start + k) * 3600
                model.double()
                batch = make_batch(prefix, torch.tensor([0, len(prefix)]), config, times if config.time_bias else None)
                with torch.no_grad():
                    scores = model.items.scaled(model(batch))[-1] @ model.items.catalogue().T
                model.float()
                mean += torch.softmax(scores, 0).numpy() / len(teachers)
            others = np.argsort(-mean, kind="stable")
            kept = [item for item in others if item != history[k]][:strongest]
            row = np.zeros(NUM_ITEMS)
            row[[*kept, history[k]]] = mean[[*kept, history[k]]]
            rows.append(row / row.sum())
    return np.stack(rows)


def shares_of(found):
    """The stored distributions as (events, items)."""
    shares = np.zeros((len(EVENTS), NUM_ITEMS))
    for row, event in enumerate(EVENTS.tolist()):
        shares[row, found.columns[event].numpy()] += found.shares[event].numpy()
        shares[row, TARGETS[row]] += found.own[event].item()
    return shares


@pytest.mark.parametrize("teachers", [BOTH, SHORT, BOTH[:1]], ids=["both", "short-windows", "one"])
@pytest.mark.parametrize(("strongest", "block"), [(32, 4096), (3, 4)])
def test_every_event_with_a_predecessor_is_predicted_from_the_events_before_it(teachers, strongest, block, monkeypatch):
    monkeypatch.setattr(module, "STRONGEST", strongest)
    monkeypatch.setattr(module, "EVENTS_AT_ONCE", block)
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 2 * NUM_ITEMS)
    found = TeacherTargets(teachers, DATASET, CPU)
    np.testing.assert_allclose(shares_of(found), reference_shares(teachers, strongest), atol=5e-6)
    assert set(torch.nonzero(found.own)[:, 0].tolist()) == set(EVENTS.tolist())


def setting(teachers=BOTH, **knobs):
    """A small float64 student, states for all events, and its objective."""
    config = make_config("sasrec", **FULL, teachers=["t001"], **knobs)
    model = build_model(config, NUM_ITEMS, seed=1).double()
    torch.manual_seed(0)
    states = torch.randn(len(TARGETS), 8, dtype=torch.float64, requires_grad=True)
    return model, states, Objective(config, DATASET, CPU, torch.Generator().manual_seed(0), teachers=teachers)


def reference_losses(model, states, shares, smoothing):
    """The cross-entropies (n,) with the soft target distributions, each written out in full."""
    table = model.item_table()
    if model.config.scores == "cosine":
        table, states = table / table.norm(dim=1, keepdim=True), states / states.norm(dim=1, keepdim=True)
    log_probabilities = (states @ table.T / model.config.temperature).log_softmax(dim=1)
    hard = torch.nn.functional.one_hot(TARGETS, NUM_ITEMS).double()
    mixed = (1 - SHARE) * hard + SHARE * torch.tensor(shares)
    return -(((1 - smoothing) * mixed + smoothing / NUM_ITEMS) * log_probabilities).sum(1)


def gradients(model, states, loss):
    return torch.autograd.grad(loss, [states, *model.parameters()], allow_unused=True, retain_graph=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("knobs", TABLES)
def test_loss_and_gradients_equal_the_cross_entropy_with_soft_targets(knobs, smoothing, monkeypatch):
    monkeypatch.setattr(module, "STRONGEST", 3)
    model, states, objective = setting(label_smoothing=smoothing, **knobs)
    reference = reference_losses(model, states, shares_of(objective.teachers), smoothing).mean()
    loss = objective.loss(model.items, states, TARGETS, events=EVENTS)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)  # the shares are float32
    for gradient, expected in zip(gradients(model, states, loss), gradients(model, states, reference), strict=True):
        assert (gradient is None) == (expected is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("supervision", ["all", "last"])
@pytest.mark.parametrize("knobs", [{}, {"augmentation": "mixed", "augmentation_share": 1.0}, {"window_stride": 1}])
def test_a_batch_knows_the_event_that_each_target_is(supervision, knobs):
    config = make_config("sasrec", supervision=supervision, batch_size=8, max_len=5, **knobs)
    seen = Counter()
    for batch in TrainBatches(DATASET, config, CPU, seed=0).epoch():
        assert DATASET.items[batch.target_events].tolist() == batch.targets.tolist()
        seen.update(batch.target_events.tolist())
    if not knobs:
        short = [e for e, start, history in _positions() if len(history) - (e - start) <= config.max_len]
        last = [start + len(history) - 1 for _, start, history in _positions()]
        assert set(seen) == set(last if supervision == "last" else short)


def _positions():
    for start, history in zip(STARTS.tolist(), HISTORIES, strict=False):
        yield from ((start + k, start, history) for k in range(1, len(history)))


def test_teachers_act_only_with_the_full_softmax_and_their_models_must_be_there():
    config = make_config("sasrec", teachers=["t002", "T001"])
    assert config.teachers == "t001+t002" and teachers_of(config) == ()
    assert Objective(config, DATASET, CPU, torch.Generator()).teachers is None
    taught = make_config("sasrec", loss="full_softmax", teachers=["t001", "t002"])
    assert teachers_of(taught) == ("t001", "t002")
    assert teachers_of(taught.model_copy(update={"ensemble": "t001+t002"})) == ()
    with pytest.raises(TrainingError, match=r"the models of teachers=t001\+t002 are missing"):
        Objective(taught, DATASET, CPU, torch.Generator())
    plain = make_config("sasrec", loss="full_softmax")
    assert train_hash(taught) != train_hash(plain) and continuation_hash(taught) != continuation_hash(plain)


def test_teachers_replace_what_followed_an_item():
    config = make_config("sasrec", **FULL, teachers=["t001"], prior_distillation=0.3)
    assert Objective(config, DATASET, CPU, torch.Generator(), teachers=BOTH).successors is None


def test_teachers_of_another_catalogue_and_those_that_see_their_targets_are_refused():
    config = make_config("hstu", hidden_dim=8)
    with pytest.raises(TrainingError, match="a teacher scores 4 items, the dataset has 9"):
        TeacherTargets([LoadedModel(build_model(config, 4, seed=0), config)], DATASET, CPU)
    sees = teacher("sasrec", 1, causal=False, supervision="last")
    with pytest.raises(TrainingError, match="causal=false"):
        TeacherTargets([sees], DATASET, CPU)


SMALL = {"loss": "full_softmax", "hidden_dim": 16, "batch_size": 32, "lr": 0.01, "scores": "cosine", "temperature": 0.1}


@pytest.fixture
def taught(tiny_dataset_dir, tmp_path):
    """Two trained trials as teachers, and the directory of a student that has been trained."""
    for name, backbone in (("t001", "sasrec"), ("t002", "hstu")):
        run_trial(tmp_path / name, tiny_dataset_dir, make_config(backbone, **SMALL, epochs=2))
    teachers = [named(tmp_path / name) for name in ("t001", "t002")]
    return teachers, run_trial(tmp_path / "t003", tiny_dataset_dir, student(), teachers=teachers)


def student(**knobs):
    return make_config("sasrec", **{**SMALL, "epochs": 2, "teachers": ["t001", "t002"], **knobs})


def named(directory):
    return NamedModel(name=directory.name, directory=str(directory), files=read_result(directory).files)


def run_trial(directory, data, config, **fields):
    directory.mkdir()
    spec = TrialSpec(session="s", trial=directory.name, dataset_dir=str(data), config=config.model_dump(), seed=7,
                     threads=1, device="cpu", **fields)  # fmt: skip
    write_model(directory / "spec.json", spec)
    main(directory)
    torch.set_deterministic_debug_mode("default")
    return directory


def test_a_student_is_trained_from_the_files_of_its_teachers_and_learns_from_them(taught, tiny_dataset_dir, tmp_path):
    _, directory = taught
    result = read_result(directory)
    assert result.status == "finished", result.cause
    plain = read_result(run_trial(tmp_path / "t004", tiny_dataset_dir, student(teachers=[])))
    assert result.curve[0].loss != plain.curve[0].loss and result.metrics != plain.metrics
    for one, has_teachers in ((result, True), (plain, False)):  # what the predictions took is charged as training
        assert (one.train_seconds > sum(epoch.train_seconds for epoch in one.curve) + 1e-3) is has_teachers


def test_a_longer_training_of_a_student_continues_it_bit_for_bit(taught, tiny_dataset_dir, tmp_path):
    teachers, directory = taught
    fields = {"teachers": teachers}
    begun = run_trial(
        tmp_path / "t004", tiny_dataset_dir, student(epochs=3), resume_from=str(directory), **fields
    )
    whole = run_trial(tmp_path / "t005", tiny_dataset_dir, student(epochs=3), **fields)
    assert read_result(begun).resumed_epochs == 2
    assert [e.loss for e in read_result(begun).curve] == [e.loss for e in read_result(whole).curve]
    assert read_result(begun).metrics == read_result(whole).metrics


def test_a_student_whose_teachers_are_not_those_of_its_configuration_fails(taught, tiny_dataset_dir, tmp_path):
    teachers, _ = taught
    directory = run_trial(tmp_path / "t004", tiny_dataset_dir, student(), teachers=teachers[:1])
    assert "lacks its teachers" in read_result(directory).cause


def test_a_teacher_that_was_changed_or_is_missing_fails_the_student(taught, tiny_dataset_dir, tmp_path):
    teachers, directory = taught
    shutil.copyfile(directory / CHECKPOINT, tmp_path / "t001" / CHECKPOINT)
    changed = read_result(run_trial(tmp_path / "t004", tiny_dataset_dir, student(), teachers=teachers))
    assert "is not the checkpoint that t001 wrote; restore it, or leave t001 out" in changed.cause
    (tmp_path / "t001" / CHECKPOINT).unlink()
    missing = read_result(run_trial(tmp_path / "t005", tiny_dataset_dir, student(), teachers=teachers))
    assert "is missing; restore it, or leave t001 out" in missing.cause


def test_training_without_evaluation_takes_the_steps_of_the_trial(tiny_dataset_dir):
    from virtualmle.data.prepared import PreparedDataset  # noqa: PLC0415

    data, config = PreparedDataset.load(tiny_dataset_dir), student(teachers=["t001"], epochs=1)
    other = make_config("hstu", hidden_dim=8)
    teachers = [LoadedModel(build_model(other, data.num_items, seed=3), other)]
    fitted = fit(config, data, 5, CPU, teachers=teachers)
    whole = train_whole(config, data, 5, CPU, 1, teachers=teachers)
    for ours, theirs in zip(whole.parameters(), fitted.model.parameters(), strict=True):
        assert ours.equal(theirs)

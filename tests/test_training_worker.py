"""The worker in real trial directories, as a separate process only where the test needs one."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from virtualmle.models.config import make_config
from virtualmle.training import pipeline
from virtualmle.training.confinement import confinement_here
from virtualmle.training.metrics import best_setting, clip_ranks, metrics_from_ranks
from virtualmle.training.spec import (
    CHECKPOINT,
    RANKS,
    SPEC,
    SWEPT_RANKS,
    USERS,
    TrialSpec,
    read_progress,
    read_result,
    read_spec,
    write_model,
)
from virtualmle.training.trial import Trial
from virtualmle.training.worker import main


@pytest.fixture
def make_trial(tiny_dataset_dir, tmp_path):
    """A function that writes a trial directory; keyword arguments are fields of the spec or knobs."""

    def make(name, **changes):
        fields = {key: changes.pop(key) for key in list(changes) if key in TrialSpec.model_fields}
        small = {"hidden_dim": 16, "num_negatives": 20, "batch_size": 32, "epochs": 2, "lr": 0.01}
        config = make_config(changes.pop("backbone", "sasrec"), **{**small, **changes}).model_dump()
        directory = tmp_path / name
        directory.mkdir()
        defaults = {"dataset_dir": str(tiny_dataset_dir), "config": config, "seed": 7, "threads": 1, "device": "cpu"}
        write_model(directory / SPEC, TrialSpec(session="s", trial=name, **{**defaults, **fields}))
        return directory

    return make


def command(directory):
    return [sys.executable, "-P", "-m", "virtualmle.training.worker", str(directory)]


def start(directory):
    return subprocess.run(command(directory), capture_output=True, text=True, check=False)


def run(directory):
    """Run the worker's entry in this process, which takes a second instead of five; returns the result."""
    main(directory)
    return read_result(directory)


@pytest.fixture(autouse=True)
def restored_torch_settings():
    threads = torch.get_num_threads()
    yield
    torch.set_deterministic_debug_mode("default")
    torch.set_num_threads(threads)


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_equal_specs_give_equal_bits_and_a_complete_result(backbone, make_trial):
    first, second = (make_trial(name, backbone=backbone, transition_weight=2.0) for name in "ab")
    process, result = start(first), read_result(first)
    assert (process.returncode, process.stderr) == (0, "")
    assert result.status == "finished" and result.cause is None and result.device == "cpu"
    assert result.confined == confinement_here()
    assert [record.epoch for record in result.curve] == [1, 2]
    assert result.model_ndcg10 == result.curve[result.best_epoch - 1].ndcg10
    assert 0 < result.train_ndcg10 <= 1 and result.parameters > 0
    assert result.train_seconds == pytest.approx(sum(record.train_seconds for record in result.curve))
    assert result.metrics == metrics_from_ranks(np.load(first / RANKS))
    progress = read_progress(first)
    assert (progress.stage, progress.epoch, progress.epochs) == ("scoring", 2, 2)
    again = run(second)
    assert again.metrics == result.metrics and again.ties == result.ties
    for file in (RANKS, CHECKPOINT):
        assert (first / file).read_bytes() == (second / file).read_bytes()


def test_re_scoring_a_finished_trial_equals_training_again(make_trial):
    bare = make_trial("bare")
    run(bare)
    knobs = {"transition_weight": 5.0, "cooccurrence_weight": 2.0, "popularity_weight": 0.5}
    trained, scored = make_trial("trained", **knobs), make_trial("scored", **knobs, rescore_from=str(bare))
    expected, result = run(trained), run(scored)
    for file in (RANKS, CHECKPOINT):
        assert (scored / file).read_bytes() == (trained / file).read_bytes()
    fields = ("status", "metrics", "ties", "model_ndcg10", "train_ndcg10", "best_epoch", "parameters")
    assert result.model_dump(include=fields) == expected.model_dump(include=fields)
    assert result.train_seconds == 0 and len(result.curve) == 2
    assert result.metrics != read_result(bare).metrics


def test_re_scoring_is_refused_if_training_would_differ(make_trial):
    source = make_trial("source", epochs=1)
    unfinished = run(make_trial("unfinished", rescore_from=str(source), epochs=1))
    assert "is not a finished trial" in unfinished.cause
    run(source)
    other = run(make_trial("other", rescore_from=str(source), epochs=1, lr=0.02))
    assert other.status == "failed" and "only scoring knobs may differ" in other.cause and "lr" in other.cause
    seed = run(make_trial("seed", rescore_from=str(source), epochs=1, seed=8))
    assert "seed differs" in seed.cause


def test_a_diverging_trial_fails_with_a_cause(make_trial, capfd):
    directory = make_trial("diverging", lr=1.0, temperature=1e-38)
    assert main(directory) == 1
    result = read_result(directory)
    assert result.status == "failed" and result.metrics == {}
    assert "finite" in result.cause and "lr" in result.cause
    assert "Traceback" not in capfd.readouterr().err and "\n" not in result.cause


def test_a_trial_that_exceeds_its_wall_clock_limit_ends_itself(make_trial):
    directory = make_trial("slow", epochs=1000, patience=1000, wall_seconds=0.05)
    assert start(directory).returncode == 1
    result = read_result(directory)
    assert result.status == "failed"
    assert result.cause.startswith("exceeded the wall-clock limit of 0.05 s") and "lower epochs" in result.cause


def test_sigterm_ends_the_process_immediately_and_without_a_result(make_trial):
    directory = make_trial("cancelled", epochs=1000, patience=1000)
    with subprocess.Popen(command(directory), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("epoch 1/1000")
        assert read_progress(directory).stage == "training"
        process.terminate()
        assert process.wait(timeout=60) < 0
    assert read_result(directory) is None


def test_a_missing_dataset_fails_the_trial_with_a_one_line_cause(make_trial, tmp_path, capfd):
    result = run(make_trial("no-dataset", dataset_dir=str(tmp_path / "absent")))
    assert result.status == "failed" and "is not a prepared dataset" in result.cause
    assert "Traceback" not in capfd.readouterr().err


def test_a_dataset_that_changes_while_a_trial_trains_fails_it(make_trial, tiny_dataset_dir, tmp_path, monkeypatch):
    dataset = tmp_path / "dataset"
    shutil.copytree(tiny_dataset_dir, dataset)
    (dataset / "valid_items.npy").chmod(0o600)

    def overwrite(*_):
        np.load(dataset / "valid_items.npy", mmap_mode="r+")[:] = 0

    monkeypatch.setattr(Trial, "add_epoch", overwrite)
    result = run(make_trial("overwritten", dataset_dir=str(dataset)))
    assert result.status == "failed" and "valid_items.npy' was changed while the trial used it" in result.cause


def test_the_result_of_a_failed_trial_contains_its_epochs(make_trial, monkeypatch):
    monkeypatch.setattr(pipeline, "train_sample_ndcg", lambda *_: torch.empty(1 << 60))
    result = run(make_trial("late"))
    assert result.status == "failed" and len(result.curve) == 2
    assert result.train_seconds == pytest.approx(sum(record.train_seconds for record in result.curve))
    assert result.cause.startswith("out of memory; lower batch_size")


def test_an_internal_error_is_named_in_the_result_and_its_traceback_is_in_the_log(make_trial, capfd):
    directory = make_trial("odd")
    spec = read_spec(directory)  # its configuration is one that no action space would accept
    write_model(directory / SPEC, spec.model_copy(update={"config": {"backbone": "unknown"}}))
    result = run(directory)
    assert result.status == "failed" and result.cause.startswith("internal error: ValidationError")
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_full_disk_is_a_fault_of_the_machine_and_not_of_the_configuration(make_trial, monkeypatch):
    monkeypatch.setattr(pipeline, "save_checkpoint", lambda *_: Path("/dev/full").write_bytes(b"weights"))
    result = run(make_trial("full"))
    assert (result.status, result.machine_fault) == ("failed", True)
    assert result.cause.startswith("the machine failed: OSError: [Errno 28] No space left on device")


def test_a_missing_cuda_device_is_a_fault_of_the_machine(make_trial):
    directory = make_trial("cuda")
    write_model(directory / SPEC, read_spec(directory).model_copy(update={"device": "cuda:9999"}))
    result = run(directory)
    assert (result.status, result.machine_fault) == ("failed", True) and "cuda:9999" in result.cause


def test_a_damaged_spec_fails_the_trial_with_a_one_line_cause(make_trial, capfd):
    directory = make_trial("torn")
    (directory / SPEC).write_text("{}")
    result = run(directory)
    assert result.status == "failed" and "spec.json cannot be read" in result.cause
    assert "Traceback" not in capfd.readouterr().err


def test_a_trial_that_is_over_is_not_run_again(make_trial):
    directory = make_trial("once", epochs=1)
    first = run(directory)
    with pytest.raises(SystemExit, match="start a new trial"):
        main(directory)
    assert read_result(directory) == first


def test_training_never_imports_the_compiler(make_trial):
    directory = make_trial("lean", epochs=1)
    code = (
        "import sys; from pathlib import Path; from virtualmle.training.worker import main;"
        "assert main(Path(sys.argv[1])) == 0; print('torch._dynamo' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-P", "-c", code, directory], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "False"


SWEEP = [
    {"transition_weight": 5.0, "popularity_weight": 0.0},
    {"transition_weight": 5.0, "popularity_weight": 0.5, "score_normalisation": "softmax"},
    {"transition_weight": 0.0, "popularity_weight": -20.0, "fusion": "rerank", "rerank_top": 10},
    {"transition_weight": 5.0, "transition_window": 3, "transition_normalisation": "sqrt"},
]


def test_a_sweep_ranks_every_setting_as_a_trial_of_its_own_and_keeps_the_best(make_trial):
    bare = make_trial("bare")
    run(bare)
    alone = [make_trial(f"alone{n}", **setting, rescore_from=str(bare)) for n, setting in enumerate(SWEEP)]
    expected = [run(directory) for directory in alone]
    sweep = make_trial("sweep", settings=SWEEP, rescore_from=str(bare))
    result = run(sweep)
    swept = np.load(sweep / SWEPT_RANKS)
    assert swept.dtype == np.uint8 and swept.max() < 255, "the tiny catalogue needs no clipping"
    for row, directory in zip(swept, alone, strict=True):
        assert (row == np.load(directory / RANKS)).all()
    scores = [single.metrics["ndcg@10"] for single in expected]
    assert len(set(scores)) == len(SWEEP), "the settings differ, so that the best one is unique"
    best = scores.index(max(scores))
    assert (result.best_setting, result.metrics, result.ties) == (best, expected[best].metrics, expected[best].ties)
    for file in (RANKS, CHECKPOINT, USERS):
        assert (sweep / file).read_bytes() == (alone[best] / file).read_bytes()
        assert result.files[file] == hashlib.sha256((sweep / file).read_bytes()).hexdigest()
    assert result.train_seconds == 0 < result.evaluate_seconds


def test_a_sweep_of_a_training_knob_fails_and_names_it(make_trial):
    bare = make_trial("bare", epochs=1)
    run(bare)
    failed = run(make_trial("sweep", epochs=1, settings=[{"lr": 0.5, "rerank_top": 20}], rescore_from=str(bare)))
    assert failed.status == "failed" and "a sweep changes scoring knobs only; lr needs a trial" in failed.cause


def test_clipped_ranks_give_the_same_figures_within_the_cutoffs():
    ranks = np.array([1, 10, 11, 255, 256, 70_000], np.int32)
    clipped = clip_ranks(ranks)
    assert clipped.tolist() == [1, 10, 11, 255, 255, 255]
    exact, kept = metrics_from_ranks(ranks), metrics_from_ranks(clipped)
    assert [kept[name] for name in kept if name != "mrr"] == [exact[name] for name in exact if name != "mrr"]
    assert best_setting(np.stack([clipped, clipped, np.ones(6, np.uint8)])) == 2
    assert best_setting(np.stack([clipped, clipped])) == 0

"""The examiner as a process: it takes one look, on the right targets, and the ledger records the look first."""

import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from virtualmle.data.demo import generate_demo
from virtualmle.data.errors import SealError, TrialError
from virtualmle.data.histories import Histories
from virtualmle.data.prepare import prepare
from virtualmle.data.prepared import MANIFEST, SEALED, PreparedDataset, PrepareOptions
from virtualmle.data.readers import Log
from virtualmle.data.seal import as_bytes, pack_test, seal
from virtualmle.examiner.examining import in_progress, lock_to_pass
from virtualmle.examiner.main import examine as examine_in_process
from virtualmle.examiner.main import histories_before_test, load_candidate
from virtualmle.examiner.request import MODULE, TestResult, examine, looks, read_revealed
from virtualmle.examiner.unseal import open_test
from virtualmle.examiner.vault import Vault
from virtualmle.models.config import make_config
from virtualmle.models.priors import ScorePriors
from virtualmle.training.checkpoint import load_checkpoint
from virtualmle.training.evaluate import evaluate_targets
from virtualmle.training.metrics import metrics_from_ranks, ndcg_per_user
from virtualmle.training.popularity import popularity_ranks
from virtualmle.training.signature import sign_as_it_is, sign_spec
from virtualmle.training.spec import CHECKPOINT, TrialSpec, read_spec, write_model

SECONDS = 250.0


@dataclass(frozen=True)
class Scene:
    """A home with one dataset and one finished trial."""

    home: Path
    dataset: Path
    trial: Path

    def examine(self) -> TestResult:
        return examine(self.home, "toy-sasrec-1", "t001", [self.trial], self.dataset, SECONDS)

    def examine_here(self, session: str = "toy-sasrec-1", dataset: Path | None = None) -> TestResult:
        """Call the examiner's function in this process, for tests that need no separate process."""
        return examine_in_process(self.home, session, "t001", [self.trial], dataset or self.dataset, None)


def demo_log() -> Log:
    frame = generate_demo(num_users=150, num_items=60)
    return Log(frame, {"user": "user", "item": "item", "timestamp": "timestamp"}, frame.height)


def keys_of(home: Path) -> tuple[bytes, bytes]:
    """The keys with which a dataset of the home is prepared."""
    return Vault(home).public_key(), Vault(home).mac_key()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A trial run by the real worker; each test works on a copy."""
    home = tmp_path_factory.mktemp("finished") / "home"
    dataset = home / ".virtualmle" / "data" / "toy"
    prepare(demo_log(), "toy", dataset, PrepareOptions(), *keys_of(home))
    trial = home / ".virtualmle" / "sessions" / "toy-sasrec-1" / "t001"
    trial.mkdir(parents=True)
    config = make_config("sasrec", hidden_dim=16, epochs=2, lr=3e-3, transition_weight=2.0)
    spec = TrialSpec(
        session="toy-sasrec-1", trial="t001", dataset_dir=str(dataset), config=config.model_dump(), seed=1,
        device="cpu", threads=1,
    )  # fmt: skip
    write_model(trial / "spec.json", spec)
    key = Vault(home).session_key("toy-sasrec-1")
    sign_spec(trial, key, spec)
    subprocess.run([sys.executable, "-P", "-m", "virtualmle.training.worker", str(trial)], input=key, check=True)
    return Scene(home, dataset, trial)


@pytest.fixture
def scene(finished: Scene, tmp_path: Path) -> Scene:
    home = tmp_path / "home"
    shutil.copytree(finished.home, home)
    return Scene(
        home, home / finished.dataset.relative_to(finished.home), home / finished.trial.relative_to(finished.home)
    )


def test_the_last_event_of_every_user_is_ranked_given_all_earlier_events(scene: Scene) -> None:
    result = scene.examine()
    dataset = PreparedDataset.load(scene.dataset)
    # Compute the expected ranks from the raw log and its original ids
    log = demo_log().frame.sort("timestamp", maintain_order=True)
    users = pl.read_parquet(scene.dataset / "user_ids.parquet")["original_id"]
    items = pl.read_parquet(scene.dataset / "item_ids.parquet")["original_id"].to_list()
    events = [[items.index(i) for i in log.filter(pl.col("user") == u)["item"] if i in items] for u in users]
    history = np.concatenate([mine[-50:-1] for mine in events]).astype(np.int32)
    offsets = np.cumsum([0, *(len(mine[-50:-1]) for mine in events)])
    targets = np.array([mine[-1] for mine in events], dtype=np.int32)
    model, config = load_checkpoint(scene.trial / CHECKPOINT)
    priors = ScorePriors.from_dataset(dataset, config)
    ranks, ties = evaluate_targets(model, config, Histories(history, offsets), targets, priors, dataset.num_items)
    assert result.metrics == pytest.approx(metrics_from_ranks(ranks), rel=1e-9)
    assert result.ndcg10_se == pytest.approx(ndcg_per_user(ranks).std(ddof=1) / len(ranks) ** 0.5)
    assert (result.ties, result.num_users, result.trial) == (ties, dataset.num_users, "t001")
    assert 0 < result.metrics["ndcg@10"] < 1
    counts = np.bincount(dataset.items, minlength=dataset.num_items)  # as all counts, of the train part only
    popular = popularity_ranks(counts, history, offsets, targets)
    assert result.baselines["popularity"] == pytest.approx(metrics_from_ranks(popular), rel=1e-9)
    assert set(result.baselines) == {"popularity", "transitions", "cooccurrence"}


def test_the_result_is_in_the_vault_and_readable_only_by_its_owner(scene: Scene) -> None:
    assert read_revealed(scene.home, "toy-sasrec-1") is None
    assert looks(scene.home) == []
    result = scene.examine()
    assert read_revealed(scene.home, "toy-sasrec-1") == result
    path = Vault(scene.home).revealed_path("toy-sasrec-1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_session_has_one_look_and_looks_are_counted_across_dataset_names(scene: Scene) -> None:
    first = scene.examine()
    with pytest.raises(SealError, match="has used its one look"):
        scene.examine()
    other = scene.dataset.with_name("other")
    prepare(demo_log(), "other", other, PrepareOptions(max_events=20), *keys_of(scene.home))
    trial = scene.home / ".virtualmle" / "sessions" / "other-sasrec-1" / "t001"
    shutil.copytree(scene.trial, trial)
    spec = read_spec(trial).model_copy(update={"session": "other-sasrec-1", "dataset_dir": str(other)})
    write_model(trial / "spec.json", spec)
    key = Vault(scene.home).session_key("other-sasrec-1")
    sign_as_it_is(trial, key, spec, dataset_id=PreparedDataset.load(other).dataset_id, by="server")
    second = Scene(scene.home, other, trial).examine_here("other-sasrec-1")
    assert (first.look, second.look) == (1, 2)
    assert first.fingerprint_short == second.fingerprint_short
    assert first.dataset_id != second.dataset_id
    lines = [(look.session, look.dataset, look.look) for look in looks(scene.home)]
    assert lines == [("toy-sasrec-1", "toy", 1), ("other-sasrec-1", "other", 2)]


def test_a_look_at_a_near_duplicate_is_counted_and_says_of_what(scene: Scene) -> None:
    scene.examine()
    frame = demo_log().frame.sample(fraction=1, shuffle=True, seed=2).with_columns(pl.col("timestamp") + 7)
    log = Log(frame, {"user": "user", "item": "item", "timestamp": "timestamp"}, frame.height)
    other = scene.dataset.with_name("copy")
    manifest = prepare(log, "copy", other, PrepareOptions(), *keys_of(scene.home))
    trial = scene.trial.parents[1] / "copy-sasrec-1" / "t001"  # as if it had been trained on the copy
    shutil.copytree(scene.trial, trial)
    spec = read_spec(trial).model_copy(update={"session": "copy-sasrec-1", "dataset_dir": str(other)})
    write_model(trial / "spec.json", spec)
    key = Vault(scene.home).session_key("copy-sasrec-1")
    sign_as_it_is(trial, key, spec, dataset_id=manifest.dataset_id, by="adoption")
    second = examine(scene.home, "copy-sasrec-1", "t001", [trial], other, SECONDS)
    assert (second.look, second.look_note) == (2, "100% the same test targets as toy, 1 look")
    first = read_revealed(scene.home, "toy-sasrec-1")
    assert first is not None and (first.look, first.look_note) == (1, "")
    assert first.fingerprint_short != second.fingerprint_short


def test_an_examiner_killed_during_evaluation_has_used_the_look(scene: Scene) -> None:
    code = (
        "import os, signal, sys\n"
        "import virtualmle.examiner.main as examiner\n"
        "examiner.evaluate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "examiner.main()\n"
    )
    arguments = ["--home", scene.home, "--session", "toy-sasrec-1", "--trial", "t001"]
    arguments += ["--model", scene.trial, "--dataset", scene.dataset]
    ended = subprocess.run([sys.executable, "-P", "-c", code, *map(str, arguments)], check=False)
    assert ended.returncode == -9
    assert [look.session for look in looks(scene.home)] == ["toy-sasrec-1"]
    assert read_revealed(scene.home, "toy-sasrec-1") is None
    with pytest.raises(SealError, match="has used its one look"):
        scene.examine()


def test_an_error_before_the_targets_are_needed_uses_no_look(scene: Scene) -> None:
    checkpoint = scene.trial / CHECKPOINT
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:100])
    with pytest.raises(SealError, match="checkpoint"):  # the message of the examiner's process is passed on
        scene.examine()
    assert looks(scene.home) == []
    checkpoint.write_bytes(content)
    assert scene.examine_here().look == 1


def edit(path: Path, **changes: object) -> None:
    path.chmod(0o644)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def forge_seal(scene: Scene) -> None:
    """Replace the test targets by the validation items, for which the public key is enough."""
    data = PreparedDataset.load(scene.dataset)
    payload = pack_test(
        items=np.array(data.valid_items), timestamps=np.array(data.valid_timestamps), fingerprint=as_bytes("f" * 64)
    )
    (scene.dataset / SEALED).unlink()
    (scene.dataset / SEALED).write_bytes(seal(payload, Vault(scene.home).public_key(), data.dataset_id))
    targets = open_test(scene.dataset, Vault(scene.home).private_key(), data.dataset_id, data.num_users)
    assert (targets.items == data.valid_items).all(), "the private key opens it"


def take_from_another_trial(scene: Scene) -> None:
    """All files of a trial of the same session, its signature included."""
    other = scene.trial.with_name("t002")
    shutil.copytree(scene.trial, other)
    spec = read_spec(other).model_copy(update={"trial": "t002"})
    write_model(other / "spec.json", spec)
    key = Vault(scene.home).session_key("toy-sasrec-1")
    sign_as_it_is(other, key, spec, dataset_id="", by="worker")
    for path in other.iterdir():
        shutil.copy(path, scene.trial / path.name)


ATTACKS: dict[str, Callable[[Scene], object]] = {
    "a forged seal": forge_seal,
    "an edited profile": lambda scene: edit(scene.dataset / MANIFEST, profile={}),
    "an edited result": lambda scene: edit(scene.trial / "result.json", best_epoch=1),
    "an edited spec": lambda scene: edit(scene.trial / "spec.json", seed=2),
    "another checkpoint": lambda scene: (scene.trial / CHECKPOINT).write_bytes(b"weights"),
    "another trial": take_from_another_trial,
    "no signature": lambda scene: (scene.trial / "signature.json").unlink(),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_what_was_changed_since_it_was_signed_is_refused_and_no_look_is_used(
    scene: Scene, attack: Callable[[Scene], object]
) -> None:
    attack(scene)
    with pytest.raises(SealError, match="the test set stays sealed"):
        scene.examine_here()
    assert looks(scene.home) == []


def test_a_trial_of_another_session_or_dataset_is_refused(scene: Scene) -> None:
    with pytest.raises(SealError, match="not that of t001 of session toy-sasrec-2"):
        scene.examine_here("toy-sasrec-2")
    key = Vault(scene.home).session_key("toy-sasrec-1")
    sign_as_it_is(scene.trial, key, read_spec(scene.trial), dataset_id="0" * 32, by="worker")
    with pytest.raises(SealError, match="another dataset"):
        scene.examine_here()
    assert looks(scene.home) == []


def test_a_vault_that_cannot_store_the_result_uses_no_look(scene: Scene) -> None:
    obstacle = Vault(scene.home).revealed_path("toy-sasrec-1").parent
    obstacle.write_bytes(b"")
    with pytest.raises(SealError, match="no result can be written"):
        scene.examine_here()
    assert looks(scene.home) == []
    obstacle.unlink()
    assert scene.examine_here().look == 1


def test_a_sealed_file_moved_to_another_dataset_does_not_open(scene: Scene) -> None:
    other = scene.dataset.with_name("other")
    prepare(demo_log(), "other", other, PrepareOptions(max_events=8), *keys_of(scene.home))
    (other / SEALED).unlink()
    shutil.copy(scene.dataset / SEALED, other / SEALED)
    with pytest.raises(SealError, match="belongs to another dataset"):
        scene.examine_here(dataset=other)
    assert looks(scene.home) == []


def test_in_operator_mode_the_key_must_be_given(scene: Scene, tmp_path: Path) -> None:
    key = Vault(scene.home).directory / "private_key"
    key_copy = tmp_path / "key"
    key.rename(key_copy)
    with pytest.raises(SealError, match="not on this machine"):
        scene.examine_here()
    assert looks(scene.home) == []
    with pytest.raises(SealError, match="check the path of the key"):
        examine_in_process(scene.home, "toy-sasrec-1", "t001", [scene.trial], scene.dataset, tmp_path / "no key")
    result = examine(scene.home, "toy-sasrec-1", "t001", [scene.trial], scene.dataset, SECONDS, key_file=key_copy)
    assert result.look == 1


def test_an_examiner_that_exceeds_its_time_limit_is_stopped(scene: Scene) -> None:
    with pytest.raises(SealError, match="longer than 0.01 s"):
        examine(scene.home, "toy-sasrec-1", "t001", [scene.trial], scene.dataset, 0.01)
    assert read_revealed(scene.home, "toy-sasrec-1") is None


HOLD = "from virtualmle.data.locks import keep_passed_lock\nkeep_passed_lock(); print(flush=True); input()"


def examining(home: Path, session: str) -> "subprocess.Popen[str]":
    """A process that holds the lock of an examiner, which it inherited from this process."""
    with lock_to_pass(Vault(home), session) as (environment, descriptors):
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, pass_fds=descriptors,
        )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_running_examiner_is_visible_to_any_process_until_it_is_killed(tmp_path: Path) -> None:
    assert not in_progress(tmp_path, "toy-sasrec-1")
    with examining(tmp_path, "toy-sasrec-1") as process:
        assert in_progress(tmp_path, "toy-sasrec-1")
        assert not in_progress(tmp_path, "toy-sasrec-10")
        assert not in_progress(tmp_path / "other", "toy-sasrec-1")
        process.kill()
        process.communicate()
        assert not in_progress(tmp_path, "toy-sasrec-1")


def test_a_second_examiner_of_a_session_waits_for_the_first_and_uses_no_look(scene: Scene) -> None:
    with examining(scene.home, "toy-sasrec-1") as process:
        with pytest.raises(SealError, match="another process examines session toy-sasrec-1"):
            scene.examine()
        process.communicate("\n")
    assert looks(scene.home) == []


def test_a_process_with_the_words_of_an_examiner_keeps_nobody_waiting(scene: Scene) -> None:
    tail = [MODULE, "--home", str(scene.home.resolve()), "--session", "toy-sasrec-1", "--trial", "t"]
    command = [sys.executable, "-c", "print(flush=True); input()", *tail]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert not in_progress(scene.home, "toy-sasrec-1")
        assert scene.examine().look == 1
        process.communicate("\n")


def test_a_trial_that_is_unfinished_or_of_another_dataset_is_refused(scene: Scene) -> None:
    dataset = PreparedDataset.load(scene.dataset)
    result = scene.trial / "result.json"
    complete = result.read_text()
    dataset.num_items += 1
    with pytest.raises(TrialError, match="another dataset"):
        load_candidate(scene.trial, dataset)
    result.write_text(json.dumps(json.loads(complete) | {"status": "failed"}))
    with pytest.raises(TrialError, match="has not finished"):
        load_candidate(scene.trial, dataset)
    result.unlink()
    with pytest.raises(TrialError, match="has not finished"):
        load_candidate(scene.trial, dataset)


def test_histories_before_the_test_event_are_train_and_validation_events(finished: Scene) -> None:
    dataset = PreparedDataset.load(finished.dataset)
    items, offsets, times = histories_before_test(dataset)
    for user in (0, 1, dataset.num_users - 1):
        train = dataset.items[dataset.offsets[user] : dataset.offsets[user + 1]]
        assert items[offsets[user] : offsets[user + 1]].tolist() == [*train, dataset.valid_items[user]]
        assert times[offsets[user + 1] - 1] == dataset.valid_timestamps[user]
    assert offsets[-1] == len(items)


def test_the_request_module_imports_neither_torch_nor_decryption() -> None:
    code = (
        "import sys, virtualmle.examiner.request\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'virtualmle.examiner.unseal' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_a_damaged_result_in_the_vault_is_reported(tmp_path: Path) -> None:
    path = Vault(tmp_path).revealed_path("toy-sasrec-1")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(SealError, match=r"toy-sasrec-1\.json' is damaged"):
        read_revealed(tmp_path, "toy-sasrec-1")

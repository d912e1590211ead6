"""A refit trains on all events in a process of the examiner, and never beside a session that must not know them."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest
import torch

from tests.quick_home import quick_home
from virtualmle.cli.app import main
from virtualmle.data.demo import generate_demo
from virtualmle.data.errors import SealError
from virtualmle.data.prepare import prepare
from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.data.readers import Log
from virtualmle.examiner import refit_request
from virtualmle.examiner.audit import AuditLog
from virtualmle.examiner.ledger import Ledger
from virtualmle.examiner.refit import all_events
from virtualmle.examiner.refit_request import MemberToRefit, OpenSession, RefitRequest, refit
from virtualmle.examiner.request import looks
from virtualmle.examiner.unseal import open_test
from virtualmle.examiner.vault import Vault
from virtualmle.models.priors import ScorePriors
from virtualmle.serving.artifact import Export
from virtualmle.tools.auditing import walk_home
from virtualmle.tools.finalize import finalize
from virtualmle.tools.open_session import open_session
from virtualmle.tools.refit import open_sessions, plan_refit
from virtualmle.tools.refit import refit_request as make_request
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.tools.write_reflection import write_reflection
from virtualmle.training.checkpoint import LoadedModel, load_checkpoint
from virtualmle.training.pipeline import loss_precision
from virtualmle.training.spec import CHECKPOINT, read_result, read_spec
from virtualmle.training.whole import train_whole

SESSION = "demo-sasrec-1"
STUDENT_KNOBS = """
## supervision

| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| `loss` | sampled_softmax, full_softmax | sampled_softmax | sampled_softmax |
| `teachers` | 1 to 4 trials | none | none |
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a revealed session, whose selected trial has a transition prior."""
    home = quick_home(tmp_path_factory.mktemp("refit") / "home")
    ws = Workspace.open(home, settings=Settings(max_trials=2, threads=1))
    session = open_session(ws, "demo", "sasrec").session
    for changes in ({}, {"transition_weight": 4.0}):
        trial = run_trial(ws, session, changes).trial
        write_reflection(ws, session, trial, helped="unclear", dimension="scoring", lesson="counts are cheap")
    finalize(ws, session, "transitions carry this dataset", confirm=True)
    ws.close()
    return home


@pytest.fixture
def home(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(finished, tmp_path / "home")
    return tmp_path / "home"


def export(*arguments: str | Path) -> int:
    """Run the command in this process; returns its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["export", *map(str, arguments)])
    return int(ended.value.code or 0)


def request_of(home: Path, destination: Path) -> RefitRequest:
    ws = Workspace.open(home)
    with ws.memory:
        plan = plan_refit(ws, SESSION)
        return make_request(
            ws, plan, "# A card\n", str(destination), overwrite=False, device=None, threads=1, key_file=None
        )


def dataset_of(home: Path) -> Path:
    return home / ".virtualmle" / "data" / "demo"


def in_memory(home: Path) -> PreparedDataset:
    """All events of the demo dataset, as the refit trains on them."""
    dataset = PreparedDataset.load(dataset_of(home))
    key = Vault(home).private_key()
    return all_events(dataset, open_test(dataset_of(home), key, dataset.dataset_id, dataset.num_users))


def files_below(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_events_are_those_of_the_raw_log_with_each_users_last_two_events(home: Path) -> None:
    events = in_memory(home)
    user_ids, item_ids = (
        pl.read_parquet(dataset_of(home) / f"{name}_ids.parquet")["original_id"].to_list() for name in ("user", "item")
    )
    log = generate_demo().sort("timestamp", maintain_order=True)
    for user in (0, 1, len(user_ids) - 1):
        mine = log.filter((pl.col("user") == user_ids[user]) & pl.col("item").is_in(item_ids)).tail(50)
        part = slice(events.offsets[user], events.offsets[user + 1])
        assert [item_ids[item] for item in events.items[part]] == mine["item"].to_list()
        assert events.timestamps[part].tolist() == mine["timestamp"].to_list()


@dataclass(frozen=True)
class Refitted:
    """A home after a refit, and the files of home and folder for temporary files before it."""

    home: Path
    before: dict[str, str]
    temporary: Path

    @property
    def model(self) -> Path:
        return self.home.parent / "model"


@pytest.fixture(scope="module")
def refitted(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Refitted:
    folder = tmp_path_factory.mktemp("refitted")
    shutil.copytree(finished, folder / "home")
    (folder / "tmp").mkdir()
    found = Refitted(folder / "home", files_below(folder / "home"), folder / "tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(found.temporary))
        assert export(SESSION, found.model, "--refit", "--threads", "1", "--home", found.home) == 0
    return found


def test_weights_priors_and_counts_are_of_all_events(refitted: Refitted) -> None:
    found, events = Export.load(refitted.model), in_memory(refitted.home)
    assert found.config.trained_on == "all events"
    (member,) = found.members
    trial = refitted.home / ".virtualmle" / "sessions" / SESSION / member.trial.split("/")[1]
    result = read_result(trial)
    assert result is not None
    torch.set_num_threads(1)
    expected = train_whole(member.config, events, read_spec(trial).seed, torch.device("cpu"), result.best_epoch)
    for name, weights in expected.named_parameters():
        assert torch.equal(dict(member.model.named_parameters())[name], weights)
    priors = ScorePriors.from_dataset(events, member.config)
    assert priors is not None and priors.transition is not None
    assert found.priors is not None and found.priors.transition is not None
    assert torch.equal(found.priors.transition.values, priors.transition.values)
    assert found.counts.tolist() == np.bincount(events.items, minlength=events.num_items).tolist()


def test_the_card_says_which_figures_are_whose(refitted: Refitted) -> None:
    card = (refitted.model / "MODEL_CARD.md").read_text()
    assert "## Figures of the examined model, not of this one" in card
    assert "**The model in this directory has no figures.**" in card
    assert "Trained on all events" in card and "Trained on the train part only" not in card
    assert f"virtualmle export {SESSION} DIR --trial t002 --refit" in card


def test_nothing_is_written_but_the_export_and_the_entries_in_ledger_and_audit_log(refitted: Refitted) -> None:
    home, after = refitted.home, files_below(refitted.home)
    changed = {name for name in refitted.before | after if refitted.before.get(name) != after.get(name)}
    records = {f".virtualmle/vault/{name}" for name in ("looks.db", "audit.jsonl", "audit_head")}
    assert changed <= records | {"memory.db", "memory.db-wal", "memory.db-shm"}
    last = AuditLog(Vault(home).directory).entries()[-1]
    assert (last.kind, last.session) == ("refit", SESSION) and walk_home(home) == []
    assert not any(refitted.temporary.iterdir())
    assert {path.name for path in home.parent.iterdir()} == {"home", "tmp", "model"}
    (look,) = looks(home)
    (row,) = Ledger(Vault(home).directory).refits()
    assert (row.session, row.fingerprint) == (SESSION, look.fingerprint)


def test_a_second_refit_gives_the_same_bytes_and_is_recorded(
    refitted: Refitted, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(SESSION, tmp_path / "again", "--refit", "--threads", "1", "--home", home, "--json") == 0
    assert json.loads(capsys.readouterr().out)["trained_on"] == "all events"
    assert files_below(tmp_path / "again") == files_below(refitted.model)
    assert len(Ledger(Vault(home).directory).refits()) == 1


def test_every_member_of_an_ensemble_is_trained_again(home: Path, refitted: Refitted, tmp_path: Path) -> None:
    request = request_of(home, tmp_path / "model")
    sessions = home / ".virtualmle" / "sessions" / SESSION
    members = [MemberToRefit(name=f"{SESSION}/{name}", directory=str(sessions / name)) for name in ("t001", "t002")]
    seen = []
    refit(request.model_copy(update={"members": members}), list, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 2), (1, 2), (2, 2)]
    (expected,), found = Export.load(refitted.model).members, Export.load(tmp_path / "model").members
    assert [member.trial for member in found] == [member.name for member in members]
    for member in found:  # both trials share seed and training knobs
        for name, weights in expected.model.named_parameters():
            assert torch.equal(dict(member.model.named_parameters())[name], weights)


def test_a_student_is_trained_again_with_its_teachers_and_not_without_one(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (home / "SANDBOX.md").read_text()
    (home / "SANDBOX.md").write_text(page + STUDENT_KNOBS)
    ws = Workspace.open(home, settings=Settings(threads=1, with_reflection=False))
    session, teacher = open_session(ws, "demo", "sasrec").session, f"{SESSION}/t001"
    run_trial(ws, session, {"loss": "full_softmax", "teachers": [teacher]})
    assert finalize(ws, session, "a student", confirm=True).selected == "t001"
    ws.close()
    assert export(session, tmp_path / "model", "--refit", "--threads", "1", "--home", home) == 0
    (member,) = Export.load(tmp_path / "model").members
    directory = home / ".virtualmle" / "sessions" / session / "t001"
    result, checkpoint = read_result(directory), directory.parents[1] / teacher / CHECKPOINT
    assert result is not None and member.config.teachers == teacher
    torch.set_num_threads(1)
    spec, cpu = read_spec(directory), torch.device("cpu")
    precision, loaded = loss_precision(spec.device, cpu, member.config), LoadedModel(*load_checkpoint(checkpoint))
    expected = train_whole(
        member.config, in_memory(home), spec.seed, cpu, result.best_epoch, precision=precision, teachers=[loaded]
    )
    for name, weights in expected.named_parameters():
        assert torch.equal(dict(member.model.named_parameters())[name], weights)

    before = Ledger(Vault(home).directory).refits()
    checkpoint.unlink()
    capsys.readouterr()
    assert export(session, tmp_path / "again", "--refit", "--threads", "1", "--home", home) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"which this trial uses, is missing; restore it, or leave {teacher} out" in said
    assert not (tmp_path / "again").exists() and Ledger(Vault(home).directory).refits() == before


def test_with_a_split_by_time_the_sealed_event_of_a_user_follows_all_visible_ones(tmp_path: Path) -> None:
    home = tmp_path / "home"
    frame = generate_demo()
    log = Log(frame, {name: name for name in frame.columns}, frame.height)
    options = PrepareOptions(split="time", holdout="10%")
    prepare(log, "demo", dataset_of(home), options, Vault(home).public_key())
    dataset, events = PreparedDataset.load(dataset_of(home)), in_memory(home)
    targets = open_test(dataset_of(home), Vault(home).private_key(), dataset.dataset_id, dataset.num_users)
    visible = dataset.visible_histories()
    assert len(events.items) == len(visible.items) + len(targets.users) > len(visible.items)
    for user in range(dataset.num_users):
        expected = visible.items[visible.offsets[user] : visible.offsets[user + 1]].tolist()
        expected += [targets.items[user]] if user in targets.users else []
        assert events.items[events.offsets[user] : events.offsets[user + 1]].tolist() == expected


def test_a_session_that_is_not_revealed_and_one_beside_an_open_session_are_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ws = Workspace.open(home)
    other = open_session(ws, "demo", "hstu").session
    run_trial(ws, other, {})
    ws.close()
    assert export(other, tmp_path / "model", "--refit", "--home", home) == 1
    assert f"session {other} is open; a refit trains on the test events" in capsys.readouterr().err
    assert export(SESSION, tmp_path / "model", "--refit", "--home", home) == 1
    assert f"session {other} on the same data is open" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    assert Ledger(Vault(home).directory).refits() == []


def test_an_open_session_on_the_same_log_under_another_name_and_other_options_is_recognised(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = generate_demo()
    log.write_csv(tmp_path / "log.csv")
    with pytest.raises(SystemExit):
        main(["data", "add", "renamed", str(tmp_path / "log.csv"), "--max-events", "20", "--home", str(home)])
    ws = Workspace.open(home)
    other = open_session(ws, "renamed", "sasrec").session
    ws.close()
    assert export(SESSION, tmp_path / "model", "--refit", "--home", home) == 1
    assert f"session {other} is open, and test events of it are among the events" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    assert Ledger(Vault(home).directory).refits() == []


def test_a_session_that_is_opened_during_the_training_keeps_the_export_from_being_written(
    home: Path, tmp_path: Path
) -> None:
    answers = iter([[], [OpenSession(session="demo-hstu-9", dataset_dir=str(dataset_of(home)))]])
    with pytest.raises(SealError, match="demo-hstu-9 is open"):
        refit(request_of(home, tmp_path / "model"), lambda: next(answers))
    assert {path.name for path in tmp_path.iterdir()} == {"home"}


def test_an_open_session_that_cannot_be_checked_forbids_the_refit(home: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(dataset_of(home), damaged)
    (damaged / "test.sealed").chmod(0o600)
    (damaged / "test.sealed").write_bytes(b"damaged")
    sessions = [OpenSession(session="demo-hstu-9", dataset_dir=str(damaged))]
    with pytest.raises(SealError, match="demo-hstu-9 is open, and whether"):
        refit(request_of(home, tmp_path / "model"), lambda: sessions)
    assert {path.name for path in tmp_path.iterdir()} == {"home", "damaged"}


def test_a_dataset_of_an_open_session_that_was_changed_forbids_the_refit(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate_demo(num_users=200).write_csv(tmp_path / "log.csv")
    with pytest.raises(SystemExit):
        main(["data", "add", "other", str(tmp_path / "log.csv"), "--home", str(home)])
    ws = Workspace.open(home)
    session = open_session(ws, "other", "sasrec").session
    ws.close()
    manifest = dataset_of(home).with_name("other") / "manifest.json"
    manifest.chmod(0o600)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"profile": {}}))
    assert export(SESSION, tmp_path / "model", "--refit", "--home", home) == 1
    assert f"{session} is open, and whether" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["result.json", "test.sealed"])
def test_a_changed_model_or_seal_is_refused_before_the_seal_is_opened(home: Path, tmp_path: Path, name: str) -> None:
    request = request_of(home, tmp_path / "model")
    folder = dataset_of(home) if name == "test.sealed" else Path(request.members[0].directory)
    (folder / name).chmod(0o600)
    (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    with pytest.raises(SealError, match="the test set stays sealed"):
        refit(request, list)
    assert Ledger(Vault(home).directory).refits() == []


def test_an_interruption_ends_the_process_and_leaves_no_half_export(home: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refit(request_of(home, tmp_path / "model"), list, interrupt)
    assert {path.name for path in tmp_path.iterdir()} == {"home"}
    running = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline", "ppid"])
               if process.info["ppid"] == os.getpid()]  # fmt: skip
    assert not any(refit_request.MODULE in line for line in running)


def test_a_process_whose_command_is_gone_ends_without_an_export(home: Path, tmp_path: Path) -> None:
    request = request_of(home, tmp_path / "model")
    lines = [request.model_dump_json(), refit_request.Publish(open_sessions=[]).model_dump_json()]
    ended = subprocess.run(
        [sys.executable, "-P", "-m", refit_request.MODULE],
        check=False,
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
    )
    assert '"stage":"trained"' in ended.stdout and '"stage":"written"' not in ended.stdout
    assert ended.returncode != 0
    assert not (tmp_path / "model").exists()


def test_every_open_session_is_checked_whatever_its_dataset_is(home: Path) -> None:
    ws = Workspace.open(home)
    session = open_session(ws, "demo", "hstu").session
    assert [(each.session, each.dataset_dir) for each in open_sessions(ws)] == [(session, str(dataset_of(home)))]
    ws.close()

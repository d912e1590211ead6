"""`virtualmle export` from real sessions: what is exported, what its card says, and ranks equal to the examiner's."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.quick_home import environment, quick_home
from virtualmle.cli.app import main
from virtualmle.data.prepared import PreparedDataset
from virtualmle.examiner.main import histories_before_test
from virtualmle.examiner.request import read_revealed
from virtualmle.examiner.unseal import open_test
from virtualmle.examiner.vault import Vault
from virtualmle.memory.records import TrialOutcome, TrialRecord
from virtualmle.memory.store import Memory
from virtualmle.models.config import fingerprint, train_hash
from virtualmle.serving import Recommender
from virtualmle.tools.finalize import finalize
from virtualmle.tools.open_session import open_session
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.tools.write_reflection import write_reflection
from virtualmle.training.metrics import metrics_from_ranks
from virtualmle.training.spec import CHECKPOINT

REVEALED, OPEN = "demo-sasrec-1", "demo-hstu-1"


@dataclass(frozen=True)
class Sessions:
    """A home with a revealed session of SASRec and an open one of HSTU, two trials each."""

    home: Path

    @property
    def dataset(self) -> PreparedDataset:
        return PreparedDataset.load(self.home / ".virtualmle" / "data" / "demo")


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Sessions:
    home = quick_home(tmp_path_factory.mktemp("export") / "home")
    ws = Workspace.open(home, settings=Settings(max_trials=4, threads=1))
    for backbone in ("sasrec", "hstu"):
        session = open_session(ws, "demo", backbone).session
        for changes in ({}, {"transition_weight": 4.0}):
            trial = run_trial(ws, session, changes).trial
            write_reflection(ws, session, trial, helped="unclear", dimension="scoring", lesson="counts are cheap")
        if session == REVEALED:
            finalize(ws, session, "transitions carry this dataset", confirm=True)
    ws.close()
    return Sessions(home)


@pytest.fixture
def copied(sessions: Sessions, tmp_path: Path) -> Sessions:
    """A copy that a test may change."""
    shutil.copytree(sessions.home, tmp_path / "home")
    return Sessions(tmp_path / "home")


def export(*arguments: str | Path) -> int:
    """Run the command in this process; returns its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["export", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_the_selected_trial_is_exported_with_the_examiners_ranks_and_test_figures(
    sessions: Sessions, tmp_path: Path, capsys
):
    assert export(REVEALED, tmp_path / "model", "--home", sessions.home, "--reveal", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["trial"] == f"{REVEALED}/t002" and said["trained_on"] == "train"
    recommender, dataset = Recommender.load(tmp_path / "model", "cpu"), sessions.dataset
    ranks, _ = recommender.ranks(dataset.items, dataset.offsets, dataset.valid_items, dataset.timestamps)
    trial = sessions.home / ".virtualmle" / "sessions" / REVEALED / "t002"
    np.testing.assert_array_equal(ranks, np.load(trial / "ranks.npy"))
    vault = Vault(sessions.home)
    data_dir = sessions.home / ".virtualmle" / "data" / "demo"
    targets = open_test(data_dir, vault.private_key(), dataset.dataset_id, dataset.num_users)
    histories = histories_before_test(dataset)
    on_test, ties = recommender.ranks(histories.items, histories.offsets, targets.items, histories.times)
    revealed = read_revealed(sessions.home, REVEALED)
    assert revealed is not None
    assert (metrics_from_ranks(on_test), ties) == (revealed.metrics, revealed.ties)
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert f"| {revealed.metrics['ndcg@10']:.4f} [" in card and "**Look number 1**" in card
    assert "2 trials: 2 keep" in card and "validation [95 % interval] | test [95 % interval]" in card


def test_without_reveal_the_card_withholds_test_figures_while_another_session_is_open(sessions: Sessions, tmp_path):
    assert export(REVEALED, tmp_path / "model", "--home", sessions.home) == 0
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert "**Examined, not shown.** The test result is revealed when the last open session" in card and OPEN in card
    assert "Look number" not in card and "test [" not in card


def test_an_open_session_exports_its_best_trial_and_no_test_figure(sessions: Sessions, tmp_path: Path):
    assert export(OPEN, tmp_path / "model", "--home", sessions.home) == 0
    recommender, dataset = Recommender.load(tmp_path / "model", "cpu"), sessions.dataset
    ranks, _ = recommender.ranks(dataset.items, dataset.offsets, dataset.valid_items, dataset.timestamps)
    trial = sessions.home / ".virtualmle" / "sessions" / OPEN / "t002"
    np.testing.assert_array_equal(ranks, np.load(trial / "ranks.npy"))
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert "**Not examined.** The session is open, and its test set is sealed" in card
    assert "test [" not in card and "Look number" not in card
    revealed = read_revealed(sessions.home, REVEALED)
    assert revealed is not None
    everything = b"".join(path.read_bytes() for path in (tmp_path / "model").iterdir())
    for name in ("ndcg@10", "ndcg@5", "mrr"):  # the other session's look is none of this session's business
        assert f"{revealed.metrics[name]:.4f}".encode() not in everything


def test_another_trial_of_a_revealed_session_is_exported_without_the_test_figures_of_the_selected_one(
    sessions: Sessions, tmp_path: Path
):
    assert export(REVEALED, tmp_path / "model", "--trial", "t001", "--home", sessions.home) == 0
    assert Recommender.load(tmp_path / "model", "cpu").export.members[0].trial == f"{REVEALED}/t001"
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert "**Not examined.** The session's one look at the test set was for t002" in card
    assert "| test [" not in card


def test_two_exports_of_a_session_are_equal_and_name_no_path_of_this_machine(sessions: Sessions, tmp_path: Path):
    for name in ("one", "two"):
        assert export(REVEALED, tmp_path / name, "--home", sessions.home) == 0
    for path in (tmp_path / "one").iterdir():
        content = path.read_bytes()
        assert content == (tmp_path / "two" / path.name).read_bytes(), path.name
        assert str(sessions.home).encode() not in content and b"u0001" not in content


def test_an_ensemble_is_exported_with_its_members_and_the_card_states_their_cost(copied: Sessions, tmp_path: Path):
    page = copied.home / "SANDBOX.md"
    row = "| `ensemble` | 2 to 4 trials | none | none |\n"
    page.write_text(page.read_text() + row)
    ws = Workspace.open(copied.home, settings=Settings(max_trials=2, threads=1, with_reflection=False))
    session = open_session(ws, "demo", "hstu", new=True).session
    names = [f"{OPEN}/t001", f"{REVEALED}/t002"]
    found = run_trial(ws, session, {"ensemble": names, "transition_weight": 4.0})
    parts = [ws.memory.trials.get(*name.split("/")).outcome for name in names]
    ws.close()
    assert export(session, tmp_path / "model", "--trial", found.trial, "--home", copied.home) == 0
    recommender, dataset = Recommender.load(tmp_path / "model", "cpu"), copied.dataset
    assert [member.trial for member in recommender.export.members] == names
    ranks, _ = recommender.ranks(dataset.items, dataset.offsets, dataset.valid_items, dataset.timestamps)
    trial = copied.home / ".virtualmle" / "sessions" / session / found.trial
    np.testing.assert_array_equal(ranks, np.load(trial / "ranks.npy"))
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert "An ensemble of 2 models, HSTU" in card and "vectors of width 32" in card
    assert all(f"{part.parameters:,} parameters" in card for part in parts if part)
    assert f"{sum(part.parameters for part in parts if part):,} parameters in 2 members" in card
    (copied.home / ".virtualmle" / "sessions" / names[1] / CHECKPOINT).unlink()
    assert export(session, tmp_path / "again", "--home", copied.home) == 1


def unfinished(home: Path, status: str) -> str:
    """Add a trial with this status to the open session; returns its handle."""
    with Memory(home / "memory.db") as memory:
        config = memory.trials.get(OPEN, "t001").configuration.model_copy(update={"hidden_dim": 8})
        record = TrialRecord(
            session=OPEN, handle="", number=0, base="default", changes={"hidden_dim": 8}, config=config.model_dump(),
            config_hash=fingerprint(config.model_dump()), train_hash=train_hash(config),
        )  # fmt: skip
        handle = memory.trials.start(record).handle
        if status != "running":
            outcome = {"status": status, "verdict": {"crashed": "crash", "stopped": "discard"}.get(status)}
            memory.trials.finish(OPEN, handle, TrialOutcome.model_validate(outcome))
    return handle


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("stopped", "was stopped early, so that it has no complete model; run its configuration again to its end"),
        ("crashed", "has crashed and has no model; run it again"),
        ("cancelled", "was cancelled and has no model; run it again"),
        ("running", "is still running; export it when it has finished"),
    ],
)
def test_a_trial_without_a_complete_model_is_refused_with_advice(
    status: str, message: str, copied: Sessions, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
):
    monkeypatch.setattr("virtualmle.tools.export.sync_session", lambda ws, session: [])  # the trial has no process
    handle = unfinished(copied.home, status)
    assert export(OPEN, tmp_path / "model", "--trial", handle, "--home", copied.home) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert f"trial {handle} of session {OPEN} {message}, or export the best finished trial, t00" in error
    assert export(OPEN, tmp_path / "model", "--home", copied.home) == 0


def test_an_unknown_trial_or_session_is_refused(sessions: Sessions, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert export(OPEN, tmp_path / "model", "--trial", "t9", "--home", sessions.home) == 1
    assert "unknown trial 't9'" in capsys.readouterr().err
    assert export("demo-hstu-9", tmp_path / "model", "--home", sessions.home) == 1
    assert "unknown session 'demo-hstu-9'" in capsys.readouterr().err


def test_a_checkpoint_that_was_changed_or_lost_is_refused(copied: Sessions, tmp_path: Path, capsys):
    path = copied.home / ".virtualmle" / "sessions" / OPEN / "t002" / CHECKPOINT
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert export(OPEN, tmp_path / "model", "--home", copied.home) == 1
    assert "files of t002 were changed after the worker wrote them" in " ".join(capsys.readouterr().err.split())
    path.unlink()
    assert export(OPEN, tmp_path / "model", "--home", copied.home) == 1
    assert "cannot be read (No such file or directory); restore" in " ".join(capsys.readouterr().err.split())


def test_an_existing_directory_is_replaced_only_if_it_is_an_export_and_on_request(sessions: Sessions, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert export(REVEALED, tmp_path / "mine", "--overwrite", "--home", sessions.home) == 1
    assert "is not an export" in capsys.readouterr().err
    for options, code in (((), 0), ((), 1), (("--overwrite",), 0)):
        assert export(OPEN, tmp_path / "model", "--home", sessions.home, *options) == code


WITHOUT_THE_SERVER = """
import sys
for name in ("mcp", "sqlite_utils", "typer", "httpx", "cryptography", "rich", "matplotlib", "optuna"):
    sys.modules[name] = None  # as if it was not installed
from virtualmle.serving import Recommender
found = Recommender.load(sys.argv[1]).recommend(["i001", "i017"], k=3)
print(found)
"""


def test_three_lines_of_python_recommend_where_only_the_engines_libraries_are_installed(
    sessions: Sessions, tmp_path: Path
):
    assert export(REVEALED, tmp_path / "model", "--home", sessions.home) == 0
    command = [sys.executable, "-P", "-c", WITHOUT_THE_SERVER, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = Recommender.load(tmp_path / "model", "cpu").recommend(["i001", "i017"], k=3)
    assert [line.split()[1] for line in done.stdout.splitlines()[1:]] == list(expected.items)

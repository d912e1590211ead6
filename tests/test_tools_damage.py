"""Sessions whose files were deleted, damaged, restored from a copy or replaced."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtualmle.data.errors import ConfigError, DataError, SessionError, TrialError
from virtualmle.examiner.vault import Vault
from virtualmle.tools.finalize import finalize
from virtualmle.tools.open_session import open_session
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.sync import adopt_all
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.tools.write_reflection import write_reflection
from virtualmle.training.spec import CHECKPOINT, RANKS

TINY = {"epochs": 1, "hidden_dim": 16, "batch_size": 512}
NO_REFLECTION = Settings(threads=1, with_reflection=False)


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace.open(tmp_path, settings=NO_REFLECTION)
    yield workspace
    workspace.close()


def test_a_replaced_dataset_is_refused_before_a_trial_starts_and_before_the_look(ws: Workspace, tmp_path: Path) -> None:
    for name, shift in (("first", 0), ("second", 3)):
        (tmp_path / f"{name}.tsv").write_text("\n".join(rows(shift)) + "\n")
    key = Vault(ws.home).public_key()
    ws.catalogue.add("shop", tmp_path / "first.tsv", public_key=key)
    session = open_session(ws, "shop", "sasrec").session
    run_trial(ws, session, TINY)
    shutil.rmtree(ws.catalogue.path("shop"))
    ws.catalogue.add("shop", tmp_path / "second.tsv", public_key=key)
    with pytest.raises(DataError, match="replaced"):
        run_trial(ws, session, {**TINY, "lr": 0.01})
    with pytest.raises(DataError, match="replaced"):
        finalize(ws, session, "other data", confirm=True)
    assert len(ws.memory.trials.all(session)) == 1 and ws.memory.sessions.get(session).state == "open"


def rows(shift: int) -> list[str]:
    return [f"u{user}\ti{(user * 7 + step * (1 + shift)) % 20}\t{step}" for user in range(60) for step in range(8)]


@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_unreadable_ranks_crash_the_compared_trial_and_not_the_session(ws: Workspace, damage: str) -> None:
    session = open_session(ws, "demo", "sasrec").session
    first = run_trial(ws, session, TINY)
    ranks = ws.trial_directory(session, first.trial) / RANKS
    if damage == "missing":
        ranks.unlink()
    else:
        ranks.write_bytes(b"")
    second = run_trial(ws, session, {"transition_weight": 4.0})
    assert (second.status, second.verdict) == ("crashed", "crash") and RANKS in second.reason
    assert adopt_all(ws) == []
    assert finalize(ws, session, "the first trial still stands", confirm=True).selected == first.trial


def test_a_restored_older_memory_does_not_adopt_the_result_of_a_newer_trial(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec").session
    run_trial(ws, session, TINY)
    ws.close()
    copy = ws.home / "memory.backup"
    shutil.copy(ws.home / "memory.db", copy)
    with_newer = Workspace.open(ws.home, settings=NO_REFLECTION)
    run_trial(with_newer, session, {"lr": 0.01})
    with_newer.close()
    for leftover in ws.home.glob("memory.db*"):
        leftover.unlink()
    shutil.copy(copy, ws.home / "memory.db")

    restored = Workspace.open(ws.home, settings=NO_REFLECTION)
    with pytest.raises(TrialError):
        run_trial(restored, session, {"lr": 0.00001})
    assert [t.status for t in restored.memory.trials.all(session)] == ["finished", "crashed"]
    third = run_trial(restored, session, {"lr": 0.00001})
    assert (third.trial, third.status) == ("t003", "finished")
    restored.close()


def test_test_figures_are_withheld_while_another_session_on_the_same_data_is_open(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec").session
    run_trial(ws, session, TINY)
    test = finalize(ws, session, "done", confirm=True).test
    assert test is not None
    other = open_session(ws, "demo", "hstu").session
    with pytest.raises(SessionError) as refusal:
        finalize(ws, session, "what was it again?", confirm=True)
    assert f"{test['ndcg@10']:.4f}" not in str(refusal.value)
    run_trial(ws, other, TINY)
    finalize(ws, other, "done as well", confirm=True)
    with pytest.raises(SessionError, match=f"{test['ndcg@10']:.4f}"):
        finalize(ws, session, "what was it again?", confirm=True)


def test_a_missing_checkpoint_of_the_selected_trial_is_refused_before_the_freeze(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec").session
    trial = run_trial(ws, session, TINY)
    (ws.trial_directory(session, trial.trial) / CHECKPOINT).unlink()
    with pytest.raises(SessionError, match="restore"):
        finalize(ws, session, "no weights", confirm=True)
    assert ws.memory.sessions.get(session).state == "open"


def test_invisible_text_is_refused_as_reflection_and_as_summary(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec").session
    trial = run_trial(ws, session, TINY)
    with pytest.raises(ConfigError, match="visible"):
        write_reflection(ws, session, trial.trial, helped="unclear", dimension="capacity", lesson="\u200b\u202e")
    with pytest.raises(ConfigError, match="visible"):
        finalize(ws, session, "\u200b", confirm=True)
    assert ws.memory.sessions.get(session).state == "open"

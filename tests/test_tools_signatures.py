"""Files of trials and datasets that were changed: what the server refuses, and what it does instead."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.quick_home import quick_home
from virtualmle.data.dataset_signature import DATASET_MAC
from virtualmle.data.errors import ConfigError, DataError, SessionError, TrialError
from virtualmle.data.prepared import MANIFEST, SEALED, PreparedDataset
from virtualmle.data.seal import as_bytes, pack_test, seal
from virtualmle.examiner.vault import ADOPTED, MAC_KEY, Vault
from virtualmle.memory.records import TrialRecord
from virtualmle.tools.export import plan_export
from virtualmle.tools.finalize import finalize
from virtualmle.tools.members import members_for
from virtualmle.tools.open_session import open_session
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.signatures import has_signed_state, load_ranks
from virtualmle.tools.sync import sync_session
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.training.metrics import metrics_from_ranks
from virtualmle.training.signature import (
    SIGNATURE,
    SPEC_SIGNATURE,
    STATE_SIGNATURE,
    check_trial,
    sign_as_it_is,
    write_signed_result,
)
from virtualmle.training.spec import CHECKPOINT, RANKS, RESULT, SPEC, STATE, read_result, read_spec
from virtualmle.trials.lease import read_lease
from virtualmle.trials.warm import retire

SESSION = "demo-sasrec-1"
SETTINGS = Settings(threads=1, device="cpu", with_reflection=False, max_trials=4)
PRIOR = {"transition_weight": 4.0}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which t001 is recorded, and t002 has ended but is not recorded yet. No process runs."""
    home = quick_home(tmp_path_factory.mktemp("ended") / "home")
    ws = Workspace.open(home, settings=Settings(**{**vars(SETTINGS), "keep_warm": 60}))
    open_session(ws, "demo", "sasrec")
    assert run_trial(ws, SESSION, {}).verdict == "keep"
    assert run_trial(ws, SESSION, {"hidden_dim": 24}, wait_seconds=0).status == "running"
    while not (ws.trial_directory(SESSION, "t002") / RESULT).exists():
        threading.Event().wait(0.05)
    retire(ws.inbox(SESSION))
    ws.close()
    return home


@pytest.fixture
def ws(ended: Path, tmp_path: Path) -> Iterator[Workspace]:
    opened = Workspace.open(Path(shutil.copytree(ended, tmp_path / "home")), settings=SETTINGS)
    yield opened
    opened.close()


def directory(ws: Workspace, trial: str) -> Path:
    return ws.trial_directory(SESSION, trial)


def recorded(ws: Workspace, trial: str = "t002") -> TrialRecord:
    assert sync_session(ws, SESSION) == []
    return ws.memory.trials.get(SESSION, trial)


def edit(path: Path, **changes: object) -> None:
    """Replace fields of a JSON file."""
    path.chmod(0o644)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip_last_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def swap(ws: Workspace, name: str) -> None:
    one, other = directory(ws, "t001") / name, directory(ws, "t002") / name
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def old_home(ws: Workspace) -> None:
    """Remove what an earlier version did not write."""
    (ws.vault.directory / MAC_KEY).unlink()
    for name in (SIGNATURE, SPEC_SIGNATURE, STATE_SIGNATURE, DATASET_MAC):
        for path in ws.home.glob(f".virtualmle/*/**/{name}"):
            path.unlink()


def test_an_untouched_trial_is_recorded_with_the_metrics_of_its_ranks(ws: Workspace) -> None:
    found = recorded(ws)
    assert found.status == "finished" and found.outcome is not None
    assert found.outcome.metrics == metrics_from_ranks(load_ranks(ws, found))
    signature = json.loads((directory(ws, "t002") / SIGNATURE).read_text())
    assert found.outcome.details["signature"] == signature["mac"] and signature["by"] == "worker"
    assert {CHECKPOINT, RANKS, RESULT} <= set(signature["files"])


def _better_result(ws: Workspace) -> None:
    edit(directory(ws, "t002") / RESULT, metrics={name: 0.99 for name in ("ndcg@10", "ndcg@5", "mrr")})


def _better_ranks(ws: Workspace) -> None:
    path = directory(ws, "t002") / RANKS
    np.save(path, np.ones_like(np.load(path)))


def _better_ranks_and_result(ws: Workspace) -> None:
    """All files fit together, and so does their list of hashes, but not the MAC."""
    _better_ranks(ws)
    path = directory(ws, "t002")
    edit(path / RESULT, metrics=metrics_from_ranks(np.load(path / RANKS)))
    sign_as_it_is(path, bytes(32), read_spec(path), dataset_id="", by="worker")


def _other_sessions_key(ws: Workspace) -> None:
    path = directory(ws, "t002")
    sign_as_it_is(path, ws.session_key("demo-sasrec-2"), read_spec(path), dataset_id="", by="worker")


def _swapped_directories(ws: Workspace) -> None:
    for path in directory(ws, "t001").iterdir():
        shutil.copy2(path, directory(ws, "t002") / path.name)


ATTACKS: dict[str, Callable[[Workspace], None]] = {
    "edited result": _better_result,
    "failed result": lambda ws: edit(directory(ws, "t002") / RESULT, status="failed", cause="x", machine_fault=True),
    "edited ranks": _better_ranks,
    "edited ranks, result and list of hashes": _better_ranks_and_result,
    "swapped ranks": lambda ws: swap(ws, RANKS),
    "swapped checkpoint": lambda ws: swap(ws, CHECKPOINT),
    "swapped result": lambda ws: swap(ws, RESULT),
    "swapped signature": lambda ws: swap(ws, SIGNATURE),
    "all files of another trial": _swapped_directories,
    "edited spec": lambda ws: edit(directory(ws, "t002") / SPEC, seed=7),
    "another session's key": _other_sessions_key,
    "no signature": lambda ws: (directory(ws, "t002") / SIGNATURE).unlink(),
    "a signature that cannot be read": lambda ws: (directory(ws, "t002") / SIGNATURE).write_text("{"),
    "no checkpoint": lambda ws: (directory(ws, "t002") / CHECKPOINT).unlink(),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_trial_whose_files_were_changed_becomes_a_crash(ws: Workspace, attack: Callable[[Workspace], None]) -> None:
    attack(ws)
    found = recorded(ws)
    assert (found.status, found.outcome and found.outcome.verdict) == ("crashed", "crash")
    assert found.outcome is not None and found.outcome.cause is not None
    assert "t00" in found.outcome.cause and found.outcome.cause.endswith("session")
    assert found.outcome.metrics == {} and found.outcome.curve == []
    assert not found.machine_fault, "it uses the budget"
    incumbent = ws.memory.trials.incumbent(SESSION)
    assert incumbent is not None and incumbent.handle == "t001"


def test_metrics_that_a_worker_states_must_be_those_of_its_ranks(ws: Workspace) -> None:
    path = directory(ws, "t002")
    result, spec = read_result(path), read_spec(path)
    assert result is not None
    false = result.model_copy(update={"metrics": {**result.metrics, "ndcg@10": 0.99}})
    files = json.loads((path / SIGNATURE).read_text())["files"]
    dataset_id = ws.dataset("demo").dataset_id
    write_signed_result(path, ws.session_key(SESSION), spec, false, files, dataset_id=dataset_id, by="worker")
    found = recorded(ws)
    assert found.outcome is not None and "states ndcg@10 0.990000, but ranks.npy gives" in str(found.outcome.cause)


def test_a_trial_of_another_dataset_is_refused(ws: Workspace) -> None:
    path = directory(ws, "t002")
    sign_as_it_is(path, ws.session_key(SESSION), read_spec(path), dataset_id="0" * 32, by="worker")
    found = recorded(ws)
    assert found.outcome is not None and "another dataset" in str(found.outcome.cause)


def test_a_worker_killed_between_its_signature_and_its_result_leaves_a_crash_and_the_session_goes_on(
    ws: Workspace,
) -> None:
    (directory(ws, "t002") / RESULT).unlink()
    found = recorded(ws)
    assert found.status == "crashed" and found.outcome is not None
    assert "ended without a result" in str(found.outcome.cause)
    again = run_trial(ws, SESSION, {"hidden_dim": 24})
    assert (again.trial, again.status) == ("t003", "finished")


def test_ranks_that_were_changed_after_they_were_recorded_are_not_compared_with(ws: Workspace) -> None:
    first = ws.memory.trials.get(SESSION, "t001")
    np.save(directory(ws, "t001") / RANKS, np.ones_like(load_ranks(ws, first)))
    with pytest.raises(TrialError, match="files of t001 were changed"):
        load_ranks(ws, first)
    found = recorded(ws)
    assert found.status == "crashed" and found.outcome is not None
    assert "files of t001 were changed" in str(found.outcome.cause)


def test_a_changed_checkpoint_is_neither_re_scored_nor_exported_nor_a_member_nor_examined(ws: Workspace) -> None:
    assert recorded(ws).status == "finished"
    for trial in ("t001", "t002"):
        flip_last_bit(directory(ws, trial) / CHECKPOINT)
    with pytest.raises(TrialError, match="files of t001 were changed"):
        plan_export(ws, SESSION, "t001")
    ensemble = ws.memory.trials.get(SESSION, "t001").configuration.model_copy(update={"ensemble": "t001+t002"})
    with pytest.raises(ConfigError, match="t001 cannot be scored .the files of t001 were changed"):
        members_for(ws, ws.memory.sessions.get(SESSION), ensemble)
    with pytest.raises(SessionError, match="cannot be evaluated: the files of t00. were changed"):
        finalize(ws, SESSION, "nothing", confirm=True)
    assert ws.memory.sessions.get(SESSION).state == "open"
    base = "t001"
    trained = run_trial(ws, SESSION, PRIOR, base=base)
    assert (trained.status, trained.rescored) == ("finished", False), "it was trained again"


def test_a_worker_refuses_a_spec_that_the_server_has_not_signed(ws: Workspace) -> None:
    recorded(ws)
    start = ws.launcher(ws.memory.trials.get(SESSION, "t001"))
    path = directory(ws, "t009")
    spec = read_spec(directory(ws, "t001")).model_copy(update={"trial": "t009"})
    start.submit(spec, path)
    edit(path / SPEC, seed=7)  # the worker imports torch meanwhile
    while (state := start.look(path)).status == "running":
        threading.Event().wait(0.05)
    assert state.status == "crashed" and "changed after the server wrote it" in str(state.cause)


def test_a_workers_key_is_in_no_file_no_command_line_and_no_environment(ws: Workspace) -> None:
    recorded(ws)
    path = directory(ws, "t009")
    ws.launcher(ws.memory.trials.get(SESSION, "t001")).submit(
        read_spec(directory(ws, "t001")).model_copy(update={"trial": "t009"}), path
    )
    lease = read_lease(path)
    assert lease is not None
    process = psutil.Process(lease.pid)
    shown = repr([process.cmdline(), process.environ()]).encode()
    while ws.launcher_of(SESSION, path).look(path).status == "running":
        threading.Event().wait(0.05)
    assert check_trial(path, ws.session_key(SESSION), SESSION, "t009", names=(RESULT, RANKS, CHECKPOINT)).by == "worker"
    files = [each for each in ws.home.rglob("*") if each.is_file() and each.parent != ws.vault.directory]
    assert len(files) > 20
    for content in (shown, *(each.read_bytes() for each in files)):
        for key in (ws.session_key(SESSION), ws.vault.mac_key()):
            assert key not in content and key.hex().encode() not in content


def test_a_state_that_no_worker_has_signed_is_not_continued(ws: Workspace) -> None:
    state = directory(ws, "t001") / STATE
    assert has_signed_state(ws, SESSION, "t001")
    assert not has_signed_state(ws, "demo-sasrec-2", "t001")
    flip_last_bit(state)
    assert not has_signed_state(ws, SESSION, "t001")


def forged_seal(ws: Workspace) -> bytes:
    """A test split that the private key opens, with the validation items as targets."""
    data = PreparedDataset.load(ws.catalogue.path("demo"))
    payload = pack_test(
        items=np.array(data.valid_items), timestamps=np.array(data.valid_timestamps), fingerprint=as_bytes("f" * 64)
    )
    return seal(payload, ws.vault.public_key(), data.dataset_id)


def test_a_forged_seal_is_refused_before_the_freeze_and_no_session_opens(ws: Workspace) -> None:
    recorded(ws)
    path = ws.catalogue.path("demo") / SEALED
    path.chmod(0o644)
    path.write_bytes(forged_seal(ws))
    for call in (
        lambda: finalize(ws, SESSION, "nothing", confirm=True),
        lambda: open_session(ws, "demo", "sasrec", new=True),
        lambda: run_trial(ws, SESSION, PRIOR),
    ):
        with pytest.raises(DataError, match="test.sealed of dataset 'demo' was changed"):
            call()
    assert ws.memory.sessions.get(SESSION).state == "open"


def test_an_edited_profile_in_the_manifest_is_refused(ws: Workspace) -> None:
    path = ws.catalogue.path("demo") / MANIFEST
    edit(path, profile={**json.loads(path.read_text())["profile"], "users": 5})
    with pytest.raises(DataError, match="manifest.json or test.sealed of dataset 'demo' was changed"):
        open_session(ws, "demo", "hstu")


def test_everything_in_a_home_that_is_older_than_the_key_is_signed_once(ws: Workspace) -> None:
    old_home(ws)
    assert ws.vault.adoption() is None
    assert recorded(ws).status == "finished"
    adoption = ws.vault.adoption()
    assert adoption is not None
    assert (adoption.datasets, adoption.trials, adoption.unfinished) == (["demo"], 2, [])
    assert finalize(ws, SESSION, "nothing", confirm=True).state == "revealed"


def test_once_the_key_exists_files_without_a_signature_are_refused(ws: Workspace) -> None:
    old_home(ws)
    ws.vault.mac_key()
    (directory(ws, "t002") / SIGNATURE).unlink()
    found = recorded(ws)
    assert found.status == "crashed" and found.outcome is not None
    assert "no readable signature.json" in str(found.outcome.cause)


def test_a_trial_that_was_running_when_the_key_was_made_is_signed_when_it_has_ended(ws: Workspace) -> None:
    result = (directory(ws, "t002") / RESULT).read_bytes()
    old_home(ws)
    (directory(ws, "t002") / RESULT).unlink()
    ws.vault.mac_key()
    adoption = ws.vault.adoption()
    assert adoption is not None and adoption.unfinished == [f"{SESSION}/t002"]
    (directory(ws, "t002") / RESULT).write_bytes(result)
    assert recorded(ws).status == "finished"


def test_processes_that_need_the_key_at_once_get_the_same_one_and_valid_signatures(ws: Workspace) -> None:
    old_home(ws)
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: Vault(ws.home).mac_key(), range(16)))) == 1
    assert recorded(ws).status == "finished"
    assert (ws.vault.directory / ADOPTED).stat().st_mode & 0o077 == 0


def test_a_process_killed_while_it_signs_an_old_home_leaves_it_to_the_next_one(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_home(ws)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("virtualmle.examiner.vault._write_once", _interrupt)
        ws.vault.mac_key()
    assert (directory(ws, "t001") / SIGNATURE).exists() and not (ws.vault.directory / MAC_KEY).exists()
    assert recorded(ws).status == "finished"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt

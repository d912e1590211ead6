"""The worker signs what it writes and checks what it reads; it runs in this process, on a tiny dataset."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from virtualmle.data.errors import TrialError
from virtualmle.models.config import make_config
from virtualmle.training import signature
from virtualmle.training.signature import (
    SIGNATURE,
    STATE_SIGNATURE,
    StateSigner,
    check_trial,
    sign_spec,
    spec_hash,
    state_is_signed,
)
from virtualmle.training.spec import (
    CHECKPOINT,
    EPOCH_RANKS,
    INCUMBENT_RANKS,
    RANKS,
    RESULT,
    SPEC,
    STATE,
    USERS,
    NamedModel,
    TrialResult,
    TrialSpec,
    read_result,
    write_model,
)
from virtualmle.training.worker import main

KEY, OTHER_KEY = bytes(range(32)), bytes(32)
SMALL = {"hidden_dim": 16, "num_negatives": 20, "batch_size": 32, "epochs": 2, "lr": 0.01}

Worked = Callable[..., tuple[Path, TrialResult]]


@pytest.fixture(autouse=True)
def restored_torch_settings() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_deterministic_debug_mode("default")
    torch.set_num_threads(threads)


@pytest.fixture
def work(tiny_dataset_dir: Path, tmp_path: Path) -> Worked:
    """A function that runs a trial with the session's key and returns its directory and result.

    before: what happens to the directory between the server's signature and the worker.
    """

    def run(name: str, before: Callable[[Path], object] = lambda _: None, **changes: Any) -> tuple[Path, TrialResult]:
        fields = {key: changes.pop(key) for key in list(changes) if key in TrialSpec.model_fields}
        config = make_config("sasrec", **{**SMALL, **changes}).model_dump()
        own: dict[str, Any] = {"dataset_dir": str(tiny_dataset_dir), "config": config, "seed": 7, "threads": 1}
        spec = TrialSpec(session="s", trial=name, device="cpu", **{**own, **fields})
        directory = tmp_path / name
        directory.mkdir()
        write_model(directory / SPEC, spec)
        sign_spec(directory, KEY, spec)
        before(directory)
        main(directory, key=KEY)
        result = read_result(directory)
        assert result is not None
        return directory, result

    return run


def flip_last_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_worker_signs_its_trial_and_all_files_that_it_wrote(work: Worked) -> None:
    directory, result = work("t001")
    assert result.status == "finished"
    found = check_trial(directory, KEY, "s", "t001", names=(RANKS, CHECKPOINT, USERS, EPOCH_RANKS))
    assert set(found.files) == {RESULT, RANKS, CHECKPOINT, USERS, EPOCH_RANKS} and found.by == "worker"
    assert state_is_signed(directory / STATE, KEY, "s")
    for key, session, trial in ((OTHER_KEY, "s", "t001"), (KEY, "r", "t001"), (KEY, "s", "t002")):
        with pytest.raises(TrialError, match="signature.json is not that of"):
            check_trial(directory, key, session, trial)
    with pytest.raises(TrialError, match="of another dataset"):
        check_trial(directory, KEY, "s", "t001", dataset_id="0" * 32)
    flip_last_bit(directory / USERS)
    check_trial(directory, KEY, "s", "t001")
    with pytest.raises(TrialError, match="users.npy is not the one that was signed"):
        check_trial(directory, KEY, "s", "t001", names=(USERS,))


def test_a_failed_trial_is_signed_as_well(work: Worked) -> None:
    lost = NamedModel(name="t000", directory="", files={})
    directory, result = work("t001", members=[lost], ensemble="t002+t003")
    assert result.status == "failed"
    assert set(check_trial(directory, KEY, "s", "t001").files) == {RESULT}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: (path / SPEC).write_text((path / SPEC).read_text().replace("7", "8")), id="seed"),
        pytest.param(lambda path: (path / "spec_signature.json").unlink(), id="no signature"),
        pytest.param(lambda path: sign_spec(path, OTHER_KEY, signature.read_spec(path)), id="another key"),
        pytest.param(lambda path: (path / "race.json").write_text("{}"), id="a race that was added"),
        pytest.param(lambda path: (path / INCUMBENT_RANKS).write_bytes(b""), id="ranks that were added"),
    ],
)
def test_a_worker_runs_nothing_that_its_server_has_not_signed(work: Worked, change: Callable[[Path], object]) -> None:
    directory, result = work("t001", before=change)
    assert result.status == "failed" and "changed after the server wrote it" in (result.cause or "")
    assert not (directory / RANKS).exists()


@pytest.mark.parametrize("name", [RESULT, CHECKPOINT, USERS, EPOCH_RANKS])
def test_a_worker_re_scores_only_what_a_worker_of_its_session_has_signed(work: Worked, name: str) -> None:
    trained, _ = work("t001")
    again, result = work("t002", rescore_from=str(trained), transition_weight=2.0)
    assert result.status == "finished" and check_trial(again, KEY, "s", "t002", names=(CHECKPOINT,))
    flip_last_bit(trained / name)
    _, result = work("t003", rescore_from=str(trained), transition_weight=3.0)
    assert result.status == "failed" and f"{name} is not the one that was signed" in (result.cause or "")


def test_a_worker_continues_only_a_state_that_a_worker_of_its_session_has_signed(work: Worked) -> None:
    begun, _ = work("t001")
    expected, whole = work("t002", epochs=3)
    continued, result = work("t003", epochs=3, resume_from=str(begun))
    assert result.resumed_epochs == 2
    (begun / STATE_SIGNATURE).unlink()
    scratch, anew = work("t004", epochs=3, resume_from=str(begun))
    assert (anew.status, anew.resumed_epochs, whole.resumed_epochs) == ("finished", 0, 0)
    assert len({(path / RANKS).read_bytes() for path in (expected, continued, scratch)}) == 1


def test_the_state_before_stays_signed_until_the_next_one_is_written(tmp_path: Path) -> None:
    sign, state = StateSigner(tmp_path, KEY, "s"), tmp_path / STATE
    states = [b"one", b"two", b"three"]
    for number, content in enumerate(states):
        sign(content)  # a worker that is killed here leaves the state before
        assert number == 0 or state_is_signed(state, KEY, "s")
        state.write_bytes(content)
        assert state_is_signed(state, KEY, "s")
        assert not state_is_signed(state, OTHER_KEY, "s") and not state_is_signed(state, KEY, "r")
    state.write_bytes(states[0])
    assert not state_is_signed(state, KEY, "s")


def test_the_signature_is_written_before_the_result(
    work: Worked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = signature.write_bytes

    def killed(path: Path, content: bytes) -> None:
        if path.name == RESULT:
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(signature, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        work("t001")
    assert (tmp_path / "t001" / SIGNATURE).exists() and not (tmp_path / "t001" / RESULT).exists()


def test_the_hash_of_a_spec_leaves_paths_out_and_nothing_else() -> None:
    member = NamedModel(name="t000", directory="/a", files={CHECKPOINT: "00"})
    spec = TrialSpec(session="s", trial="t", dataset_dir="/a", config={"lr": 0.1}, seed=1, rescore_from="/a/t000",
                     members=[member])  # fmt: skip
    moved = {"dataset_dir": "/b", "rescore_from": "/b/t000", "members": [member.model_copy(update={"directory": "/b"})]}
    assert spec_hash(spec.model_copy(update=moved)) == spec_hash(spec)
    for change in (
        {"seed": 2}, {"config": {"lr": 0.2}}, {"rescore_from": None}, {"resume_from": "/a/t000"}, {"threads": 2},
        {"members": [member.model_copy(update={"files": {CHECKPOINT: "01"}})]}, {"settings": [{}]},
    ):  # fmt: skip
        assert spec_hash(spec.model_copy(update=change)) != spec_hash(spec)

"""Receipts of sessions: checked in another directory with nothing but the file, and refused if anything was changed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.recorded_home import (
    LOG_ROWS,
    RecordedHome,
    build,
    freeze,
    open_home,
    open_session,
    raw_log,
    register,
    reveal,
    run_trial,
)
from virtualmle.cli.app import main
from virtualmle.data.commitment import HEADER, commitment_of, parted, with_commitment
from virtualmle.data.errors import SealError, SessionError
from virtualmle.data.prepared import SEALED, PreparedDataset
from virtualmle.examiner.receipt_checks import check_receipt
from virtualmle.examiner.receipts import Receipt, issue, parse, to_bytes
from virtualmle.examiner.unseal import open_test
from virtualmle.examiner.vault import Vault
from virtualmle.tools.receipts import issue_receipt, receipt_of, receipt_path
from virtualmle.tools.recording import end_recorded


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> RecordedHome:
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def content(built: RecordedHome) -> bytes:
    return receipt_path(built.home, built.session).read_bytes()


@pytest.fixture
def file(content: bytes, tmp_path: Path) -> Path:
    """The receipt alone, on another machine."""
    path = tmp_path / "receipt.json"
    path.write_bytes(content)
    return path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def failed(receipt: Receipt, key: str | None = None) -> list[str]:
    return [check.name for check in check_receipt(receipt, key) if not check.holds]


def test_a_receipt_holds_on_another_machine(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", file, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["holds"] and shown["stage"] == "revealed"
    assert [check["name"] for check in shown["checks"]] == [
        "signature", "chain", "test set", "choice", "order", "opening", "result",
    ]  # fmt: skip
    assert run("verify", file) == 0
    assert "test NDCG@10 0.0321 of trial t002, look 1" in capsys.readouterr().out


def test_the_owner_of_the_log_sees_that_the_test_targets_are_those_of_the_log(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = raw_log(tmp_path / "own.csv")
    assert run("verify", file, "--log", log) == 0
    assert "gives the test targets that were committed to" in capsys.readouterr().out
    lines = log.read_text(encoding="utf-8").splitlines()
    last = next(i for i in range(len(lines) - 1, 0, -1) if lines[i].startswith("u5,"))
    user, item, time = lines[last].split(",")
    lines[last] = f"{user},i{(int(item[1:]) + 1) % 23},{time}"
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert run("verify", file, "--log", log) == 1
    assert "FAIL  log:" in capsys.readouterr().out
    log.write_text("\n".join(lines[:-30]) + "\n", encoding="utf-8")
    assert run("verify", file, "--log", log) == 1
    assert "another log, or it was read with other options" in capsys.readouterr().out


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of all values in a JSON value that are not lists or objects with content."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = False
    for name, each in items:
        found = True
        yield from leaves(each, (*path, name))
    if not found:
        yield path


def other(value: object) -> object:
    """A value of the same kind that differs."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return ("1" if value[:1] == "0" else "0") + value[1:]
    return {"added": 1} if isinstance(value, dict) else ["added"]


def test_a_change_of_any_field_is_refused(content: bytes) -> None:
    original = json.loads(content)
    paths = list(leaves(original))
    assert len(paths) > 150
    for path in paths:
        changed = json.loads(content)
        place = changed
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = other(place[path[-1]])
        try:
            receipt = parse(json.dumps(changed).encode())
        except SealError:  # no receipt any more
            continue
        assert failed(receipt), path


def test_a_tampered_receipt_gives_exit_code_1(file: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(content.replace(b"0.0321", b"0.9321"))
    assert run("verify", file) == 1
    assert "FAIL  signature: the receipt was changed" in capsys.readouterr().out
    file.write_bytes(b"{}")
    assert run("verify", file) == 1
    assert "this is not a receipt of virtualmle" in capsys.readouterr().err
    assert run("verify", file.with_name("none")) == 1


def forged(content: bytes, tmp_path: Path, **changes: Any) -> Receipt:
    """A changed receipt, signed with another vault's key."""
    return issue(Vault(tmp_path / "forger"), parse(content).model_copy(update=changes))


def test_a_receipt_signed_again_by_somebody_else_is_not_of_the_expected_key(content: bytes, tmp_path: Path) -> None:
    receipt = parse(content)
    assert failed(receipt, receipt.public_key) == []
    assert failed(forged(content, tmp_path)) == []  # without an expected key, anyone may sign
    assert failed(forged(content, tmp_path), receipt.public_key) == ["signature"]


def test_even_a_signed_receipt_must_fit_to_its_excerpt(content: bytes, tmp_path: Path) -> None:
    receipt = parse(content)
    assert receipt.result is not None and receipt.result.opening is not None
    better = receipt.result.model_copy(update={"metrics": {"ndcg@10": 0.9}})
    assert failed(forged(content, tmp_path, result=better)) == ["result"]
    elsewhere = receipt.result.model_copy(update={"opening": receipt.result.opening.model_copy(
        update={"targets_digest": "0" * 64})})  # fmt: skip
    assert failed(forged(content, tmp_path, result=elsewhere)) == ["opening", "result"]
    assert failed(forged(content, tmp_path, choice={**receipt.choice, "selected": "t001"})) == ["choice", "result"]
    assert failed(forged(content, tmp_path, dataset={**receipt.dataset, "commitment": "0" * 64})) == [
        "test set", "opening",
    ]  # fmt: skip
    without_look = [item for item in receipt.log.items if isinstance(item, str) or item.kind != "look"]
    cut = receipt.log.model_copy(update={"items": without_look})
    assert failed(forged(content, tmp_path, log=cut)) == ["chain", "order"]


def test_entries_of_other_sessions_appear_as_digests_only(tmp_path: Path) -> None:
    world = build(tmp_path, until="trials")
    ws = open_home(world.home)
    with ws.memory:
        second = open_session(ws)
        run_trial(ws, second, 16, 0.0777)
        freeze(ws, world.session, "t002")
        reveal(ws, world.session, "t002")
    content = receipt_path(world.home, world.session).read_bytes()
    receipt = parse(content)
    assert failed(receipt) == []
    assert sum(isinstance(item, str) for item in receipt.log.items) == 3
    assert second.encode() not in content and b"0.0777" not in content


def test_the_choice_is_receipted_at_the_freeze_and_opened_at_the_reveal(tmp_path: Path) -> None:
    world = build(tmp_path, until="frozen")
    before = parse(receipt_path(world.home, world.session).read_bytes())
    assert (before.stage, before.result) == ("frozen", None) and failed(before) == []
    assert before.choice["selected"] == "t002" and len(before.choice["checkpoints"]["t002"]) == 64
    ws = open_home(world.home)
    with ws.memory:
        result = reveal(ws, world.session, "t002")
        after = receipt_of(world.home, ws.memory.sessions.get(world.session))
    assert (after.stage, after.result) == ("revealed", result) and failed(after) == []
    assert (after.dataset, after.choice) == (before.dataset, before.choice)
    assert after.log.items[: len(before.log.items)] == before.log.items  # the earlier head is a part of the chain


def test_a_void_session_has_a_receipt_too(tmp_path: Path) -> None:
    world = build(tmp_path, until="frozen")
    ws = open_home(world.home)
    with ws.memory:
        ws.memory.sessions.set_state(world.session, "frozen", "attempted")
        end_recorded(ws, world.session, None)
        receipt = receipt_of(world.home, ws.memory.sessions.get(world.session))
    assert receipt.stage == "void" and failed(receipt) == []


def test_an_open_session_has_no_receipt(tmp_path: Path) -> None:
    world = build(tmp_path, until="trials")
    ws = open_home(world.home)
    with ws.memory, pytest.raises(SessionError, match="is open; finalize it first"):
        issue_receipt(world.home, ws.memory.sessions.get(world.session))


def test_a_session_that_went_on_after_its_choice_gets_no_valid_receipt(tmp_path: Path) -> None:
    world = build(tmp_path, until="frozen")
    world.sql("UPDATE sessions SET state = 'open', selected = NULL, frozen_at = NULL")
    ws = open_home(world.home)
    with ws.memory:
        run_trial(ws, world.session, 64, 0.07)
        receipt = issue_receipt(world.home, ws.memory.sessions.get(world.session))
    assert failed(receipt) == ["order"]


def test_the_command_writes_the_receipt(built: RecordedHome, content: bytes, tmp_path: Path,
                                        capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    home = shutil.copytree(built.home, tmp_path / "home")
    out = tmp_path / "out.json"
    assert run("sessions", "receipt", built.session, "--home", home, "--out", out) == 0
    assert out.read_bytes() == content and f"virtualmle verify {out}" in capsys.readouterr().out
    assert run("sessions", "receipt", built.session, "--home", home) == 0
    assert capsys.readouterr().out.encode() == content == to_bytes(parse(content))
    (home / ".virtualmle" / "vault" / "receipts" / f"{built.session}.json").unlink()
    assert run("sessions", "receipt", built.session, "--home", home) == 0  # issued again from what is recorded
    assert failed(parse(capsys.readouterr().out.encode())) == []


def test_preparing_a_log_twice_gives_two_commitments_to_the_same_targets(tmp_path: Path) -> None:
    seals, digests = [], []
    for name in ("one", "two"):
        log = raw_log(tmp_path / "shop.csv")
        register(tmp_path / name, log)
        directory = tmp_path / name / ".virtualmle" / "data" / "shop"
        dataset, key = PreparedDataset.load(directory), Vault(tmp_path / name).private_key()
        targets = open_test(directory, key, dataset.dataset_id, dataset.num_users)
        seals.append(parted((directory / SEALED).read_bytes())[0])
        digests.append(targets.items.tolist())
        assert targets.nonce.hex().encode() not in (directory / SEALED).read_bytes()
    assert seals[0] != seals[1] and digests[0] == digests[1] and len(digests[0]) == len({u for u, _, _ in LOG_ROWS})


@pytest.mark.parametrize("change", ["another commitment", "no commitment"])
def test_a_seal_must_fit_to_its_commitment(built: RecordedHome, tmp_path: Path, change: str) -> None:
    directory = Path(shutil.copytree(built.home / ".virtualmle" / "data" / "shop", tmp_path / "shop"))
    dataset, key = PreparedDataset.load(directory), Vault(built.home).private_key()
    _, sealed = parted((directory / SEALED).read_bytes())
    (directory / SEALED).chmod(0o600)
    (directory / SEALED).write_bytes(with_commitment(sealed, "0" * 64) if change == "another commitment" else sealed)
    with pytest.raises(SealError, match="not the one that its commitment was made for"):
        open_test(directory, key, dataset.dataset_id, dataset.num_users)


def test_a_commitment_needs_a_whole_nonce_and_a_whole_digest() -> None:
    assert commitment_of(bytes(32), "0" * 64) != commitment_of(bytes(31) + b"1", "0" * 64)
    for nonce, digest in ((bytes(31), "0" * 64), (bytes(32), "0" * 62), (bytes(32), "x" * 64)):
        with pytest.raises(ValueError, match="."):
            commitment_of(nonce, digest)
    assert parted(b"VMLE-SEAL-1\n...") == (None, b"VMLE-SEAL-1\n...")
    assert parted(HEADER + b"short")[1] == b""

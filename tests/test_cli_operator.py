"""Operator mode on the command line: the private key is elsewhere, and only its holder takes the look."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.quick_home import environment, quick_home
from virtualmle.cli.app import main
from virtualmle.cli.attacks.scene import LATE_ITEM, hostile_log
from virtualmle.cli.checks import failures
from virtualmle.data.errors import SealError
from virtualmle.examiner.answers import read_answer
from virtualmle.examiner.audit import AuditLog
from virtualmle.examiner.choice import CHOICE, Choice, hashes_of, pack, unpack
from virtualmle.examiner.entries import Draft
from virtualmle.examiner.ledger import Ledger
from virtualmle.examiner.receipt_checks import check_receipt
from virtualmle.examiner.request import looks, read_item_names, read_revealed
from virtualmle.examiner.vault import Vault
from virtualmle.memory.store import Memory
from virtualmle.tools.auditing import walk_home
from virtualmle.tools.open_session import open_session
from virtualmle.tools.receipts import receipt_of
from virtualmle.tools.workspace import Settings, Workspace

SESSION = "demo-sasrec-1"
CHANGES = ("link", "outside", "missing", "content", "more")


def virtualmle(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "virtualmle", *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)


def outcome(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command that runs in this process."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """keys/, and home/ in operator mode with a session that `tune` has finalized."""
    folder = tmp_path_factory.mktemp("operator")
    home, log = quick_home(folder / "home"), folder / "demo.csv"
    hostile_log().write_csv(log)
    for words in (
        ("keygen", "--out", folder / "keys"),
        ("init", "--public-key", folder / "keys" / "public_key", "--home", home),
        ("data", "add", "demo", log, "--home", home),
        ("tune", "demo", "--agent", "random", "--trials", "1", "--threads", "1", "--home", home, "--json"),
    ):
        done = virtualmle(*words)
        assert done.returncode == 0, done.stderr
    (folder / "tuned.json").write_text(done.stdout)
    (folder / "tuned.err").write_text(done.stderr)
    return folder


@pytest.fixture
def home(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world / "home", tmp_path / "home"))


@pytest.fixture
def key(world: Path) -> Path:
    return world / "keys" / "private_key"


def packed(capsys: pytest.CaptureFixture[str], home: Path, out: Path) -> dict[str, Any]:
    code, printed, error = outcome(capsys, "sessions", "seal-choice", SESSION, "--out", out, "--home", home, "--json")
    assert code == 0, error
    return dict(json.loads(printed))


def answered(capsys: pytest.CaptureFixture[str], bundle: Path, key: Path, out: Path) -> dict[str, Any]:
    arguments = ("reveal", bundle, "--key-file", key, "--out", out, "--home", out.parent / "holder", "--json")
    code, printed, error = outcome(capsys, *arguments)
    assert code == 0, error
    return dict(json.loads(printed))


def state_of(home: Path) -> str:
    with Memory(home / "memory.db") as memory:
        return memory.sessions.get(SESSION).state


def check_records(home: Path) -> None:
    """The audit log fits to everything else, and the receipt, of which the choice was sealed first, holds."""
    assert walk_home(home) == []
    with Memory(home / "memory.db") as memory:
        receipt = receipt_of(home, memory.sessions.get(SESSION))
    assert receipt.stage == "revealed" and [check for check in check_receipt(receipt) if not check.holds] == []


def test_keygen_writes_a_private_file_and_never_overwrites_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, _ = outcome(capsys, "keygen", "--out", tmp_path / "keys")
    private = tmp_path / "keys" / "private_key"
    assert code == 0 and str(private) in printed and "Never copy it" in printed
    assert stat.S_IMODE(private.stat().st_mode) == 0o600 and len(private.read_bytes()) == 32
    content = private.read_bytes()
    code, _, error = outcome(capsys, "keygen", "--out", tmp_path / "keys")
    assert code == 1 and "never overwritten" in error and private.read_bytes() == content


def test_init_refuses_another_key_and_a_home_that_has_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [tmp_path / name for name in ("one", "two")]
    for folder in keys:
        assert outcome(capsys, "keygen", "--out", folder)[0] == 0
    public = [folder / "public_key" for folder in keys]
    init = ("init", "--home", tmp_path / "home", "--public-key")
    assert outcome(capsys, *init, public[0])[0] == 0
    assert outcome(capsys, *init, public[0])[0] == 0  # again, e.g. after a kill
    code, _, error = outcome(capsys, *init, public[1])
    assert code == 1 and "has a key already" in error
    assert Vault(tmp_path / "home").mode == "operator"
    assert outcome(capsys, "init", "--home", tmp_path / "own")[0] == 0
    code, _, error = outcome(capsys, "init", "--home", tmp_path / "own", "--public-key", public[0])
    assert code == 1 and "has a key already" in error
    code, _, error = outcome(capsys, *init, keys[0] / "private_key" / "nothing")
    assert code == 1 and "check the path" in error


def test_finalize_leaves_a_sealed_choice_and_uses_no_look(world: Path) -> None:
    result = json.loads((world / "tuned.json").read_text())
    assert (result["state"], result["test"], result["look"]) == ("frozen", None, None)
    assert f"virtualmle reveal {SESSION}" in result["next"]
    assert "leaves a sealed choice" in (world / "tuned.err").read_text()
    assert looks(world / "home") == [] and state_of(world / "home") == "frozen"


def test_the_holder_reveals_on_the_same_file_system(
    home: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other_key"
    other.write_bytes(bytes(range(32)))
    other.chmod(0o600)
    code, _, error = outcome(capsys, "reveal", SESSION, "--key-file", other, "--home", home)
    assert code == 1 and "is not the key" in error and state_of(home) == "frozen" and looks(home) == []
    code, printed, error = outcome(capsys, "reveal", SESSION, "--key-file", key, "--home", home, "--json")
    assert code == 0, error
    result = json.loads(printed)
    assert (result["state"], result["look"]) == ("revealed", 1) and result["test"]["ndcg@10"] > 0
    again = outcome(capsys, "reveal", SESSION, "--key-file", key, "--home", home, "--json")
    assert json.loads(again[1])["test"] == result["test"] and len(looks(home)) == 1
    check_records(home)
    code, _, error = outcome(capsys, "sessions", "seal-choice", SESSION, "--out", tmp_path / "c.tar", "--home", home)
    assert code == 1 and "has used its look" in error


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a home to another user")
def test_a_home_of_another_user_is_not_revealed_in_place(
    home: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.chown(home, 65534, -1)
    code, _, error = outcome(capsys, "reveal", SESSION, "--key-file", key, "--home", home)
    assert code == 1 and "run as that user" in error and looks(home) == []


def test_a_choice_is_revealed_on_another_machine_and_its_answer_brought_back(
    home: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, answer = tmp_path / "choice.tar", tmp_path / "answer.json"
    choice = packed(capsys, home, bundle)
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    with tarfile.open(bundle) as tar:
        names = tar.getnames()
    assert names[0] == CHOICE and not [name for name in names if "memory" in name or "vault" in name or "ranks" in name]
    found = answered(capsys, bundle, key, answer)
    assert found["choice"] == choice["choice"] and found["sealed"] == choice["sealed"]
    assert found["result"]["look"] == 1 and len(looks(tmp_path / "holder")) == 1

    code, printed, error = outcome(capsys, "sessions", "bring-back", SESSION, answer, "--home", home, "--json")
    assert code == 0, error
    result = json.loads(printed)
    assert (result["state"], result["look"]) == ("revealed", 1) and result["test"] == found["result"]["metrics"]
    assert [look.session for look in looks(home)] == [SESSION] and state_of(home) == "revealed"
    assert outcome(capsys, "sessions", "bring-back", SESSION, answer, "--home", home)[0] == 0  # completes after a kill
    assert len(looks(home)) == 1
    check_records(home)
    kinds = [entry.kind for entry in AuditLog(Vault(home).directory).entries() if entry.session == SESSION]
    assert kinds[-3:] == ["frozen", "look", "revealed"]
    assert LATE_ITEM in read_item_names(home, SESSION).values()
    receipt = Vault(home).directory / "receipts" / f"{SESSION}.json"
    code, printed, _ = outcome(capsys, "verify", receipt, "--json")
    checks = {check["name"]: check["holds"] for check in json.loads(printed)["checks"]}
    assert code == 0 and checks["opening"] and checks["result"] and checks["order"]
    ledgers = [Ledger(Vault(each).directory) for each in (home, tmp_path / "holder")]
    sketch, holders = (ledger.sealed_sketch(ledger.looks()[0].session) for ledger in ledgers)
    assert sketch == holders and len(sketch) > 1000
    assert failures(home) == {} and failures(tmp_path / "holder") == {}

    same = answered(capsys, bundle, key, answer)
    assert same["result"] == found["result"] and len(looks(tmp_path / "holder")) == 1


def test_a_changed_answer_and_the_answer_of_another_key_are_refused(
    home: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, answer = tmp_path / "choice.tar", tmp_path / "answer.json"
    packed(capsys, home, bundle)
    answered(capsys, bundle, key, answer)
    content = json.loads(answer.read_text())
    metric = json.loads(content["signed"])["result"]["metrics"]["ndcg@10"]
    for changed in (
        {**content, "signed": content["signed"].replace(repr(metric), "0.99")},
        {**content, "signature": "00" * 64},
    ):
        answer.write_text(json.dumps(changed))
        code, _, error = outcome(capsys, "sessions", "bring-back", SESSION, answer, "--home", home)
        assert code == 1 and "not signed" in error
    unchecked = read_answer(answer, None).result  # without a key nothing is checked
    assert unchecked is not None and unchecked.metrics["ndcg@10"] == metric
    assert state_of(home) == "frozen" and read_revealed(home, SESSION) is None and looks(home) == []


def test_another_choice_of_a_session_that_was_revealed_gets_no_answer(
    home: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "choice.tar", tmp_path / "second.tar"
    packed(capsys, home, first)
    answered(capsys, first, key, tmp_path / "answer.json")
    spec = home / ".virtualmle" / "sessions" / SESSION / "t001" / "spec.json"
    spec.write_text(spec.read_text().replace('"seed": ', '"seed": 1'))
    code, _, error = outcome(capsys, "sessions", "seal-choice", SESSION, "--out", second, "--home", home)
    assert code == 1 and "the test set stays sealed" in error and not second.exists()
    pack_with(spec, first, second)
    arguments = ("reveal", second, "--key-file", key, "--home", tmp_path / "holder")
    code, _, error = outcome(capsys, *arguments)
    assert code == 1 and "another choice" in error
    code, _, error = outcome(capsys, "sessions", "bring-back", SESSION, tmp_path / "answer.json", "--home", home)
    assert code == 1 and "another choice" in error


def pack_with(spec: Path, bundle: Path, out: Path) -> None:
    """Pack a bundle again with another specification, as a program without the checks of `seal-choice` could."""
    folder = out.with_suffix("")
    choice = unpack(bundle, folder)
    place = f"sessions/{SESSION}/t001/spec.json"
    shutil.copyfile(spec, folder / place)
    sources = {path: folder / path for path in choice.files}
    pack(out, choice.model_copy(update={"files": hashes_of(sources)}), sources)


def test_a_look_that_gave_the_holder_no_result_makes_the_session_void(
    home: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, answer = tmp_path / "choice.tar", tmp_path / "answer.json"
    packed(capsys, home, bundle)
    choice = unpack(bundle, tmp_path / "unpacked")
    vault = Vault(tmp_path / "holder")  # as an examiner leaves it that dies after it has counted the look
    (vault.create_directory() / "choices").mkdir()
    (vault.directory / "choices" / choice.name).write_text(choice.digest)
    AuditLog(vault.directory).append(Draft(kind="look", session=choice.name, body={"trial": "t001"}))
    Ledger(vault.directory).record(choice.name, "demo", choice.dataset_id, "f" * 64)
    found = answered(capsys, bundle, key, answer)
    assert found["result"] is None and len(looks(tmp_path / "holder")) == 1
    code, printed, error = outcome(capsys, "sessions", "bring-back", SESSION, answer, "--home", home, "--json")
    assert code == 0, error
    assert (json.loads(printed)["state"], json.loads(printed)["test"]) == ("void", None)
    assert state_of(home) == "void" and [look.session for look in looks(home)] == [SESSION]
    assert outcome(capsys, "sessions", "bring-back", SESSION, answer, "--home", home)[0] == 0
    assert failures(home) == {} and failures(tmp_path / "holder") == {}


def rewritten(bundle: Path, change: str) -> Path:
    """A copy of a bundle with one thing changed, as someone on the way could."""
    target = bundle.with_name(f"{change}.tar")
    with tarfile.open(bundle) as source, tarfile.open(target, "w") as tar:
        entries = source.getmembers()
        for entry in entries:
            file = source.extractfile(entry)
            assert file is not None
            if change == "link" and entry is entries[1]:
                entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, "../../outside", 0
            if change == "outside" and entry is entries[1]:
                entry.name = "../outside"
            if change == "missing" and entry is entries[-1]:
                continue
            if change == "content" and entry is entries[1]:
                tar.addfile(entry, tarfile.io.BytesIO(b"x" * entry.size))  # type: ignore[attr-defined]
                continue
            tar.addfile(entry, file if entry.isreg() else None)
        if change == "more":
            tar.addfile(tarfile.TarInfo("data/demo/test_items.npy"))
    return target


def test_a_bundle_is_refused_that_holds_anything_but_what_it_lists(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "choice.tar"
    packed(capsys, home, bundle)
    for change in CHANGES:
        folder = tmp_path / "unpacked" / change
        folder.mkdir(parents=True)
        with pytest.raises(SealError, match="pack it again"):
            unpack(rewritten(bundle, change), folder)
    assert not (tmp_path / "unpacked" / "outside" / "outside").exists()
    assert sorted(path.name for path in (tmp_path / "unpacked").iterdir()) == sorted(CHANGES)
    assert isinstance(unpack(bundle, tmp_path / "whole"), Choice)
    compressed = tmp_path / "choice.tar.gz"
    with tarfile.open(compressed, "w:gz") as tar:
        tar.add(bundle, arcname=CHOICE)
    with pytest.raises(SealError, match="not a sealed choice"):
        unpack(compressed, tmp_path)


def test_an_open_session_has_no_choice_to_reveal(
    home: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ws = Workspace.open(home, settings=Settings(threads=1))
    with ws.memory:
        opened = open_session(ws, "demo", "sasrec").session
    for words in (("reveal", opened, "--key-file", key), ("sessions", "seal-choice", opened, "--out", tmp_path / "c")):
        code, _, error = outcome(capsys, *words, "--home", home)
        assert code == 1 and "is open; finalize it first" in error

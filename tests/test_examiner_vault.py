"""The keys of the vault, and the look ledger."""

import os
import sqlite3
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from virtualmle.data.errors import HomeError, SealError
from virtualmle.data.seal import seal
from virtualmle.examiner.ledger import LEDGER, Ledger
from virtualmle.examiner.unseal import unseal
from virtualmle.examiner.vault import Vault


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_key_pair_is_created_on_first_use_and_kept(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    assert not vault.directory.exists(), "the constructor creates no file"
    public = vault.public_key()
    assert (vault.public_key(), vault.mode) == (public, "auto")
    assert Vault(tmp_path).public_key() == public
    assert unseal(seal(b"secret", public, "d"), Vault(tmp_path).private_key(), "d") == b"secret"
    assert vault.mac_key() == Vault(tmp_path).mac_key() not in (public, vault.private_key())
    assert vault.session_key("a") == Vault(tmp_path).session_key("a") != vault.session_key("b")
    assert vault.adoption() is None, "there was nothing to sign"


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_only_the_owner_can_access_the_vault_and_its_key(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.public_key()
    assert mode(vault.directory) == 0o700
    assert mode(vault.directory / "private_key") == mode(vault.directory / "mac_key") == 0o600
    (vault.directory / "private_key").chmod(0o640)
    with pytest.raises(SealError, match="chmod 600"):
        vault.private_key()


def test_concurrent_callers_agree_on_one_key_pair(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: Vault(tmp_path).public_key(), range(16)))
    assert len(keys) == 1
    assert unseal(seal(b"x", keys.pop(), "d"), Vault(tmp_path).private_key(), "d") == b"x"
    assert {path.name for path in Vault(tmp_path).directory.iterdir()} == {"mac_key", "private_key", "public_key"}


def test_a_lost_public_key_is_derived_again_from_the_private_key(tmp_path: Path) -> None:
    public = Vault(tmp_path).public_key()
    (Vault(tmp_path).directory / "public_key").unlink()
    assert Vault(tmp_path).public_key() == public


def test_in_operator_mode_the_vault_has_no_private_key(tmp_path: Path) -> None:
    operator, vault = Vault(tmp_path / "operator"), Vault(tmp_path / "home")
    vault.use_operator_key(operator.public_key())
    assert (vault.mode, vault.public_key()) == ("operator", operator.public_key())
    assert vault.mac_key() != operator.mac_key(), "each home signs with a key of its own"
    with pytest.raises(SealError, match="not on this machine"):
        vault.private_key()
    vault.use_operator_key(operator.public_key())  # the same key again, e.g. after a kill
    with pytest.raises(SealError, match="has a key already"):
        vault.use_operator_key(bytes(range(32)))
    with pytest.raises(SealError, match="has a key already"):
        operator.use_operator_key(operator.public_key())  # its private key is here
    with pytest.raises(SealError, match="32 bytes"):
        Vault(tmp_path / "third").use_operator_key(b"short")


def test_a_truncated_key_file_and_an_unusable_home_are_reported(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "home")
    vault.public_key()
    (vault.directory / "public_key").write_bytes(b"cut")
    with pytest.raises(SealError, match="3 bytes"):
        vault.public_key()
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="--home"):
        Vault(tmp_path / "file").public_key()


@pytest.mark.parametrize("session", ["", "../x", "a/b", ".x", "a\\b"])
def test_a_session_id_cannot_lead_out_of_the_vault(tmp_path: Path, session: str) -> None:
    with pytest.raises(SealError, match="is invalid"):
        Vault(tmp_path).revealed_path(session)


def test_looks_are_counted_per_content_across_names_and_sessions(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.looks() == []
    assert ledger.record("a-1", "a", "id a", "content one").look == 1
    assert ledger.record("b-1", "b", "id b", "content two").look == 1
    assert ledger.record("c-1", "c", "id c", "content one").look == 2
    assert [(look.session, look.look) for look in Ledger(tmp_path).looks()] == [("a-1", 1), ("b-1", 1), ("c-1", 2)]
    assert mode(tmp_path / LEDGER) == 0o600


def test_a_session_can_look_only_once(tmp_path: Path) -> None:
    first = Ledger(tmp_path).record("a-1", "a", "id", "content")
    with pytest.raises(SealError, match="a-1 has used its one look"):
        Ledger(tmp_path).record("a-1", "a", "id", "another content")
    assert Ledger(tmp_path).looks() == [first]
    assert Ledger(tmp_path).find("a-1") == first
    assert Ledger(tmp_path).find("a-2") is None


def test_concurrent_examiners_get_different_look_numbers(tmp_path: Path) -> None:
    def look(number: int) -> int:
        return Ledger(tmp_path).record(f"s-{number}", "a", "id", "content").look

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(look, range(16))) == list(range(1, 17))


def test_only_one_of_several_examiners_of_a_session_gets_the_look(tmp_path: Path) -> None:
    def attempt(_: int) -> bool:
        try:
            Ledger(tmp_path).record("s-1", "a", "id", "content")
        except SealError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


def test_rows_of_the_ledger_cannot_be_updated_or_deleted(tmp_path: Path) -> None:
    Ledger(tmp_path).record("s-1", "a", "id", "content")
    connection = sqlite3.connect(tmp_path / LEDGER)
    for statement in ("DELETE FROM look", "UPDATE look SET look = 0"):
        with pytest.raises(sqlite3.IntegrityError, match="only grow"):
            connection.execute(statement)
    connection.close()


def test_a_damaged_ledger_raises_a_seal_error(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_bytes(b"not a database, not at all" * 100)
    with pytest.raises(SealError, match=r"looks\.db.*restore"):
        Ledger(tmp_path).looks()


def test_a_vault_of_another_user_is_reported_and_not_treated_as_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = Vault(tmp_path)
    vault.create_directory()

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    calls: list[Callable[[], object]] = [vault.public_key, Ledger(vault.directory).looks]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", denied)  # file modes do not restrict root, who may run the tests
        for call in calls:
            with pytest.raises(HomeError, match="another user.*--home"):
                call()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "chmod", denied)
        with pytest.raises(HomeError, match="another user"):
            vault.create_directory()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", denied)
        with pytest.raises(HomeError, match=r"looks\.db' belongs to another user"):
            Ledger(vault.directory).record("s-1", "a", "id", "content")


def test_a_ledger_of_another_user_is_not_reported_as_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ledger(tmp_path).record("s-1", "a", "id", "content")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(HomeError, match="belongs to another user"):
        Ledger(tmp_path).looks()

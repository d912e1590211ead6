"""Preparing writes test targets only as ciphertext: no visible file depends on them."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from virtualmle.data.errors import SealError
from virtualmle.data.prepare import order_events, prepare, split_events
from virtualmle.data.prepared import SEALED, PreparedDataset, PrepareOptions
from virtualmle.data.readers import Log
from virtualmle.data.seal import MAGIC, PAYLOAD_VERSION, as_bytes, pack_test, seal
from virtualmle.examiner.unseal import open_test, unseal
from virtualmle.examiner.vault import Vault

NUM_USERS, NUM_ITEMS, LENGTH = 120, 90, 9


def make_log(test_items: list[int], test_days: list[int]) -> Log:
    """A log whose users end with the given items on the given days; all earlier events are fixed."""
    rng = np.random.default_rng(3)
    rows = []
    for user in range(NUM_USERS):
        rows += [(f"user-{user}", f"item-{rng.integers(NUM_ITEMS)}", day) for day in range(LENGTH - 1)]
        rows.append((f"user-{user}", f"item-{test_items[user]}", test_days[user]))
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "timestamp": pl.Int64}, orient="row")
    return Log(frame, {"user": "user", "item": "item", "timestamp": "timestamp"}, len(rows))


def packed(items: np.ndarray, timestamps: np.ndarray, fingerprint: str, **further: np.ndarray) -> bytes:
    return pack_test(items=items, timestamps=timestamps, fingerprint=as_bytes(fingerprint), **further)


def targets(seed: int) -> tuple[list[int], list[int]]:
    rng = np.random.default_rng(seed)
    items = np.random.default_rng(11).integers(NUM_ITEMS, size=NUM_USERS)  # the same items for every seed
    return rng.permutation(items).tolist(), rng.integers(5_000, 9_000, NUM_USERS).tolist()


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "home")


def encodings(values: np.ndarray) -> Iterator[bytes]:
    """The values in every encoding in which a file might contain them."""
    for kind in ("i1", "<i2", "<i4", "<i8", ">i2", ">i4", ">i8", "<f4", "<f8"):
        yield values.astype(kind).tobytes()
    for separator in (",", ", ", " ", "\n", "\t", ",\n  "):
        yield separator.join(map(str, values.tolist())).encode()
    yield json.dumps(values.tolist(), indent=1).encode()[1:-1]


def files_containing(folder: Path, values: np.ndarray) -> set[str]:
    return {
        path.name
        for path in folder.rglob("*")
        for encoded in encodings(values)
        if path.is_file() and encoded in path.read_bytes()
    }


def test_no_file_of_a_prepared_directory_contains_test_items_in_any_encoding(tmp_path: Path, vault: Vault) -> None:
    log = make_log(*targets(1))
    prepare(log, "toy", tmp_path / "data" / "toy", PrepareOptions(), vault.public_key())
    events = order_events(log.frame, PrepareOptions())
    split = split_events(events, 50)
    assert files_containing(tmp_path / "data", split.valid_items[:16]) == {"valid_items.npy"}, (
        "the search itself must work"
    )
    raw_items = np.array([int(events.item_ids[int(i)].split("-")[1]) for i in split.test_items])
    for start in range(0, NUM_USERS - 16, 16):
        window = slice(start, start + 16)
        for values in (split.test_items[window], split.test_timestamps[window], raw_items[window]):
            assert files_containing(tmp_path / "data", values) == set()


def test_logs_that_differ_only_in_test_targets_give_the_same_visible_bytes(tmp_path: Path, vault: Vault) -> None:
    folders = [tmp_path / "one" / "toy", tmp_path / "two" / "toy"]
    for seed, folder in enumerate(folders):
        prepare(make_log(*targets(seed)), "toy", folder, PrepareOptions(), vault.public_key())
    names = {path.name for path in folders[0].iterdir()}
    assert names == {path.name for path in folders[1].iterdir()}
    for name in names - {SEALED}:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    assert (folders[0] / SEALED).stat().st_size == (folders[1] / SEALED).stat().st_size
    dataset = PreparedDataset.load(folders[0])
    one, two = (open_test(f, vault.private_key(), dataset.dataset_id, NUM_USERS) for f in folders)
    assert (one.items != two.items).any()
    assert one.fingerprint != two.fingerprint


_opened_to_write: list[str] | None = None


def _watch_opens(event: str, arguments: tuple[object, ...]) -> None:
    if _opened_to_write is not None and event == "open":
        path, mode, flags = arguments
        if set(str(mode or "")) & set("wax+") or (mode is None and isinstance(flags, int) and flags & 3):
            _opened_to_write.append(str(path))


def test_preparing_writes_only_into_the_data_directory(tmp_path: Path, vault: Vault) -> None:
    global _opened_to_write  # noqa: PLW0603 (an audit hook cannot be removed, so this variable switches it off)
    key = vault.public_key()
    sys.addaudithook(_watch_opens)
    _opened_to_write = []
    try:
        prepare(make_log(*targets(1)), "toy", tmp_path / "data" / "toy", PrepareOptions(), key)
    finally:
        opened, _opened_to_write = _opened_to_write, None
    paths = [Path(path) for path in opened if not path.isdigit()]
    assert len(paths) == 9, "the audit hook must see every file of the dataset"
    assert all(path.is_relative_to(tmp_path / "data") for path in paths)


def test_the_examiner_decrypts_the_sealed_targets(tmp_path: Path, vault: Vault) -> None:
    log = make_log(*targets(1))
    manifest = prepare(log, "toy", tmp_path / "toy", PrepareOptions(), vault.public_key())
    opened = open_test(tmp_path / "toy", vault.private_key(), manifest.dataset_id, manifest.num_users)
    users = pl.read_parquet(tmp_path / "toy" / "user_ids.parquet")["original_id"]
    items = pl.read_parquet(tmp_path / "toy" / "item_ids.parquet")["original_id"]
    expected = {f"user-{u}": (f"item-{i}", t) for u, (i, t) in enumerate(zip(*targets(1), strict=True))}
    found = {user: (items[int(i)], int(t)) for user, i, t in zip(users, opened.items, opened.timestamps, strict=True)}
    assert found == expected
    assert len(opened.fingerprint) == 64


def test_equal_payloads_give_different_ciphertexts(vault: Vault) -> None:
    assert seal(b"x", vault.public_key(), "d") != seal(b"x", vault.public_key(), "d")


def test_a_seal_does_not_open_with_another_key(vault: Vault, tmp_path: Path) -> None:
    other = Vault(tmp_path / "other")
    other.public_key()
    with pytest.raises(SealError, match="another key"):
        unseal(seal(b"secret", vault.public_key(), "d"), other.private_key(), "d")


def test_a_seal_is_bound_to_its_dataset(vault: Vault) -> None:
    sealed = seal(b"secret", vault.public_key(), "dataset a")
    assert unseal(sealed, vault.private_key(), "dataset a") == b"secret"
    with pytest.raises(SealError, match="another dataset"):
        unseal(sealed, vault.private_key(), "dataset b")


def test_a_change_of_any_byte_of_a_seal_is_detected(vault: Vault) -> None:
    sealed, private = seal(b"secret", vault.public_key(), "d"), vault.private_key()
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 0x40
        with pytest.raises(SealError):
            unseal(bytes(changed), private, "d")
    for cut in (b"", sealed[:40], sealed[:-1], MAGIC):
        with pytest.raises(SealError):
            unseal(cut, private, "d")


@pytest.mark.parametrize("key", [b"", b"short", bytes(32), bytes(33)])
def test_an_invalid_public_key_is_refused(key: bytes) -> None:
    with pytest.raises(SealError, match="public key"):
        seal(b"secret", key, "d")


def test_a_split_with_another_number_of_users_is_refused(tmp_path: Path, vault: Vault) -> None:
    payload = packed(np.zeros(3, np.int32), np.zeros(3, np.int64), "f" * 64)
    (tmp_path / SEALED).write_bytes(seal(payload, vault.public_key(), "d"))
    assert len(open_test(tmp_path, vault.private_key(), "d", 3).items) == 3
    with pytest.raises(SealError, match="3 users, the dataset 4"):
        open_test(tmp_path, vault.private_key(), "d", 4)
    with pytest.raises(SealError, match="cannot be read"):
        open_test(tmp_path / "none", vault.private_key(), "d", 3)


def test_the_size_of_the_payload_does_not_depend_on_the_targets() -> None:
    sizes = {
        len(packed(np.full(50, i, np.int32), np.full(50, t, np.int64), "0" * 64))
        for i in (0, 9**6)
        for t in (0, 2**60)
    }
    assert len(sizes) == 1


def test_a_seal_of_the_first_layout_still_opens(tmp_path: Path, vault: Vault) -> None:
    buffer = io.BytesIO()
    arrays = {"items": np.arange(3, dtype=np.int32), "timestamps": np.zeros(3, np.int64)}
    np.savez(buffer, **arrays, fingerprint=as_bytes("f" * 64))
    (tmp_path / SEALED).write_bytes(seal(buffer.getvalue(), vault.public_key(), "d"))
    opened = open_test(tmp_path, vault.private_key(), "d", 3)
    assert (opened.items.tolist(), opened.fingerprint, dict(opened.further)) == ([0, 1, 2], "f" * 64, {})


def test_further_arrays_are_sealed_by_name_and_a_newer_layout_is_refused(tmp_path: Path, vault: Vault) -> None:
    three = np.zeros(3, np.int32), np.zeros(3, np.int64), "f" * 64
    payload = packed(*three, sketch=np.arange(4, dtype=np.uint32))
    assert payload == packed(*three, sketch=np.arange(4, dtype=np.uint32))
    (tmp_path / SEALED).write_bytes(seal(payload, vault.public_key(), "d"))
    opened = open_test(tmp_path, vault.private_key(), "d", 3)
    assert {name: array.tolist() for name, array in opened.further.items()} == {"sketch": [0, 1, 2, 3]}
    buffer = io.BytesIO()
    np.savez(buffer, version=np.int64(PAYLOAD_VERSION + 1))
    (tmp_path / SEALED).write_bytes(seal(buffer.getvalue(), vault.public_key(), "d"))
    with pytest.raises(SealError, match=f"layout {PAYLOAD_VERSION + 1}.*update virtualmle"):
        open_test(tmp_path, vault.private_key(), "d", 3)

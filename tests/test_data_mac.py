"""MACs: every part of what is signed matters, no two values are encoded alike, and derived keys differ by name."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtualmle.data.dataset_signature import DATASET_MAC, check_dataset, sign_dataset
from virtualmle.data.errors import DataError
from virtualmle.data.hashing import SETTLED_SECONDS, sha256_of, stored_sha256
from virtualmle.data.mac import Signature, derive, is_valid, sign
from virtualmle.data.prepared import MANIFEST, SEALED

KEY = bytes(range(32))
FILES = {"ranks.npy": "ab" * 32, "result.json": "cd" * 32}
FACTS = {"session": "s-1", "trial": "t001"}


@pytest.mark.parametrize(
    ("key", "purpose", "files", "facts"),
    [
        pytest.param(bytes(32), "trial", FILES, FACTS, id="key"),
        pytest.param(KEY, "state", FILES, FACTS, id="purpose"),
        pytest.param(KEY, "trial", {**FILES, "ranks.npy": "ac" * 32}, FACTS, id="hash"),
        pytest.param(KEY, "trial", {"ranks.npy": FILES["ranks.npy"]}, FACTS, id="file left out"),
        pytest.param(KEY, "trial", dict(zip(FILES, reversed(FILES.values()), strict=True)), FACTS, id="files swapped"),
        pytest.param(KEY, "trial", FILES, {**FACTS, "trial": "t002"}, id="fact"),
        pytest.param(KEY, "trial", {**FILES, **FACTS}, {}, id="facts among the files"),
    ],
)
def test_a_signature_is_valid_only_for_what_was_signed(
    key: bytes, purpose: str, files: dict[str, str], facts: dict[str, str]
) -> None:
    signature = sign(KEY, "trial", FILES, FACTS)
    assert is_valid(signature, KEY, "trial", dict(reversed(FILES.items())), FACTS), "the order of the files is no part"
    assert not is_valid(signature, key, purpose, files, facts)
    assert not is_valid(Signature(signature.hex.upper()), KEY, "trial", FILES, FACTS)
    assert not is_valid(Signature("é\ud800"), KEY, "trial", FILES, FACTS)


TEXTS = st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3)


@given(one=st.tuples(st.text(max_size=4), TEXTS, TEXTS), other=st.tuples(st.text(max_size=4), TEXTS, TEXTS))
def test_different_values_have_different_signatures(
    one: tuple[str, dict[str, str], dict[str, str]], other: tuple[str, dict[str, str], dict[str, str]]
) -> None:
    assert (sign(KEY, *one) == sign(KEY, *other)) == (one == other)


def test_derived_keys_differ_by_key_purpose_and_name() -> None:
    keys = [
        derive(KEY, "session", "a"),
        derive(KEY, "session", "b"),
        derive(KEY, "sessio", "na"),
        derive(bytes(32), "session", "a"),
    ]
    assert len({*keys, KEY}) == 5
    assert all(len(key) == 32 for key in keys)
    assert keys[0] == derive(KEY, "session", "a")


def test_a_dataset_is_refused_if_manifest_seal_or_signature_changes(tmp_path: Path) -> None:
    for name in (MANIFEST, SEALED):
        (tmp_path / name).write_bytes(name.encode())
    with pytest.raises(DataError, match="has no readable dataset.mac"):
        check_dataset(tmp_path, KEY)
    sign_dataset(tmp_path, KEY)
    assert len(check_dataset(tmp_path, KEY).hex) == 64
    with pytest.raises(DataError, match="another dataset or home"):
        check_dataset(tmp_path, bytes(32))
    for name, content in ((MANIFEST, b"edited"), (SEALED, b"forged"), (DATASET_MAC, b"{}"), (DATASET_MAC, b"\xff")):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).chmod(0o644)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="was changed after|is damaged"):
            check_dataset(tmp_path, KEY)
        (tmp_path / name).write_bytes(before)
        check_dataset(tmp_path, KEY)


def test_a_stored_hash_is_not_used_for_a_file_that_was_changed_in_place_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    time.sleep(2 * SETTLED_SECONDS)
    status = path.stat()
    assert stored_sha256(path) == stored_sha256(path) == sha256_of(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as before: only the time of the inode has changed
    assert stored_sha256(path) == sha256_of(path)
    path.write_bytes(b"six")  # in the same moment
    assert stored_sha256(path) == sha256_of(path)

"""Raw log → prepared dataset: k-core, time order, cut, leave-one-out, re-indexed ids, sealed test split.

Everything is vectorised: 20 million rows take about a minute. Test targets exist in memory here and leave only through
the seal; what is written in plain is computed from the train and validation parts. The one exception cannot be avoided:
the k-core filter counts all events, so the numbers of users, items and interactions know of the test part's size.
"""

import hashlib
import io
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from .atomic import write_bytes
from .errors import DataError, HomeError
from .names import check_name
from .prepared import (
    ITEM_IDS,
    MANIFEST,
    MIN_EVENTS,
    SEALED,
    USER_IDS,
    Manifest,
    PrepareOptions,
    array_file,
    dataset_id_of,
)
from .profile import train_profile
from .readers import Log
from .seal import pack_test, seal

READ_ONLY = 0o444

Ints = npt.NDArray[np.int64]


def prepare(log: Log, name: str, directory: Path, options: PrepareOptions, vault_public_key: bytes) -> Manifest:
    """Prepare `log` as the dataset `name` in the new directory `directory`; all of it appears at once, or nothing.

    Raises DataError for a bad or taken name and where too few interactions survive the k-core filter, SealError for an
    unusable key, HomeError where the directory cannot be written.
    """
    check_name(name)
    if directory.exists():
        raise DataError(f"dataset {name!r} exists already; choose another name or remove {str(directory)!r} first")
    events = order_events(log.frame, options)
    split = split_events(events, options.max_events)
    plain = _plain_files(split)
    hashes = {file: hashlib.sha256(content).hexdigest() for file, content in plain.items()}
    dataset_id = dataset_id_of(hashes, len(events.user_ids), len(events.item_ids))
    manifest = Manifest(
        name=name,
        dataset_id=dataset_id,
        num_users=len(events.user_ids),
        num_items=len(events.item_ids),
        num_interactions=split.num_interactions,
        num_interactions_before_cut=len(events.items),
        rows_read=log.rows_read,
        columns=log.columns,
        options=options,
        profile=train_profile(split.items, split.timestamps, split.offsets),
        files=hashes,
    )
    sealed = seal(
        pack_test(split.test_items, split.test_timestamps, fingerprint_of(events)), vault_public_key, dataset_id
    )
    text = (manifest.model_dump_json(indent=1) + "\n").encode()
    _write_directory(directory, {**plain, SEALED: sealed, MANIFEST: text})
    return manifest


@dataclass(frozen=True)
class Events:
    """The events that survive the k-core filter, user by user in time order, with new ids."""

    items: Ints  # (num_events,)
    timestamps: Ints  # (num_events,)
    offsets: Ints  # (num_users + 1,)
    user_ids: pl.Series  # original ids, String: position = new id
    item_ids: pl.Series


@dataclass(frozen=True)
class Split:
    """The leave-one-out split of the last `max_events` events of each user."""

    items: npt.NDArray[np.int32]  # train, (num_train_events,)
    timestamps: Ints
    offsets: Ints
    valid_items: npt.NDArray[np.int32]  # (num_users,)
    valid_timestamps: Ints
    test_items: npt.NDArray[np.int32]  # (num_users,)
    test_timestamps: Ints
    num_interactions: int  # over all splits
    user_ids: pl.Series
    item_ids: pl.Series


def order_events(frame: pl.DataFrame, options: PrepareOptions) -> Events:
    """Filter, sort and re-index a raw log: user (String), item (String), timestamp (Int64) in file order."""
    users, user_names = _codes(frame["user"])
    items, item_names = _codes(frame["item"])
    kept = k_core(users, items, options.k_core)
    if not len(kept):
        raise DataError(_too_few(users, items, options.k_core))
    users, user_ids = _reindexed(users[kept], user_names, f"{options.id_key}:user")
    items, item_ids = _reindexed(items[kept], item_names, f"{options.id_key}:item")
    times = frame["timestamp"].to_numpy()[kept]
    order = np.lexsort((times, users))  # stable: equal times of a user stay in file order
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users))])
    return Events(items[order], times[order], offsets, user_ids, item_ids)


def k_core(users: Ints, items: Ints, k: int) -> Ints:
    """Positions of the events of the k-core: users and items with fewer than k events go, until none is left.

    users, items (num_events,) are codes. Users need three events in any case, or leave-one-out has no train part.
    """
    kept = np.arange(len(users))
    while True:
        by_user = np.bincount(users[kept])[users[kept]] if len(kept) else kept
        by_item = np.bincount(items[kept])[items[kept]] if len(kept) else kept
        good = (by_user >= max(k, MIN_EVENTS)) & (by_item >= k)
        if good.all():
            return kept
        kept = kept[good]


def split_events(events: Events, max_events: int) -> Split:
    """Keep the last `max_events` of each user; his last is test, the one before validation, the rest train."""
    ends = events.offsets[1:]
    lengths = np.minimum(np.diff(events.offsets), max_events)
    from_end = np.repeat(ends, np.diff(events.offsets)) - np.arange(len(events.items))  # 1 = a user's last event
    train = (from_end > 2) & (from_end <= max_events)
    return Split(
        items=events.items[train].astype(np.int32),
        timestamps=events.timestamps[train],
        offsets=np.concatenate([[0], np.cumsum(lengths - 2)]),
        valid_items=events.items[ends - 2].astype(np.int32),
        valid_timestamps=events.timestamps[ends - 2],
        test_items=events.items[ends - 1].astype(np.int32),
        test_timestamps=events.timestamps[ends - 1],
        num_interactions=int(lengths.sum()),
        user_ids=events.user_ids,
        item_ids=events.item_ids,
    )


def fingerprint_of(events: Events) -> str:
    """The identity of the whole content, test included, 64 hex digits; it lies with the seal.

    It covers the filtered log in original ids, before the cut: neither the dataset's name nor `max_events` nor the key
    of the id permutation changes it, so looks at the same targets are counted together.
    """
    digest = hashlib.sha256()
    users = np.repeat(np.arange(len(events.user_ids)), np.diff(events.offsets))
    user_rank, item_rank = _ranks(events.user_ids), _ranks(events.item_ids)
    order = np.argsort(user_rank[users], kind="stable")
    for ids in (events.user_ids, events.item_ids):
        digest.update("\0".join([str(len(ids)), *ids.sort()]).encode() + b"\0")
    for array in (user_rank[users][order], item_rank[events.items][order], events.timestamps[order]):
        digest.update(array.astype("<i8").tobytes())
    return digest.hexdigest()


def _ranks(ids: pl.Series) -> Ints:
    """The place of each id in the sorted order of all of them."""
    ranks: Ints = ids.rank("ordinal").to_numpy().astype(np.int64) - 1
    return ranks


def _codes(ids: pl.Series) -> tuple[Ints, pl.Series]:
    """Whole-number codes of text ids, and the text of each code."""
    names = ids.unique().alias("id")
    codes = pl.DataFrame({"id": ids}).join(
        pl.DataFrame({"id": names}).with_row_index("code"), on="id", how="left", maintain_order="left"
    )["code"]
    return codes.to_numpy().astype(np.int64), names


def _reindexed(codes: Ints, names: pl.Series, key: str) -> tuple[Ints, pl.Series]:
    """New ids 0..n-1 of the codes that occur, in the order of a keyed hash of their names.

    A model's tie-breaks and initial weights then know nothing of the file: neither its order nor that of its ids (in
    the Amazon logs events of one day are ordered by item id, which raw ids would betray).
    """
    present = np.flatnonzero(np.bincount(codes))
    kept = names.gather(present)
    digests = pl.Series([hashlib.blake2b(name.encode(), key=key.encode(), digest_size=16).digest() for name in kept])
    order = digests.arg_sort().to_numpy()
    new = np.empty(len(names), dtype=np.int64)
    new[present[order]] = np.arange(len(present))
    return new[codes], kept.gather(order)


def _too_few(users: Ints, items: Ints, k: int) -> str:
    counts = f"{len(users)} interactions of {len(np.unique(users))} users with {len(np.unique(items))} items"
    for smaller in range(k - 1, 0, -1):
        left = len(k_core(users, items, smaller))
        if left:
            return f"the {k}-core of {counts} is empty; with --k-core {smaller} there remain {left} interactions"
    return f"no user among {counts} has {MIN_EVENTS} events, the least for train, validation and test; use a longer log"


def _plain_files(split: Split) -> dict[str, bytes]:
    """Name → content of every visible file but the manifest."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "items": split.items,
        "timestamps": split.timestamps,
        "offsets": split.offsets,
        "valid_items": split.valid_items,
        "valid_timestamps": split.valid_timestamps,
    }
    files = {array_file(name): _npy(array) for name, array in arrays.items()}
    return {**files, USER_IDS: _parquet(split.user_ids), ITEM_IDS: _parquet(split.item_ids)}


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _parquet(ids: pl.Series) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame({"original_id": ids}).write_parquet(buffer)
    return buffer.getvalue()


def _write_directory(directory: Path, files: dict[str, bytes]) -> None:
    """Write all files into a hidden neighbour of `directory` and give it its name at the end."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    except OSError as error:
        raise HomeError(_not_writable(directory, error)) from None
    try:
        for file, content in files.items():
            write_bytes(temporary / file, content, READ_ONLY)
        temporary.chmod(0o755)
        os.rename(temporary, directory)  # fails where another process was faster
    except OSError as error:
        if directory.exists():
            raise DataError(f"dataset {directory.name!r} was registered by another process meanwhile") from None
        raise HomeError(_not_writable(directory, error)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _not_writable(directory: Path, error: OSError) -> str:
    return f"{str(directory.parent)!r} cannot be written ({error.strerror}); choose another home with --home"

"""Raw log → prepared dataset: k-core, time order, truncation, split, re-indexed ids, sealed test split.

Everything is vectorised: 20 million rows take about a minute. Test targets exist in memory here and are written only as
ciphertext (`seal.py`); plaintext files are computed from the train and validation parts. With leave-one-out there is
one exception unless `k_core_on` is "train": the k-core filter counts all events, so which users and items are kept, and
the numbers of users, items and interactions, depend on test events; the names of items that have no other event are
sealed (`item_names.py`). With `k_core_on` "train" and with a split by time, the k-core and all counts use visible
events only. Always, the counts of rows in the notes of the reader are those of the whole log.
"""

import hashlib
import io
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from .atomic import write_bytes
from .commitment import commitment_of, new_nonce, targets_digest, with_commitment
from .dataset_signature import DATASET_MAC, signature_file
from .errors import DataError, HomeError
from .holdout import Cuts, Holdout, cuts_of, parse_holdout
from .item_names import nameless_items, sealed_names, without_names
from .names import check_name
from .prepared import (
    FORMAT_VERSION,
    ITEM_IDS,
    MANIFEST,
    MIN_EVENTS,
    RANDOM,
    RANDOM_TIES,
    SEALED,
    SEALED_NAMES_FORMAT_VERSION,
    TIME,
    TIME_FORMAT_VERSION,
    TRAIN,
    USER_IDS,
    Counts,
    Manifest,
    PrepareOptions,
    TimeSplit,
    array_file,
    dataset_id_of,
)
from .profile import train_profile
from .readers import Log
from .seal import NO_TARGET, as_bytes, pack_test, seal
from .sketch import log_sketch
from .splits import Events, Split, last_of_each_user, split_before_last, split_by_time, split_events
from .ties import has_ties, in_drawn_order
from .time_units import LATEST
from .wording import counted

READ_ONLY = 0o400
# A user with more than this share of all events, and with this many times the events of the median user, is reported
LARGE_SHARE, LARGE_FACTOR = 0.2, 100
MIN_TARGETS = 50  # users with a target, in validation and in test; fewer make every difference uncertain
LONGER = (2, 3, 4, 6, 8, 12)  # multiples of a hold-out that is too short, which are tried for a proposal

Ints = npt.NDArray[np.int64]


def prepare(
    log: Log, name: str, directory: Path, options: PrepareOptions, vault_public_key: bytes, mac_key: bytes | None = None
) -> Manifest:
    """Prepare `log` as the dataset `name` in the new directory `directory`, which appears complete or not at all.

    mac_key: of the home's vault, which signs the dataset; without one, no home will open it.
    Raises DataError if the name is invalid or taken or the k-core filter leaves no interactions, SealError if the key
    is unusable, HomeError if the directory cannot be written.
    """
    check_name(name)
    if directory.exists():
        raise DataError(f"dataset {name!r} exists already; choose another name or remove {str(directory)!r} first")
    parts = _parts_of(log, options)
    events, split = parts.events, parts.split
    visible, hashes, dataset_id = _identified(parts)
    manifest = Manifest(
        format_version=parts.format_version,
        name=name,
        dataset_id=dataset_id,
        num_users=len(events.user_ids),
        num_items=len(events.item_ids),
        num_interactions=split.num_interactions,
        num_interactions_before_cut=len(events.items),
        before_core=events.before_core,
        rows_read=parts.rows_read,
        columns=log.columns,
        options=options,
        profile=_profile(parts, options),
        files=hashes,
        num_identical_rows=parts.num_identical,
        notes=(*log.notes, *_notes(events, parts.num_identical)),
        time_split=parts.time_split,
    )
    nonce = new_nonce()
    commitment = commitment_of(nonce, targets_digest(dataset_id, split.test_items, split.test_timestamps))
    payload = pack_test(
        items=split.test_items,
        timestamps=split.test_timestamps,
        fingerprint=as_bytes(parts.fingerprint),
        sketch=log_sketch(log.frame).array,
        nonce=np.frombuffer(nonce, np.uint8),
        **sealed_names(events.item_ids, parts.nameless),
    )
    sealed = with_commitment(seal(payload, vault_public_key, dataset_id), commitment)
    text = (manifest.model_dump_json(indent=1) + "\n").encode()
    signed = {DATASET_MAC: signature_file(mac_key, text, sealed)} if mac_key else {}
    _write_directory(directory, {**visible, SEALED: sealed, MANIFEST: text, **signed})
    return manifest


def committed_targets(log: Log, options: PrepareOptions) -> tuple[str, str]:
    """The dataset id and the digest of the test events (`commitment.py`) that preparing `log` would give.

    For the owner of the log, who compares them with a receipt. Raises DataError as `prepare` does.
    """
    parts = _parts_of(log, options)
    dataset_id = _identified(parts)[2]
    return dataset_id, targets_digest(dataset_id, parts.split.test_items, parts.split.test_timestamps)


@dataclass(frozen=True)
class _Parts:
    """A log after filter and split, and what depends on which of its rows are visible."""

    events: Events  # with a split by time, only those before the second cut
    split: Split
    fingerprint: str  # of the complete content
    rows_read: int
    num_identical: int
    time_split: TimeSplit | None = None
    nameless: Ints = field(default_factory=lambda: np.empty(0, np.int64))  # items whose names are sealed, ascending
    random_ties: bool = False  # whether a user has several events at one time, and their order was drawn

    @property
    def format_version(self) -> int:
        """That of the manifest: versions that do not know of sealed names must not read such a dataset."""
        if self.time_split:
            return TIME_FORMAT_VERSION
        return SEALED_NAMES_FORMAT_VERSION if len(self.nameless) else FORMAT_VERSION


def _parts_of(log: Log, options: PrepareOptions) -> _Parts:
    _check_seconds(log.frame["timestamp"])
    if options.split == TIME:
        return _by_time(log, options)
    return _core_on_train(log, options) if options.k_core_on == TRAIN else _leave_one_out(log, options)


def _identified(parts: _Parts) -> tuple[dict[str, bytes], dict[str, str], str]:
    """The visible files, their hashes, and the dataset id."""
    visible = _visible_files(parts.events, parts.split, parts.nameless)
    hashes = {file: hashlib.sha256(content).hexdigest() for file, content in visible.items()}
    sizes = len(parts.events.user_ids), len(parts.events.item_ids)
    return visible, hashes, dataset_id_of(hashes, *sizes, random_ties=parts.random_ties)


def _leave_one_out(log: Log, options: PrepareOptions) -> _Parts:
    frame, num_identical = _distinct(log.frame, options)
    arranged = _arranged(frame, options)
    events = order_events(arranged, options)
    split = split_events(events, options.max_events)
    nameless = nameless_items(len(events.item_ids), split.items, split.valid_items)
    drawn = arranged is not frame
    fingerprint = fingerprint_of(order_events(frame, options) if drawn else events)
    return _Parts(events, split, fingerprint, log.rows_read, num_identical, nameless=nameless, random_ties=drawn)


def _core_on_train(log: Log, options: PrepareOptions) -> _Parts:
    """Leave-one-out whose k-core and counts are those of the log without the last event of every user.

    An item needs `k_core` visible events. A user needs one less, because that there is a last event is no secret. A
    last event whose item is not in this core is no test target. The fingerprint is that of the whole log with the
    k-core of all events, so that the looks at both are counted together. Raises DataError if no user has a test target.
    """
    frame, _ = _distinct(log.frame, options)
    arranged = _arranged(frame, options)
    is_last = last_of_each_user(arranged)
    visible, last = arranged.filter(~is_last), arranged.filter(is_last)
    events = order_events(visible, options, num_sealed=1)
    split = split_before_last(events, last, options.max_events)
    if not (split.test_items != NO_TARGET).any():
        raise DataError("no user's last event is of an item in the k-core of the earlier ones; lower --k-core")
    copies = last if options.keep_duplicates else log.frame.join(last, on=last.columns, how="semi")
    rows = log.frame.height - copies.height
    fingerprint = fingerprint_of(order_events(frame, options))
    return _Parts(events, split, fingerprint, rows, rows - visible.height, random_ties=arranged is not frame)


def _by_time(log: Log, options: PrepareOptions) -> _Parts:
    """Split at two cuts in time. Except for the fingerprint and the test targets, only rows before the second count.

    The fingerprint is that of the whole log, as leave-one-out has it, so that the looks at all splits of a log are
    counted together. Raises DataError if the log has no clock, or if too few users have a target.
    """
    if not log.has_clock:
        raise DataError(
            "--split time needs real times, but those of this log are small whole numbers, which only give an order: "
            "name their unit with --time-unit, or use --split leave-one-out"
        )
    frame, _ = _distinct(log.frame, options)
    holdout = parse_holdout(options.holdout)
    arranged = _arranged(frame, options)
    events, split, cuts = _cut(arranged, holdout, options)
    if not _has_targets(split):
        raise DataError(_few_targets_message(frame, holdout, options, len(split.valid_items)))
    rows, kept = (int((part["timestamp"] < cuts.test_from).sum()) for part in (log.frame, frame))
    time_split = TimeSplit(valid_from=cuts.valid_from, test_from=cuts.test_from, num_ranked=len(split.valid_items))
    fingerprint, drawn = fingerprint_of(order_events(frame, options)), arranged is not frame
    return _Parts(events, split, fingerprint, rows, rows - kept, time_split, random_ties=drawn)


def _cut(frame: pl.DataFrame, holdout: Holdout, options: PrepareOptions) -> tuple[Events, Split, Cuts]:
    cuts = cuts_of(frame["timestamp"].to_numpy(), holdout)
    events = order_events(frame.filter(pl.col("timestamp") < cuts.test_from), options)
    later = frame.filter(pl.col("timestamp") >= cuts.test_from)
    return events, split_by_time(events, later, cuts, options.max_events), cuts


def _has_targets(split: Split) -> bool:
    """Whether enough users are ranked, and any user can be trained on."""
    tested = int((split.test_items != NO_TARGET).sum())
    return min(len(split.valid_items), tested) >= MIN_TARGETS and bool((np.diff(split.offsets) > 1).any())


def _few_targets_message(frame: pl.DataFrame, holdout: Holdout, options: PrepareOptions, num_ranked: int) -> str:
    """The error for a hold-out that is too short. It does not state the number of test targets."""
    part = f"only {num_ranked} users have a validation target" if num_ranked < MIN_TARGETS else "too few have a target"
    problem = f"holdout={holdout}: {part}, and comparing trials takes {MIN_TARGETS} or more in validation and in test"
    for factor in LONGER:
        try:
            _, split, _ = _cut(frame, parse_holdout(str(holdout.times(factor))), options)
        except DataError:
            break
        if _has_targets(split):
            return f"{problem}; --holdout {holdout.times(factor)} has enough"
    return f"{problem}; no longer hold-out has enough either: use --split leave-one-out or a longer log"


def _distinct(frame: pl.DataFrame, options: PrepareOptions) -> tuple[pl.DataFrame, int]:
    return (frame, 0) if options.keep_duplicates else collapse_duplicates(frame)


def _arranged(frame: pl.DataFrame, options: PrepareOptions) -> pl.DataFrame:
    """`frame` in the order that decides between equal times; the fingerprint is that of the file's order in any case,
    so that the looks at both are counted together."""
    return in_drawn_order(frame) if options.ties == RANDOM and has_ties(frame) else frame


def _check_seconds(timestamps: pl.Series) -> None:
    """Refuse a frame that was not made by `clean_interactions`: everything that reads a dataset relies on its unit."""
    if not timestamps.is_between(0, LATEST).all():
        raise DataError(f"timestamps must be Unix seconds from 0 to {LATEST}; convert them before preparing")


def collapse_duplicates(frame: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Keep the first of several rows with equal user, item and time; also returns the number of rows removed.

    Copies of one event would otherwise become a train event, a validation target and a test target. A repeat at another
    time, even within the same second, is another event.
    """
    hashes = frame.hash_rows(seed=0)
    if hashes.n_unique() == frame.height:
        return frame, 0
    repeated = hashes.is_duplicated()  # equal rows have equal hashes, so all others are unique
    suspects = repeated.arg_true()
    first = frame[suspects].with_columns(position=suspects).unique(frame.columns, keep="first", maintain_order=True)
    kept = ~repeated
    kept[first["position"]] = True
    return frame.filter(kept), frame.height - int(kept.sum())


def order_events(frame: pl.DataFrame, options: PrepareOptions, num_sealed: int = 0) -> Events:
    """Filter, sort and re-index a raw log with the columns that `clean_interactions` gives it.

    num_sealed: how many further events every user has, which are not in `frame`.
    """
    users, user_names = _codes(frame["user"])
    items, item_names = _codes(frame["item"])
    kept = k_core(users, items, options.k_core, num_sealed)
    if not len(kept):
        raise DataError(_empty_core_message(users, items, options.k_core, num_sealed))
    users, user_ids = _reindex(users[kept], user_names, f"{options.id_key}:user")
    items, item_ids = _reindex(items[kept], item_names, f"{options.id_key}:item")
    times = frame["timestamp"].to_numpy()[kept]
    finer = [frame["nanosecond"].to_numpy()[kept]] if "nanosecond" in frame.columns else []
    order = np.lexsort((*finer, times, users))  # stable: events of a user with equal times stay in file order
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users))])
    before = Counts(users=len(user_names), items=len(item_names), interactions=frame.height)
    return Events(items[order], times[order], offsets, user_ids, item_ids, before)


def k_core(users: Ints, items: Ints, k: int, num_sealed: int = 0) -> Ints:
    """Positions of the k-core events: users and items with fewer than k events are removed until all have k or more.

    users, items: integer codes (num_events,). Users need at least MIN_EVENTS events even if k is smaller, because
    leave-one-out would otherwise leave no train part. `num_sealed` events of every user count without being given.
    """
    kept = np.arange(len(users))
    while True:
        by_user = np.bincount(users[kept])[users[kept]] if len(kept) else kept
        by_item = np.bincount(items[kept])[items[kept]] if len(kept) else kept
        enough = (by_user >= max(k, MIN_EVENTS) - num_sealed) & (by_item >= k)
        if enough.all():
            return kept
        kept = kept[enough]


def fingerprint_of(events: Events) -> str:
    """Fingerprint of the complete content, including test events; 64 hex digits, stored inside the sealed file.

    It covers the filtered log with original ids, before truncation. The dataset's name, `max_events` and the key of the
    id permutation do not change it, so the look ledger counts all looks at the same targets together.
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
    """The position of each id in the sorted order of all ids."""
    ranks: Ints = ids.rank("ordinal").to_numpy().astype(np.int64) - 1
    return ranks


def _codes(ids: pl.Series) -> tuple[Ints, pl.Series]:
    """Integer codes of text ids, and the text of each code."""
    names = ids.unique().alias("id")
    codes = pl.DataFrame({"id": ids}).join(
        pl.DataFrame({"id": names}).with_row_index("code"), on="id", how="left", maintain_order="left"
    )["code"]
    return codes.to_numpy().astype(np.int64), names


def _reindex(codes: Ints, names: pl.Series, key: str) -> tuple[Ints, pl.Series]:
    """New ids 0..n-1 for the codes that occur, ordered by a keyed hash of their names; and the names by new id.

    Tie-breaking and weight initialisation of a model are then independent of the order of events and ids in the file.
    (In the Amazon logs, events of one day are sorted by item id, so raw ids would leak the order of events.)
    """
    present = np.flatnonzero(np.bincount(codes))
    kept = names.gather(present)
    digests = pl.Series([hashlib.blake2b(name.encode(), key=key.encode(), digest_size=16).digest() for name in kept])
    order = digests.arg_sort().to_numpy()
    new = np.empty(len(names), dtype=np.int64)
    new[present[order]] = np.arange(len(present))
    return new[codes], kept.gather(order)


def _empty_core_message(users: Ints, items: Ints, k: int, num_sealed: int) -> str:
    num_users, num_items = len(np.unique(users)), len(np.unique(items))
    counts = f"{counted(len(users), 'interaction')} of {counted(num_users, 'user')} with {counted(num_items, 'item')}"
    for smaller in range(k - 1, 0, -1):
        remaining = len(k_core(users, items, smaller, num_sealed))
        if remaining:
            return f"the {k}-core of {counts} is empty; --k-core {smaller} would leave {remaining} interactions"
    return f"no user among {counts} has the {MIN_EVENTS} events that the three splits need; use a longer log"


def _notes(events: Events, num_identical: int) -> list[str]:
    notes = []
    if num_identical:
        notes.append(
            f"{num_identical:,} rows repeat the user, item and time of an earlier row and were left out; "
            "--keep-duplicates keeps them"
        )
    counts = np.diff(events.offsets)
    user = int(counts.argmax())
    most, total = int(counts[user]), len(events.items)
    if most > LARGE_SHARE * total and most > LARGE_FACTOR * float(np.median(counts)):
        notes.append(
            f"user {events.user_ids[user]!r:.60} has {most / total:.0%} of all interactions: if this id stands for "
            "unknown users, remove its rows"
        )
    return notes


def _profile(parts: _Parts, options: PrepareOptions) -> dict[str, Any]:
    """The profile of the users who have train events; it also names a split by time, and ties in random order."""
    split = parts.split
    profile = train_profile(split.items, split.timestamps, np.unique(split.offsets))
    named = {} if split.between is None else {"split": f"time, hold-out {options.holdout}"}
    return {**profile, **named, **({"ties": RANDOM_TIES} if parts.random_ties else {})}


def _visible_files(events: Events, split: Split, nameless: Ints) -> dict[str, bytes]:
    """Name → content of every visible file except the manifest."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "items": split.items,
        "timestamps": split.timestamps,
        "offsets": split.offsets,
        "valid_items": split.valid_items,
        "valid_timestamps": split.valid_timestamps,
        **(split.between.arrays() if split.between else {}),
    }
    files = {array_file(name): _npy(array) for name, array in arrays.items()}
    item_ids = without_names(events.item_ids, nameless)
    return {**files, USER_IDS: _parquet(events.user_ids), ITEM_IDS: _parquet(item_ids)}


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _parquet(ids: pl.Series) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame({"original_id": ids}).write_parquet(buffer)
    return buffer.getvalue()


def _write_directory(directory: Path, files: dict[str, bytes]) -> None:
    """Write all files into a hidden temporary directory beside `directory`, and rename it at the end."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    except OSError as error:
        raise HomeError(_not_writable_message(directory, error)) from None
    try:
        for file, content in files.items():
            write_bytes(temporary / file, content, READ_ONLY)
        os.rename(temporary, directory)  # fails if another process has created `directory` meanwhile
    except OSError as error:
        if directory.exists():
            raise DataError(f"dataset {directory.name!r} has been registered by another process meanwhile") from None
        raise HomeError(_not_writable_message(directory, error)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _not_writable_message(directory: Path, error: OSError) -> str:
    return f"{str(directory.parent)!r} cannot be written ({error.strerror}); choose another home with --home"

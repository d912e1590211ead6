"""A prepared dataset on disk: its files, and how to open them. Reading needs numpy and pydantic only.

    manifest.json            counts, options, train-only profile, hashes of the files below
    items.npy                int32 (num_train_events,): the train part, user after user
    timestamps.npy           int64 (num_train_events,): Unix seconds, or an order if the log has no clock
    offsets.npy              int64 (num_users + 1,): user u owns events offsets[u]:offsets[u + 1]
    valid_items.npy          int32 (num_users,): the item after a user's train part
    valid_timestamps.npy     int64 (num_users,)
    user_ids.parquet         original ids of users 0..num_users-1, for serving
    item_ids.parquet         original ids of items 0..num_items-1; null for items without a visible event
    test.sealed              a commitment to the test targets, and the target of each user as ciphertext, which only the
                             examiner can open

With a split by time, not every user has a validation target, and there may be several events between the cuts:

    valid_items.npy          int32 (num_ranked,): the first item after the first cut, of each user who is ranked
    valid_timestamps.npy     int64 (num_ranked,)
    valid_users.npy          int32 (num_ranked,), ascending: whose target it is
    recent_items.npy         int32 (num_recent_events,): the last `max_events` events of each user between the cuts
    recent_timestamps.npy    int64 (num_recent_events,)
    recent_offsets.npy       int64 (num_users + 1,)

Not covered: writing (`prepare.py`) and the test split (`examiner/`). The manifest has no hash of `test.sealed`, whose
encryption authenticates its content; the ids that are null in item_ids.parquet are in it. In the manifest, only the
counts before and after the k-core filter depend on test events; with a split by time or `k_core_on` "train", they do
not.
"""

import hashlib
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from .errors import DataError, VirtualMLEError
from .histories import Histories, joined
from .holdout import parse_holdout
from .safe_open import open_beneath, read_beneath, sha256_beneath, split_beneath
from .time_units import are_seconds

FORMAT_VERSION = 2  # version 1 had times in the unit of the log and kept identical rows
TIME_FORMAT_VERSION = 3  # of a dataset that is split by time, which has further arrays
SEALED_NAMES_FORMAT_VERSION = 4  # as version 2, but the names of some items are sealed
LEAVE_ONE_OUT, TIME = "leave-one-out", "time"
ALL, TRAIN = "all", "train"  # which events the k-core counts: all, or all but the test events
FILE, RANDOM = "file", "random"  # the order of a user's events at one time: the file's, or drawn (`ties.py`)
RANDOM_SUFFIX = f"-ties-{RANDOM}"
"""What the name of a dataset ends with that is named after its log, if the order was drawn."""
RANDOM_TIES = "in random order"
"""What the profile of a dataset says of its ties if their order was drawn."""
MIN_EVENTS = 3  # one each for train, validation and test
MAX_KEY_BYTES = 48  # BLAKE2b accepts a key of 64 bytes, and `prepare` appends ":user" or ":item"
MANIFEST, SEALED = "manifest.json", "test.sealed"
USER_IDS, ITEM_IDS = "user_ids.parquet", "item_ids.parquet"
ARRAYS = {
    "items": np.int32,
    "timestamps": np.int64,
    "offsets": np.int64,
    "valid_items": np.int32,
    "valid_timestamps": np.int64,
}
TIME_ARRAYS = {
    "valid_users": np.int32,
    "recent_items": np.int32,
    "recent_timestamps": np.int64,
    "recent_offsets": np.int64,
}
"""The further arrays of a dataset that is split by time."""


@dataclass(frozen=True)
class PrepareOptions:
    """How a log is turned into a dataset. Raises DataError for invalid values."""

    k_core: int = 5  # users and items with fewer events are removed repeatedly; users always need MIN_EVENTS
    max_events: int = 50  # the number of most recent events kept per user, all splits together
    id_key: str = "virtualmle"  # key of the id permutation; equal keys give equal ids on every machine
    keep_duplicates: bool = False  # keep rows with equal user, item and time, which leak targets into the train part
    split: str = LEAVE_ONE_OUT
    holdout: str = ""  # with the split "time": the length of the test part, e.g. 30d; validation is as long
    k_core_on: str = ALL  # the events that the k-core of leave-one-out counts
    ties: str = FILE  # the order of a user's events at one time

    @property
    def suffix(self) -> str:
        """What the name of a dataset ends with that is named after its log; empty for the default."""
        ties = "" if self.ties == FILE else RANDOM_SUFFIX
        if self.split == TIME:
            return f"-{self.split}-{self.holdout.replace('%', 'pct')}{ties}"
        return ties if self.k_core_on == ALL else f"-core-on-{self.k_core_on}{ties}"

    def __post_init__(self) -> None:
        self._check_split()
        if self.k_core_on not in (ALL, TRAIN):
            raise DataError(f"k_core_on={self.k_core_on!r:.60} is not known; use {ALL} or {TRAIN}")
        if self.ties not in (FILE, RANDOM):
            raise DataError(f"ties={self.ties!r:.60} is not known; use {FILE} or {RANDOM}")
        if self.split == TIME and self.k_core_on != ALL:
            raise DataError("the k-core of a split by time never counts test events; leave --k-core-on out")
        if self.k_core < 1:
            raise DataError(f"k_core={self.k_core} is not positive; 1 keeps every item, 5 is usual")
        if self.max_events < MIN_EVENTS:
            raise DataError(
                f"max_events={self.max_events} leaves no train event; use {MIN_EVENTS} or more, 50 is usual"
            )
        if len(self.id_key.encode()) > MAX_KEY_BYTES:
            raise DataError(f"id_key has {len(self.id_key.encode())} bytes; use at most {MAX_KEY_BYTES}")

    def _check_split(self) -> None:
        if self.split not in (LEAVE_ONE_OUT, TIME):
            raise DataError(f"split={self.split!r:.60} is not known; use {LEAVE_ONE_OUT} or {TIME}")
        if self.split == LEAVE_ONE_OUT and self.holdout:
            raise DataError(f"holdout={self.holdout!r:.60} is the length of a split by time; add --split time")
        if self.split == TIME and not self.holdout:
            raise DataError("split=time needs the length of the test part; add e.g. --holdout 30d, or --holdout 10%")
        if self.split == TIME:
            object.__setattr__(self, "holdout", str(parse_holdout(self.holdout)))  # one notation for equal lengths


class Counts(BaseModel):
    """The size of a log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    users: int
    items: int
    interactions: int


class TimeSplit(BaseModel):
    """The cuts of a split by time, in Unix seconds, and how many users have a validation target.

    Train events are before `valid_from`, validation events before `test_from`, and all later ones are sealed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    valid_from: int
    test_from: int
    num_ranked: int


class Manifest(BaseModel):
    """The visible description of a prepared dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    name: str
    dataset_id: str  # hash of the train and validation parts only
    num_users: int
    num_items: int
    num_interactions: int  # all splits that the k-core counts, after truncation to max_events; by time: without test
    num_interactions_before_cut: int
    before_core: Counts | None = None  # without collapsed rows, before the k-core filter; None in older manifests
    rows_read: int  # rows of the raw log; with a split by time or k_core_on "train", its usable rows without test
    columns: dict[str, str]  # role (user, item, timestamp) → column of the raw log
    options: PrepareOptions
    profile: dict[str, Any]
    files: dict[str, str]  # name → SHA-256, in hexadecimal
    num_identical_rows: int = 0  # rows left out because user, item and time equal those of an earlier row
    notes: tuple[str, ...] = ()  # what was noticed, changed or left out when the log was read; sentences for people
    time_split: TimeSplit | None = None  # None: leave-one-out

    @property
    def num_ranked(self) -> int:
        """The number of users with a validation target."""
        return self.time_split.num_ranked if self.time_split else self.num_users

    @property
    def has_random_ties(self) -> bool:
        """Whether a user has several events at one time, and their order was drawn."""
        return "ties" in self.profile

    @property
    def stated_profile(self) -> dict[str, Any]:
        """The profile with the size of the catalogue, which the number of a model's parameters tells anyway."""
        counts_test = self.time_split is None and self.options.k_core_on == ALL
        which = "including those of test events only" if counts_test else "all with events before the test part"
        return {**self.profile, "catalogue": f"{self.num_items:,} items, {which}"}

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Manifests are written as before there were options for the split, if these are not used: bytes stay equal."""
        fields: dict[str, Any] = serialise(self)
        if self.time_split is None:
            fields.pop("time_split", None)
            for name in ("split", "holdout"):
                fields.get("options", {}).pop(name, None)
        if self.options.k_core_on == ALL:
            fields.get("options", {}).pop("k_core_on", None)
        if self.options.ties == FILE:
            fields.get("options", {}).pop("ties", None)
        return fields


def dataset_id_of(files: dict[str, str], num_users: int, num_items: int, *, random_ties: bool = False) -> str:
    """The visible id of a dataset, 32 hex digits: a hash of its sizes and its train and validation arrays only.

    random_ties: whether the order of events at one time was drawn. With a split by time, this may change test targets
    only, so it is part of the id.
    """
    lines = [f"{num_users} {num_items}", *(f"{name} {files[array_file(name)]}" for name in arrays_in(files))]
    lines += [f"ties {RANDOM}"] if random_ties else []
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def arrays_in(files: Container[str]) -> list[str]:
    """The names of the arrays of a dataset with these files, in alphabetical order."""
    return sorted([*ARRAYS, *(name for name in TIME_ARRAYS if array_file(name) in files)])


def array_file(name: str) -> str:
    """The file name of an array."""
    return f"{name}.npy"


def read_manifest(directory: Path) -> Manifest:
    """The manifest in `directory`. Raises DataError if it is missing, damaged or of an unknown format version."""
    path = directory / MANIFEST
    try:
        manifest = Manifest.model_validate_json(read_file(directory, MANIFEST))
    except OSError:
        raise DataError(f"{str(directory)!r} is not a prepared dataset: it has no readable {MANIFEST}") from None
    except ValidationError as error:
        raise DataError(f"{str(path)!r} is damaged ({error.error_count()} errors); {_ADVICE}") from None
    if manifest.format_version == 1:
        return manifest.model_copy(update={"options": replace(manifest.options, keep_duplicates=True)})
    known = (TIME_FORMAT_VERSION,) if manifest.time_split else (FORMAT_VERSION, SEALED_NAMES_FORMAT_VERSION)
    if manifest.format_version not in known:
        raise DataError(f"{str(path)!r} has format version {manifest.format_version}, not {known[-1]}; {_ADVICE}")
    return manifest


def read_file(directory: Path, name: str, error: type[VirtualMLEError] = DataError) -> bytes:
    """The content of a file of the dataset in `directory`. Raises `error` for a symbolic link, and OSError."""
    root, parts = split_beneath(directory / name, 2)
    return read_beneath(root, *parts, error=error)


class PreparedDataset:
    """Train and validation events of a prepared dataset; arrays are memory-mapped and read-only.

    Item ids are 0..num_items-1 with no padding id. With leave-one-out, every user has a train event and a validation
    target; with a split by time, a user may lack either.
    """

    def __init__(self, directory: Path, manifest: Manifest, arrays: dict[str, npt.NDArray[Any]]) -> None:
        self.manifest = manifest
        self.name = manifest.name
        self.dataset_id = manifest.dataset_id
        self.num_users = manifest.num_users
        self.num_items = manifest.num_items
        self.max_events = manifest.options.max_events
        self.profile: dict[str, Any] = manifest.profile
        self.items: npt.NDArray[np.int32] = arrays["items"]
        self.timestamps: npt.NDArray[np.int64] = arrays["timestamps"]
        self.offsets: npt.NDArray[np.int64] = arrays["offsets"]
        self.valid_items: npt.NDArray[np.int32] = arrays["valid_items"]
        self.valid_timestamps: npt.NDArray[np.int64] = arrays["valid_timestamps"]
        # With a split by time: who is ranked, and the events between the cuts; otherwise None
        self.valid_users: npt.NDArray[np.int32] | None = arrays.get("valid_users")
        self._recent = (
            Histories(arrays["recent_items"], arrays["recent_offsets"], arrays["recent_timestamps"])
            if "recent_items" in arrays
            else None
        )

    @property
    def num_ranked(self) -> int:
        """The number of users with a validation target: the length of `valid_items` and of all validation ranks."""
        return len(self.valid_items)

    def train_histories(self) -> Histories:
        """The train events of every user; with a split by time, some users have none."""
        return Histories(self.items, self.offsets, self.timestamps)

    def validation_histories(self) -> Histories:
        """The events before the validation target, of every user who has one, in the order of `valid_items`."""
        histories = self.train_histories()
        return histories if self.valid_users is None else histories.of_users(self.valid_users)

    def visible_histories(self) -> Histories:
        """All events of every user before the test target, the history at the look; no user has none."""
        if self._recent is not None:
            return joined(self.train_histories(), self._recent, self.max_events)
        items = np.insert(self.items, self.offsets[1:], self.valid_items)
        times = np.insert(self.timestamps, self.offsets[1:], self.valid_timestamps)
        return Histories(items, self.offsets + np.arange(self.num_users + 1), times)

    @classmethod
    def load(cls, directory: Path, verify: bool = True, *, arrays_only: bool = False) -> "PreparedDataset":
        """Open the dataset in `directory`. Raises DataError if it is damaged.

        `verify=False` skips the file hashes, `arrays_only=True` those of the files that hold original ids.
        """
        manifest = read_manifest(directory)
        if verify:
            _verify(directory, manifest, arrays_only)
        arrays = {name: _open_array(directory / array_file(name)) for name in (ARRAYS | _further_arrays(manifest))}
        _check_shapes(directory, manifest, arrays)
        if manifest.format_version == 1:
            _check_seconds(manifest, arrays)
        return cls(directory, manifest, arrays)


_ADVICE = "remove the dataset with `virtualmle data rm` and register the log again with `virtualmle data add`"


def _verify(directory: Path, manifest: Manifest, arrays_only: bool) -> None:
    arrays = {array_file(name) for name in arrays_in(manifest.files)}
    for name, expected in manifest.files.items():
        if (name in arrays or not arrays_only) and _sha256(directory / name) != expected:
            raise DataError(f"{str(directory / name)!r} is damaged: its hash differs from the manifest; {_ADVICE}")
    missing = {array_file(name) for name in ARRAYS | _further_arrays(manifest)} - set(manifest.files)
    sizes = manifest.num_users, manifest.num_items
    if missing or dataset_id_of(manifest.files, *sizes, random_ties=manifest.has_random_ties) != manifest.dataset_id:
        raise DataError(f"{str(directory / MANIFEST)!r} is damaged: dataset_id does not match its contents; {_ADVICE}")


def _sha256(path: Path) -> str:
    try:
        root, parts = split_beneath(path, 2)
        return sha256_beneath(root, *parts, error=DataError)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror}); {_ADVICE}") from None


def _open_array(path: Path) -> npt.NDArray[Any]:
    """Map a .npy file, whose header numpy checks; without pickles."""
    root, parts = split_beneath(path, 2)
    try:
        with open_beneath(root, *parts, error=DataError) as file:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, is_fortran, dtype = read_header[version](file)
            if dtype.hasobject:
                raise ValueError("it holds Python objects")
            order: Literal["F", "C"] = "F" if is_fortran else "C"
            return np.memmap(file, dtype, "r", file.tell(), shape, order)
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"{str(path)!r} is damaged ({error}); {_ADVICE}") from None


def _check_seconds(manifest: Manifest, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Refuse a dataset of format version 1 whose log was not in seconds; all others are as version 2 has them."""
    if not all(are_seconds(arrays[name]) for name in ("timestamps", "valid_timestamps")):
        raise DataError(
            f"dataset {manifest.name!r} was prepared by an earlier version, which kept times in another unit than "
            f"seconds; prepare its log again: virtualmle data replace {manifest.name} FILE"
        )


def _further_arrays(manifest: Manifest) -> dict[str, Any]:
    return TIME_ARRAYS if manifest.time_split else {}


def _check_shapes(directory: Path, manifest: Manifest, arrays: dict[str, npt.NDArray[Any]]) -> None:
    users, ranked, events = manifest.num_users, manifest.num_ranked, len(arrays["items"])
    recent = len(arrays.get("recent_items", ()))
    lengths = {
        "items": events,
        "timestamps": events,
        "offsets": users + 1,
        "valid_items": ranked,
        "valid_timestamps": ranked,
        "valid_users": ranked,
        "recent_items": recent,
        "recent_timestamps": recent,
        "recent_offsets": users + 1,
    }
    for name, dtype in (ARRAYS | _further_arrays(manifest)).items():
        array = arrays[name]
        if array.shape != (lengths[name],) or array.dtype != dtype:
            raise DataError(
                f"{str(directory / array_file(name))!r} is damaged: {array.dtype} {array.shape} "
                f"is not {np.dtype(dtype)} ({lengths[name]},); {_ADVICE}"
            )
    for name, end in (("offsets", events), ("recent_offsets", recent)):
        if name in arrays and arrays[name][-1] != end:
            raise DataError(f"{str(directory / array_file(name))!r} is damaged: its end is not {end}; {_ADVICE}")

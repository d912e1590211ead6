"""Recommendations for every user of a log, written as one long table: resumable, in parts of bounded memory.

The work is kept beside the output, in `.NAME.parts/`: the histories that were read, and one finished part per
PART_USERS users. A later call with the same log, export and options continues there; with others, it starts anew.
Parts are joined at the end, and the output appears complete or not at all.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..data.atomic import write_json
from ..data.cleaning import STRICT, Cleaning
from ..data.containers import STANDARD_INPUT
from ..data.errors import DataError, ExportError
from ..data.hashing import sha256_of
from ..data.locks import take_lock
from ..data.permissions import as_the_user_set
from ..data.reading import Reading
from .engine import list_length
from .log_histories import COUNTS, LogCounts, LogHistories, read_log_histories
from .recommender import Recommender
from .results import Recommendations
from .top_k import NO_ITEM

PART_USERS = 1 << 14
ROW_GROUP = 1 << 18  # rows; fixed, so that the output does not depend on how it was computed
KEY, LOCK = "key.json", "lock"

Progress = Callable[[int, int], None]
"""`progress(done, total)` is told the number of finished users after every part, and once at the start."""


@dataclass(frozen=True)
class BatchOptions:
    """What is recommended, and how the log is read."""

    k: int = 20
    mask_seen: bool = True
    candidates: tuple[str, ...] | None = None  # original ids, as text; None = all items
    reading: Reading = Reading()
    cleaning: Cleaning = STRICT
    keep_duplicates: bool = False


@dataclass(frozen=True)
class BatchResult:
    """What `recommend_log` did."""

    counts: LogCounts
    num_rows: int
    unknown_candidates: tuple[str, ...]
    resumed_users: int  # users whose part an earlier call had finished


def recommend_log(
    recommender: Recommender, log: Path, out: Path, options: BatchOptions, progress: Progress = lambda done, total: None
) -> BatchResult:
    """Write the columns user, rank (1 = best), item and score to `out`: CSV if its name ends in .csv, else Parquet.

    Ids are the original ones. A user without a known item gets the most popular items. Raises DataError if the log
    cannot be read, ExportError if no candidate is known, or if `out` cannot be written or is being written.
    """
    _check(out)
    allowed, unknown = _allowed(recommender, options)
    with _workspace(out) as work:
        _prepare(work, _key(recommender, log, options))
        histories = _histories(work, recommender, log, options)
        total, resumed = len(histories.users), 0
        progress(0, total)
        parts = []
        for first in range(0, total, PART_USERS):
            last = min(first + PART_USERS, total)
            part = work / f"part-{first // PART_USERS:05d}.parquet"
            if part.exists():
                resumed += last - first
            else:
                rows = _score(recommender, histories, first, last, options, allowed)
                with _replacing(part, work) as temporary:
                    rows.write_parquet(temporary, statistics=False)
            parts.append(part)
            progress(last, total)
        num_rows = _join(parts, out, work)
        shutil.rmtree(work)
    return BatchResult(histories.counts, num_rows, unknown, resumed)


def recommend_user(
    recommender: Recommender, log: Path, user: str, options: BatchOptions
) -> tuple[Recommendations, LogCounts]:
    """The recommendations for one user of a log, by the text of its id. Raises as `recommend_log` does."""
    allowed, unknown = _allowed(recommender, options)
    histories = _read(recommender, log, options)
    position = histories.position(user)
    of_user = histories.part(position, position + 1)
    k = list_length(options.k, recommender.num_items)
    numbers, scores = recommender.top(*of_user, k=k, allowed=allowed, mask_seen=options.mask_seen)
    found = numbers[0] != NO_ITEM
    items = tuple(recommender.index.originals(numbers[0][found]))
    by_popularity = not len(of_user.items)
    return Recommendations(items, tuple(scores[0][found].tolist()), unknown, by_popularity), histories.counts


def _score(
    recommender: Recommender,
    histories: LogHistories,
    first: int,
    last: int,
    options: BatchOptions,
    allowed: NDArray[np.bool_] | None,
) -> pl.DataFrame:
    """The rows of users first..last-1."""
    of_users = histories.part(first, last)
    k = list_length(options.k, recommender.num_items)
    numbers, scores = recommender.top(*of_users, k=k, allowed=allowed, mask_seen=options.mask_seen)
    users, ranks = np.nonzero(numbers != NO_ITEM)
    return pl.DataFrame(
        {
            "user": histories.users[first:last].gather(users),
            "rank": (ranks + 1).astype(np.int32),
            "item": recommender.index.ids.gather(numbers[users, ranks]),
            "score": scores[users, ranks],
        }
    )


def _allowed(recommender: Recommender, options: BatchOptions) -> tuple[NDArray[np.bool_] | None, tuple[str, ...]]:
    """The candidates, bool (num_items,), None for all; and the ids among them that are no items."""
    if options.candidates is None:
        return None, ()
    numbers = recommender.item_index(options.candidates)
    if not (numbers >= 0).any():
        raise ExportError("none of the candidates is an item of this model; leave --candidates out for all items")
    allowed = np.zeros(recommender.num_items, dtype=bool)
    allowed[numbers[numbers >= 0]] = True
    return allowed, tuple(options.candidates[position] for position in np.flatnonzero(numbers < 0))


def _check(out: Path) -> None:
    """Raise ExportError for an output that could not be written at the end."""
    if out.suffix.lower() not in (".csv", ".parquet"):
        raise ExportError(f"the output {out.name!r} has the ending {out.suffix!r}; use .parquet or .csv")
    if out.is_dir():
        raise ExportError(f"the output {str(out)!r} is a directory; give the name of a file")


def _is_csv(out: Path) -> bool:
    return out.suffix.lower() == ".csv"


# The work beside the output


@contextmanager
def _workspace(out: Path) -> Iterator[Path]:
    """The directory of unfinished work on `out`, locked against other processes."""
    work = out.with_name(f".{out.name}.parts")
    try:
        work.mkdir(exist_ok=True)
        lock = os.open(work / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ExportError(f"{str(out)!r} cannot be written ({error.strerror}); choose another --out") from None
    try:
        if not take_lock(lock):
            raise ExportError(f"another process is writing {str(out)!r}; wait for it, or choose another --out")
        yield work
    except DataError:  # the log cannot be read: there is nothing to continue
        shutil.rmtree(work)
        raise
    finally:
        os.close(lock)


def _key(recommender: Recommender, log: Path, options: BatchOptions) -> dict[str, object]:
    """What the finished parts depend on."""
    return {
        "log": "" if log == STANDARD_INPUT else _log_hash(log),
        "export": recommender.export.manifest.model_dump(mode="json"),
        "options": json.loads(json.dumps(asdict(options))),
        "device": recommender.device.type,
        "part_users": PART_USERS,
    }


def _log_hash(log: Path) -> str:
    """The hash of a file, or of the names and contents of all files below a directory; empty if there are none."""
    if log.is_file():
        return sha256_of(log)
    files = sorted(file for file in log.rglob("*") if file.is_file())
    return hashlib.sha256(
        "\n".join(f"{file.relative_to(log)} {sha256_of(file)}" for file in files).encode()
    ).hexdigest()


def _prepare(work: Path, key: dict[str, object]) -> None:
    """Delete what belongs to another log, export or option; standard input is never recognised again."""
    recorded = work / KEY
    if recorded.exists() and key["log"] and json.loads(recorded.read_bytes()) == key:
        return
    for entry in work.iterdir():
        if entry.name != LOCK:
            entry.unlink()
    write_json(recorded, key)


def _histories(work: Path, recommender: Recommender, log: Path, options: BatchOptions) -> LogHistories:
    """The histories of the log: those that an earlier call has read, or read now, kept, and mapped."""
    if not (work / COUNTS).exists():  # written last
        _read(recommender, log, options).save(work)
    return LogHistories.load(work)


def _read(recommender: Recommender, log: Path, options: BatchOptions) -> LogHistories:
    return read_log_histories(
        log,
        recommender.index,
        reading=options.reading,
        cleaning=options.cleaning,
        keep_duplicates=options.keep_duplicates,
        with_times=recommender.needs_times,
    )


def _join(parts: list[Path], out: Path, work: Path) -> int:
    """Write all parts to `out`, and return the number of rows; memory does not grow with it."""
    rows = pl.scan_parquet(parts)
    with _replacing(out, work) as temporary, as_the_user_set():
        if _is_csv(out):
            rows.sink_csv(temporary)
        else:
            rows.sink_parquet(temporary, row_group_size=ROW_GROUP)
    return int(rows.select(pl.len()).collect().item())


@contextmanager
def _replacing(path: Path, work: Path) -> Iterator[Path]:
    """A temporary file in `work`, which replaces `path` if the block ends without an error."""
    temporary = work / f"{path.name}.new"
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ExportError(f"{str(path)!r} cannot be written ({error.strerror}); choose another --out") from None

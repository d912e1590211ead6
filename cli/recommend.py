"""`virtualmle recommend`: recommendations of an exported model for every user of a log, or for one of them."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..data.wording import counted
from .log_options import KeepDuplicates, LogFile, LogReading, columns_by_these_options, reads_a_log
from .options import Json
from .serving_options import ExportDirectory, ServingDevice, ServingThreads

if TYPE_CHECKING:
    from ..serving.batch import BatchOptions
    from ..serving.log_histories import LogCounts
    from ..serving.recommender import Recommender



@reads_a_log
def recommend(  # noqa: PLR0913, PLR0917 - one parameter per option
    directory: ExportDirectory,
    log: LogFile,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The table to write: .parquet or .csv.")
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", metavar="ID", help="Print the recommendations for this user instead.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Recommendations per user.")] = 20,
    exclude_seen: Annotated[
        bool, typer.Option("--exclude-seen/--include-seen", help="Whether items of the user's history are left out.")
    ] = True,
    candidates: Annotated[
        Path | None,
        typer.Option("--candidates", metavar="FILE", help="Text file with one item id per line: recommend only these."),
    ] = None,
    device: ServingDevice = "auto",
    threads: ServingThreads = 0,
    *,
    rows: LogReading,
    keep_duplicates: KeepDuplicates = False,
    as_json: Json = False,
) -> None:
    """Recommend items to every user of a log.

    Writes the columns user, rank, item and score. A user's history is all events of the log in time order; users
    without an item that the model knows get the most popular items. The same command continues after an interruption.

    Example: virtualmle recommend model --log purchases.csv --top 20 --out recs.parquet

    One user: virtualmle recommend model --log purchases.csv --user 4711
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported: spinning threads starve others
    from ..data.errors import ExportError
    from ..serving.batch import BatchOptions
    from ..serving.recommender import Recommender, use_threads  # imports torch

    if (out is None) == (user is None):
        raise ExportError("give either --out FILE, to write a table for all users, or --user ID, to print one user's")
    options = BatchOptions(
        k=top,
        mask_seen=exclude_seen,
        candidates=None if candidates is None else _ids_in(candidates),
        reading=rows.reading,
        cleaning=rows.cleaning,
        keep_duplicates=keep_duplicates,
    )
    use_threads(threads)
    recommender = Recommender.load(directory, device)
    with columns_by_these_options():
        if user is not None:
            _one_user(recommender, log, user, options, as_json)
        elif out is not None:
            _all_users(recommender, log, out, options, as_json)


def _one_user(recommender: "Recommender", log: Path, user: str, options: "BatchOptions", as_json: bool) -> None:
    from ..serving.batch import recommend_user

    found, counts = recommend_user(recommender, log, user, options)
    if as_json:
        result = {"items": found.items, "scores": found.scores, "by_popularity": found.by_popularity}
        print(json.dumps({"user": user, **result}))
        return
    _print_notes(counts)
    print(found)


def _all_users(recommender: "Recommender", log: Path, out: Path, options: "BatchOptions", as_json: bool) -> None:
    from ..serving.batch import recommend_log

    print("reading the log ...", file=sys.stderr)
    with _progress_bar() as progress:
        result = recommend_log(recommender, log, out, options, progress)
    counts = result.counts
    if as_json:
        numbers = {
            "users": counts.num_users, "events": counts.num_events, "unknown_items": counts.num_unknown_items,
            "unknown_events": counts.num_unknown_events, "cold_users": counts.num_cold_users,
        }  # fmt: skip
        print(json.dumps({"out": str(out), "rows": result.num_rows, **numbers}))
        return
    _print_notes(counts)
    if result.resumed_users:
        print(f"continued an interrupted run: {counted(result.resumed_users, 'user')} had been scored")
    if result.unknown_candidates:
        print(f"candidates that the model does not know: {', '.join(result.unknown_candidates[:5])}"
              f"{', …' if len(result.unknown_candidates) > 5 else ''}")  # fmt: skip
    print(
        f"{counted(counts.num_unknown_items, 'item')} that the model does not know, in "
        f"{counted(counts.num_unknown_events, 'event')} of {counts.num_events:,}: left out"
    )
    print(
        f"{counted(counts.num_cold_users, 'user')} of {counts.num_users:,} without a known item: "
        "recommended by popularity"
    )
    print(f"wrote {counted(result.num_rows, 'recommendation')} to {out}")


def _print_notes(counts: "LogCounts") -> None:
    for note in counts.notes:
        print(f"note: {note}", file=sys.stderr)


def _ids_in(file: Path) -> tuple[str, ...]:
    """The lines of a text file that are not blank."""
    from ..data.errors import ExportError

    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(
            f"--candidates {str(file)!r} cannot be read as text ({error}); give one id per line"
        ) from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A callback that shows finished users, users per second and the time left on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        """Users per second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} users/s" if task.speed else "")

    console = Console(stderr=True)
    columns = (TextColumn("users"), BarColumn(), TextColumn("{task.completed:,} of {task.total:,}"), Speed(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("users", total=None, visible=False)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        yield progress

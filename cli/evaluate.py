"""`virtualmle evaluate`: an exported model on later data, beside baselines that need no model."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..data.wording import counted
from .log_options import LogReading, columns_by_these_options, reads_a_log
from .options import Json
from .serving_options import ExportDirectory, ServingDevice, ServingThreads

if TYPE_CHECKING:
    import polars as pl

    from ..serving.evaluation_result import EvaluationResult, Figure

TITLES = {"popularity": "popularity", "transitions": "item transitions", "cooccurrence": "item co-occurrence"}
HEADINGS = {"popularity": "popularity", "transitions": "transitions", "cooccurrence": "co-occurrence"}
SHOWN = ("ndcg@5", "ndcg@10", "ndcg@20", "recall@5", "recall@10", "recall@20", "mrr@5", "mrr@10", "mrr@20")


@reads_a_log
def evaluate(  # noqa: PLR0913, PLR0917 - one parameter per option
    directory: ExportDirectory,
    later: Annotated[
        Path, typer.Argument(metavar="LATER", help="A log that is later than the export's training data.")
    ],
    history: Annotated[
        Path | None, typer.Option("--history", metavar="FILE", help="The log before it, which gives histories only.")
    ] = None,
    targets: Annotated[
        str, typer.Option("--targets", help="Events to predict: all, or each user's next or last.")
    ] = "all",
    device: ServingDevice = "auto",
    threads: ServingThreads = 0,
    *,
    rows: LogReading,
    as_json: Json = False,
) -> None:
    """Evaluate an exported model on later data.

    Every event of LATER is predicted from all earlier events of its user, in LATER and in --history, and ranked in the
    whole catalogue. Users count equally; intervals are 95 %, over users. Items that the model does not know count as
    missed, and events without an earlier one are measured apart, as cold starts.

    Example: virtualmle evaluate model december.csv --history until-november.csv
    """
    from ..data.hashing import sha256_of
    from ..serving.evaluation import evaluate_export
    from ..serving.later_events import later_events
    from ..serving.layout import MANIFEST
    from ..serving.recommender import Recommender, use_threads  # imports torch
    from ..serving.sums import load_sums

    use_threads(threads)
    recommender = Recommender.load(directory, device)
    logs = [read_events(file, rows) if file else None for file in (later, history)]
    assert logs[0] is not None
    drawn = recommender.export.config.dataset.has_random_ties
    events = later_events(logs[0], logs[1], recommender.index, targets, random_ties=drawn)  # type: ignore[arg-type]  # checked there
    with targets_bar() as progress:
        result = evaluate_export(recommender, load_sums(directory), events, progress).result
    if as_json:
        about = {"manifest_sha256": sha256_of(directory / MANIFEST), "targets": targets}
        print(json.dumps({**about, **result.model_dump()}, indent=1))
        return
    print_result(result)


def read_events(file: Path, rows: LogReading) -> "pl.DataFrame":
    """The events of a log; its notes go to stderr. Raises DataError as `read_log` does."""
    from ..data.readers import read_log

    with columns_by_these_options():
        log = read_log(file, **vars(rows.reading), cleaning=rows.cleaning)
    for note in log.notes:
        print(f"note: {note}", file=sys.stderr)
    return log.frame


@contextmanager
def targets_bar() -> Iterator[Callable[[int, int], None]]:
    """A callback that shows on stderr how many targets are ranked."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("ranking"), BarColumn(), TextColumn("{task.completed:,} of {task.total:,} targets"),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("targets", total=None, visible=False)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        yield progress


def print_result(result: "EvaluationResult") -> None:
    """Print the tables of an evaluation, and what was counted."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    scorers = {"model": result.model} | {HEADINGS[name]: found for name, found in result.baselines.items()}
    title = "Later targets, ranked in the whole catalogue; ± 95 % interval over users"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("figure", *scorers):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for name in SHOWN:
        table.add_row(name, *(_short(found.metrics[name]) for found in scorers.values()))
    table.add_row("coverage@10", *(f"{found.coverage:.1%}" for found in scorers.values()))
    table.add_row("novelty@10, bits", *(f"{found.novelty:.2f}" for found in scorers.values()))
    strata = Table(title="The model by kind of target", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("targets are", "items", "targets", "users", "NDCG@10", "recall@10"):
        strata.add_column(heading, justify="left" if heading == "targets are" else "right")
    for stratum in result.strata:
        numbers = ["" if stratum.num_items is None else f"{stratum.num_items:,}", f"{stratum.num_targets:,}"]
        shown = [_short(stratum.metrics[name]) if name in stratum.metrics else "" for name in ("ndcg@10", "recall@10")]
        strata.add_row(stratum.name, *numbers, f"{stratum.num_users:,}", *shown)
    console = Console()
    console.print(table, strata)
    print("\n".join([*_differences(result), *_counted(result)]))


def _short(figure: "Figure") -> str:
    """A figure and the half-width of its interval, for a table that fits in 80 columns."""
    return f"{figure.value:.4f}" + ("" if figure.high is None else f" ±{figure.high - figure.value:.4f}")


def _differences(result: "EvaluationResult") -> list[str]:
    return [f"NDCG@10 of the model minus {TITLES[name]}: {found}" for name, found in result.differences.items()]


def _counted(result: "EvaluationResult") -> list[str]:
    counts = result.counts
    lines = [
        f"{counted(counts.targets, 'target')} of {counted(counts.users, 'user')}; of these targets, "
        f"{counts.unknown_targets:,} are items that the model does not know (missed; {counts.unknown_items:,} items), "
        f"{counts.unknown_histories:,} follow unknown items only (ranked by popularity), and "
        f"{counts.repeated_targets:,} repeat an item of the history (ranked, but `recommend` leaves these out)",
        f"not among the targets: {counted(counts.cold_starts, 'event')} without an earlier one of the user (cold "
        f"starts); {counted(counts.cold_users, 'user')} of the later log without any target",
    ]
    if counts.in_both:
        lines.append(f"{counted(counts.in_both, 'row')} of the later log are in --history, too: they are histories")
    return lines

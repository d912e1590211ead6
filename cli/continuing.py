"""`virtualmle continue`: go on training an exported model with new events, users and items."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..data.wording import counted
from .evaluate import read_events
from .export import epochs_bar
from .log_options import LogReading, reads_a_log
from .options import Json
from .serving_options import ExportDirectory, ServingDevice, ServingThreads

if TYPE_CHECKING:
    from ..serving.continuation import Continued

SHOWN = ("ndcg@10", "recall@10", "mrr@10")


@reads_a_log
def continue_training(  # noqa: PLR0913, PLR0917 - one parameter per option
    directory: ExportDirectory,
    new: Annotated[Path, typer.Argument(metavar="NEW", help="A log of events that the export was not trained on.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR2", help="The directory of the new export.")],
    epochs: Annotated[int, typer.Option(min=1, help="Epochs over the new events.")] = 3,
    lr: Annotated[float | None, typer.Option(min=0, help="Learning rate.", show_default="half of the trial's")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of examples, dropout and negatives.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DIR2 if it is an export.")] = False,
    device: ServingDevice = "auto",
    threads: ServingThreads = 0,
    *,
    rows: LogReading,
    as_json: Json = False,
) -> None:
    """Go on training an exported model with new events.

    NEW may have users and items that the export has not seen. The last event of each of its users is held out, and both
    exports are evaluated on these events, as `virtualmle evaluate DIR NEW --targets last` does. DIR is not changed.

    Example: virtualmle continue model december.csv --out model-december
    """
    from ..serving.continuation import ContinueOptions
    from ..serving.continuing import continue_export
    from ..serving.recommender import device_of, use_threads  # imports torch

    use_threads(threads)
    log = read_events(new, rows)
    with epochs_bar("continue") as progress:
        found = continue_export(
            directory, log, out, ContinueOptions(epochs, lr, seed), device_of(device), overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    if as_json:
        print(json.dumps({
            "export": str(out), "before": found.before.model_dump(), "after": found.after.model_dump(),
            "difference": found.difference.model_dump(), "new_items": found.num_new_items, "events": found.num_events,
        }))  # fmt: skip
        return
    _print(found, out)


def _print(found: "Continued", out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    counts = found.after.counts
    table = Table(title=f"On the held-out last event of {counted(counts.users, 'user')}; 95 % intervals")
    for heading in ("metric", "before", "after"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name in SHOWN:
        table.add_row(name, str(found.before.model.metrics[name]), str(found.after.model.metrics[name]))
    Console().print(table)
    print(f"difference of NDCG@10, paired over users: {found.difference}")
    if found.difference.high is not None and found.difference.high < 0:
        print("the model has become worse on these events: try a lower --lr or fewer --epochs, or keep the old export")
    print(f"{counted(found.num_events, 'event')} trained on, {counted(found.num_new_items, 'new item')}")
    before, after = found.before.counts.unknown_targets, counts.unknown_targets
    print(f"targets of items that the export does not know: {before:,} before, {after:,} after")
    print(f"wrote {out}")

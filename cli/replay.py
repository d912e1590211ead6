"""`virtualmle replay`: build a table of a whole grid, and show what a table holds."""

import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import HERE, Device, Home, Json, Seed, make_settings, open_workspace

if TYPE_CHECKING:
    from ..compare.replay_build import BuildPlan, BuildProgress, OnProgress
    from ..training.cells import Cell
    from ..trials.replay_table import ReplayTable

HELP = """Sessions without training: a table holds every configuration of a grid, measured once.

Example: virtualmle tune office --replay office.parquet --backbone hstu
"""
INTERRUPTED = 130  # the exit code that shells report for Ctrl-C
app = typer.Typer(help=HELP, no_args_is_help=True)


@app.command()
def build(  # noqa: PLR0913, PLR0917 - one parameter per option
    dataset: Annotated[
        str, typer.Argument(help="demo, the name of a registered or public dataset, or the path of a log file.")
    ],
    page: Annotated[Path, typer.Option("--page", help="Protocol page whose numeric knobs list their values.")],
    out: Annotated[Path, typer.Option("--out", help="File to write, e.g. office.parquet.")],
    backbones: Annotated[str, typer.Option("--backbones", help="Comma-separated: sasrec, hstu.")] = "sasrec,hstu",
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Training runs at the same time.")] = 1,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Torch threads of each; 0 = all.")] = 1,
    device: Device = "cpu",
    seed: Seed = 0,
    home: Home = HERE,
) -> None:
    """Measure every configuration of a grid.

    Each training configuration is trained once and scored under all scoring settings of the page. Ctrl-C or a kill
    loses the running trainings only: the same command continues. The test set stays sealed. With one thread, the
    seconds of the table are processor time, so that other load on the machine does not distort them.

    Example: virtualmle replay build office.tsv.gz --page office.md --out office.parquet --jobs 2
    """
    from ..compare.replay_build import build as run

    plan = _plan(dataset, page, out, backbones, jobs, threads, device, seed, home)
    try:
        with _progress_bar() as on_progress:
            table = run(plan, on_progress)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    print(f"{out}: {len(table.cells)} cells, {out.stat().st_size / 1e6:.1f} MB")


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A replay table.")],
    as_json: Json = False,
) -> None:
    """Show what a table holds.

    Prints its cells, its knobs, the default and the best configuration per backbone, the spread, and how it was
    measured.

    Example: virtualmle replay show office.parquet
    """
    from ..trials.replay_table import ReplayTable

    table = ReplayTable.read(file)
    facts = _facts(table)
    print(json.dumps(facts, indent=1) if as_json else _text(file, facts))


def _plan(  # noqa: PLR0913, PLR0917 - one parameter per option
    dataset: str, page: Path, out: Path, backbones: str, jobs: int, threads: int, device: str, seed: int, home: Path
) -> "BuildPlan":
    from ..compare.replay_build import BuildPlan
    from ..data.errors import ConfigError
    from ..examiner.vault import Vault
    from ..sandbox.protocol import load_protocol

    names = tuple(dict.fromkeys(name.strip() for name in backbones.split(",") if name.strip()))
    if not names or not {*names} <= {"sasrec", "hstu"}:
        raise ConfigError(f"--backbones {backbones!r} is not known; give sasrec, hstu, or both with a comma")
    protocol = load_protocol(page)
    ws = open_workspace(home, make_settings(device=device))
    with ws.memory:
        name = ws.catalogue.resolve(dataset, Vault(ws.home).public_key())
        prepared = ws.dataset(name)
    return BuildPlan(
        protocol, prepared.manifest, ws.catalogue.path(name), names, out.expanduser().resolve(), jobs, threads, device,
        seed,
    )  # fmt: skip


@contextmanager
def _progress_bar() -> "Iterator[OnProgress]":
    """A bar with the time left on a terminal, otherwise a line per training run; on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from ..report.formats import duration

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=3600)
    task = bar.add_task("building", total=None)
    started, first = time.monotonic(), -1

    def on_progress(at: "BuildProgress") -> None:
        nonlocal first
        text = f"{at.runs_done} of {at.runs} training runs, {at.cells_done:,} of {at.cells:,} cells"
        bar.update(task, completed=at.runs_done, total=at.runs, description=text)
        first = at.runs_done if first < 0 else first
        if not console.is_terminal:
            here = at.runs_done - first
            left = (at.runs - at.runs_done) * (time.monotonic() - started) / here if here else None
            print(text + (f", {duration(left)} left" if left is not None else ""), file=sys.stderr, flush=True)

    with bar:
        yield on_progress


def _facts(table: "ReplayTable") -> dict[str, Any]:
    """What `show` prints, as plain values."""
    from ..compare.replay_grid import values_of
    from ..sandbox.protocol import parse_protocol

    footer = table.footer
    space = parse_protocol(footer.page, str(table.path)).space
    return {
        "dataset": footer.dataset.name,
        "users": footer.dataset.num_users,
        "items": footer.dataset.num_items,
        "cells": len(table.cells),
        "seed": footer.seed,
        "clock": footer.clock,
        "backbones": {
            backbone: {
                "knobs": {knob.name: values_of(knob, backbone) for knob in space.knobs(backbone)},
                **_spread([cell for cell in table.cells if cell.backbone == backbone]),
            }
            for backbone in table.backbones()
        },
        "provenance": footer.provenance,
    }


def _spread(cells: "list[Cell]") -> dict[str, Any]:
    """Default, best and quantiles of validation NDCG@10, and the seconds, over the cells of one backbone."""
    from ..models.config import SCORING_KNOBS

    finished = sorted((cell for cell in cells if cell.metrics), key=lambda cell: cell.metrics["ndcg@10"])
    values = [cell.metrics["ndcg@10"] for cell in finished]
    trained = {
        json.dumps({knob: value for knob, value in cell.settings.items() if knob not in SCORING_KNOBS}): cell
        for cell in cells
    }
    return {
        "cells": len(cells),
        "failed": len(cells) - len(finished),
        "training_runs": len(trained),
        "default": next((cell.metrics["ndcg@10"] for cell in finished if not cell.settings), None),
        "quantiles": _quantiles(values),
        "best_settings": finished[-1].settings if finished else None,
        "seconds_per_training": statistics.median(c.train_seconds + c.evaluate_seconds for c in trained.values()),
        "seconds_per_scoring": statistics.median(cell.score_seconds for cell in cells),
    }


def _quantiles(values: list[float]) -> dict[str, float]:
    """Of ascending values; empty if there are none."""
    return {"lowest": values[0], "median": statistics.median(values), "highest": values[-1]} if values else {}


def _text(file: Path, facts: dict[str, Any]) -> str:
    size = f"{facts['users']:,} users, {facts['items']:,} items"
    lines = [f"{file}: {facts['cells']:,} cells on {facts['dataset']}, {size}"]
    for backbone, found in facts["backbones"].items():
        lines += ["", *_backbone_lines(backbone, found)]
    measured = ", ".join(f"{name} {value}" for name, value in facts["provenance"].items())
    return "\n".join([*lines, "", f"measured: {measured}; seconds are {facts['clock']} time; seed {facts['seed']}"])


def _backbone_lines(backbone: str, found: dict[str, Any]) -> list[str]:
    from ..report.formats import metric, settings

    counts = f"{found['cells']:,} cells of {found['training_runs']:,} training runs, {found['failed']} failed"
    lines = [f"{backbone}: {counts}"]
    lines += [f"  {knob}: {', '.join(map(str, values))}" for knob, values in found["knobs"].items()]
    if found["quantiles"]:
        spread = ", ".join(f"{name} {metric(value)}" for name, value in found["quantiles"].items())
        training, scoring = found["seconds_per_training"], found["seconds_per_scoring"]
        lines += [
            f"  validation NDCG@10: {spread}; default {metric(found['default'])}",
            f"  best: {settings(found['best_settings'])}",
            f"  seconds: {training:.1f} per training, {scoring:.2f} per scoring",
        ]
    return lines

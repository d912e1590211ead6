"""Build a replay table: measure every cell of a grid, resumably, and write them into one file.

Each training run of the grid leaves one file in `FILE.parts/` when it is done, so a build that was interrupted or
killed continues where it stopped. The sealed test split is never touched: the workers read train and validation events
only.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ..data.atomic import write_json
from ..data.errors import HomeError, ReplayError
from ..data.prepared import Manifest
from ..sandbox.protocol import Protocol
from ..tools.workspace import trial_seed
from ..training.cells import MAX_RANK, Cell, CellsJob, CellTask, cells_of, read_frame
from ..training.products import trains_in_bfloat16
from ..trials.replay_table import Footer, ReplayTable
from .provenance import machine, versions
from .replay_grid import TrainingRun, training_runs
from .replay_pool import run_jobs

BUILD = "build.json"


@dataclass(frozen=True)
class BuildPlan:
    """What to build: the grid of `protocol` on a prepared dataset, for these backbones, into `out`."""

    protocol: Protocol
    dataset: Manifest
    dataset_dir: Path
    backbones: tuple[str, ...]
    out: Path
    jobs: int = 1
    threads: int = 1
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is: training runs and cells, done and in all, and the number of cells found from before."""

    runs_done: int
    runs: int
    cells_done: int
    cells: int


OnProgress = Callable[[BuildProgress], None]


@dataclass(frozen=True)
class _Unit:
    """A training run of the grid and the file of its part."""

    run: TrainingRun
    part: Path


def build(plan: BuildPlan, on_progress: OnProgress) -> ReplayTable:
    """Measure what is missing, write the table and return it. Raises ReplayError, HomeError or ConfigError.

    A table that the same plan has built already is returned as it is.
    """
    if plan.out.exists():
        return _existing(plan)
    parts = plan.out.with_name(plan.out.name + ".parts")
    _claim(parts, plan)
    units = [
        _Unit(run, parts / f"{backbone}-{run.train_hash}.parquet")
        for backbone in plan.backbones
        for run in training_runs(plan.protocol.space, backbone)
    ]
    for done in _measured(plan, units):
        on_progress(done)
    table = ReplayTable(plan.out, _footer(plan), list(_collected(plan, units)))
    table.write()
    shutil.rmtree(parts)
    return table


def _existing(plan: BuildPlan) -> ReplayTable:
    table = ReplayTable.read(plan.out)
    footer = table.footer
    found = (footer.page, footer.dataset.dataset_id, footer.seed, tuple(table.backbones()))
    if found != (plan.protocol.text, plan.dataset.dataset_id, plan.seed, plan.backbones):
        raise ReplayError(f"{str(plan.out)!r} exists and is the table of another build; name another file with --out")
    return table


def _claim(parts: Path, plan: BuildPlan) -> None:
    """Create the directory of the parts, or check that it belongs to the same build."""
    identity = {
        "page": plan.protocol.sha256,
        "dataset_id": plan.dataset.dataset_id,
        "trial_seed": trial_seed(plan.seed, plan.dataset.dataset_id),
        "threads": plan.threads,
        "device": plan.device,
        "bfloat16": trains_in_bfloat16(plan.device, "full_softmax"),
        "torch": metadata.version("torch"),
    }
    try:
        parts.mkdir(parents=True, exist_ok=True)
        path = parts / BUILD
        if not path.exists():
            write_json(path, identity)
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise HomeError(f"{str(parts)!r} cannot be written ({error.strerror}); choose another --out") from None
    differing = [name for name, value in identity.items() if found.get(name) != value]
    if differing:
        raise ReplayError(
            f"{str(parts)!r} holds parts of a build with another {', '.join(differing)}; remove the directory to start "
            "over, or choose another --out"
        )


def _measured(plan: BuildPlan, units: Sequence[_Unit]) -> Iterator[BuildProgress]:
    """Run what has no part yet; yields the progress at the start and after every training run."""
    missing = [unit for unit in units if not unit.part.exists()]
    cells = sum(len(unit.run.cells) for unit in units)
    cells_left, runs_left = sum(len(unit.run.cells) for unit in missing), len(missing)
    yield BuildProgress(len(units) - runs_left, len(units), cells - cells_left, cells)
    for job, _ in run_jobs([_job(plan, unit) for unit in missing], plan.jobs):
        cells_left, runs_left = cells_left - len(job.cells), runs_left - 1
        yield BuildProgress(len(units) - runs_left, len(units), cells - cells_left, cells)


def _job(plan: BuildPlan, unit: _Unit) -> CellsJob:
    space = plan.protocol.space
    return CellsJob(
        dataset_dir=str(plan.dataset_dir),
        cells=[CellTask(settings=space.differences(cell), config=cell.model_dump()) for cell in unit.run.cells],
        seed=trial_seed(plan.seed, plan.dataset.dataset_id),
        device=plan.device,
        threads=plan.threads,
        part=str(unit.part),
    )


def _collected(plan: BuildPlan, units: Sequence[_Unit]) -> Iterator[Cell]:
    """The cells of all parts, in the order of the grid."""
    space = plan.protocol.space
    for unit in units:
        cells = cells_of(read_frame(unit.part))
        if [cell.settings for cell in cells] != [space.differences(cell) for cell in unit.run.cells]:
            raise ReplayError(f"{str(unit.part)!r} holds other cells than the grid; remove it and build again")
        yield from cells


def _footer(plan: BuildPlan) -> Footer:
    return Footer(
        page=plan.protocol.text,
        dataset=plan.dataset,
        seed=plan.seed,
        clock="processor" if plan.threads == 1 and plan.device.startswith("cpu") else "wall",
        provenance=_provenance(plan),
    )


def _provenance(plan: BuildPlan) -> dict[str, Any]:
    return {
        **machine(),
        "device": plan.device,
        "threads": plan.threads,
        "jobs": plan.jobs,
        "max_rank": MAX_RANK,
        **versions(),
    }

"""`virtualmle bench`: timings on this machine, as a table for people and one JSON line for programs."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .. import __version__
from .options import HERE, WARM_SECONDS, Device, Home, Threads, make_settings, open_workspace

if TYPE_CHECKING:
    from ..tools.results import TrialObservation
    from ..tools.workspace import Workspace

HELP = """Measure the speed of this machine.

Each command prints a table, then one line of JSON.

Example: virtualmle bench train beauty.tsv.gz --set loss=full_softmax
"""
app = typer.Typer(help=HELP, no_args_is_help=True)

Dataset = Annotated[str, typer.Argument(help="demo, the name of a registered dataset, or the path of a log file.")]
Backbone = Annotated[str, typer.Option(help="sasrec or hstu.")]
Repeats = Annotated[int, typer.Option(min=1, help="Measured repetitions, after one warm-up run.")]
Knobs = Annotated[list[str] | None, typer.Option("--set", help="A knob, e.g. --set hidden_dim=64. Repeatable.")]
PREPARE = """
import json, resource, sys, time
from pathlib import Path
from virtualmle.data.prepare import prepare
from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.data.readers import read_log
log, target = Path(sys.argv[1]), Path(sys.argv[2])
started = time.perf_counter()
read = read_log(log)
middle = time.perf_counter()
manifest = prepare(read, "bench", target, PrepareOptions(), bytes(range(32)))
ended = time.perf_counter()
del read
PreparedDataset.load(target)
loaded = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"read": middle - started, "prepare": ended - middle, "load": loaded - ended, "peak_mb": peak,
                  "users": manifest.num_users, "items": manifest.num_items, "kept": manifest.num_interactions}))
"""


@app.command()
def train(
    dataset: Dataset = "demo",
    backbone: Backbone = "sasrec",
    repeats: Repeats = 3,
    knobs: Knobs = None,
    threads: Threads = 0,
    device: Device = "auto",
    home: Home = HERE,
) -> None:
    """Measure the seconds per training epoch.

    Example: virtualmle bench train beauty.tsv.gz --set loss=full_softmax --set hidden_dim=64 --threads 2
    """
    _run_engine_bench("train", dataset, backbone, repeats, knobs, threads, device, home)


@app.command(name="eval")
def evaluate(
    dataset: Dataset = "demo",
    backbone: Backbone = "sasrec",
    repeats: Repeats = 3,
    knobs: Knobs = None,
    threads: Threads = 0,
    device: Device = "auto",
    home: Home = HERE,
) -> None:
    """Measure full ranking and re-scoring.

    Ranks the whole catalogue for all users, then scores again with other score priors.

    Example: virtualmle bench eval beauty --backbone hstu
    """
    _run_engine_bench("eval", dataset, backbone, repeats, knobs, threads, device, home)


@app.command(name="prepare")
def preparation(
    interactions: Annotated[int, typer.Option(min=1000, help="Number of rows of the generated log.")] = 1_000_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated log.")] = 0,
) -> None:
    """Measure the preparation of a log.

    Generates a log with Zipf-distributed items in a temporary directory; reports seconds and peak memory.

    Example: virtualmle bench prepare --interactions 20000000
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.parquet"
        write_zipf_log(log, interactions, seed)
        command = [sys.executable, "-P", "-c", PREPARE, str(log), str(Path(folder) / "prepared")]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"preparing failed: {ended.stderr[-2000:]}")
    figures = json.loads(ended.stdout)
    rows = {name: [figures[name]] for name in ("read", "prepare", "load")}
    kept = {name: figures[name] for name in ("users", "items", "kept", "peak_mb")}
    _show("prepare", rows, {"interactions": interactions, **kept})


@app.command()
def overhead(
    dataset: Dataset = "demo",
    backbone: Backbone = "sasrec",
    knobs: Knobs = None,
    threads: Threads = 0,
    device: Device = "auto",
) -> None:
    """Measure the overhead of a trial.

    Times the first trial, two trials of the warm worker and three re-scored trials.

    Example: virtualmle bench overhead beauty.tsv.gz
    """
    changes = {"epochs": 1, **_parse_knobs(knobs)}
    with tempfile.TemporaryDirectory() as folder:
        settings = make_settings(device=device, threads=threads, keep_warm=WARM_SECONDS)
        ws = open_workspace(Path(folder), settings)
        with ws.memory:
            rows, workers = _overhead(ws, dataset, backbone, changes)
    _show("overhead", rows, {"dataset": dataset, "backbone": backbone, "knobs": changes, "workers": workers})


def write_zipf_log(path: Path, interactions: int, seed: int) -> None:
    """Write a Parquet log (user, item, timestamp): 20 events per user on average, items by Zipf's law, exponent 1."""
    import numpy as np
    import polars as pl

    generator = np.random.default_rng(seed)
    num_users, num_items = max(10, interactions // 20), max(100, interactions // 100)
    shares = np.cumsum(1 / np.arange(1, num_items + 1))
    items = np.searchsorted(shares, generator.random(interactions) * shares[-1])
    pl.DataFrame({
        "user": generator.integers(0, num_users, interactions),
        "item": generator.permutation(num_items)[items],
        "timestamp": generator.integers(1_500_000_000, 1_700_000_000, interactions),
    }).write_parquet(path)


def _run_engine_bench(
    what: str,
    dataset: str,
    backbone: str,
    repeats: int,
    knobs: list[str] | None,
    threads: int,
    device: str,
    home: Path,
) -> None:
    from ..data.errors import ConfigError
    from ..models.config import make_config

    overrides = _parse_knobs(knobs)
    make_config(backbone, **overrides)  # wrong knobs are refused here, before a subprocess is started
    with tempfile.TemporaryDirectory() as folder:
        # a log file is prepared in the temporary directory; a registered dataset is only read from the home
        ws = open_workspace(Path(folder) if Path(dataset).exists() or dataset == "demo" else home)
        with ws.memory:
            directory = ws.catalogue.path(_resolved(ws, dataset))
        request = {
            "what": what, "directory": str(directory), "backbone": backbone, "knobs": overrides,
            "threads": threads, "repeats": repeats, "device": device,
        }
        command = [sys.executable, "-P", "-m", "virtualmle.training.bench", json.dumps(request)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ConfigError(f"the measurement failed: {ended.stderr.strip().splitlines()[-1]}")
    figures = json.loads(ended.stdout)
    rows = figures.pop("seconds")
    _show(what, rows, {"dataset": dataset, "backbone": backbone, "knobs": overrides, **figures})


def _resolved(ws: "Workspace", dataset: str) -> str:
    from ..examiner.vault import Vault

    name = ws.catalogue.resolve(dataset, Vault(ws.home).public_key())
    ws.dataset(name)
    return name


def _overhead(
    ws: "Workspace", dataset: str, backbone: str, changes: dict[str, Any]
) -> tuple[dict[str, list[float]], int]:
    """Seconds per measured part, and the number of worker processes: 1 if every trial after the first ran warm."""
    from ..tools.open_session import open_session
    from ..tools.run_trial import run_trial
    from ..tools.write_reflection import write_reflection
    from ..training.spec import read_progress
    from ..trials.lease import read_lease
    from ..trials.warm import retire

    session = open_session(ws, _resolved(ws, dataset), "hstu" if backbone == "hstu" else "sasrec").session
    rows: dict[str, list[float]] = {}
    workers = set()

    def measured(label: str, call: "Callable[[], TrialObservation]") -> None:
        started = time.time()
        trial = call()
        rows.setdefault(f"{label}: call to return", []).append(time.time() - started)
        directory = ws.trial_directory(session, trial.trial)
        lease = read_lease(directory)
        workers.add(lease.pid if lease else None)
        since = read_progress(directory).training_since
        if since is not None:
            rows.setdefault(f"{label}: call to training", []).append(since - started)
        write_reflection(ws, session, trial.trial, "unclear", "optimisation", "run for its timing only")

    try:
        measured("first trial", lambda: run_trial(ws, session, changes, base="default"))
        for lr in (2e-3, 3e-3):
            measured("warm trial", lambda: run_trial(ws, session, {"lr": lr}))  # noqa: B023 - called at once
        for weight in (4.0, 8.0, 2.0):
            priors = {"transition_weight": weight, "cooccurrence_weight": weight}
            measured("scoring only", lambda: run_trial(ws, session, priors))  # noqa: B023
    finally:
        retire(ws.inbox(session))
    return rows, len(workers)


def _parse_knobs(knobs: list[str] | None) -> dict[str, Any]:
    from ..data.errors import ConfigError

    found: dict[str, Any] = {}
    for text in knobs or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text!r} has no value; write --set KNOB=VALUE")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:  # a choice, given without quotes
            found[name] = value
    return found


def _show(what: str, rows: dict[str, list[float]], facts: dict[str, Any]) -> None:
    table = Table("", "median s", "min s", "max s", title=f"virtualmle bench {what}")
    for name, seconds in rows.items():
        numbers = (statistics.median(seconds), min(seconds), max(seconds))
        table.add_row(name, *(f"{number:.3f}" for number in numbers))
    console = Console(stderr=False, width=100)
    console.print(table)
    scalars = {name: value for name, value in facts.items() if not isinstance(value, dict)}
    console.print(", ".join(f"{name} {value:,.0f}" if isinstance(value, float) else f"{name} {value}"
                            for name, value in scalars.items()), highlight=False)  # fmt: skip
    record = {
        "bench": what,
        "median": {name: statistics.median(seconds) for name, seconds in rows.items()},
        "spread": {name: [min(seconds), max(seconds)] for name, seconds in rows.items()},
        **facts,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "virtualmle": __version__,
        "date": date.today().isoformat(),
    }
    print(json.dumps(record))

"""Trials per hour: one trial with all threads at a time, against several trials with fewer threads each.

    python benchmarks/bench_parallel.py office.tsv.gz beauty.tsv.gz
    python benchmarks/bench_parallel.py office.tsv.gz --trials 2 --epochs 1 --repeats 1     # does it run?

An arm PLACESxTHREADS is a session that runs PLACES trials at a time with THREADS torch threads each. All arms run the
same trials: the default configuration with a few learning rates, which cost the same, for a fixed number of epochs,
through the tools of the product, with warm workers. A first trial of one epoch per place, which starts them, is not
timed. The arms take turns, so that what else the machine does meets all of them. Nothing is reused and nothing is
stopped early. The load of the machine at the start is in the record; keep figures only from an idle one.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from record import environment, parser_of

from virtualmle.data.atomic import write_bytes
from virtualmle.examiner.vault import Vault
from virtualmle.sandbox.protocol import MOST_SESSIONS, load_protocol
from virtualmle.tools.open_session import open_session
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.sync import sync_session
from virtualmle.tools.wait_trial import wait_trial
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.trials.places import num_cores
from virtualmle.trials.warm import retire

LOWEST_LR, HIGHEST_LR = 3e-4, 2e-3
WARM_SECONDS = 600.0


@dataclass(frozen=True)
class Arm:
    """A way to use the machine."""

    places: int
    threads: int

    def __str__(self) -> str:
        return f"{self.places}x{self.threads}"


def arm_of(text: str) -> Arm:
    """The arm that `2x1` stands for."""
    places, _, threads = text.partition("x")
    return Arm(int(places), int(threads))


def learning_rates(number: int) -> list[float]:
    """So many learning rates, evenly spaced on a log scale, with two significant digits."""
    steps = [n / max(1, number - 1) for n in range(number)]
    return [float(f"{LOWEST_LR * (HIGHEST_LR / LOWEST_LR) ** step:.2g}") for step in steps]


def prepared_home(folder: Path, logs: list[Path]) -> tuple[Path, list[str]]:
    """A home with these logs, whose protocol neither stops trials nor takes them from other sessions."""
    page = load_protocol().text
    for rule in ("racing", "reuse_trials", "require_reflection"):
        row = f"| `{rule}` | true |"
        assert row in page, f"SANDBOX.md has no row {row}"
        page = page.replace(row, f"| `{rule}` | false |")
    write_bytes(folder / "SANDBOX.md", page.encode())
    ws = Workspace.open(folder)
    names = [ws.catalogue.resolve(str(log), Vault(folder).public_key()) for log in logs]
    ws.close()
    return folder, names


def measure(home: Path, dataset: str, arm: Arm, arguments: argparse.Namespace) -> tuple[float, list[float]]:
    """Seconds from the start of the first trial to the end of the last one, and NDCG@10 of every trial."""
    settings = Settings(device="cpu", threads=arm.threads, parallel=arm.places, max_trials=1000, max_train_seconds=1e7,
                        max_sessions=MOST_SESSIONS, keep_warm=WARM_SECONDS)  # fmt: skip
    ws = Workspace.open(home, settings=settings)
    session = open_session(ws, dataset, arguments.backbone, new=True).session
    epochs = {"epochs": arguments.epochs, "patience": arguments.epochs}
    try:
        run_all(ws, session, [{"lr": 1e-4 * (n + 1), "epochs": 1, "patience": 1} for n in range(arm.places)])
        started = time.perf_counter()
        run_all(ws, session, [{"lr": lr, **epochs} for lr in learning_rates(arguments.trials)])
        seconds = time.perf_counter() - started
        trials = ws.memory.trials.all(session)[arm.places :]
        assert all(trial.status == "finished" for trial in trials), [trial.status for trial in trials]
        return seconds, [trial.outcome.metrics["ndcg@10"] for trial in trials if trial.outcome]
    finally:
        for inbox in ws.inboxes(ws.memory.sessions.get(session)):
            retire(inbox)
        ws.close()


def run_all(ws: Workspace, session: str, trials: list[dict[str, float]]) -> None:
    """Run these changes of the default, as many at a time as the session has places."""
    places = ws.memory.sessions.get(session).parallel
    for changes in trials:
        while len(sync_session(ws, session)) >= places:
            wait_trial(ws, session)
        run_trial(ws, session, changes, base="default", wait_seconds=0)
    while sync_session(ws, session):
        wait_trial(ws, session)


def main() -> None:
    parser = parser_of(__doc__ or "")
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--backbone", choices=("sasrec", "hstu"), default="sasrec")
    parser.add_argument("--arms", nargs="+", type=arm_of, default=[Arm(1, num_cores()), Arm(num_cores(), 1)])
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    facts = environment()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        home, names = prepared_home(Path(folder), arguments.logs)
        for dataset in names:
            seconds: dict[str, list[float]] = {str(arm): [] for arm in arguments.arms}
            figures: dict[str, list[float]] = {}
            for _ in range(arguments.repeats):
                for arm in arguments.arms:
                    took, figures[str(arm)] = measure(home, dataset, arm, arguments)
                    seconds[str(arm)].append(took)
            rows += rows_of(dataset, arguments, seconds, figures)
    print(f"{'dataset':16}{'arm':>6}{'trials/hour':>13}{'min':>9}{'max':>9}{'ratio':>8}{'max |ΔNDCG|':>13}")
    for row in rows:
        print(
            f"{row['dataset']:16}{row['arm']:>6}{row['trials_per_hour']:13.1f}{row['min']:9.1f}{row['max']:9.1f}"
            f"{row['ratio']:8.2f}{row['ndcg_difference']:13.1e}"
        )
    settings = {name: getattr(arguments, name) for name in ("backbone", "trials", "epochs", "repeats")}
    print(json.dumps({"bench": "parallel", **facts, **settings, "rows": rows}))


def rows_of(
    dataset: str, arguments: argparse.Namespace, seconds: dict[str, list[float]], figures: dict[str, list[float]]
) -> list[dict[str, object]]:
    """One row per arm: the median over the repeats, its spread, and the ratio to the first arm."""
    first = next(iter(seconds))
    return [
        {
            "dataset": dataset,
            "arm": arm,
            "trials_per_hour": 3600 * arguments.trials / statistics.median(found),
            "min": 3600 * arguments.trials / max(found),
            "max": 3600 * arguments.trials / min(found),
            "ratio": statistics.median(seconds[first]) / statistics.median(found),
            "ndcg_difference": max(abs(a - b) for a, b in zip(figures[first], figures[arm], strict=True)),
        }
        for arm, found in seconds.items()
    ]


if __name__ == "__main__":
    main()

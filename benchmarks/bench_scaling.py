"""The time of an epoch depends on the number of events, not on the number of slots of a padded batch.

    python benchmarks/bench_scaling.py beauty.tsv.gz
    python benchmarks/bench_scaling.py --demo

Four cases are measured in turns in one run: the log; the log with every user twice; and the log with the last 200
events of each user, once with max_len 50 and once with max_len 200. Prints medians and ratios, then one JSON line.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

import polars as pl
import torch
from logs import log_of, prepared
from record import environment, parser_of

from virtualmle.data.prepared import PrepareOptions
from virtualmle.data.readers import Log
from virtualmle.models.config import make_config
from virtualmle.training.trainer import Training


def with_users_twice(log: Log) -> Log:
    """The log with a copy of every user under another name."""
    copies = log.frame.with_columns(user="again-" + pl.col("user"))
    return Log(pl.concat((log.frame, copies)), log.columns, 2 * log.rows_read)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("log", nargs="?", type=Path)
    parser.add_argument("--demo", action="store_true", help="the bundled demo instead of a log")
    parser.add_argument("--backbone", choices=["sasrec", "hstu"], default="sasrec")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if not arguments.log and not arguments.demo:
        parser.error("give the path of a log, or --demo")
    torch.set_num_threads(arguments.threads)
    log = log_of(arguments.log)
    cases = {
        "as it is": (log, 50, 50),
        "users twice": (with_users_twice(log), 50, 50),
        "200 events, max_len 50": (log, 200, 50),
        "200 events, max_len 200": (log, 200, 200),
    }
    runs: dict[str, Training] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (source, max_events, max_len)) in enumerate(cases.items()):
            dataset = prepared(source, Path(folder) / str(number), PrepareOptions(max_events=max_events))
            config = make_config(
                arguments.backbone, hidden_dim=64, num_blocks=2, num_heads=2, max_len=max_len, num_negatives=256
            )
            runs[name] = Training(config, dataset, 0, torch.device("cpu"))
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(arguments.repeats + 1):
            for name, training in runs.items():
                started = time.perf_counter()
                training.epoch()
                if repeat:  # the first epoch warms up
                    seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    events = {name: int(training.batches.lengths.sum()) for name, training in runs.items()}
    ratios = {
        "users twice / as it is": medians["users twice"] / medians["as it is"],
        "max_len 200 / max_len 50": medians["200 events, max_len 200"] / medians["200 events, max_len 50"],
    }
    for name, median in medians.items():
        print(f"{name:26}{median:9.3f} s   {events[name]:>9,} events   {1e6 * median / events[name]:7.2f} us per event")
    for name, ratio in ratios.items():
        print(f"{name:26}{ratio:9.3f}")
    settings = {"backbone": arguments.backbone, "threads": arguments.threads}
    measured = {"seconds": seconds, "events": events, "ratios": ratios}
    print(json.dumps({"bench": "scaling", **environment(), **settings, **measured}))


if __name__ == "__main__":
    main()

"""How many users per second `virtualmle recommend` scores, and how fast `virtualmle serve-model` answers.

    python benchmarks/bench_serving.py --users 20000
    python benchmarks/bench_serving.py --users 1000000 --peers-python peers-venv/bin/python --save

The model is an untrained SASRec (width 64, two blocks) with transitions and co-occurrence over 12,101 items; the log is
synthetic, with histories as long as those of Amazon Beauty (5 to 50 events, 8.9 on average). Batch: the command as a
process, with its seconds on the clock, its processor seconds and its peak memory; with --peers-python, RecTools'
`recommend` for --peer-users of the same users. Endpoint: clients in another process, each of which sends its next
request when it has the answer to the last one; with dynamic batches, and one by one (--max-batch 1).
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

import httpx
import numpy as np
import polars as pl
from logs import prepared
from record import RESULTS, environment, parser_of, save

from virtualmle.data.prepared import PrepareOptions
from virtualmle.data.readers import Log
from virtualmle.models.build import build_model
from virtualmle.models.config import make_config
from virtualmle.serving.artifact import write_export
from virtualmle.serving.assembly import assemble
from virtualmle.serving.layout import TrainedModel
from virtualmle.training.checkpoint import save_checkpoint
from virtualmle.training.spec import CHECKPOINT

TRAIN_USERS = 20_000
MIN_LENGTH, MEAN_LENGTH, MAX_LENGTH = 5, 8.88, 50
PRIORS = {"transition_weight": 8.0, "cooccurrence_weight": 4.0}
TOP = 20
PEER = Path(__file__).parent / "peers" / "rectools_recommend.py"
WARM_UP = 20  # requests per client before the measurement

Row = dict[str, Any]


def synthetic_log(num_users: int, num_items: int, seed: int) -> pl.DataFrame:
    """Users with geometric lengths, and items with Zipf-like popularity; every item occurs."""
    random = np.random.default_rng(seed)
    lengths = np.minimum(MIN_LENGTH - 1 + random.geometric(1 / (MEAN_LENGTH - MIN_LENGTH + 1), num_users), MAX_LENGTH)
    weights = 1 / np.arange(10, num_items + 10) ** 0.8
    items = random.choice(num_items, lengths.sum(), p=weights / weights.sum()).astype(np.int32)
    items[:num_items] = random.permutation(num_items)[: len(items)]
    times = 1_400_000_000 + np.arange(len(items)) % 100_000_000
    users = np.repeat(np.arange(num_users, dtype=np.int32), lengths)
    return pl.DataFrame({"user": users, "item": items, "timestamp": times})


def make_export(folder: Path, num_items: int) -> Path:
    """An export of an untrained model with score priors counted in a log of TRAIN_USERS."""
    frame = synthetic_log(TRAIN_USERS, num_items, seed=0)
    text = frame.with_columns(pl.col("user", "item").cast(pl.String))
    log = Log(text, {name: name for name in frame.columns}, len(frame))
    dataset = prepared(log, folder / "dataset", PrepareOptions(k_core=1))
    config = make_config("sasrec", hidden_dim=64, num_blocks=2, **PRIORS)
    trial = folder / "trial"
    trial.mkdir()
    save_checkpoint(trial / CHECKPOINT, build_model(config, dataset.num_items, seed=0), config, dataset.num_items)
    models = [TrainedModel("bench/t000", trial)]
    write_export(folder / "export", assemble(models, config, folder / "dataset", "# Benchmark\n"))
    return folder / "export"


def measured(command: list[str], threads: int) -> Row:
    """Run a command: seconds on the clock, processor seconds, peak memory."""
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "POLARS_MAX_THREADS": str(threads)}
    started = time.perf_counter()
    process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[:6]} failed")
    return {
        "seconds": time.perf_counter() - started,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
        "output": output,
    }


def batch(folder: Path, export: Path, frame: pl.DataFrame, threads: int) -> Row:
    """`virtualmle recommend` for all users, without the start of the process in users per second."""
    log, out = folder / "log.csv", folder / "recs.parquet"
    frame.write_csv(log)
    command = [sys.executable, "-P", "-m", "virtualmle", "recommend", str(export), "--log", str(log),
               "--top", str(TOP), "--threads", str(threads), "--json", "--out"]  # fmt: skip
    one = folder / "one.csv"
    frame.filter(pl.col("user") == 0).write_csv(one)
    command[command.index(str(log))] = str(one)
    start = measured([*command, str(folder / "one.parquet")], threads)
    command[command.index(str(one))] = str(log)
    row = measured([*command, str(out)], threads)
    users = json.loads(row.pop("output"))["users"]
    work = {key: row[key] - start[key] for key in ("seconds", "processor_seconds")}
    return {
        **row,
        "users": users,
        "events": len(frame),
        "start_seconds": start["seconds"],
        "users_per_second": users / work["seconds"],
        "users_per_processor_second": users / work["processor_seconds"],
        "out_mb": out.stat().st_size / 2**20,
    }


def peer(folder: Path, frame: pl.DataFrame, num_users: int, python: str, threads: int) -> Row:
    """RecTools' `recommend` of TOP items for the first users of the log, timed in its own process."""
    part = frame.filter(pl.col("user") < num_users)
    np.savez(folder / "peer.npz", users=part["user"].to_numpy(), items=part["item"].to_numpy())
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [python, str(PEER), str(folder / "peer.npz"), str(TOP), str(threads)],
        capture_output=True, text=True, check=False, env={**inherited, "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    if done.returncode:
        return {"error": done.stderr[-2000:]}
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


@contextmanager
def endpoint(folder: Path, export: Path, threads: int, *options: str) -> Iterator[tuple[str, int]]:
    """A served model: its address and process id."""
    log = folder / "endpoint.txt"
    command = [sys.executable, "-P", "-m", "virtualmle", "serve-model", str(export), "--port", "0",
               "--threads", str(threads), *options]  # fmt: skip
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        try:
            while not (found := re.search(r" at (http://\S+)", log.read_text())):
                if process.poll() is not None:
                    raise SystemExit(log.read_text())
                time.sleep(0.1)
            yield found[1], process.pid
        finally:
            process.terminate()
            process.wait()


def ask(url: str, histories: list[list[int]], clients: int, num_requests: int) -> list[float]:
    """Seconds of each of `num_requests` requests per client."""

    def client(number: int) -> list[float]:
        seconds = []
        with httpx.Client(timeout=60) as session:
            for n in range(WARM_UP + num_requests):
                history = histories[(number * 7919 + n) % len(histories)]
                started = time.perf_counter()
                session.post(url + "/recommend", json={"history": history, "k": TOP}).raise_for_status()
                seconds.append(time.perf_counter() - started)
        return seconds[WARM_UP:]

    with ThreadPoolExecutor(clients) as pool:
        return [second for part in pool.map(client, range(clients)) for second in part]


def client_process(url: str, folder: Path, clients: int, num_requests: int) -> Row:
    """`ask` in a process of its own, so that server and clients do not share an interpreter."""
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "--ask", url, "--histories",
               str(folder / "histories.json"), "--clients", str(clients), "--requests", str(num_requests)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row: Row = json.loads(done.stdout)
    return row


def processor_seconds(pid: int) -> float:
    """Processor seconds that a process has used (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def endpoints(folder: Path, export: Path, frame: pl.DataFrame, arguments: Any) -> list[Row]:
    """Latency and throughput of the endpoint for every number of clients and way of batching."""
    histories = frame.head(200_000).group_by("user", maintain_order=True).agg("item")["item"].to_list()[:2000]
    (folder / "histories.json").write_text(json.dumps(histories))
    ways = {"one by one": ("--max-batch", "1")}
    ways |= {f"batches, window {window:g} ms": ("--window", str(window)) for window in arguments.windows}
    rows = []
    for way, options in ways.items():
        with endpoint(folder, export, arguments.threads, *options) as (url, pid):
            for clients in arguments.clients:
                before = processor_seconds(pid)
                row = client_process(url, folder, clients, max(20, arguments.requests // clients))
                row["server_ms"] = (processor_seconds(pid) - before) / row["requests_with_warm_up"] * 1e3
                rows.append({"way": way, "clients": clients, **row})
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def answer(arguments: Any) -> None:
    """Entry of the process of the clients."""
    histories = json.loads(Path(arguments.histories).read_text())
    clients = arguments.clients[0]
    started = time.perf_counter()
    seconds = ask(arguments.ask, histories, clients, arguments.requests)
    elapsed = time.perf_counter() - started
    total = len(seconds) + clients * WARM_UP
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    print(json.dumps({"p50_ms": p50, "p99_ms": p99, "mean_ms": statistics.mean(seconds) * 1e3,
                      "requests_per_second": total / elapsed, "requests_with_warm_up": total}))  # fmt: skip


def text_of(record: Row) -> str:
    """The record as Markdown tables."""
    lines = [
        "{hardware}, {cores} cores, {threads} threads, load {load:.1f}, {date}, commit {commit}\n".format(**record)
    ]
    if "batch" in record:
        lines += [
            "| recommend | users | s | users/s | users per processor second | peak MB |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        for name in ("batch", "rectools"):
            row = record.get(name)
            if row and "error" not in row:
                keys = ("users_per_second", "users_per_processor_second", "peak_mb")
                figures = " | ".join(f"{row[key]:,.0f}" for key in keys)
                label = "virtualmle" if name == "batch" else f"RecTools {row['versions']['rectools']}"
                lines.append(f"| {label} | {row['users']:,} | {row['seconds']:.1f} | {figures} |")
    if "endpoint" in record:
        lines += ["", "| endpoint | clients | p50 ms | p99 ms | requests/s | processor ms of the server per request |",
                  "|---|--:|--:|--:|--:|--:|"]  # fmt: skip
        lines += [
            f"| {row['way']} | {row['clients']} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} "
            f"| {row['requests_per_second']:.0f} | {row['server_ms']:.2f} |"
            for row in record["endpoint"]
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=["batch", "endpoint"])
    parser.add_argument("--peers-python", help="the interpreter of an environment with RecTools (see peers/README.md)")
    parser.add_argument("--peer-users", type=int, default=20_000)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=2000, help="requests of all clients together")
    parser.add_argument("--windows", type=float, nargs="*", default=[0.0, 2.0])
    parser.add_argument("--save", action="store_true", help="write results/serving.json and .md")
    parser.add_argument("--ask", help="internal: the address that this process is a client of")
    parser.add_argument("--histories", help="internal: the file of the histories")
    arguments = parser.parse_args()
    if arguments.ask:
        answer(arguments)
        return
    record: Row = {"bench": "serving", **environment(), "threads": arguments.threads, "items": arguments.items}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export = make_export(folder, arguments.items)
        frame = synthetic_log(arguments.users, arguments.items, seed=1)
        if arguments.only != "endpoint":
            record["batch"] = batch(folder, export, frame, arguments.threads)
            print(record["batch"], file=sys.stderr, flush=True)
        if arguments.peers_python:
            users = min(arguments.users, arguments.peer_users)
            record["rectools"] = peer(folder, frame, users, arguments.peers_python, arguments.threads)
        if arguments.only != "batch":
            record["endpoint"] = endpoints(folder, export, frame, arguments)
    if arguments.save:
        save(RESULTS / "serving", record, text_of(record))
    print(text_of(record))
    print(json.dumps(record))


if __name__ == "__main__":
    main()

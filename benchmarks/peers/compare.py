"""Train SASRec on one log with every engine, each in its own process, and compare them (see README.md in this folder).

    python benchmarks/peers/compare.py beauty.tsv.gz --peers-python peers-venv/bin/python

Prints a table and one JSON line; writes benchmarks/results/peers-NAME.json and .md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # PYTHONSAFEPATH leaves it out

from logs import prepared
from record import RESULTS, environment, parser_of, save

from virtualmle.data.prepared import PrepareOptions
from virtualmle.data.readers import Log, read_log

HERE = Path(__file__).parent
ENGINES = {  # name: (script, loss); ours run between the peers, so that load changes affect all alike
    "ours softmax": ("our_engine.py", "softmax"),
    "ours softmax bfloat16": ("our_engine.py", "softmax"),
    "ours sampled": ("our_engine.py", "sampled"),
    "rectools sampled": ("rectools_engine.py", "sampled"),
    "ours sampled again": ("our_engine.py", "sampled"),
    "ours shared negatives": ("our_engine.py", "shared"),
    "rectools softmax": ("rectools_engine.py", "softmax"),
    "rectools softmax bfloat16": ("rectools_engine.py", "softmax"),
    "ours softmax again": ("our_engine.py", "softmax"),
    "ours softmax bfloat16 again": ("our_engine.py", "softmax"),
    "recbole softmax": ("recbole_engine.py", "softmax"),
    "ours softmax at the end": ("our_engine.py", "softmax"),
}
BFLOAT16 = "bfloat16"  # in the name of an engine that multiplies in bfloat16; ratios compare like with like


def first_users(log: Log, count: int | None) -> Log:
    """The log of the first `count` users of the file."""
    if count is None:
        return log
    users = log.frame["user"].unique(maintain_order=True)[:count]
    return log.__class__(**{**log.__dict__, "frame": log.frame.filter(log.frame["user"].is_in(users.to_list()))})


def ndcg(top: np.ndarray, valid_items: np.ndarray) -> float:
    """Mean NDCG@10 with one relevant item per user; top (num_users, 10) item ids, best first."""
    hits = top == valid_items[:, None]
    return float(np.where(hits.any(1), 1 / np.log2(2 + hits.argmax(1)), 0).mean())


def run(engine: str, python: str, folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """The figures of one engine, or its error. Its output goes to log.txt in the folder of its answer."""
    script, loss = ENGINES[engine]
    own_folder = folder / engine.replace(" ", "-")
    own_folder.mkdir()
    arrays = np.load(folder / "log.npz")
    task = {
        "num_items": int(arrays["num_items"]),
        "loss": loss,
        "bfloat16": BFLOAT16 in engine,
        "epochs": arguments.epochs,
        "threads": arguments.threads,
        "batch_size": 2048 if script.startswith("recbole") else arguments.batch_size,
        "num_negatives": arguments.num_negatives,
    }
    (own_folder / "task.json").write_text(json.dumps(task))
    # without PYTHONSAFEPATH, because the engines import protocol.py from their own folder
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    variables = {**inherited, "OMP_NUM_THREADS": str(arguments.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    load_before = os.getloadavg()[0]
    with (own_folder / "log.txt").open("w") as log:
        command = [python, str((HERE / script).resolve()), str(own_folder.resolve())]
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=variables, cwd=own_folder, check=False)
    if done.returncode:
        return {"error": (own_folder / "log.txt").read_text()[-2000:]}
    figures = json.loads((own_folder / "answer.json").read_text())
    top = np.load(own_folder / "top.npy")
    return {**figures, "ndcg@10": ndcg(top, arrays["valid_items"]), "load_before": load_before}


def is_our_counterpart(other: str, engine: str) -> bool:
    """Whether `other` is our engine with the loss of `engine`, and multiplies in bfloat16 if `engine` does."""
    same = ENGINES[other][1] == ENGINES[engine][1] and (BFLOAT16 in other) == (BFLOAT16 in engine)
    return other.startswith("ours") and same


def text_of(record: dict[str, Any]) -> str:
    """The record as one line and a Markdown table, with the ratios of the peers to our runs of the same loss."""
    about = "{dataset}, {hardware}, {cores} cores, {threads} threads, {date}, commit {commit}\n".format(**record)
    lines = [
        about,
        "| engine | epoch s | ours | evaluation s | ours | peak MB | NDCG@10 |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for engine, row in record["engines"].items():
        if "error" in row:
            lines.append(f"| {engine} | failed | | | | | |")
            continue
        ours = [row for other, row in record["engines"].items() if is_our_counterpart(other, engine)]
        ratios = ["", ""]
        if ours and not engine.startswith("ours"):
            keys = ("epoch_seconds", "evaluate_seconds")
            ratios = [f"{row[key] / np.median([r[key] for r in ours]):.1f} x" for key in keys]
        lines.append(
            f"| {engine} | {row['epoch_seconds']:.2f} | {ratios[0]} | {row['evaluate_seconds']:.2f} | {ratios[1]} "
            f"| {row['peak_mb']:.0f} | {row['ndcg@10']:.4f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("log", type=Path, help="a log file: user, item, timestamp")
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--engines", nargs="*", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128, help="for ours and RecTools, whose default it is")
    parser.add_argument("--num-negatives", type=int, default=256)
    parser.add_argument("--users", type=int, help="use the first users only, for a quick check that everything runs")
    parser.add_argument("--again", action="store_true", help="measure all engines, also those in the record")
    arguments = parser.parse_args()
    name = arguments.log.name.split(".")[0] + (f"-{arguments.users}-users" if arguments.users else "")
    saved = RESULTS / f"peers-{name}.json"
    record = json.loads(saved.read_text()) if saved.exists() and not arguments.again else {"engines": {}}
    settings = {"dataset": name, "epochs": arguments.epochs, "threads": arguments.threads}
    record |= {"bench": "peers", **environment(), **settings}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        log = first_users(read_log(arguments.log), arguments.users)
        dataset = prepared(log, folder / "prepared", PrepareOptions(k_core=2 if arguments.users else 5))
        parts = {part: getattr(dataset, part) for part in ("items", "offsets", "valid_items", "num_items")}
        np.savez(folder / "log.npz", **parts)
        for engine in arguments.engines:
            if "epoch_seconds" in record["engines"].get(engine, {}):
                continue
            ours = ENGINES[engine][0].startswith("our")
            python = sys.executable if ours else str(Path(arguments.peers_python).absolute())
            row = run(engine, python, folder, arguments)
            record["engines"][engine] = row
            print(engine, {key: value for key, value in row.items() if key != "versions"}, file=sys.stderr, flush=True)
            save(RESULTS / f"peers-{name}", record, text_of(record))
    print(text_of(record))
    print(json.dumps(record))


if __name__ == "__main__":
    main()

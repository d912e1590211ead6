"""Train SASRec on one log with every engine, each in its own process, and compare (README.md beside this file).

    python benchmarks/peers/compare.py beauty.tsv.gz --peers-python peers-venv/bin/python

Prints a table and one JSON line; writes benchmarks/results/peers-NAME.json and .md.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from virtualmle.data.atomic import write_bytes
from virtualmle.data.prepare import prepare
from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.data.readers import Log, read_log

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
ENGINES = {  # name: (script, loss); ours stands between the others, so that it meets the machine in every mood
    "ours softmax": ("our_engine.py", "softmax"),
    "ours sampled": ("our_engine.py", "sampled"),
    "rectools sampled": ("rectools_engine.py", "sampled"),
    "ours sampled again": ("our_engine.py", "sampled"),
    "ours shared negatives": ("our_engine.py", "shared"),
    "rectools softmax": ("rectools_engine.py", "softmax"),
    "ours softmax again": ("our_engine.py", "softmax"),
    "recbole softmax": ("recbole_engine.py", "softmax"),
    "ours softmax at the end": ("our_engine.py", "softmax"),
}


def first_users(log: Log, count: int | None) -> Log:
    """The log of the first `count` users of the file."""
    if count is None:
        return log
    users = log.frame["user"].unique(maintain_order=True)[:count]
    return log.__class__(**{**log.__dict__, "frame": log.frame.filter(log.frame["user"].is_in(users.to_list()))})


def ndcg(top: np.ndarray, valid_items: np.ndarray) -> float:
    """Mean NDCG@10 of one relevant item per user, from lists of the ten best."""
    hits = top == valid_items[:, None]
    return float(np.where(hits.any(1), 1 / np.log2(2 + hits.argmax(1)), 0).mean())


def run(engine: str, python: str, folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """One engine's figures; whatever it prints goes to log.txt beside its answer."""
    script, loss = ENGINES[engine]
    place = folder / engine.replace(" ", "-")
    place.mkdir()
    arrays = np.load(folder / "log.npz")
    task = {
        "num_items": int(arrays["num_items"]),
        "loss": loss,
        "epochs": arguments.epochs,
        "threads": arguments.threads,
        "batch_size": 2048 if script.startswith("recbole") else arguments.batch_size,
        "num_negatives": arguments.num_negatives,
    }
    (place / "task.json").write_text(json.dumps(task))
    # engines import protocol.py, which lies beside them
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    environment = {**inherited, "OMP_NUM_THREADS": str(arguments.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    before = os.getloadavg()[0]
    with (place / "log.txt").open("w") as log:
        command = [python, str((HERE / script).resolve()), str(place.resolve())]
        ended = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=place, check=False
        )
    if ended.returncode:
        return {"error": (place / "log.txt").read_text()[-2000:]}
    figures = json.loads((place / "answer.json").read_text())
    return {**figures, "ndcg@10": ndcg(np.load(place / "top.npy"), arrays["valid_items"]), "load_before": before}


def table(record: dict) -> str:
    """The record as a Markdown table, with ratios to our runs of the same loss."""
    lines = ["| engine | epoch s | ours | evaluation s | ours | peak MB | NDCG@10 |", "|---|--:|--:|--:|--:|--:|--:|"]
    for engine, row in record["engines"].items():
        if "error" in row:
            lines.append(f"| {engine} | failed | | | | | |")
            continue
        loss = ENGINES[engine][1]
        own = [r for e, r in record["engines"].items() if e.startswith("ours") and ENGINES[e][1] == loss]
        ratios = ["", ""]
        if own and not engine.startswith("ours"):
            keys = ("epoch_seconds", "evaluate_seconds")
            ratios = [f"{row[key] / np.median([r[key] for r in own]):.1f} x" for key in keys]
        lines.append(
            f"| {engine} | {row['epoch_seconds']:.2f} | {ratios[0]} | {row['evaluate_seconds']:.2f} | {ratios[1]} "
            f"| {row['peak_mb']:.0f} | {row['ndcg@10']:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="a log file: user, item, timestamp")
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--engines", nargs="*", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128, help="of ours and RecTools: the latter's default")
    parser.add_argument("--num-negatives", type=int, default=256)
    parser.add_argument("--users", type=int, help="only the first users: to try the machinery")
    parser.add_argument("--again", action="store_true", help="measure also what is in the record already")
    arguments = parser.parse_args()
    name = arguments.log.name.split(".")[0] + (f"-{arguments.users}-users" if arguments.users else "")
    target = RESULTS / f"peers-{name}.json"
    record = json.loads(target.read_text()) if target.exists() and not arguments.again else {"engines": {}}
    record |= {
        "bench": "peers",
        "dataset": name,
        "date": datetime.date.today().isoformat(),
        "epochs": arguments.epochs,
        "threads": arguments.threads,
        "hardware": f"{cpu_model()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        key = X25519PrivateKey.generate().public_key().public_bytes_raw()
        options = PrepareOptions(k_core=2 if arguments.users else 5)
        prepare(first_users(read_log(arguments.log), arguments.users), name, folder / "prepared", options, key)
        dataset = PreparedDataset.load(folder / "prepared")
        np.savez(
            folder / "log.npz",
            items=dataset.items,
            offsets=dataset.offsets,
            valid_items=dataset.valid_items,
            num_items=dataset.num_items,
        )
        for engine in arguments.engines:
            if "epoch_seconds" in record["engines"].get(engine, {}):
                continue
            ours = ENGINES[engine][0].startswith("our")
            python = sys.executable if ours else str(Path(arguments.peers_python).absolute())
            row = run(engine, python, folder, arguments)
            record["engines"][engine] = row
            print(engine, {key: value for key, value in row.items() if key != "versions"}, file=sys.stderr, flush=True)
            RESULTS.mkdir(exist_ok=True)
            write_bytes(target, (json.dumps(record, indent=1) + "\n").encode())
    text = f"{name}, {record['hardware']}, {arguments.threads} threads, {record['date']}\n\n{table(record)}\n"
    write_bytes(target.with_suffix(".md"), text.encode())
    print(text)
    print(json.dumps(record))


def cpu_model() -> str:
    """The processor's name as Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()

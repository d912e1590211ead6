"""Seconds per training epoch and per evaluation, for both backbones' plain baselines.

    python -P benchmarks/bench_epoch.py [PREPARED_DATASET] [--threads 1] [--repeats 3] [--backbone sasrec]

Without a dataset it prepares the bundled demo log. A table for people, then one JSON line. `cpu` is processor time of
this process, which a busy machine stretches less than wall time.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the worker has it

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from virtualmle.data.demo import generate_demo
from virtualmle.data.prepare import prepare
from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.data.readers import Log
from virtualmle.models.build import num_parameters
from virtualmle.models.config import make_config
from virtualmle.models.priors import ScorePriors
from virtualmle.training.evaluate import evaluate_validation
from virtualmle.training.trainer import Training

BACKBONES = ("sasrec", "hstu")


def demo_dataset(directory: Path) -> PreparedDataset:
    frame = generate_demo()
    key = X25519PrivateKey.generate().public_key().public_bytes_raw()
    prepare(Log(frame, {name: name for name in frame.columns}, len(frame)), "demo", directory, PrepareOptions(), key)
    return PreparedDataset.load(directory)


def measure(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median and spread of wall seconds, and median processor seconds, after one warm-up."""
    wall, cpu = [], []
    for _ in range(repeats + 1):
        started = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - started[0])
        cpu.append(time.process_time() - started[1])
    wall, cpu = wall[1:], cpu[1:]
    return {"wall": statistics.median(wall), "spread": max(wall) - min(wall), "cpu": statistics.median(cpu)}


def bench(dataset: PreparedDataset, backbone: str, device: torch.device, repeats: int) -> dict[str, dict[str, float]]:
    config = make_config(backbone, transition_weight=8.0, cooccurrence_weight=4.0)
    training = Training(config, dataset, 0, device)
    priors = ScorePriors.from_dataset(dataset, config, device)
    print(f"{backbone}: {num_parameters(training.model):,} parameters")
    return {
        "train epoch": measure(training.epoch, repeats),
        "evaluate": measure(lambda: evaluate_validation(training.model, dataset, config, None), repeats),
        "evaluate, with priors": measure(lambda: evaluate_validation(training.model, dataset, config, priors), repeats),
        "count priors": measure(lambda: ScorePriors.from_dataset(dataset, config, device), repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", type=Path, help="directory of a prepared dataset")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbone", choices=["sasrec", "hstu"], action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        dataset = PreparedDataset.load(arguments.dataset) if arguments.dataset else demo_dataset(Path(folder) / "demo")
        print(f"{dataset.name}: {dataset.num_users:,} users, {dataset.num_items:,} items, {device}")
        results = {name: bench(dataset, name, device, arguments.repeats) for name in arguments.backbone or BACKBONES}
    for backbone, rows in results.items():
        for what, row in rows.items():
            print(f"{backbone:8}{what:24}{row['wall']:9.3f} s  ± {row['spread']:.3f}   cpu {row['cpu']:.3f} s")
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    record = {"bench": "epoch", "dataset": dataset.name, "threads": arguments.threads, "torch": torch.__version__}
    print(json.dumps({**record, "hardware": hardware, "results": results}))


if __name__ == "__main__":
    main()

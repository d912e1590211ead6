"""Measurements of the engine in a separate process: `python -P -m virtualmle.training.bench` with a JSON request.

Prints one JSON line with the seconds of every repetition. `virtualmle bench` evaluates it and prints the table.
"""

import json
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in worker.py

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..data.prepared import PreparedDataset
from ..kernels.losses.arguments import BFLOAT16
from ..models.build import num_parameters
from ..models.config import make_config
from ..models.priors import ScorePriors
from .evaluate import encode_users, evaluate_targets, evaluate_validation, train_histories
from .pipeline import loss_precision, set_up_device
from .trainer import Training


def seconds_of(action: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each repetition, after one warm-up run."""
    seconds = []
    for number in range(repeats + 1):
        started = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if number:
            seconds.append(time.perf_counter() - started)
    return seconds


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Measure one request; its keys are what (train | eval), directory, backbone, knobs, threads, repeats, device."""
    device = set_up_device(request["device"], request["threads"])
    dataset = PreparedDataset.load(Path(request["directory"]))
    config = make_config(request["backbone"], **request["knobs"])
    precision = loss_precision(request["device"], device, config)
    training = Training(config, dataset, 0, device, precision)
    tokens = int(training.batches.lengths.sum())
    products = {}
    if request["what"] == "train":
        rows = {"epoch": seconds_of(training.epoch, request["repeats"])}
        products["products"] = "bfloat16" if precision == BFLOAT16 else "float32"
    else:
        rows = _evaluation(training, dataset, request["repeats"], device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": rows,
        "events": tokens,
        "users": dataset.num_users,
        "items": dataset.num_items,
        "parameters": num_parameters(training.model),
        "peak_mb": torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else peak,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        **products,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _evaluation(
    training: Training, dataset: PreparedDataset, repeats: int, device: torch.device
) -> dict[str, list[float]]:
    model, config, histories = training.model, training.config, train_histories(dataset)
    weighted = config.model_copy(update={"transition_weight": 4.0, "cooccurrence_weight": 4.0})
    priors = ScorePriors.from_dataset(dataset, weighted, device)
    states = encode_users(model, config, histories)

    def rescore() -> None:
        evaluate_targets(model, weighted, histories, dataset.valid_items, priors, dataset.num_items, states)

    return {
        "evaluate": seconds_of(lambda: evaluate_validation(model, dataset, config, None), repeats),
        "encode users": seconds_of(lambda: encode_users(model, config, histories), repeats),
        "count priors": seconds_of(lambda: ScorePriors.from_dataset(dataset, weighted, device), repeats),
        "score again with priors": seconds_of(rescore, repeats),
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))

"""On a GPU: default 20-epoch trials, the padded eager loop of research code for comparison, and a million items.

    python benchmarks/bench_gpu.py beauty.tsv.gz
    python benchmarks/bench_gpu.py --cpu-smoke        # the same code on a tiny log, without a GPU: times mean nothing

Prints a table of figures with their targets, then one JSON line. Without a GPU it says so and measures nothing.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

from logs import log_of, prepared
from padded_loop import PaddedLoop
from record import environment, parser_of

from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.models.batch import make_batch
from virtualmle.models.build import build_model
from virtualmle.models.config import TrialConfig, make_config
from virtualmle.training.captured import FixedSteps
from virtualmle.training.evaluate import evaluate_validation
from virtualmle.training.objective import Objective
from virtualmle.training.optimizer import FusedAdam
from virtualmle.training.trainer import Training, fit

EPOCHS, ROUNDS = 20, 5
WARM_UP = 3  # rounds: a shape is captured when it occurs for the second time
SMALL = {"hidden_dim": 16, "num_negatives": 20, "batch_size": 32}  # for --cpu-smoke
TARGETS = {"trial_seconds": ("under", 10.0), "padded_over_ours": ("at least", 5.0)}


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of `action`, with the device synchronised before and after."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    started = time.perf_counter()
    action()
    synchronise()
    return time.perf_counter() - started


def peak_mb(device: torch.device) -> float | None:
    """Peak memory of tensors in MiB since the last call; None on the CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return peak


def measure_trial(config: TrialConfig, dataset: PreparedDataset, device: torch.device) -> dict[str, Any]:
    """A whole trial as a worker runs it, from the data on disk to the best weights, with the capture of graphs."""
    peak_mb(device)
    fitted = []
    wall = seconds_of(lambda: fitted.append(fit(config, dataset, 0, device)), device)
    curve = fitted[0].curve
    return {
        "trial_seconds": wall,
        "trial_epochs": curve[-1].epoch,
        "first_epoch_seconds": curve[0].train_seconds,
        "trial_peak_mb": peak_mb(device),
        "validation_ndcg10": max(record.ndcg10 for record in curve),
    }


def measure_epochs(config: TrialConfig, dataset: PreparedDataset, device: torch.device) -> dict[str, Any]:
    """An epoch of our engine, an epoch of the padded loop, and an evaluation of all users: medians, interleaved."""
    training = Training(config, dataset, 0, device)
    if device.type != "cuda":
        training.fixed_steps = FixedSteps(training.batches, ())
    actions: dict[str, Callable[[], object]] = {
        "epoch_seconds": training.epoch,
        "padded_epoch_seconds": PaddedLoop(training).epoch,
        "evaluate_seconds": lambda: evaluate_validation(training.model, dataset, config, None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(WARM_UP + ROUNDS):
        for name, action in actions.items():
            seconds[name].append(seconds_of(action, device))
    seconds = {name: values[WARM_UP:] for name, values in seconds.items()}
    row: dict[str, Any] = {name: statistics.median(values) for name, values in seconds.items()}
    row["padded_over_ours"] = row["padded_epoch_seconds"] / row["epoch_seconds"]
    row["captured_shapes"] = len(training.fixed_steps.graphs) if training.fixed_steps else 0
    row["spread"] = {name: [min(values), max(values)] for name, values in seconds.items()}
    return row


def measure_large_catalogue(device: torch.device, num_items: int) -> dict[str, Any]:
    """A sampled-softmax step over many items: forward, backward, and an update of the rows that it used."""
    config = make_config("hstu", hidden_dim=64, num_negatives=512)
    peak_mb(device)
    model = build_model(config, num_items, 0).to(device).train()
    optimizer = FusedAdam(model, config)
    generator = torch.Generator(device).manual_seed(0)
    counts = type("Catalogue", (), {"num_items": num_items, "items": torch.zeros(1, dtype=torch.int64)})
    objective = Objective(config, counts, device, generator)
    offsets = torch.arange(0, 257 * 9, 9)

    def step() -> None:
        items = torch.randint(num_items, (256 * 9,), generator=generator, device=device)
        optimizer.zero_grad()
        states = model(make_batch(items, offsets, config))
        objective.loss(model.items, states, items.roll(-1)).backward()
        optimizer.step()

    seconds = [seconds_of(step, device) for _ in range(12)][2:]
    return {"items": num_items, "step_seconds": statistics.median(seconds), "step_peak_mb": peak_mb(device)}


def print_table(name: str, row: dict[str, Any], judged: bool) -> None:
    """One line per figure, with its target if it has one; `judged`: also say whether the target is met."""
    for figure, value in row.items():
        target = ""
        if figure in TARGETS:
            rule, bound = TARGETS[figure]
            met = value < bound if rule == "under" else value >= bound
            target = f"{rule} {bound:g}" + (f": {'met' if met else 'MISSED'}" if judged else "")
        if figure != "spread":
            print(f"{name:8}{figure:24}{f'{value:.4f}' if isinstance(value, float) else value!s:>14}  {target}")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("log", nargs="?", type=Path)
    parser.add_argument("--cpu-smoke", action="store_true", help="run everything on the CPU with tiny sizes")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.cpu_smoke:
        print("no CUDA device here: nothing was measured")
        print(json.dumps({"bench": "gpu", "skipped": "no CUDA device"}))
        return
    device = torch.device("cpu" if arguments.cpu_smoke else "cuda")
    knobs = {"epochs": 2, **SMALL} if arguments.cpu_smoke else {"epochs": EPOCHS, "patience": EPOCHS}
    record: dict[str, Any] = {
        "bench": "gpu",
        "device": device.type,
        **environment(device.type),
        "log": arguments.log.name if arguments.log else "demo",
    }
    print("  ".join(str(value) for value in record.values()))
    seconds_of(lambda: None, device)  # initialise the device, so that no trial's time includes it
    with tempfile.TemporaryDirectory() as folder:
        dataset = prepared(log_of(arguments.log, num_users=150, num_items=60), Path(folder) / "log", PrepareOptions())
        for backbone in ("sasrec", "hstu"):
            config = make_config(backbone, **knobs)
            record[backbone] = measure_trial(config, dataset, device) | measure_epochs(config, dataset, device)
            print_table(backbone, record[backbone], device.type == "cuda")
    record["large"] = measure_large_catalogue(device, 250_000 if arguments.cpu_smoke else 1_000_000)
    print_table("large", record["large"], False)
    print(json.dumps(record))


if __name__ == "__main__":
    main()

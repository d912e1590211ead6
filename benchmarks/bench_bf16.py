"""Training with the full softmax on a CPU: products of bfloat16 against float32, in time and in accuracy.

    python benchmarks/bench_bf16.py beauty.tsv.gz --accuracy office.tsv.gz    # about 3 minutes of one core

For each width, two trainings with equal seeds take every step of one epoch in turns, so that changes of the machine's
load affect both alike. A step is forward, backward and optimizer; the sum over all steps is the time of an epoch.
Evaluation is not included: it is float32 for both. Times are processor time on one thread.

The products alone, the upper bound for the loss, are measured in the same run.

`--accuracy` trains on another log with several seeds and compares validation NDCG@10, paired by seed.
Prints tables, then one JSON line.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

import torch
from logs import log_of, prepared
from record import environment, parser_of

from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.kernels.losses.linear_cross_entropy_bfloat16 import is_available
from virtualmle.models.config import TrialConfig, make_config
from virtualmle.training.products import has_bfloat16_instructions
from virtualmle.training.trainer import Training, fit

CPU = torch.device("cpu")
PRECISIONS = {"float32": "ieee", "bfloat16": "bf16"}
TARGETS = {64: 1.5, 128: 2.5}  # by width: how many times faster an epoch is meant to be
ROWS = 512  # positions of the products that are measured alone
REPEATS = 15


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    if not is_available():
        sys.exit("torch multiplies no bfloat16 on this CPU; the benchmark needs AVX-512")
    record: dict[str, Any] = {**environment(), "hardware_bfloat16": has_bfloat16_instructions()}
    with tempfile.TemporaryDirectory() as folder:
        dataset = prepared(log_of(arguments.log), Path(folder) / "time", PrepareOptions())
        record |= {"log": arguments.log.name, "items": dataset.num_items, "backbone": arguments.backbone}
        record["widths"] = [_speed(arguments.backbone, width, dataset) for width in arguments.widths]
        if arguments.accuracy:
            other = prepared(log_of(arguments.accuracy), Path(folder) / "accuracy", PrepareOptions())
            record["accuracy"] = {"log": arguments.accuracy.name, **_accuracy(arguments, other)}
    print(json.dumps(record))


def _arguments() -> Any:
    parser = parser_of(__doc__)
    parser.add_argument("log", type=Path, help="log on which time is measured")
    parser.add_argument("--accuracy", type=Path, help="log on which NDCG@10 is compared; left out: no comparison")
    parser.add_argument("--backbone", default="sasrec", choices=("sasrec", "hstu"))
    parser.add_argument("--widths", type=int, nargs="*", default=list(TARGETS), help="none: --accuracy only")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8, help="of each training of --accuracy")
    return parser.parse_args()


def _config(backbone: str, **knobs: Any) -> TrialConfig:
    return make_config(backbone, loss="full_softmax", **knobs)


def _speed(backbone: str, width: int, dataset: PreparedDataset) -> dict[str, Any]:
    """Seconds of an epoch and milliseconds of a step with both products, and of the three products alone."""
    config = _config(backbone, hidden_dim=width)
    trainings = {name: Training(config, dataset, 0, CPU, precision) for name, precision in PRECISIONS.items()}
    times = _interleaved_steps(trainings)
    ratio = sum(times["float32"]) / sum(times["bfloat16"])
    products = _products(width, dataset.num_items)
    print(f"\nwidth {width}, {dataset.num_items:,} items, {len(times['float32'])} steps of {config.batch_size} users")
    print(f"{'':10} {'epoch s':>9} {'step ms':>9} {'quartiles':>15} {'products alone, ms':>20} {'GFLOP/s':>8}")
    for name, seconds in times.items():
        first, median, third = (1e3 * value for value in statistics.quantiles(seconds, n=4))
        rate = 6e-9 * ROWS * dataset.num_items * width / products[name]
        print(
            f"{name:10} {sum(seconds):9.2f} {median:9.1f} {f'{first:.1f} to {third:.1f}':>15} "
            f"{1e3 * products[name]:20.1f} {rate:8.0f}"
        )
    bound = products["float32"] / products["bfloat16"]
    target = TARGETS.get(width)
    verdict = "" if target is None else f"; target {target}: {'met' if ratio >= target else 'MISSED'}"
    print(f"{'ratio':10} {ratio:9.2f} {'':25} {bound:20.2f} {verdict}")
    return {"width": width, "seconds": {name: sum(each) for name, each in times.items()}, "ratio": ratio,
            "products": products, "products_ratio": bound}  # fmt: skip


def _interleaved_steps(trainings: dict[str, Training]) -> dict[str, list[float]]:
    """Processor seconds of every step of an epoch, after three steps to warm up."""
    times: dict[str, list[float]] = {name: [] for name in trainings}
    for measured in (False, True):
        for training in trainings.values():
            training.model.train()
        batches = {name: training.batches.epoch() for name, training in trainings.items()}
        for number in range(next(iter(trainings.values())).batches.num_batches if measured else 3):
            for name in sorted(trainings, reverse=bool(number % 2)):
                batch = next(batches[name])
                started = time.process_time()
                trainings[name].take_step(batch, 1.0, 0.0)
                if measured:
                    times[name].append(time.process_time() - started)
    return times


def _products(width: int, num_items: int) -> dict[str, float]:
    """Median seconds of the three products of ROWS positions, without anything else, with both types of operands."""
    generator = torch.Generator().manual_seed(0)
    states, table, shares = (
        torch.randn(shape, generator=generator) for shape in ((ROWS, width), (num_items, width), (num_items, ROWS))
    )
    seconds: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    for _ in range(REPEATS):
        for name, measured in seconds.items():
            s, w, p = (tensor.to(getattr(torch, name)) for tensor in (states, table, shares))
            measured.append(_seconds(lambda s=s, w=w, p=p: (w @ s.T, p.T @ w, p @ s)))  # type: ignore[misc]
    return {name: statistics.median(each) for name, each in seconds.items()}


def _seconds(action: Callable[[], object]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


def _accuracy(arguments: Any, dataset: PreparedDataset) -> dict[str, Any]:
    """Best validation NDCG@10 by seed, and the mean of the paired differences with its standard error."""
    config = _config(arguments.backbone, epochs=arguments.epochs)
    found: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    for seed in range(arguments.seeds):
        for name, precision in PRECISIONS.items():
            fitted = fit(config, dataset, seed, CPU, precision=precision)
            found[name].append(max(epoch.ndcg10 for epoch in fitted.curve))
    differences = [b - a for a, b in zip(found["float32"], found["bfloat16"], strict=True)]
    mean, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    spread = statistics.stdev(found["float32"])
    print(f"\nvalidation NDCG@10, {arguments.accuracy.name}, {arguments.epochs} epochs, {arguments.seeds} seeds")
    for name, values in found.items():
        print(f"{name:10} {statistics.mean(values):.4f}   " + " ".join(f"{value:.4f}" for value in values))
    print(f"bfloat16 - float32: {mean:+.4f} ± {error:.4f}; standard deviation over seeds {spread:.4f}")
    return {"ndcg10": found, "difference": mean, "standard_error": error}


if __name__ == "__main__":
    main()

"""What the seconds of an epoch consist of, and what it costs that not every epoch is evaluated.

    python benchmarks/bench_engine.py office.tsv.gz beauty.tsv.gz --curves benchmarks/replay/*.parquet

Per log and backbone, in turns in one run, processor seconds of one thread: an epoch of training, the evaluation, and
the evaluation as one product per block into fresh memory, whose ranks must be equal. From the curves of replay tables:
the NDCG@10 that selection finds among the evaluated epochs, relative to what it finds among all.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

import numpy as np
import torch
from logs import log_of, prepared
from record import environment, parser_of

from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.models.config import make_config
from virtualmle.tools.replaying import open_replay
from virtualmle.training.catalogue_scores import BLOCK_SCORES
from virtualmle.training.evaluate import encode_users, evaluate_validation, train_histories
from virtualmle.training.ranking import Ranks, rank_targets
from virtualmle.training.stopping import best_epoch, evaluated_epochs, has_ended
from virtualmle.training.trainer import Training

Point = tuple[int, float]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("logs", nargs="*", type=Path)
    parser.add_argument("--curves", nargs="*", type=Path, default=[], help="replay tables")
    parser.add_argument("--epochs", type=int, default=20, help="of the trial whose mean epoch is reported")
    parser.add_argument("--hidden-dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for path in arguments.logs:
        with tempfile.TemporaryDirectory() as folder:
            dataset = prepared(log_of(path), Path(folder) / "log", PrepareOptions())
            for backbone in ("sasrec", "hstu"):
                rows[f"{path.name.partition('.')[0]} {backbone}"] = measure(dataset, backbone, arguments)
    if rows:
        print_table(rows)
    losses = {path.stem: losses_of(path) for path in arguments.curves}
    for name, found in losses.items():
        worst = np.percentile(found, 5)
        print(f"{name}: {len(found)} trainings, NDCG@10 {np.mean(found):+.2%} on average, 5th percentile {worst:+.2%}")
    loss = {name: [float(np.mean(found)), float(np.percentile(found, 5))] for name, found in losses.items()}
    print(json.dumps({"bench": "engine", "seconds": rows, "relative_ndcg10": loss, **environment()}))


def measure(dataset: PreparedDataset, backbone: str, arguments: object) -> dict[str, float]:
    """Processor seconds of the parts of an epoch: the median of turns."""
    repeats, width, epochs = (getattr(arguments, name) for name in ("repeats", "hidden_dim", "epochs"))
    config = make_config(backbone, hidden_dim=width)
    training = Training(config, dataset, 0, torch.device("cpu"))
    training.epoch()
    actions: dict[str, Callable[[], object]] = {
        "training": training.epoch,
        "evaluation": lambda: evaluate_validation(training.model, dataset, config, None),
        "evaluation, one product": lambda: one_product(training, dataset),
    }
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            started = time.process_time()
            action()
            times[name].append(time.process_time() - started)
    now, before = evaluate_validation(training.model, dataset, config, None), one_product(training, dataset)
    if (now[0] != before[0]).any() or now[1] != before[1]:
        sys.exit("the two evaluations disagree; a faster one is worth nothing")
    row = {name: statistics.median(seconds) for name, seconds in times.items()}
    share = len(evaluated_epochs(epochs)) / epochs
    row["mean epoch before"] = row["training"] + row["evaluation, one product"]
    row["mean epoch now"] = row["training"] + share * row["evaluation"]
    return row


@torch.inference_mode()
def one_product(training: Training, dataset: PreparedDataset) -> Ranks:
    """The evaluation with one product per block of users, into fresh memory."""
    histories, model = train_histories(dataset), training.model
    states = model.items.scaled(encode_users(model, training.config, histories))
    table = model.items.catalogue().T.contiguous()
    events = [torch.tensor(np.asarray(array)) for array in (dataset.items, dataset.offsets, dataset.valid_items)]
    block = max(1, BLOCK_SCORES["cpu"] // dataset.num_items)
    return rank_targets(lambda first, last: states[first:last] @ table, *events, block)


def losses_of(path: Path) -> list[float]:
    """Per training of a replay table: best NDCG@10 of the evaluated epochs, relative to that of all, minus 1.

    A training that would have gone on after the last recorded epoch counts as if it had ended there.
    """
    replay = open_replay(path)
    space = replay.protocol.space
    trainings = {
        (cell.backbone, tuple((record.epoch, record.ndcg10) for record in cell.curve)): cell
        for cell in replay.table.cells
        if len(cell.curve) > 1 and not cell.cause
    }
    losses = []
    for (backbone, curve), cell in trainings.items():
        config = space.resolve(space.default(backbone), cell.settings)
        grid = evaluated_epochs(config.epochs)
        every = dict(ended(curve, config.epochs, config.patience))
        some = dict(ended([point for point in curve if point[0] in grid], config.epochs, config.patience))
        losses.append(max(some.values()) / max(every.values()) - 1)
    return losses


def ended(curve: Sequence[Point], epochs: int, patience: int) -> Iterator[Point]:
    """The part of the curve that early stopping leaves."""
    for number, point in enumerate(curve, 1):
        yield point
        if has_ended(point[0], best_epoch(curve[:number]), epochs, patience):
            return


def print_table(rows: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(rows.values())))
    print(" | ".join(["processor seconds".ljust(16), *names]))
    for label, row in rows.items():
        print(" | ".join([label.ljust(16), *(f"{row[name]:.3f}".rjust(len(name)) for name in names)]))


if __name__ == "__main__":
    main()

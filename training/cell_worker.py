"""The process that measures cells: `python -P -m virtualmle.training.cell_worker`, started by `compare/replay_pool.py`.

It reads one job per line from standard input (`cells.CellsJob`, JSON), trains the configuration, scores it under every
scoring setting, writes the part, and answers with one line (`cells.JobDone`). Torch and the dataset stay loaded between
jobs. It ends with its standard input; a killed parent therefore leaves a worker that finishes its job first.

Weights, ranks and metrics equal those of a trial (`pipeline.py`) with the same seed, device and threads. The validation
split is the only one used.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in worker.py

import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.atomic import write_bytes
from ..data.errors import MachineError
from ..data.prepared import PreparedDataset
from ..models.build import num_parameters
from ..models.config import TrialConfig
from ..models.priors import ScorePriors
from .cells import Cell, CellsJob, CellTask, JobDone, clipped, encoded, frame_of
from .errors import TrainingError
from .evaluate import encode_users, evaluate_targets, train_histories, train_sample_ndcg
from .inputs import load_dataset
from .metrics import metrics_from_ranks
from .pipeline import loss_precision, set_up_device
from .spec import EpochRecord
from .trainer import FitResult, fit


class Stopwatch:
    """Seconds since the last reading: processor time of this process if one thread computes, else wall time.

    The processor time of one thread does not depend on what else the machine does, so that the cells of a long build
    stay comparable.
    """

    def __init__(self, threads: int) -> None:
        self._clock = time.process_time if threads == 1 else time.perf_counter
        self._last = self._clock()

    def lap(self) -> float:
        """Seconds since the last call."""
        last, self._last = self._last, self._clock()
        return self._last - last


class Trained(NamedTuple):
    """A trained model, and the fields that all cells of a job share."""

    model: FitResult
    states: Tensor  # (num_users, hidden_dim)
    shared: Cell
    encode_seconds: float


def measure(job: CellsJob) -> list[Cell]:
    """The cells of a job, in its order. A configuration that cannot be trained or scored is a cell with a cause."""
    started = time.perf_counter()
    device = set_up_device(job.device, job.threads)
    dataset = load_dataset(Path(job.dataset_dir))
    watch = Stopwatch(torch.get_num_threads() if device.type == "cpu" else 0)
    curve: list[EpochRecord] = []
    try:
        trained = _train(job, dataset, device, watch, curve)
    except TrainingError as error:
        seconds = time.perf_counter() - started
        return [_failed(task, str(error), curve, seconds) for task in job.cells]
    training_wall = time.perf_counter() - started
    return [_score(task, trained, dataset, device, watch, training_wall) for task in job.cells]


def _train(
    job: CellsJob, dataset: PreparedDataset, device: torch.device, watch: Stopwatch, curve: list[EpochRecord]
) -> Trained:
    config = TrialConfig(**job.cells[0].config)
    watch.lap()
    precision = loss_precision(job.device, device, config)
    fitted = fit(
        config, dataset, job.seed, device, lambda record: curve.append(_measured(record, watch.lap())),
        precision=precision,
    )  # fmt: skip
    shared = Cell(
        backbone=config.backbone,
        settings={},
        curve=curve,
        best_epoch=fitted.best_epoch,
        model_ndcg10=fitted.model_ndcg10,
        train_ndcg10=train_sample_ndcg(fitted.model, dataset, config),
        parameters=num_parameters(fitted.model),
        train_seconds=sum(epoch.train_seconds for epoch in curve),
        evaluate_seconds=sum(epoch.evaluate_seconds for epoch in curve),
    )
    watch.lap()
    states = encode_users(fitted.model, config, train_histories(dataset))
    return Trained(fitted, states, shared, watch.lap())


def _measured(record: EpochRecord, seconds: float) -> EpochRecord:
    """The record with its seconds on the stopwatch's clock; their shares are those of the wall clock."""
    share = seconds / max(record.train_seconds + record.evaluate_seconds, 1e-9)
    return record.model_copy(
        update={
            "train_seconds": record.train_seconds * share,
            "evaluate_seconds": record.evaluate_seconds * share,
        }
    )


def _score(
    task: CellTask,
    trained: Trained,
    dataset: PreparedDataset,
    device: torch.device,
    watch: Stopwatch,
    training_wall: float,
) -> Cell:
    config = TrialConfig(**task.config)
    started = time.perf_counter()
    watch.lap()
    try:
        ranks, ties = evaluate_targets(
            trained.model.model,
            config,
            train_histories(dataset),
            dataset.valid_items,
            ScorePriors.from_dataset(dataset, config, device),
            dataset.num_items,
            trained.states,
        )
    except TrainingError as error:
        wall = training_wall + time.perf_counter() - started
        return _failed(task, str(error), trained.shared.curve, wall)
    seconds = watch.lap()
    return trained.shared.model_copy(
        update={
            "settings": task.settings,
            "metrics": metrics_from_ranks(ranks),
            "ties": ties,
            "ranks": clipped(ranks),
            "evaluate_seconds": trained.shared.evaluate_seconds + trained.encode_seconds + seconds,
            "score_seconds": seconds,
            "wall_seconds": training_wall + time.perf_counter() - started,
        }
    )


def _failed(task: CellTask, cause: str, curve: list[EpochRecord], wall_seconds: float) -> Cell:
    return Cell(
        backbone=task.config["backbone"],
        settings=task.settings,
        cause=cause,
        curve=curve,
        train_seconds=sum(epoch.train_seconds for epoch in curve),
        evaluate_seconds=sum(epoch.evaluate_seconds for epoch in curve),
        wall_seconds=wall_seconds,
    )


def main() -> None:
    """Answer the jobs on standard input until it ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what the engine prints must not be taken for an answer
    for line in sys.stdin:
        job = CellsJob.model_validate_json(line)
        started = time.perf_counter()
        try:
            write_bytes(Path(job.part), encoded(frame_of(measure(job)), {}))
            done = JobDone(seconds=time.perf_counter() - started)
        except MachineError as error:
            done = JobDone(error=str(error))
        try:
            print(done.model_dump_json(), file=answers, flush=True)
        except BrokenPipeError:  # the parent was killed; the part is written
            os._exit(0)


if __name__ == "__main__":
    main()

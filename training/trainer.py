"""Training, stopped early on the validation NDCG@10 of the bare model: scoring knobs never reach the weights."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.prepared import PreparedDataset
from ..models.build import build_model
from ..models.config import TrialConfig
from ..models.sequence_model import SequenceModel
from .batches import TrainBatch, TrainBatches
from .checkpoint import copy_weights, restore_weights
from .errors import TrainingError
from .evaluate import evaluate_validation
from .losses import full_softmax, sampled_softmax
from .metrics import metrics_from_ranks
from .optimizer import FusedAdam
from .spec import EpochRecord

OnEpoch = Callable[[EpochRecord], None]


@dataclass(frozen=True, eq=False)
class FitResult:
    """A trained model with the weights of its best epoch, and how it got there."""

    model: SequenceModel
    curve: list[EpochRecord]
    best_epoch: int


def fit(
    config: TrialConfig,
    dataset: PreparedDataset,
    seed: int,
    device: torch.device,
    on_epoch: OnEpoch = lambda record: None,
) -> FitResult:
    """Train until `epochs` or until `patience` epochs in a row brought no better validation NDCG@10.

    TrainingError when the loss or a score stops being finite.
    """
    training = Training(config, dataset, seed, device)
    model = training.model
    curve: list[EpochRecord] = []
    best, weights = 0, {}
    for epoch in range(1, config.epochs + 1):
        curve.append(_run_epoch(epoch, training, dataset))
        on_epoch(curve[-1])
        if not best or curve[-1].ndcg10 > curve[best - 1].ndcg10:
            best, weights = epoch, copy_weights(model)
        if epoch - best >= config.patience:
            break
    restore_weights(model, weights)
    return FitResult(model, curve, best)


class Training:
    """What an epoch works on: the model, its optimizer, the batches and the source of negatives.

    Four independent streams of random numbers follow from `seed`: weights, order of users, negatives, and dropout,
    which draws from torch's global generator (seeded here).
    """

    def __init__(self, config: TrialConfig, dataset: PreparedDataset, seed: int, device: torch.device) -> None:
        seeds = torch.randint(1 << 62, (4,), generator=torch.Generator().manual_seed(seed)).tolist()
        self.config, self.device = config, device
        self.model = build_model(config, dataset.num_items, seeds[0]).to(device)
        self.optimizer = FusedAdam(self.model.parameters(), config)
        self.batches = TrainBatches(dataset, config, device, seeds[1])
        self.generator = torch.Generator(device).manual_seed(seeds[2])  # of the negatives
        torch.manual_seed(seeds[3])

    def epoch(self) -> float:
        """One pass over the users; the mean loss per supervised position."""
        self.model.train()
        total, count = torch.zeros((), dtype=torch.float64, device=self.device), 0
        for batch in self.batches.epoch():
            self.optimizer.zero_grad()
            loss = self._loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.detach() * len(batch.targets)  # read once per epoch: no waiting for the device in between
            count += len(batch.targets)
        return float(total) / count

    def _loss(self, batch: TrainBatch) -> Tensor:
        states = batch.supervised(self.model(batch.inputs))
        if self.config.loss == "full_softmax":
            return full_softmax(self.model, states, batch.targets)
        shape = (self.config.num_negatives,)
        negatives = torch.randint(self.model.num_items, shape, generator=self.generator, device=self.device)
        return sampled_softmax(self.model, states, batch.targets, negatives)


def _run_epoch(epoch: int, training: Training, dataset: PreparedDataset) -> EpochRecord:
    config = training.config
    started = time.perf_counter()
    loss = training.epoch()
    trained = time.perf_counter()
    if not math.isfinite(loss):
        raise TrainingError(
            f"the training loss must stay finite; it became {loss} in epoch {epoch}: lr={config.lr:g} may be too high "
            f"(or temperature={config.temperature:g} too low)"
        )
    ranks, _ = evaluate_validation(training.model, dataset, config, None)
    return EpochRecord(
        epoch=epoch,
        loss=loss,
        ndcg10=metrics_from_ranks(ranks)["ndcg@10"],
        train_seconds=trained - started,
        evaluate_seconds=time.perf_counter() - trained,
    )

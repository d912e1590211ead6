"""Training, stopped early on the validation NDCG@10 of the bare model: scoring knobs never reach the weights."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.prepared import PreparedDataset
from ..kernels.jagged.threads import threads_for
from ..models.build import build_model
from ..models.config import TrialConfig, train_hash
from ..models.sequence_model import SequenceModel
from .averaging import WeightAverage
from .batches import TrainBatch, TrainBatches
from .captured import FixedSteps, obstacle
from .checkpoint import copy_weights, restore_weights
from .errors import TrainingError
from .evaluate import evaluate_validation
from .losses import contrastive_loss
from .metrics import metrics_from_ranks
from .objective import Objective
from .optimizer import FusedAdam
from .schedule import lr_factor
from .spec import EpochRecord
from .state import TrainingState, read_state, write_state

OnEpoch = Callable[[EpochRecord], None]
SAVE_EVERY_SECONDS = 20.0  # a state is written in a fraction of a second; a killed trial loses no more than this
CHECK_EVERY = 50  # steps between two looks at the loss: looking waits for the device


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
    save_to: Path | None = None,
    resume_from: Path | None = None,
    save_every: float = SAVE_EVERY_SECONDS,
) -> FitResult:
    """Train until `epochs` or until `patience` epochs in a row brought no better validation NDCG@10.

    save_to: where the training state goes, after an epoch that ends `save_every` seconds or more after the last write.
    resume_from: a state to continue; `on_epoch` is called for new epochs only, the result's curve has them all.
    TrainingError when the loss or a score stops being finite, and for a state of another run.
    """
    training = Training(config, dataset, seed, device)
    curve: list[EpochRecord] = []
    best, weights = 0, dict[str, Tensor]()
    if resume_from:
        state = read_state(resume_from, training.identity)
        training.load_state_dict(state.training)
        curve, best, weights = state.curve, state.best_epoch, state.best_weights
    saved_at = time.monotonic()
    while len(curve) < config.epochs and len(curve) - best < config.patience:
        curve.append(_run_epoch(len(curve) + 1, training, dataset))
        on_epoch(curve[-1])
        if not best or curve[-1].ndcg10 > curve[best - 1].ndcg10:
            best = len(curve)
            with training.evaluated_weights():
                weights = copy_weights(training.model)
        if save_to and time.monotonic() - saved_at >= save_every:
            write_state(save_to, TrainingState(training.identity, curve, best, weights, training.state_dict()))
            saved_at = time.monotonic()
    restore_weights(training.model, weights)
    return FitResult(training.model, curve, best)


class Training:
    """What an epoch works on: the model, its optimizer, the batches and the source of negatives.

    Five independent streams of random numbers follow from `seed`: weights, order of examples, negatives, augmentation,
    and dropout, which draws from torch's global generator (seeded here).
    """

    def __init__(self, config: TrialConfig, dataset: PreparedDataset, seed: int, device: torch.device) -> None:
        seeds = torch.randint(1 << 62, (5,), generator=torch.Generator().manual_seed(seed)).tolist()
        self.config, self.device = config, device
        self.identity = f"{dataset.dataset_id}:{train_hash(config)}:{seed}:{torch.__version__}"
        self.model = build_model(config, dataset.num_items, seeds[0]).to(device)
        self.optimizer = FusedAdam(self.model, config)
        self.average = WeightAverage(self.model, config.ema_decay) if config.ema_decay else None
        self.batches = TrainBatches(dataset, config, device, seeds[1], seeds[4])
        self.negatives = torch.Generator(device).manual_seed(seeds[2])
        self.objective = Objective(config, dataset, device, self.negatives)
        self.fixed = None
        if device.type == "cuda" and not obstacle(config, dataset.num_items):
            self.fixed = FixedSteps(self.batches, (self.negatives,))
        self.step = 0
        self.total = torch.zeros((), dtype=torch.float64, device=device)  # of the epoch's losses, over all positions
        torch.manual_seed(seeds[3])

    def state_dict(self) -> dict[str, Any]:
        """Everything that an epoch changes, by name: tensors (the live ones, not copies) and one number.

        Loaded into a new `Training` of the same identity it makes the next epoch equal, bit for bit on a CPU, to that
        of a run which was not interrupted.
        """
        random = {f"random.{name}": generator.get_state() for name, generator in self._generators().items()}
        random["random.default"] = torch.get_rng_state()
        if self.device.type == "cuda":
            random["random.cuda"] = torch.cuda.get_rng_state(self.device)
        return {**self._tensors(), **random, "average_step": self.average.step if self.average else 0}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the epoch at whose end `state_dict` returned `state`; torch's global generator is set, too."""
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])
        for name, generator in self._generators().items():
            generator.set_state(state[f"random.{name}"])
        torch.set_rng_state(state["random.default"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random.cuda"], self.device)
        if self.average:
            self.average.step = state["average_step"]
        self.step = int(self.optimizer.steps[0])  # the optimizer counts the same steps, one for each batch

    def _tensors(self) -> dict[str, Tensor]:
        """The live tensors that a step changes; those that do not have a name of their own are numbered."""
        groups = {
            "weight": [parameter.detach() for parameter in self.optimizer.parameters],
            "mean": self.optimizer.means,
            "square": self.optimizer.squares,
            "step": self.optimizer.steps,
            "average": self.average.averages if self.average else [],
        }
        return {f"{group}.{place}": tensor for group, tensors in groups.items() for place, tensor in enumerate(tensors)}

    def _generators(self) -> dict[str, torch.Generator]:
        return {
            "order": self.batches.generator,
            "augmentation": self.batches.augmentation,
            "negatives": self.negatives,
        }

    def epoch(self) -> float:
        """One pass over the examples; the mean loss per supervised position. TrainingError if it is not finite."""
        self.model.train()
        self.total.zero_()
        count = 0
        for number, num_targets in enumerate(self._steps(), 1):
            self.step += 1
            count += num_targets
            if number % CHECK_EVERY == 0:  # now and then: no waiting for the device in between
                self._check(float(self.total), number)
        self._check(float(self.total), self.batches.num_batches)
        return float(self.total) / count

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that are evaluated and kept: the averaged ones where there are any."""
        return self.average.applied() if self.average else nullcontext()

    def take_step(self, batch: TrainBatch, factor: float | Tensor, share: float | Tensor) -> None:
        """Forward, backward, optimizer and weight average on one batch; its loss is added to `total`."""
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        with threads_for(self._encoder_size(batch)):
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step(factor)
        if self.average:
            self.average.update(share)
        self.total += loss.detach() * batch.num_targets

    def _steps(self) -> Iterator[int]:
        """An epoch, step by step; after each comes its number of supervised positions."""
        rates = [self._rates(self.step + number) for number in range(self.batches.num_batches)]
        if self.fixed:
            yield from self.fixed.epoch(self.take_step, rates)
            return
        for batch, (factor, share) in zip(self.batches.epoch(), rates, strict=True):
            self.take_step(batch, factor, share)
            yield len(batch.targets)

    def _rates(self, step: int) -> tuple[float, float]:
        """The factor on the learning rate, and the share of the new weights in their average, of one step."""
        share = self.average.next_share() if self.average else 0.0
        return lr_factor(self.config, step, self.batches.num_batches), share

    def loss(self, batch: TrainBatch) -> Tensor:
        """The loss of a batch, ()."""
        encoder_size = self._encoder_size(batch)
        with threads_for(encoder_size):
            states = batch.supervised(self.model(batch.inputs))
        with threads_for(len(batch.targets) * self.objective.num_candidates):
            loss = self.objective.loss(self.model.items, states, batch.targets, batch.counted)
        if batch.views:
            with threads_for(encoder_size):
                first, second = (self.model(view)[view.last_tokens()] for view in batch.views)
                contrast = contrastive_loss(first, second, self.config.contrastive_temperature)
            loss = loss + self.config.contrastive_weight * contrast
        return loss

    def _encoder_size(self, batch: TrainBatch) -> int:
        """Numbers in one layer's states."""
        return len(batch.inputs.items) * self.config.hidden_dim

    def _check(self, total: float, batches: int) -> None:
        if not math.isfinite(total):
            epoch = (self.step - 1) // self.batches.num_batches + 1
            raise TrainingError(
                f"the training loss must stay finite; it was not within {batches} steps of epoch {epoch}: "
                f"{_likely_cause(self.config)}"
            )


def _likely_cause(config: TrialConfig) -> str:
    """What to change first in a configuration that diverged."""
    lr = f"lr={config.lr:g} may be too high"
    if config.temperature < 0.02 or (config.scores == "dot" and config.temperature < 0.5):
        lr = f"temperature={config.temperature:g} may be too low for {config.scores} scores, or {lr}"
    return lr if config.grad_clip else f"{lr}; grad_clip=1 also bounds each step"


def _run_epoch(epoch: int, training: Training, dataset: PreparedDataset) -> EpochRecord:
    started = time.perf_counter()
    loss = training.epoch()
    trained = time.perf_counter()
    with training.evaluated_weights():
        try:
            ranks, _ = evaluate_validation(training.model, dataset, training.config, None)
        except TrainingError as error:
            raise TrainingError(f"after epoch {epoch}: {error}") from None
    return EpochRecord(
        epoch=epoch,
        loss=loss,
        ndcg10=metrics_from_ranks(ranks)["ndcg@10"],
        train_seconds=trained - started,
        evaluate_seconds=time.perf_counter() - trained,
    )

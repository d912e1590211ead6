"""Training with early stopping on the validation NDCG@10 of the bare model; scoring knobs never affect the weights."""

import errno
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.prepared import PreparedDataset
from ..kernels.jagged.threads import threads_for
from ..models.build import build_model, num_parameters
from ..models.config import TrialConfig, continuation_hash
from ..models.sequence_model import SequenceModel
from .averaging import WeightAverage
from .batches import TrainBatch, TrainBatches
from .captured import FixedSteps, capture_obstacle
from .checkpoint import LoadedModel, copy_weights, restore_weights
from .errors import StateError, TrainingError
from .evaluate import evaluate_variants, train_histories
from .judging import NOT_JUDGED, Judge, Judging
from .losses import contrastive_loss
from .metrics import clip_ranks, metrics_from_ranks
from .objective import Objective
from .optimizer import FusedAdam
from .racing import StopCause
from .schedule import lr_factor
from .spec import EpochRecord, engine_version
from .state import SignedFile, TrainingState, read_state, write_state
from .stopping import best_epoch, common_part, has_ended, judged_epochs, on_grid, points

OnEpoch = Callable[[EpochRecord], None]
SAVE_EVERY_SECONDS = 20.0  # a killed trial loses at most about this much work
SAVE_SHARE = 0.02  # of the time, in which the state is written more often than that
FIRST_SAVE_SECONDS = 1.0  # before the first write, of which it is not known how long it takes
CHECK_EVERY = 50  # steps between two checks of the loss, each of which waits for the device


@dataclass(frozen=True, eq=False)
class FitResult:
    """A trained model with the weights of its best epoch, and its training curve."""

    model: SequenceModel
    curve: list[EpochRecord]  # the evaluated epochs, ascending
    best_epoch: int
    epoch_ranks: list[NDArray[np.uint8]]  # clipped ranks (num_users,) of the bare model, one array per epoch of `curve`
    judged_ranks: list[NDArray[np.uint8]]  # with score priors after `judged_epochs`; empty = none, or not known
    stopped: StopCause | None = None  # why `race` has stopped the training before its end
    resumed_epochs: int = 0  # epochs that an earlier training has done
    ended_early: bool = False  # whether `end_early` has ended it before its end
    teaching_seconds: float = 0.0  # that the predictions of its teachers took, before the first epoch

    @property
    def model_ndcg10(self) -> float:
        """The validation NDCG@10 of the bare model after its best epoch."""
        return next(record.ndcg10 for record in self.curve if record.epoch == self.best_epoch)


def fit(  # noqa: PLR0913 - what a training may need
    config: TrialConfig,
    dataset: PreparedDataset,
    seed: int,
    device: torch.device,
    on_epoch: OnEpoch = lambda record: None,
    save_to: Path | SignedFile | None = None,
    resume_from: Path | None = None,
    save_every: float = SAVE_EVERY_SECONDS,
    judging: Judging = NOT_JUDGED,
    precision: str = "ieee",
    *,
    teachers: Sequence[LoadedModel] = (),
) -> FitResult:
    """Train for `epochs`, or until an evaluated epoch is `patience` or more after the one with the best NDCG@10.

    `stopping.py` says which epochs are evaluated; the curve has these, and `on_epoch` is called after each of them.
    save_to: file for the training state, written after an evaluated epoch, once every `save_every` seconds or as often
    as that takes SAVE_SHARE of the time, and at the end. Another training that differs only in `epochs` or `patience`
    can resume from it.
    resume_from: a state to resume from; `on_epoch` is called for new epochs only, the result's curve contains all. If
    the training has already ended there, the model is that of its best epoch.
    judging: whether evaluated epochs are scored with score priors as well, and what decides after each of them whether
    to go on: `end_early`, which is also asked before the first epoch of a resumed training, and then the race, if the
    judged ranks of all epochs are known.
    precision: of the full softmax's products, as `linear_cross_entropy` takes it.
    teachers: the models that `config.teachers` names, on the device.
    TrainingError if the loss or a score is not finite; StateError if the state is damaged or of another run, or has
    neither the weights after its last epoch nor those of the best epoch that this training needs.
    """
    training = Training(config, dataset, seed, device, precision, teachers)
    state, ended = _start(training, resume_from)
    judge = Judge(config, judging.tables, state)
    state = judge.begin(state)
    resumed = state.last_epoch
    stopped: StopCause | None = None
    judging.on_resume(state.curve)
    early = bool(state.curve) and not ended and judging.end_early(resumed)
    saved_at, pause = time.monotonic(), min(save_every, FIRST_SAVE_SECONDS)
    while not (stopped or ended or early):
        record, ranks = _run_until_evaluated(state.last_epoch + 1, training, dataset, judge)
        state.curve.append(record)
        state.epoch_ranks.append(ranks[0])
        state.judged_ranks.extend(ranks[1:])
        judged = judge.ranks(state)
        record = state.curve[-1] = judge.judged(record, judged.get(record.epoch) if judged else None)
        on_epoch(record)
        if best_epoch(points(state.curve)) == record.epoch:
            with training.evaluated_weights():
                state = replace(state, best_epoch=record.epoch, best_weights=copy_weights(training.model))
        ended = has_ended(record.epoch, state.best_epoch, config.epochs, config.patience)
        early = not ended and judging.end_early(record.epoch)
        if judging.race and judged and not (ended or early):
            stopped = judging.race(state.curve, state.epoch_ranks, judged, num_parameters(training.model))
        over = stopped or ended or early or not any(map(on_grid, range(record.epoch + 1, config.epochs + 1)))
        started = time.monotonic()
        if save_to and on_grid(record.epoch) and (over or started - saved_at >= pause):
            required = not ended and (stopped is not None or started - saved_at >= save_every)
            _save(save_to, replace(state, training=training.state_dict()), required=required)
            saved_at = time.monotonic()
            pause = min(save_every, (saved_at - started) / SAVE_SHARE)
    restore_weights(training.model, state.best_weights)
    return FitResult(
        training.model, state.curve, state.best_epoch, state.epoch_ranks, state.judged_ranks, stopped, resumed, early,
        training.objective.teachers.seconds if training.objective.teachers else 0.0,
    )  # fmt: skip


def _start(training: "Training", resume_from: Path | None) -> tuple[TrainingState, bool]:
    """The state to begin with, without its part `training`, and whether training has already ended there."""
    if resume_from is None:
        return TrainingState(training.identity, [], 0, {}, [], {}), False
    state = read_state(resume_from, training.identity)
    part = common_part(points(state.curve), training.config.epochs, training.config.patience)
    if part is None or part.best_epoch != state.best_epoch:
        raise StateError(
            f"{str(resume_from)!r} is of a training until epoch {state.last_epoch}, without the weights of the epoch "
            f"at which epochs={training.config.epochs} or patience={training.config.patience} ends it; "
            "train from scratch"
        )
    if not part.ended:
        training.load_state_dict(state.training)
    num = part.num_records
    curve, ranks = state.curve[:num], state.epoch_ranks[:num]
    judged = state.judged_ranks[: len(judged_epochs(record.epoch for record in curve))]
    return replace(state, curve=curve, epoch_ranks=ranks, judged_ranks=judged, training={}), part.ended


def _save(file: Path | SignedFile, state: TrainingState, *, required: bool) -> None:
    """Write the state; a full disk is an error only if it is `required`, and not merely useful to a longer training."""
    try:
        write_state(file, state)
    except OSError as error:
        if required or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"the training state is not kept: {error.strerror}", flush=True)


class Training:
    """The objects that an epoch uses: the model, its optimizer, the batches and the objective.

    `seed` determines five independent random streams: initial weights, order of examples, negatives, augmentation and
    dropout. Dropout draws from torch's global generator, which the constructor seeds.
    """

    def __init__(
        self,
        config: TrialConfig,
        dataset: PreparedDataset,
        seed: int,
        device: torch.device,
        precision: str = "ieee",
        teachers: Sequence[LoadedModel] = (),
    ) -> None:
        seeds = torch.randint(1 << 62, (5,), generator=torch.Generator().manual_seed(seed)).tolist()
        self.config, self.device = config, device
        self.identity = f"{dataset.dataset_id}:{continuation_hash(config)}:{seed}:{engine_version()}"
        self.identity += "" if precision == "ieee" else f":{precision}"
        self.model = build_model(config, dataset.num_items, seeds[0]).to(device)
        self.optimizer = FusedAdam(self.model, config)
        self.average = WeightAverage(self.model, config.ema_decay) if config.ema_decay else None
        self.batches = TrainBatches(dataset, config, device, seeds[1], seeds[4])
        self.negatives = torch.Generator(device).manual_seed(seeds[2])
        self.objective = Objective(config, dataset, device, self.negatives, precision, teachers)
        self.fixed_steps = None
        if device.type == "cuda" and not capture_obstacle(config, dataset.num_items):
            self.fixed_steps = FixedSteps(self.batches, (self.negatives,))
        self.step = 0
        self.total = torch.zeros((), dtype=torch.float64, device=device)  # sum of the epoch's losses over all positions
        torch.manual_seed(seeds[3])

    def state_dict(self) -> dict[str, Any]:
        """Everything that an epoch changes, by name: the tensors themselves, not copies, and one number.

        A new `Training` of the same identity that loads this state continues as if the run had not been interrupted,
        bit for bit on a CPU.
        """
        random = {f"random.{name}": generator.get_state() for name, generator in self._generators().items()}
        random["random.default"] = torch.get_rng_state()
        if self.device.type == "cuda":
            random["random.cuda"] = torch.cuda.get_rng_state(self.device)
        return {**self._tensors(), **random, "average_step": self.average.step if self.average else 0}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned after an epoch, including torch's global generator."""
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])
        for name, generator in self._generators().items():
            generator.set_state(state[f"random.{name}"])
        torch.set_rng_state(state["random.default"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random.cuda"], self.device)
        if self.average:
            self.average.step = state["average_step"]
        self.step = int(self.optimizer.steps[0])  # the optimizer counts the same steps, one per batch

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors that a step changes, by group and index."""
        groups = {
            "weight": [parameter.detach() for parameter in self.optimizer.parameters],
            "mean": self.optimizer.first_moments,
            "square": self.optimizer.second_moments,
            "step": self.optimizer.steps,
            "average": self.average.averages if self.average else [],
        }
        return {f"{group}.{index}": tensor for group, tensors in groups.items() for index, tensor in enumerate(tensors)}

    def _generators(self) -> dict[str, torch.Generator]:
        return {
            "order": self.batches.generator,
            "augmentation": self.batches.augmentation,
            "negatives": self.negatives,
        }

    def epoch(self) -> float:
        """Train for one pass over the examples; returns the mean loss per position. TrainingError if it diverges."""
        self.model.train()
        self.total.zero_()
        count = 0
        for number, num_targets in enumerate(self._steps(), 1):
            self.step += 1
            count += num_targets
            if number % CHECK_EVERY == 0:  # the steps in between do not wait for the device
                self._check(float(self.total), number)
        self._check(float(self.total), self.batches.num_batches)
        return float(self.total) / count

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """A context in which the model has the weights to evaluate and save: averaged if `ema_decay` is set."""
        return self.average.applied() if self.average else nullcontext()

    def take_step(self, batch: TrainBatch, factor: float | Tensor, share: float | Tensor) -> None:
        """Train on one batch: forward, backward, optimizer, weight average; the loss is added to `total`."""
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        with threads_for(self._encoder_size(batch)):
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step(factor)
        if self.average:
            self.average.update(share)
        self.total += loss.detach() * batch.num_targets

    def _steps(self) -> Iterator[int]:
        """Run the steps of an epoch; yields the number of supervised positions of each step."""
        rates = [self._rates(self.step + number) for number in range(self.batches.num_batches)]
        if self.fixed_steps:
            yield from self.fixed_steps.epoch(self.take_step, rates)
            return
        for batch, (factor, share) in zip(self.batches.epoch(), rates, strict=True):
            self.take_step(batch, factor, share)
            yield len(batch.targets)

    def _rates(self, step: int) -> tuple[float, float]:
        """The learning-rate factor of a step, and the share of the new weights in the weight average."""
        share = self.average.next_share() if self.average else 0.0
        return lr_factor(self.config, step, self.batches.num_batches), share

    def loss(self, batch: TrainBatch) -> Tensor:
        """The loss of a batch, a scalar ()."""
        encoder_size = self._encoder_size(batch)
        with threads_for(encoder_size):
            states = batch.supervised(self.model(batch.inputs))
        with threads_for(len(batch.targets) * self.objective.num_candidates):
            latest = batch.supervised(batch.inputs.items)
            events = batch.target_events
            loss = self.objective.loss(self.model.items, states, batch.targets, batch.counted, latest, events)
        if batch.views:
            with threads_for(encoder_size):
                first, second = (self.model(view)[view.last_tokens()] for view in batch.views)
                contrast = contrastive_loss(first, second, self.config.contrastive_temperature)
            loss = loss + self.config.contrastive_weight * contrast
        return loss

    def _encoder_size(self, batch: TrainBatch) -> int:
        """The number of elements in the states of one layer."""
        return len(batch.inputs.items) * self.config.hidden_dim

    def _check(self, total: float, batches: int) -> None:
        if not math.isfinite(total):
            epoch = (self.step - 1) // self.batches.num_batches + 1
            raise TrainingError(
                f"the training loss must stay finite; it diverged within {batches} steps of epoch {epoch}: "
                f"{_likely_cause(self.config)}"
            )


def _likely_cause(config: TrialConfig) -> str:
    """The knobs to change first in a configuration that diverged."""
    lr = f"lr={config.lr:g} may be too high"
    if config.temperature < 0.02 or (config.scores == "dot" and config.temperature < 0.5):
        lr = f"temperature={config.temperature:g} may be too low for {config.scores} scores, or {lr}"
    return lr if config.grad_clip else f"{lr}; grad_clip=1 also bounds each step"


def _run_until_evaluated(
    epoch: int, training: Training, dataset: PreparedDataset, judge: Judge
) -> tuple[EpochRecord, list[NDArray[np.uint8]]]:
    """Train from `epoch` to the next evaluated one; returns its record and the clipped ranks (num_users,).

    The ranks are those of the bare model, then those with score priors if `judge` wants them.
    """
    started = time.perf_counter()
    loss = training.epoch()
    while not (on_grid(epoch) or epoch == training.config.epochs):
        epoch += 1
        loss = training.epoch()
    trained = time.perf_counter()
    histories = train_histories(dataset)
    with training.evaluated_weights():
        try:
            found = evaluate_variants(
                training.model, training.config, histories, dataset.valid_items, judge.variants(epoch),
                dataset.num_items,
            )  # fmt: skip
        except TrainingError as error:
            raise TrainingError(f"after epoch {epoch}: {error}") from None
    ranks = [clip_ranks(row) for row, _ in found]
    record = EpochRecord(
        epoch=epoch,
        loss=loss,
        ndcg10=metrics_from_ranks(found[0][0])["ndcg@10"],
        train_seconds=trained - started,
        evaluate_seconds=time.perf_counter() - trained,
    )
    return record, ranks

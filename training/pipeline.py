"""The pipeline of one trial: load the dataset, train or reuse a model, score, and write the result files.

Nothing here reads a test target or opens a seal.
"""

import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.errors import MachineError
from ..data.hashing import write_hashed
from ..data.prepared import PreparedDataset
from ..kernels.losses.arguments import BFLOAT16
from ..kernels.losses.linear_cross_entropy_bfloat16 import is_available
from ..models.build import num_parameters
from ..models.config import TrialConfig, teachers_of
from ..models.knobs.trial_names import names_in
from ..models.priors import PriorTables
from .baselines import baseline_metrics
from .checkpoint import save_checkpoint
from .confinement import Confinement
from .ensembles import load_members, rank_ensemble, stored_states, total_parameters
from .epoch_ranks import race_in, write_epoch_ranks
from .errors import StateError, TrainingError
from .evaluate import encode_users, evaluate_variants, train_histories, train_sample_ndcg
from .inputs import load_dataset
from .judging import Judging
from .metrics import best_setting, clip_ranks, metrics_from_ranks
from .popularity import popularity_ndcg10
from .products import BFLOAT16_CPU, FLOAT32_CPU, trains_in_bfloat16
from .ranking import Ranks
from .rescoring import load_trained, load_user_states, swept_configs
from .spec import CHECKPOINT, EPOCH_RANKS, JUDGED_RANKS, RANKS, STATE, SWEPT_RANKS, USERS, TrialSpec
from .trainer import FitResult, fit
from .trial import Trial

DEFAULT_THREADS = torch.get_num_threads()


def run(trial: Trial, spec: TrialSpec) -> None:
    """Train or reuse a model, score it, and write ranks, states and checkpoint; the result is recorded in `trial`.

    Of a trial that racing stops, only the ranks of its epochs and its training state are written; of an ensemble, only
    its ranks.
    """
    device = set_up_device(spec.device, spec.threads)
    config = TrialConfig(**spec.config)
    precision = "ieee" if spec.members else loss_precision(spec.device, device, config)
    trial.record(device=_device_name(device, precision), confined=Confinement.state)
    trial.report(stage="loading", epochs=0 if spec.members else config.epochs)
    dataset = load_dataset(Path(spec.dataset_dir))
    trial.dataset_id = dataset.dataset_id
    if config.ensemble:
        _score_ensemble(trial, spec, config, dataset, device)
        return
    trial.report(stage="training", training_since=time.time())
    tables = PriorTables(dataset, device)
    if spec.rescore_from:
        fitted = _reuse(trial, spec, config, device)
    else:
        fitted = _train(trial, spec, config, dataset, device, tables if spec.judge_epochs else None)
    for name, rows in ((EPOCH_RANKS, fitted.epoch_ranks), (JUDGED_RANKS, fitted.judged_ranks)):
        if rows:
            trial.wrote(name, write_epoch_ranks(trial.directory / name, rows))
    if fitted.stopped:
        return  # the training state stays, so that a later trial can continue
    trial.report(stage="scoring")
    started = time.perf_counter()
    states = _user_states(spec, fitted, config, dataset)
    configs = swept_configs(config, spec.settings)
    found = evaluate_variants(
        fitted.model,
        config,
        train_histories(dataset),
        dataset.valid_items,
        [tables.priors(each) for each in configs],
        dataset.num_items,
        states,
    )
    best = _record_best(trial, spec, found, num_parameters(fitted.model), started)
    if spec.baselines:  # after the clock: their seconds are not the trial's
        trial.record(baselines=baseline_metrics(dataset, train_histories(dataset), dataset.valid_items, tables))
    digest = save_checkpoint(trial.directory / CHECKPOINT, fitted.model, configs[best], dataset.num_items)
    trial.wrote(CHECKPOINT, digest)
    _write_array(trial, USERS, states.cpu().numpy())
    trial.record(files={name: trial.written[name] for name in (RANKS, USERS, CHECKPOINT)})


def _score_ensemble(
    trial: Trial, spec: TrialSpec, config: TrialConfig, dataset: PreparedDataset, device: torch.device
) -> None:
    """Score the members of an ensemble together; writes ranks and nothing else, since it has no model of its own."""
    if names_in(config.ensemble) != tuple(member.name for member in spec.members):
        raise TrainingError(f"the spec of {spec.trial} lacks members of its ensemble; run the same trial again")
    trial.report(stage="scoring")
    started = time.perf_counter()
    members = load_members(spec.members, device)
    pairs = zip(spec.members, members, strict=True)
    states = [stored_states(member, loaded, dataset.num_ranked) for member, loaded in pairs]
    histories, tables = train_histories(dataset), PriorTables(dataset, device)
    priors = [tables.priors(each) for each in swept_configs(config, spec.settings)]
    variants = [None, *priors]
    (bare, _), *found = rank_ensemble(members, histories, dataset.valid_items, variants, dataset.num_items, states)
    trial.record(model_ndcg10=metrics_from_ranks(bare)["ndcg@10"])
    _record_best(trial, spec, found, total_parameters(members), started)
    if spec.baselines:
        trial.record(baselines=baseline_metrics(dataset, histories, dataset.valid_items, tables))
    trial.record(files={RANKS: trial.written[RANKS]})


def _record_best(trial: Trial, spec: TrialSpec, found: Sequence[Ranks], parameters: int, started: float) -> int:
    """Write and record what the best setting measured; returns its index. `found`: the ranks of every setting."""
    swept = np.stack([clip_ranks(ranks) for ranks, _ in found])
    best = best_setting(swept)
    ranks, ties = found[best]
    trial.record(
        metrics=metrics_from_ranks(ranks),
        ties=ties,
        best_setting=best if spec.settings else None,
        parameters=parameters,
        evaluate_seconds=trial.result.evaluate_seconds + time.perf_counter() - started,
    )
    _write_array(trial, RANKS, ranks)
    if spec.settings:
        _write_array(trial, SWEPT_RANKS, swept)
    return best


def _train(
    trial: Trial,
    spec: TrialSpec,
    config: TrialConfig,
    dataset: PreparedDataset,
    device: torch.device,
    tables: PriorTables | None,
) -> FitResult:
    resume_from = Path(spec.resume_from) / STATE if spec.resume_from else None

    def end_early(epoch: int) -> bool:
        return trial.is_asked_to_end() or (spec.end_after is not None and epoch >= spec.end_after)

    judging = Judging(tables, race_in(trial.directory, trial.will_not_be_kept), end_early, trial.resume)
    precision = loss_precision(spec.device, device, config)
    if teachers_of(config) != tuple(teacher.name for teacher in spec.teachers):
        raise TrainingError(f"the spec of {spec.trial} lacks its teachers; run the same trial again")
    teachers = load_members(spec.teachers, device)

    def train(state: Path | None) -> FitResult:
        return fit(
            config, dataset, spec.seed, device, trial.add_epoch, trial.state_file(), state,
            judging=judging, precision=precision, teachers=teachers,
        )  # fmt: skip

    try:
        trial.check_state(resume_from)
        fitted = train(resume_from)
    except StateError as error:
        print(f"training from scratch: {error}", flush=True)
        fitted = train(None)
    trial.record(
        curve=fitted.curve,
        best_epoch=fitted.best_epoch,
        model_ndcg10=fitted.model_ndcg10,
        resumed_epochs=fitted.resumed_epochs,
        ended_after=fitted.curve[-1].epoch if fitted.ended_early else None,
        parameters=num_parameters(fitted.model),
        stopped=fitted.stopped,
        train_seconds=trial.result.train_seconds + fitted.teaching_seconds,
    )
    if not fitted.stopped:
        trial.record(
            train_ndcg10=train_sample_ndcg(fitted.model, dataset, config),
            popularity_ndcg10=popularity_ndcg10(dataset),
        )
    return fitted


def _reuse(trial: Trial, spec: TrialSpec, config: TrialConfig, device: torch.device) -> FitResult:
    """The model of the trial `rescore_from`, without training seconds; records its training curve and device."""
    trial.check_source(Path(spec.rescore_from or ""))
    fitted, source_result = load_trained(Path(spec.rescore_from or ""), config, spec.seed, device)
    fields = ("best_epoch", "ended_after", "model_ndcg10", "train_ndcg10", "popularity_ndcg10", "device")
    trial.record(curve=fitted.curve, **{name: getattr(source_result, name) for name in fields})
    return fitted


def _user_states(spec: TrialSpec, fitted: FitResult, config: TrialConfig, dataset: PreparedDataset) -> Tensor:
    """The states of the ranked users, (num_ranked, hidden_dim), from the files of the re-scored trial or the model."""
    states = None
    if spec.rescore_from:
        states = load_user_states(Path(spec.rescore_from), dataset.num_ranked, config.hidden_dim)
    if states is None:
        return encode_users(fitted.model, config, train_histories(dataset))
    return states.to(fitted.model.item_table().device)


def set_up_device(requested: str, threads: int) -> torch.device:
    """The device that a spec requests, with torch set up for it. Raises MachineError if torch cannot use it."""
    torch.set_num_threads(threads or DEFAULT_THREADS)
    names = {"auto": "cuda" if torch.cuda.is_available() else "cpu", FLOAT32_CPU: "cpu"}
    device = torch.device(names.get(requested, requested))
    if device.type == "cuda":
        _check_cuda(device, requested)
    if device.type == "cpu":
        # Equal specs must give equal bits. torch.use_deterministic_algorithms would do the same, but it imports torch's
        # compiler, which takes seconds. Filling new tensors with NaN only helps debugging and costs time.
        torch.set_deterministic_debug_mode("error")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


def loss_precision(requested: str, device: torch.device, config: TrialConfig) -> str:
    """The precision of the full softmax's products on `device`, for which a spec requests `requested`."""
    on_cpu = device.type == "cpu"
    return BFLOAT16 if on_cpu and trains_in_bfloat16(requested, config.loss) and is_available() else "ieee"


def _check_cuda(device: torch.device, requested: str) -> None:
    """Raise MachineError if torch cannot use the CUDA device `device`; `requested` is its name in the spec."""
    if not torch.cuda.is_available():
        raise MachineError(f"device={requested!r} needs a CUDA device, and torch finds none; use --device cpu or auto")
    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:  # the device does not exist, is used exclusively by another process, or is full
        raise MachineError(
            f"device={requested!r} cannot be used ({str(error).splitlines()[0]}); choose another with --device"
        ) from None


def _device_name(device: torch.device, precision: str) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return BFLOAT16_CPU if precision == BFLOAT16 else "cpu"


def _write_array(trial: Trial, name: str, array: NDArray[Any]) -> None:
    buffer = BytesIO()
    np.save(buffer, array)
    trial.wrote(name, write_hashed(trial.directory / name, buffer.getvalue()))

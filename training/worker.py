"""One trial, as a process: `python -P -m virtualmle.training.worker DIRECTORY [INBOX SECONDS]`.

The files are those of `spec.py`. Whatever happens short of a kill, the directory ends with one result.json: finished,
or failed with a sentence that says why. SIGTERM ends the process at once and leaves none. Nothing here reads a test
target or opens a seal.

With an inbox the process stays for SECONDS after a trial that finished, torch and the dataset loaded, and takes the
next trial that is offered there (`trials/warm.py` says how). It leaves after a failure, and when the inbox is gone.
"""

import contextlib
import gc
import json
import os

# Read when torch loads OpenMP. Threads that spin at every barrier make an epoch seven times slower on a machine whose
# other core is busy; threads that sleep cost nothing measurable on an idle one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import signal
import sys
import threading
import time
import traceback
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.atomic import write_bytes
from ..data.errors import VirtualMLEError
from ..data.prepared import PreparedDataset
from ..models.build import num_parameters
from ..models.config import TrialConfig, train_part
from ..models.priors import ScorePriors
from .checkpoint import load_checkpoint, save_checkpoint
from .errors import StateError, TrainingError
from .evaluate import encode_users, evaluate_targets, train_histories, train_sample_ndcg
from .metrics import metrics_from_ranks
from .spec import (
    CHECKPOINT,
    LEASE_FILE,
    LOG,
    ORDER_PATTERN,
    PROGRESS,
    RANKS,
    RESULT,
    STATE,
    USERS,
    EpochRecord,
    TrialProgress,
    TrialResult,
    TrialSpec,
    read_result,
    read_spec,
    write_model,
)
from .trainer import FitResult, fit

INBOX_SECONDS = 0.01  # between two looks into the inbox: nobody notices the wait, nor the work
DEFAULT_THREADS = torch.get_num_threads()


class Trial:
    """A running trial: what it has come to so far, and the one place where its result is written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started = time.perf_counter()
        self.result = TrialResult(status="failed", torch_version=torch.__version__)
        self.progress = TrialProgress()
        self.watchdog: threading.Timer | None = None
        self._over = threading.Lock()  # taken once, by whoever writes the result, and never released

    def seconds(self) -> float:
        """Seconds since the trial began."""
        return time.perf_counter() - self.started

    def report(self, **changes: object) -> None:
        """Replace progress.json by the last progress with `changes`."""
        self.progress = self.progress.model_copy(update={**changes, "seconds": self.seconds()})
        write_model(self.directory / PROGRESS, self.progress)

    def add_epoch(self, record: EpochRecord) -> None:
        """Count a finished epoch: also a trial that fails later has used its seconds."""
        curve = [*self.result.curve, record]
        self.record(
            curve=curve,
            train_seconds=sum(epoch.train_seconds for epoch in curve),
            evaluate_seconds=sum(epoch.evaluate_seconds for epoch in curve),
        )
        self.report(epoch=record.epoch, best_ndcg10=max(epoch.ndcg10 for epoch in curve))
        print(
            f"epoch {record.epoch}/{self.progress.epochs}  loss {record.loss:.4f}  ndcg@10 {record.ndcg10:.5f}  "
            f"train {record.train_seconds:.2f} s  evaluate {record.evaluate_seconds:.2f} s",
            flush=True,
        )

    def record(self, **changes: object) -> None:
        """Add what has become known to the result to be written."""
        self.result = self.result.model_copy(update=changes)

    def finish(self, cause: str | None = None) -> bool:
        """Write result.json, failed if there is a `cause`; False if someone else is writing it already."""
        if not self._over.acquire(blocking=False):
            return False
        if self.watchdog:
            self.watchdog.cancel()
        status = "failed" if cause else "finished"
        final = self.result.model_copy(update={"status": status, "cause": cause, "wall_seconds": self.seconds()})
        write_model(self.directory / RESULT, final)
        print(f"{status}{f': {cause}' if cause else ''}", flush=True)
        return True


def run(trial: Trial, spec: TrialSpec) -> None:
    """Train or reuse, score, and leave ranks and checkpoint in the trial's directory; the result is in `trial`."""
    device = _device(spec)
    config = TrialConfig(**spec.config)
    trial.record(device=_name(device))
    trial.report(stage="loading", epochs=config.epochs)
    dataset = _dataset(Path(spec.dataset_dir))
    trial.report(stage="training", training_since=time.time())
    fitted = _reuse(trial, spec, config, device) if spec.rescore_from else _train(trial, spec, config, dataset, device)
    trial.report(stage="scoring")
    started = time.perf_counter()
    states = _states(spec, fitted, config, dataset)
    ranks, ties = evaluate_targets(
        fitted.model,
        config,
        train_histories(dataset),
        dataset.valid_items,
        ScorePriors.from_dataset(dataset, config, device),
        dataset.num_items,
        states,
    )
    trial.record(
        metrics=metrics_from_ranks(ranks),
        ties=ties,
        parameters=num_parameters(fitted.model),
        evaluate_seconds=trial.result.evaluate_seconds + time.perf_counter() - started,
    )
    save_checkpoint(trial.directory / CHECKPOINT, fitted.model, config, dataset.num_items)
    _write_array(trial.directory / USERS, states.cpu().numpy())
    _write_array(trial.directory / RANKS, ranks)
    (trial.directory / STATE).unlink(missing_ok=True)


def _train(
    trial: Trial, spec: TrialSpec, config: TrialConfig, dataset: PreparedDataset, device: torch.device
) -> FitResult:
    before = Path(spec.resume_from) / STATE if spec.resume_from else None
    try:
        fitted = fit(config, dataset, spec.seed, device, trial.add_epoch, trial.directory / STATE, before)
    except StateError as error:
        print(f"training starts afresh: {error}", flush=True)
        fitted = fit(config, dataset, spec.seed, device, trial.add_epoch, trial.directory / STATE)
    trial.record(
        curve=fitted.curve,
        best_epoch=fitted.best_epoch,
        model_ndcg10=fitted.curve[fitted.best_epoch - 1].ndcg10,
        train_ndcg10=train_sample_ndcg(fitted.model, dataset, config),
    )
    return fitted


def _states(spec: TrialSpec, fitted: FitResult, config: TrialConfig, dataset: PreparedDataset) -> Tensor:
    """The users' states (num_users, hidden_dim): those that the re-scored trial left, or from the model."""
    path = Path(spec.rescore_from) / USERS if spec.rescore_from else None
    if path and path.exists():
        states = torch.from_numpy(np.load(path))
        if states.shape == (dataset.num_users, config.hidden_dim):
            return states.to(fitted.model.item_table().device)
    return encode_users(fitted.model, config, train_histories(dataset))


def _reuse(trial: Trial, spec: TrialSpec, config: TrialConfig, device: torch.device) -> FitResult:
    """The model of the finished trial `rescore_from`: what training would give again, at no training seconds."""
    source = Path(spec.rescore_from or "")
    before = read_result(source)
    if before is None or before.status != "finished":
        raise TrainingError(f"rescore_from={str(source)!r} is not a finished trial; leave it out to train")
    model, trained = load_checkpoint(source / CHECKPOINT)
    differing = [knob for knob, value in train_part(config).items() if train_part(trained)[knob] != value]
    if differing or read_spec(source).seed != spec.seed:
        raise TrainingError(
            f"only scoring knobs may differ from the trial that is scored again; {', '.join(differing) or 'seed'} "
            "differs too: leave rescore_from out to train"
        )
    kept = ("curve", "best_epoch", "model_ndcg10", "train_ndcg10")
    trial.record(**{name: getattr(before, name) for name in kept})
    return FitResult(model.to(device), before.curve, before.best_epoch)


def _device(spec: TrialSpec) -> torch.device:
    torch.set_num_threads(spec.threads or DEFAULT_THREADS)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if spec.device == "auto" else spec.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError(f"device={spec.device!r} needs a CUDA device and torch sees none; choose 'cpu' or 'auto'")
    if device.type == "cpu":
        # equal specs give equal bits (use_deterministic_algorithms says the same, but imports the compiler, seconds);
        # without filling new tensors by NaN, which is for debugging
        torch.set_deterministic_debug_mode("error")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


def _name(device: torch.device) -> str:
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "cpu"


_loaded: dict[tuple[str, int], PreparedDataset] = {}


def _dataset(directory: Path) -> PreparedDataset:
    """The dataset, loaded and verified once per process; another one under the same name is loaded anew."""
    manifest = directory / "manifest.json"
    identity = (str(directory), manifest.stat().st_mtime_ns if manifest.exists() else 0)
    if identity not in _loaded:
        _loaded.clear()
        _loaded[identity] = PreparedDataset.load(directory)
    return _loaded[identity]


def _write_array(path: Path, array: NDArray[Any]) -> None:
    buffer = BytesIO()
    np.save(buffer, array)
    write_bytes(path, buffer.getvalue())


def _watch(trial: Trial, wall_seconds: float) -> None:
    """End the process by a failed result once it has run for `wall_seconds`."""

    def expire() -> None:
        cause = (
            f"ran past the wall-clock limit of {wall_seconds:g} s in epoch {trial.progress.epoch + 1} of "
            f"{trial.progress.epochs}; lower epochs, hidden_dim or num_blocks, or raise batch_size"
        )
        if trial.finish(cause):
            os._exit(1)  # the main thread may be deep inside a kernel

    trial.watchdog = threading.Timer(wall_seconds, expire)
    trial.watchdog.daemon = True
    trial.watchdog.start()


def _memory_cause(error: Exception) -> str | None:
    """A sentence if `error` says that memory ran out; torch's CPU allocator says it by a bare RuntimeError."""
    exhausted = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
    return "out of memory; lower batch_size, num_negatives, hidden_dim or max_len" if exhausted else None


def work(directory: Path) -> bool:
    """Run the trial in `directory`; whether it finished."""
    trial = Trial(directory)
    cause = None
    try:
        spec = read_spec(directory)
        _watch(trial, spec.wall_seconds)
        run(trial, spec)
    except VirtualMLEError as error:
        cause = str(error)
    except Exception as error:  # the outermost handler: the traceback goes to the log, the sentence to the agent
        traceback.print_exc()
        cause = _memory_cause(error) or f"internal error: {type(error).__name__}: {error}"
    if not trial.finish(cause):
        threading.Event().wait(60)  # the watchdog is writing, and then ends the process
    return cause is None


def next_trial(inbox: Path, seconds: float) -> Path | None:
    """The directory of the next trial offered to this process, taken; None when none comes or the inbox is gone."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and inbox.is_dir():
        for order in inbox.glob(ORDER_PATTERN):
            offered = json.loads(order.read_bytes())
            directory = Path(offered["directory"])
            if offered["pid"] != os.getpid():
                continue
            with contextlib.suppress(FileNotFoundError):  # withdrawn meanwhile
                os.rename(order, directory / LEASE_FILE)
                return directory
        time.sleep(INBOX_SECONDS)
    return None


def _log_to(path: Path) -> None:
    """Send what this process prints to another file from now on."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def main(directory: Path, inbox: Path | None = None, seconds: float = 0.0) -> int:
    """Run the trial in `directory`, then those that come into `inbox`; exit status 0 if the last one finished."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever the parent had set: a cancelled trial is gone at once
    if (directory / RESULT).exists():
        sys.exit(f"{str(directory)!r} has a {RESULT} already; start a new trial")
    while work(directory):
        gc.collect()
        following = next_trial(inbox, seconds) if inbox else None
        if following is None:
            return 0
        directory = following
        _log_to(directory / LOG)
    return 1


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(main(Path(given[0]), *((Path(given[1]), float(given[2])) if len(given) > 1 else ())))

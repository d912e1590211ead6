"""One trial, as a process: `python -P -m virtualmle.training.worker DIRECTORY`. The files are those of `spec.py`.

Whatever happens short of a kill, the directory ends with one result.json: finished, or failed with a sentence that
says why. SIGTERM ends the process at once and leaves none. Nothing here reads a test target or opens a seal.
"""

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

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.atomic import write_bytes
from ..data.errors import VirtualMLEError
from ..data.prepared import PreparedDataset
from ..models.build import num_parameters
from ..models.config import TrialConfig, train_part
from ..models.priors import ScorePriors
from .checkpoint import load_checkpoint, save_checkpoint
from .errors import TrainingError
from .evaluate import evaluate_validation, train_sample_ndcg
from .metrics import metrics_from_ranks
from .spec import (
    CHECKPOINT,
    PROGRESS,
    RANKS,
    RESULT,
    EpochRecord,
    TrialProgress,
    TrialResult,
    TrialSpec,
    read_result,
    read_spec,
    write_model,
)
from .trainer import FitResult, fit


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
    dataset = PreparedDataset.load(Path(spec.dataset_dir))
    trial.report(stage="training")
    fitted = _reuse(trial, spec, config, device) if spec.rescore_from else _train(trial, spec, config, dataset, device)
    trial.report(stage="scoring")
    started = time.perf_counter()
    priors = ScorePriors.from_dataset(dataset, config, device)
    ranks, ties = evaluate_validation(fitted.model, dataset, config, priors)
    trial.record(
        metrics=metrics_from_ranks(ranks),
        ties=ties,
        parameters=num_parameters(fitted.model),
        evaluate_seconds=trial.result.evaluate_seconds + time.perf_counter() - started,
    )
    save_checkpoint(trial.directory / CHECKPOINT, fitted.model, config, dataset.num_items)
    _write_ranks(trial.directory / RANKS, ranks)


def _train(
    trial: Trial, spec: TrialSpec, config: TrialConfig, dataset: PreparedDataset, device: torch.device
) -> FitResult:
    fitted = fit(config, dataset, spec.seed, device, trial.add_epoch)
    trial.record(
        best_epoch=fitted.best_epoch,
        model_ndcg10=fitted.curve[fitted.best_epoch - 1].ndcg10,
        train_ndcg10=train_sample_ndcg(fitted.model, dataset, config),
    )
    return fitted


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
    if spec.threads:
        torch.set_num_threads(spec.threads)
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


def _write_ranks(path: Path, ranks: NDArray[np.int32]) -> None:
    buffer = BytesIO()
    np.save(buffer, ranks)
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


def main(directory: Path) -> int:
    """Run the trial in `directory`; exit status 0 if it finished, 1 if it failed."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever the parent had set: a cancelled trial is gone at once
    if (directory / RESULT).exists():
        sys.exit(f"{str(directory)!r} has a {RESULT} already; start a new trial")
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
    return 1 if cause else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

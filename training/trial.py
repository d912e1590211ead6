"""The progress of a running trial, and the one place that writes its result."""

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from .errors import StateError
from .peak import peak_bytes, reset_peak
from .racing import StopCause
from .signature import RESCORED, StateSigner, check_spec, check_trial, state_is_signed, write_signed_result
from .spec import (
    END,
    PROGRESS,
    RESULT,
    STATE,
    EpochRecord,
    TrialProgress,
    TrialResult,
    TrialSpec,
    engine_version,
    read_spec,
    write_model,
)
from .state import SignedFile
from .stopping import seconds_per_epoch


class Trial:
    """The progress and the result so far of the trial in `directory`."""

    def __init__(self, directory: Path, key: bytes | None = None) -> None:
        """key: of the session, with which the files are signed and those of earlier trials checked; None = neither."""
        self.directory = directory
        self.spec: TrialSpec | None = None
        self.dataset_id = ""
        self.written: dict[str, str] = {}  # SHA-256 by file name
        self._key = key
        reset_peak()
        self.started = time.perf_counter()
        self.result = TrialResult(status="failed", torch_version=torch.__version__, engine=engine_version())
        self.progress = TrialProgress()
        self._earlier: list[EpochRecord] = []
        self._watchdog: threading.Timer | None = None
        self._finishing = threading.Lock()  # acquired once, by the thread that writes the result, and never released

    def seconds(self) -> float:
        """Seconds since the trial began."""
        return time.perf_counter() - self.started

    def report(self, **changes: object) -> None:
        """Apply `changes` to the progress and replace progress.json."""
        self.progress = self.progress.model_copy(update={**changes, "seconds": self.seconds()})
        write_model(self.directory / PROGRESS, self.progress)

    def resume(self, curve: Sequence[EpochRecord]) -> None:
        """Take over the epochs that an earlier training has done, whose seconds are not those of this trial."""
        self._earlier = list(curve)
        if curve:
            self._report_curve(curve, None)

    def _report_curve(self, curve: Sequence[EpochRecord], epoch_seconds: float | None) -> None:
        """Report the last epoch of a curve, the best one, and the one by which the trial would be judged now."""
        best = max(curve, key=lambda epoch: epoch.ndcg10)  # the first of equal ones, as in `stopping.best_epoch`
        ranked = [epoch for epoch in curve if epoch.judged is not None]
        judged = max(ranked, key=lambda epoch: epoch.ndcg10, default=None)  # by the bare model, as in `racing.decide`
        self.report(
            epoch=curve[-1].epoch,
            best_ndcg10=best.ndcg10,
            best_epoch=best.epoch,
            best_judged=judged.judged if judged else None,
            epoch_seconds=epoch_seconds,
        )

    def add_epoch(self, record: EpochRecord) -> None:
        """Record a finished epoch, so that the result of a trial that fails later still contains its seconds."""
        curve = [*self.result.curve, record]
        self.record(
            curve=curve,
            train_seconds=sum(epoch.train_seconds for epoch in curve),
            evaluate_seconds=sum(epoch.evaluate_seconds for epoch in curve),
        )
        self._report_curve([*self._earlier, *curve], seconds_per_epoch(curve))
        more = f"  with priors {record.judged:.5f}" if record.judged not in (None, record.ndcg10) else ""
        print(
            f"epoch {record.epoch}/{self.progress.epochs}  loss {record.loss:.4f}  ndcg@10 {record.ndcg10:.5f}{more}  "
            f"train {record.train_seconds:.2f} s  evaluate {record.evaluate_seconds:.2f} s",
            flush=True,
        )

    def will_not_be_kept(self, cause: StopCause) -> None:
        """Report why the trial will not be kept, although nothing stops it."""
        self.report(hopeless=cause.sentence.removeprefix("stopped "))

    def begin(self, spec: TrialSpec) -> None:
        """Take `spec`. TrialError if it is not the one that the server has signed."""
        if self._key is not None:
            check_spec(self.directory, self._key, spec)
        self.spec = spec

    def wrote(self, name: str, digest: str) -> None:
        """Record the SHA-256 of a file of the trial, taken from the content and not from the disk."""
        self.written[name] = digest

    def check_source(self, source: Path) -> None:
        """TrialError unless the trial in `source` is as a worker of the same session has signed it."""
        if self._key is not None and self.spec is not None:
            check_trial(source, self._key, self.spec.session, read_spec(source).trial, names=RESCORED)

    def check_state(self, path: Path | None) -> None:
        """StateError unless the training state at `path` is as a worker of the same session has signed it."""
        if path is None or self._key is None or self.spec is None:
            return
        if not state_is_signed(path, self._key, self.spec.session):
            raise StateError(f"{str(path)!r} is not a training state that a worker of this session wrote")

    def state_file(self) -> Path | SignedFile:
        """Where the training states go, and what signs them."""
        path = self.directory / STATE
        if self._key is None or self.spec is None:
            return path
        return SignedFile(path, StateSigner(self.directory, self._key, self.spec.session))

    def is_asked_to_end(self) -> bool:
        """Whether somebody has asked that the training ends now, with its best weights."""
        return (self.directory / END).exists()

    def record(self, **changes: object) -> None:
        """Set fields of the result that `finish` will write."""
        self.result = self.result.model_copy(update=changes)

    def finish(self, cause: str | None = None, *, machine_fault: bool = False) -> bool:
        """Write result.json: failed if a `cause` is given, else stopped if racing has stopped the trial, else finished.

        Returns False if another thread already writes it.
        """
        if not self._finishing.acquire(blocking=False):
            return False
        if self._watchdog:
            self._watchdog.cancel()
        status = "failed" if cause else "stopped" if self.result.stopped else "finished"
        ending = {"status": status, "cause": cause, "machine_fault": machine_fault, "wall_seconds": self.seconds()}
        ending |= {"peak_bytes": peak_bytes()}
        final = self.result.model_copy(update=ending)
        self._write(final)
        why = cause or (final.stopped.sentence if final.stopped else "")
        print(f"{status}{f': {why}' if why else ''}", flush=True)
        return True

    def _write(self, result: TrialResult) -> None:
        if self._key is None or self.spec is None:
            write_model(self.directory / RESULT, result)
            return
        write_signed_result(
            self.directory, self._key, self.spec, result, self.written, dataset_id=self.dataset_id, by="worker"
        )

    def limit(self, wall_seconds: float) -> None:
        """Start a watchdog that ends the process with a failed result if the trial exceeds `wall_seconds`."""

        def expire() -> None:
            cause = (
                f"exceeded the wall-clock limit of {wall_seconds:g} s in epoch {self.progress.epoch + 1} of "
                f"{self.progress.epochs}; lower epochs, hidden_dim or num_blocks, or raise batch_size"
            )
            if self.finish(cause):
                os._exit(1)  # the main thread may be inside a long kernel call

        self._watchdog = threading.Timer(wall_seconds, expire)
        self._watchdog.daemon = True
        self._watchdog.start()

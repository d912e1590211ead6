"""A running trial: how far it has come, and the one place where its result is written."""

import os
import threading
import time
from pathlib import Path

import torch

from .spec import PROGRESS, RESULT, EpochRecord, TrialProgress, TrialResult, write_model


class Trial:
    """The progress and the future result of the trial in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started = time.perf_counter()
        self.result = TrialResult(status="failed", torch_version=torch.__version__)
        self.progress = TrialProgress()
        self._watchdog: threading.Timer | None = None
        self._finishing = threading.Lock()  # acquired once, by the thread that writes the result, and never released

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

    def finish(self, cause: str | None = None, *, machine_fault: bool = False) -> bool:
        """Write result.json, failed if there is a `cause`; False if another thread is writing it already."""
        if not self._finishing.acquire(blocking=False):
            return False
        if self._watchdog:
            self._watchdog.cancel()
        status = "failed" if cause else "finished"
        ending = {"status": status, "cause": cause, "machine_fault": machine_fault, "wall_seconds": self.seconds()}
        final = self.result.model_copy(update=ending)
        write_model(self.directory / RESULT, final)
        print(f"{status}{f': {cause}' if cause else ''}", flush=True)
        return True

    def limit(self, wall_seconds: float) -> None:
        """End the whole process with a failed result if the trial is not finished `wall_seconds` from now."""

        def expire() -> None:
            cause = (
                f"ran past the wall-clock limit of {wall_seconds:g} s in epoch {self.progress.epoch + 1} of "
                f"{self.progress.epochs}; lower epochs, hidden_dim or num_blocks, or raise batch_size"
            )
            if self.finish(cause):
                os._exit(1)  # the main thread may be deep inside a kernel

        self._watchdog = threading.Timer(wall_seconds, expire)
        self._watchdog.daemon = True
        self._watchdog.start()

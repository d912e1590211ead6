"""Processes that measure the cells of a grid: each answers one job after the other (`training/cell_worker.py`)."""

import contextlib
import os
import queue
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import IO

from ..data.errors import ReplayError
from ..training.cells import CellsJob, JobDone
from ..training.environment import worker_environment

COMMAND = [sys.executable, "-P", "-m", "virtualmle.training.cell_worker"]
LAST_CHARACTERS = 600


def run_jobs(jobs: Sequence[CellsJob], num_workers: int) -> Iterator[tuple[CellsJob, float]]:
    """Run the jobs in up to `num_workers` processes; yields each finished job with its seconds on the clock.

    If the caller stops (an error, Ctrl-C), the processes are killed; the parts of finished jobs are complete. Raises
    ReplayError if a process fails or the machine cannot run a job.
    """
    workers = [_Worker() for _ in range(min(num_workers, len(jobs)))]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def run(job: CellsJob) -> float:
        worker = idle.get()  # there are as many threads as workers, so one is idle
        try:
            return worker.run(job)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(max(1, len(workers)))
    try:
        futures = {pool.submit(run, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.end()
        pool.shutdown()


class _Worker:
    """One process. It leads a session of its own, so that Ctrl-C reaches the builder only."""

    def __init__(self) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, encoding="utf-8",
            env=worker_environment(os.environ), start_new_session=True,
        )  # fmt: skip

    def run(self, job: CellsJob) -> float:
        """Send the job, wait for the answer, and return its seconds."""
        assert self._process.stdin is not None and self._process.stdout is not None  # both are pipes
        try:
            self._process.stdin.write(job.model_dump_json() + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        answer = self._process.stdout.readline()
        if not answer:
            raise self._failure()
        done = JobDone.model_validate_json(answer)
        if done.error:
            raise ReplayError(f"this machine cannot measure the grid: {done.error}")
        return done.seconds

    def end(self) -> None:
        """Kill the process: it is idle, or its job is no longer wanted."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None and self._process.stdout is not None  # both are pipes
        with contextlib.suppress(BrokenPipeError):  # a job that the process will not read
            self._process.stdin.close()
        self._process.stdout.close()
        self._log.close()

    def _failure(self) -> ReplayError:
        code = self._process.wait()
        self._log.seek(0)
        text = self._log.read().decode(errors="replace").strip()[-LAST_CHARACTERS:]
        return ReplayError(f"a worker of the build ended with code {code}; the same command continues. It said: {text}")

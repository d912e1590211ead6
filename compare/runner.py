"""Run the sessions of a plan: each in a process and a home of its own, several at a time, resumed after a kill.

A session that has a result is never run again. Ctrl-C, or the end of this process for any other reason, ends the
processes of the sessions, because they watch their standard input; the same plan then goes on where they were.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Generic, Protocol, TypeVar

from .homes import lay_out
from .lock import locked
from .outcome import Ended, SessionResult, stored_result
from .task import Job

LOG = "session.log"
POLL_SECONDS = 0.2

Result = TypeVar("Result", bound=Ended)


class Place(Protocol):
    """Where jobs run: the base home, the directory of their homes, and how many run at a time."""

    @property
    def home(self) -> Path: ...
    @property
    def out(self) -> Path: ...
    @property
    def jobs(self) -> int: ...


@dataclass(frozen=True)
class Kind(Generic[Result]):
    """A kind of job: the module that runs one, and what reads the result that it has stored in its home."""

    module: str
    stored: Callable[[Path], Result | None]


SESSIONS = Kind("virtualmle.compare.session", stored_result)


@dataclass(frozen=True)
class Advance:
    """A job has finished trial number `trials`, or is over; `result` and `error` say how."""

    task: Job
    trials: int = 0
    result: Ended | None = None
    error: str = ""
    stored: bool = False  # it was over before this run


OnAdvance = Callable[[Advance], None]


@dataclass
class Outcome(Generic[Result]):
    """The jobs that are over, in the order of the plan, and the errors of the others by key."""

    results: list[Result] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def run_tasks(plan: Place, tasks: Sequence[Job], on_advance: OnAdvance) -> Outcome[SessionResult]:
    """Run the sessions that have no result yet. Raises SessionError if another process runs jobs in `plan.out`."""
    return run_jobs(plan, tasks, SESSIONS, on_advance)


def run_jobs(plan: Place, tasks: Sequence[Job], kind: Kind[Result], on_advance: OnAdvance) -> Outcome[Result]:
    """Run the jobs of a kind that have no result yet. Raises SessionError as `run_tasks`."""
    runner = _Runner(plan, kind, on_advance)
    with locked(plan.out / "compare.lock"):
        return runner.run(tasks)


class _Runner(Generic[Result]):
    def __init__(self, plan: Place, kind: Kind[Result], on_advance: OnAdvance) -> None:
        self._plan = plan
        self._kind = kind
        self._advance = on_advance
        self._inputs: set[IO[bytes]] = set()  # closing one ends its process
        self._over = False

    def run(self, tasks: Sequence[Job]) -> Outcome[Result]:
        pool = ThreadPoolExecutor(self._plan.jobs)
        results: dict[str, Result] = {}
        try:
            futures = {pool.submit(self._job, task, results): task for task in tasks}
            pending = set(futures)
            while pending:  # wakes up regularly, because Ctrl-C may be delivered to another thread
                done, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
                for future in done:
                    self._advance(future.result())
            return _outcome(tasks, {futures[future].key: future for future in futures}, results)
        finally:
            self._end()
            pool.shutdown(cancel_futures=True)

    def _end(self) -> None:
        """End the sessions that still run; a session that starts from now on is ended at once."""
        self._over = True
        for pipe in list(self._inputs):
            pipe.close()

    def _job(self, task: Job, results: dict[str, Result]) -> Advance:
        home = Path(task.home)
        found = self._kind.stored(home)
        if found is not None:
            results[task.key] = found
            return Advance(task, found.num_trials, found, stored=True)
        lay_out(home, self._plan.home, task.linked)
        code = self._process(task, home)
        result = self._kind.stored(home) if code == 0 else None
        if result is None:
            return Advance(task, error=_error(home, code))
        results[task.key] = result
        return Advance(task, result.num_trials, result)

    def _process(self, task: Job, home: Path) -> int:
        variables = {**os.environ, "OMP_NUM_THREADS": str(task.threads or os.cpu_count()), "OMP_WAIT_POLICY": "PASSIVE"}
        with (
            (home / LOG).open("wb") as log,
            subprocess.Popen(
                [sys.executable, "-P", "-m", self._kind.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=variables,
                start_new_session=os.name == "posix",  # so that Ctrl-C reaches only this process
            ) as process,
        ):
            assert process.stdin is not None and process.stdout is not None
            self._inputs.add(process.stdin)
            with contextlib.suppress(BrokenPipeError):  # it ended at once; its log says why
                process.stdin.write(task.model_dump_json().encode() + b"\n")
                process.stdin.flush()
            if self._over:
                process.stdin.close()
            for line in process.stdout:
                self._report(task, line)
            self._inputs.discard(process.stdin)
        return process.returncode

    def _report(self, task: Job, line: bytes) -> None:
        """A line of a session's standard output; libraries may print there as well."""
        try:
            trials = json.loads(line)["trials"]
        except (ValueError, TypeError, KeyError):
            return
        self._advance(Advance(task, int(trials)))


def _outcome(
    tasks: Sequence[Job], futures: dict[str, Future[Advance]], results: dict[str, Result]
) -> Outcome[Result]:
    failures = {task.key: futures[task.key].result().error for task in tasks if task.key not in results}
    return Outcome([results[task.key] for task in tasks if task.key in results], failures)


def _error(home: Path, code: int) -> str:
    """The last line that a failed session wrote to its log."""
    lines = (home / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"its process ended with code {code}; see {home / LOG}"

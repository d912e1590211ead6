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
from typing import IO

from .homes import lay_out
from .lock import locked
from .outcome import SessionResult, stored_result
from .plan import Plan
from .task import Task

MODULE = "virtualmle.compare.session"
LOG = "session.log"
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Advance:
    """A session has finished trial number `trials`, or is over; `result` and `error` say how."""

    task: Task
    trials: int = 0
    result: SessionResult | None = None
    error: str = ""
    stored: bool = False  # it was over before this run


OnAdvance = Callable[[Advance], None]


@dataclass
class Outcome:
    """The sessions that are over, in the order of the plan, and the errors of the others by key."""

    results: list[SessionResult] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def run_tasks(plan: Plan, tasks: Sequence[Task], on_advance: OnAdvance) -> Outcome:
    """Run the tasks that have no result yet. Raises SessionError if another process runs sessions in `plan.out`."""
    runner = _Runner(plan, on_advance)
    with locked(plan.out / "compare.lock"):
        return runner.run(tasks)


class _Runner:
    def __init__(self, plan: Plan, on_advance: OnAdvance) -> None:
        self._plan = plan
        self._advance = on_advance
        self._inputs: set[IO[bytes]] = set()  # closing one ends its process
        self._over = False

    def run(self, tasks: Sequence[Task]) -> Outcome:
        pool = ThreadPoolExecutor(self._plan.jobs)
        try:
            futures = {pool.submit(self._session, task): task for task in tasks}
            pending = set(futures)
            while pending:  # wakes up regularly, because Ctrl-C may be delivered to another thread
                done, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
                for future in done:
                    self._advance(future.result())
            return _outcome(tasks, {futures[future].key: future for future in futures})
        finally:
            self._end()
            pool.shutdown(cancel_futures=True)

    def _end(self) -> None:
        """End the sessions that still run; a session that starts from now on is ended at once."""
        self._over = True
        for pipe in list(self._inputs):
            pipe.close()

    def _session(self, task: Task) -> Advance:
        home = Path(task.home)
        found = stored_result(home)
        if found is not None:
            return Advance(task, len(found.trials), found, stored=True)
        lay_out(home, self._plan.home, "" if task.replay else task.dataset)
        code = self._process(task, home)
        result = stored_result(home) if code == 0 else None
        return Advance(task, len(result.trials) if result else 0, result, "" if result else _error(home, code))

    def _process(self, task: Task, home: Path) -> int:
        variables = {**os.environ, "OMP_NUM_THREADS": str(task.threads or os.cpu_count()), "OMP_WAIT_POLICY": "PASSIVE"}
        with (
            (home / LOG).open("wb") as log,
            subprocess.Popen(
                [sys.executable, "-P", "-m", MODULE],
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

    def _report(self, task: Task, line: bytes) -> None:
        """A line of a session's standard output; libraries may print there as well."""
        try:
            trials = json.loads(line)["trials"]
        except (ValueError, TypeError, KeyError):
            return
        self._advance(Advance(task, int(trials)))


def _outcome(tasks: Sequence[Task], futures: dict[str, Future[Advance]]) -> Outcome:
    outcome = Outcome()
    for task in tasks:
        last = futures[task.key].result()
        if last.result is not None:
            outcome.results.append(last.result)
        else:
            outcome.failures[task.key] = last.error
    return outcome


def _error(home: Path, code: int) -> str:
    """The last line that a failed session wrote to its log."""
    lines = (home / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"its process ended with code {code}; see {home / LOG}"

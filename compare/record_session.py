"""The sessions of a record on one dataset: `python -P -m virtualmle.compare.record_session`.

As in `compare/session.py`, the task is the first line of standard input, and the agent acts over an MCP connection to
a server in this process. All sessions are in one home, because the members of the ensemble come from the others. No
session is finalized before every session has run its trials, so that no choice is made after a look. What has been
done is read from the home: the n-th session of the home is the n-th part of the record.

Students learn from the best models that all sessions have trained before their first students. The steps from the first
student of a session on therefore run when every session has run the steps before it. Which models these are does not
depend on where the record was interrupted.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mcp import Client
from mcp.types import Implementation

from .. import __version__
from ..agents.base import Agent
from ..agents.ensembles import WITHIN
from ..agents.events import Confirming, Event, TrialFinished
from ..agents.loop import run_agent, run_trials
from ..agents.recipe import RecipeAgent, Recipes, Step
from ..data.errors import ConfigError, VirtualMLEError
from ..data.wording import counted
from ..memory.records import SessionRecord, TrialRecord
from ..memory.store import Memory
from ..models.knobs.trial_names import ENSEMBLE, MAX_MEMBERS, MIN_MEMBERS, TEACHERS
from ..server.app import build_server
from ..tools.cognition import best_first
from ..tools.workspace import Settings
from .outcome import PROGRESS, RESULT, Progress, store, stored_progress
from .record_outcome import read_record
from .record_task import Part, RecordTask
from .session import WARM_SECONDS, run_process

SAVE_SECONDS = 1.0
"""How often the time is written at most."""


class Watch:
    """Keeps the time on the clock on disk as it passes, because this process may end at any moment, and reports on
    standard output, one JSON line each, how many trials and repetitions of all sessions are over."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = home / PROGRESS
        self._clock = clock
        self._started = self._saved = clock()
        self._earlier = stored_progress(home).wall_seconds  # of earlier processes
        self._counts: dict[str, int] = {}  # trials by session, and repetitions by confirmation
        self._part = ""

    def begin(self, part: str) -> None:
        """The events that follow are those of the session, or of the confirmation, with this name."""
        self._part = part

    def __call__(self, event: Event) -> None:
        """Take note of one event."""
        if self._clock() - self._saved >= SAVE_SECONDS:
            self.save()
        if isinstance(event, TrialFinished):
            self._counts[self._part] = event.observation.budget.trials_used
        elif isinstance(event, Confirming):
            self._counts[self._part] = int(event.done)
        else:
            return
        print(json.dumps({"trials": sum(self._counts.values())}), flush=True)

    def save(self) -> None:
        """Write the time so far."""
        self._saved = self._clock()
        store(Progress(wall_seconds=self._earlier + self._saved - self._started), self._path)


def run(task: RecordTask) -> None:
    """Run the sessions of `task` to their ends, from wherever an earlier process left them, and store the result."""
    home, parts = Path(task.home), task.parts()
    watch = Watch(home)
    try:
        for number, part in enumerate(parts):
            if not part.is_ensemble:
                watch.begin(part.name)
                _run_trials(task, number, part.before_students(), len(parts), watch)
        for number, part in enumerate(parts):
            watch.begin(part.name)
            _run_trials(task, number, part, len(parts), watch)
        for number, part in enumerate(parts):
            watch.begin(f"confirmation of {part.name}")
            _finalize(task, number, part, len(parts), watch)
    finally:
        watch.save()
    store(read_record(task, parts), home / RESULT)


def _run_trials(task: RecordTask, number: int, part: Part, sessions: int, watch: Watch) -> None:
    """Run the trials of a session, which is opened unless it is there, and leave it open."""
    known = _sessions(task)
    record = known[number] if number < len(known) else None
    if record is not None and record.state != "open":
        return
    models: tuple[str, ...] = ()
    if part.is_ensemble:
        models = best_models(task, known[:number], MIN_MEMBERS, MAX_MEMBERS)
    elif any(step.teachers for step in part.steps):
        models = best_models(task, known, 1, MAX_MEMBERS, students=False)
    agent = _agent(part, models)
    _drive(task, part, agent, record.id if record else None, sessions, watch, finalizes=False)


def _finalize(task: RecordTask, number: int, part: Part, sessions: int, watch: Watch) -> None:
    """Confirm the best trial of a session, and take its look, unless that is over."""
    record = _sessions(task)[number]
    if record.state not in ("revealed", "void"):
        _drive(task, part, _agent(part, ()), record.id, sessions, watch, finalizes=True)


def _agent(part: Part, models: Sequence[str]) -> RecipeAgent:
    """models: the members of the ensemble, or those that may be teachers of students, the best first."""
    first = (Step({ENSEMBLE: list(models)}),) if part.is_ensemble else ()
    return RecipeAgent(Recipes({part.backbone: (*first, *(_with_teachers(step, models) for step in part.steps))}, {}))


def _with_teachers(step: Step, models: Sequence[str]) -> Step:
    if not step.teachers:
        return step
    return replace(step, changes={**step.changes, TEACHERS: list(models[: step.teachers])}, teachers=0)


def best_models(
    task: RecordTask, sessions: Sequence[SessionRecord], fewest: int, most: int, *, students: bool = True
) -> tuple[str, ...]:
    """The best trials of the sessions, one per trained model, by validation NDCG@10.

    The plain default is none of them. Beyond the `fewest`, a model that is much weaker than the best one is left out,
    because it would pull the mean down. Raises ConfigError for fewer.

    students: whether students, and the trials of a session after its first student, are chosen from as well.
    """
    found: dict[tuple[str, str], TrialRecord] = {}
    with Memory(Path(task.home) / "memory.db") as memory:
        by_session = [memory.trials.all(session.id) for session in sessions]
    trials = [trial for own in by_session for trial in (own if students else _before_students(own))]
    plain = {(trial.session, trial.train_hash) for trial in trials if not trial.changed}
    for trial in best_first(trials):
        if (model := (trial.session, trial.train_hash)) not in plain:
            found.setdefault(model, trial)
    ranked = [(trial, trial.outcome.metrics["ndcg@10"]) for trial in found.values() if trial.outcome]
    good = [trial for trial, ndcg in ranked if ndcg >= (1 - WITHIN) * ranked[0][1]]
    chosen = [trial for trial, _ in ranked][: max(fewest, min(len(good), most))]
    if len(chosen) < fewest:
        raise ConfigError(
            f"{task.dataset} has {counted(len(chosen), 'trained model')} of the {fewest} that are needed; see the "
            "errors of the other trials, or leave --ensemble or the students of the recipes out"
        )
    return tuple(f"{trial.session}/{trial.handle}" for trial in chosen)


def _before_students(trials: Sequence[TrialRecord]) -> Iterator[TrialRecord]:
    """The trials of a session before its first student; none of an ensemble."""
    return itertools.takewhile(lambda trial: not trial.uses_models, trials)


def _drive(  # noqa: PLR0913, PLR0917 - private, called twice
    task: RecordTask, part: Part, agent: Agent, session: str | None, sessions: int, watch: Watch, *, finalizes: bool
) -> None:
    settings = _settings(task, sessions)
    refusal = asyncio.run(_connected(task, part, agent, session, settings, watch, finalizes))
    if refusal is not None:
        raise refusal


async def _connected(  # noqa: PLR0913, PLR0917 - as above
    task: RecordTask,
    part: Part,
    agent: Agent,
    session: str | None,
    settings: Settings,
    watch: Watch,
    finalizes: bool,
) -> VirtualMLEError | None:
    """Returns a refusal instead of raising it: the client's task groups would wrap it."""
    info = Implementation(name="virtualmle-recipe", version=__version__)
    async with Client(build_server(Path(task.home), settings), client_info=info) as client:
        play = run_agent if finalizes else run_trials
        try:
            await play(
                client, agent, task.dataset, part.backbone, session=session, new=session is None, on_event=watch
            )
        except VirtualMLEError as error:
            return error
    return None


def _settings(task: RecordTask, sessions: int) -> Settings:
    """The settings of the server; it opens no more sessions than the record has."""
    return Settings(
        seed=task.seed,
        max_sessions=sessions,
        parallel=task.parallel,
        device=task.device,
        threads=task.threads,
        keep_warm=WARM_SECONDS,
        protocol_path=Path(task.page),
    )


def _sessions(task: RecordTask) -> list[SessionRecord]:
    with Memory(Path(task.home) / "memory.db") as memory:
        return memory.sessions.all()


if __name__ == "__main__":
    run_process(RecordTask, run)

"""One session of a comparison, in a process of its own: `python -P -m virtualmle.compare.session`.

The task is the first line of standard input. As in `virtualmle tune`, `run_agent` drives the agent over an MCP
connection; the server is in this process, which saves starting a second one. The process ends when its standard input
is closed, so none survives a comparison that was killed. All that is needed to go on is in the home: the next process
resumes there.
"""

import asyncio
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

from mcp import Client
from mcp.types import Implementation

from .. import __version__
from ..agents.base import Action, Agent, Finalize, Situation
from ..agents.events import Event, TrialFinished, TrialRefused
from ..agents.llm.messages import LanguageModel
from ..agents.loop import run_agent
from ..agents.registry import AgentOptions, make_agent
from ..data.errors import VirtualMLEError
from ..memory.portable import merge, read_cognition
from ..server.app import build_server
from ..tools.finalize import freeze
from ..tools.workspace import Settings, Workspace
from ..trials.warm import retire
from .lock import locked
from .models import asked
from .outcome import PROGRESS, RESULT, Progress, own_session, read_outcome, store, stored_progress
from .task import Job, Task

AnyJob = TypeVar("AnyJob", bound=Job)

WARM_SECONDS = 60.0
ORPHANED, FAILED = 130, 1
LOCK_SECONDS = 60.0
"""How long to wait for the process of a killed comparison to end."""


class SessionOver(Exception):
    """The agent wants to finalize; raised in place of its action."""

    def __init__(self, action: Finalize) -> None:
        super().__init__(action.summary)
        self.action = action


class UntilFinalize(Agent):
    """An agent that stops before it finalizes, which would open the test set."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent.seed)
        self.corrects = agent.corrects
        self._agent = agent

    def act(self, situation: Situation) -> Action:
        """The agent's action."""
        return self._agent.act(situation)

    async def decide(self, situation: Situation) -> Sequence[Action]:
        """The agent's actions up to a Finalize; raises SessionOver if that is the first one."""
        actions = await self._agent.decide(situation)
        if isinstance(actions[0], Finalize):
            raise SessionOver(actions[0])
        return tuple(itertools.takewhile(lambda action: not isinstance(action, Finalize), actions))


class Watch:
    """Keeps the progress of a session on disk and reports finished trials on standard output, one JSON line each."""

    def __init__(self, home: Path) -> None:
        self._path = home / PROGRESS
        self._started = time.monotonic()
        self._before = stored_progress(home)
        self._refused = dict.fromkeys(self._before.refused)
        self._duplicates = dict.fromkeys(self._before.duplicates)
        self._trials = 0

    def __call__(self, event: Event) -> None:
        """Take note of one event."""
        if isinstance(event, TrialRefused):
            kind = self._duplicates if event.reason.startswith("already tried") else self._refused
            changes = json.dumps(event.action.changes, sort_keys=True, default=str)
            kind[f"after {self._trials} over {event.action.base}: {changes}"] = None
        if isinstance(event, TrialFinished):
            self._trials = int(event.observation.trial.removeprefix("t"))
            print(json.dumps({"trials": event.observation.budget.trials_used}), flush=True)
        if isinstance(event, TrialRefused | TrialFinished):
            self.save()

    def save(self) -> None:
        """Write the progress so far."""
        seconds = self._before.wall_seconds + time.monotonic() - self._started
        progress = Progress(wall_seconds=seconds, refused=tuple(self._refused), duplicates=tuple(self._duplicates))
        store(progress, self._path)


def settings_of(task: Task, agent: Agent) -> Settings:
    """The settings of the server of a session."""
    return Settings(
        seed=task.seed,
        with_reflection=task.with_reflection and agent.reflects,
        with_memory=task.with_memory,
        device=task.device,
        threads=task.threads,
        keep_warm=0.0 if task.replay else WARM_SECONDS,
        protocol_path=Path(task.page),
        replay=Path(task.replay) if task.replay else None,
    )


def run(task: Task) -> None:
    """Run the session of `task` to its end, from wherever an earlier process left it, and store its result."""
    home = Path(task.home)
    with _model(task) as model:
        agent = make_agent(task.agent, task.seed, _options(task, model))
        _run(task, home, agent)


def _model(task: Task) -> AbstractContextManager[LanguageModel | None]:
    return asked(task.model, Path(task.home)) if task.model.name else nullcontext()


def _options(task: Task, model: LanguageModel | None) -> AgentOptions:
    return AgentOptions(
        task.seed,
        task.seeding,
        model,
        task.model.driver,
        task.model.max_steps,
        Path(task.home) / ".virtualmle" / "sessions",
    )


def _run(task: Task, home: Path, agent: Agent) -> None:
    settings = settings_of(task, agent)
    ws = Workspace.open(home, settings=settings)
    with ws.memory:
        session = own_session(ws.memory)
        if session is None and task.cognition:
            merge(ws.memory, read_cognition(Path(task.cognition)))
    watch = Watch(home)
    if session is None or session.state == "open":
        asyncio.run(_play(task, settings, agent, watch))
    elif session.state in ("frozen", "attempted") and task.look and not task.replay:
        asyncio.run(_finalize(task, settings, session.id))
    watch.save()
    store(read_outcome(task), home / RESULT)


async def _play(task: Task, settings: Settings, agent: Agent, watch: Callable[[Event], None]) -> None:
    """Let the agent play the session; without a look, freeze it where the agent wants to finalize."""
    player = agent if task.look else UntilFinalize(agent)
    over: SessionOver | None = None
    refusal: VirtualMLEError | None = None
    async with _client(task, settings) as client:
        try:
            await run_agent(client, player, task.dataset, task.backbone, on_event=watch)
        except SessionOver as ended:  # handled here, because the client's task groups would wrap it
            over = ended
        except VirtualMLEError as error:
            refusal = error
    if over is not None:
        _freeze(task, settings, over.action)
    elif refusal is not None:
        raise refusal


def _freeze(task: Task, settings: Settings, action: Finalize) -> None:
    ws = Workspace.open(Path(task.home), settings=settings)
    with ws.memory:
        session = own_session(ws.memory)
        assert session is not None  # the agent has just played it
        for inbox in ws.inboxes(session):
            retire(inbox)
        freeze(ws, session, action.summary, list(action.rules))


async def _finalize(task: Task, settings: Settings, session: str) -> None:
    """Take the look of a session whose process died after the freeze; its summary is stored already."""
    arguments = {"session": session, "cognition_summary": "frozen already", "confirm": True}
    async with _client(task, settings) as client:
        await client.call_tool("finalize", arguments)  # a refusal means that the look is used; the state says so


def _client(task: Task, settings: Settings) -> Client:
    info = Implementation(name=f"virtualmle-{task.agent}", version=__version__)
    return Client(build_server(Path(task.home), settings), client_info=info)


def end_with_parent() -> None:
    """End this process as soon as its standard input is closed; a running trial goes on and is found again."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):  # not sys.stdin.read(): its lock would be held at a normal exit
            pass
        os._exit(ORPHANED)

    threading.Thread(target=wait, daemon=True).start()


def run_process(kind: type[AnyJob], run: Callable[[AnyJob], None]) -> None:
    """Run the job of this kind that is the first line of standard input, alone in its home.

    The exit code is 1, with one line on standard error, for a user's mistake.
    """
    job = kind.model_validate_json(sys.stdin.buffer.readline())
    end_with_parent()
    try:
        with locked(Path(job.home) / "session.lock", LOCK_SECONDS):
            run(job)
    except VirtualMLEError as error:
        print(f"{' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(FAILED)


if __name__ == "__main__":
    run_process(Task, run)

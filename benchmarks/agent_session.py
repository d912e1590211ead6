"""One session of bench_agents.py in a process of its own: reads a task on stdin, writes what came of it.

The agent is driven by `run_agent` over a real MCP connection to a server in this process, as `virtualmle tune` drives
it. When it wants to finalize, the session ends: no test set is opened. With "freeze" the session is frozen, so
that later sessions may draw on it.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcp import Client
from mcp.types import Implementation

from virtualmle.agents.base import Action, Agent, Finalize, Situation
from virtualmle.agents.events import Event, TrialFinished
from virtualmle.agents.loop import run_agent
from virtualmle.agents.registry import make_agent
from virtualmle.data.atomic import write_json
from virtualmle.memory.records import TrialRecord
from virtualmle.server.app import build_server
from virtualmle.tools.finalize import freeze
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.trials.warm import retire

WARM_SECONDS = 60.0


class Over(Exception):
    """The agent wants to finalize."""

    def __init__(self, action: Finalize) -> None:
        super().__init__(action.summary)
        self.action = action


class UntilFinalize(Agent):
    """An agent that is stopped where it would ask for the test set."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent.seed)
        self._agent = agent

    def act(self, situation: Situation) -> Action:
        """What the agent does; Over instead of Finalize."""
        action = self._agent.act(situation)
        if isinstance(action, Finalize):
            raise Over(action)
        return action


async def play(task: Mapping[str, Any], settings: Settings) -> Over:
    """Run the session of `task` until the agent has nothing left to do, taking up what an earlier process left."""

    def tell(event: Event) -> None:
        if isinstance(event, TrialFinished):
            seen = event.observation
            figure = seen.metrics.get("ndcg@10", 0.0)
            line = f"{task['name']} {seen.trial} {figure:.5f} {seen.verdict} {seen.changes}"
            print(line, file=sys.stderr, flush=True)

    server = build_server(Path(task["home"]), settings)
    agent = UntilFinalize(make_agent(task["agent"], task["seed"]))
    async with Client(server, client_info=Implementation(name=f"virtualmle-{task['agent']}", version="1")) as client:
        try:
            await run_agent(client, agent, task["dataset"], task["backbone"], on_event=tell)
        except Over as over:
            ended = over  # returned outside: the client's task groups would wrap it in a group of exceptions
    return ended


def trial_row(trial: TrialRecord) -> dict[str, Any]:
    """What the benchmark keeps of a trial."""
    outcome = trial.outcome
    return {
        "trial": trial.handle,
        "base": trial.base,
        "changes": trial.changes,
        "verdict": outcome.verdict if outcome else None,
        "ndcg@10": outcome.metrics.get("ndcg@10") if outcome else None,
        "reason": trial.hypothesis.reason if trial.hypothesis else "",
    }


def main() -> None:
    """Play the session of the task on stdin."""
    task = json.load(sys.stdin)
    home = Path(task["home"])
    chosen = {**task["settings"], "threads": 1, "keep_warm": WARM_SECONDS, "seed": task["seed"]}
    settings = Settings(**chosen, max_trials=task["trials"], protocol_path=Path(task["sandbox"]))
    started = time.perf_counter()
    ended = asyncio.run(play(task, settings))
    ws = Workspace.open(home, settings=settings)
    with ws.memory:
        session = ws.memory.sessions.all()[-1]
        retire(ws.inbox(session.id))
        trials = [trial_row(trial) for trial in ws.memory.trials.all(session.id)]
        if task["freeze"] and session.state == "open":
            freeze(ws, session, ended.action.summary, list(ended.action.rules))
    seconds = round(time.perf_counter() - started, 1)
    kept = {name: task[name] for name in ("name", "arm", "dataset", "backbone", "agent", "seed")}
    write_json(Path(task["result"]), {**kept, "seconds": seconds, "trials": trials, "summary": ended.action.summary})


if __name__ == "__main__":
    main()

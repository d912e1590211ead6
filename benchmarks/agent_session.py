"""One session of bench_agents.py, in a separate process: reads a task from standard input and writes a result file.

As in `virtualmle tune`, `run_agent` drives the agent over a real MCP connection to a server in this process. The
session ends when the agent wants to finalize, so that no test set is opened. With "freeze" the session is then frozen,
so that later sessions can use its memory.
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


class SessionOver(Exception):
    """The agent wants to finalize; raised in place of its action."""

    def __init__(self, action: Finalize) -> None:
        super().__init__(action.summary)
        self.action = action


class UntilFinalize(Agent):
    """An agent that stops before it finalizes, which would open the test set."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent.seed)
        self._agent = agent

    def act(self, situation: Situation) -> Action:
        """The agent's action; raises SessionOver instead of returning Finalize."""
        action = self._agent.act(situation)
        if isinstance(action, Finalize):
            raise SessionOver(action)
        return action


async def run_session(task: Mapping[str, Any], settings: Settings) -> SessionOver:
    """Run the session of `task` until the agent wants to finalize; resumes the session of an earlier process."""

    def print_trial(event: Event) -> None:
        if isinstance(event, TrialFinished):
            trial = event.observation
            ndcg = trial.metrics.get("ndcg@10", 0.0)
            line = f"{task['name']} {trial.trial} {ndcg:.5f} {trial.verdict} {trial.changes}"
            print(line, file=sys.stderr, flush=True)

    server = build_server(Path(task["home"]), settings)
    agent = UntilFinalize(make_agent(task["agent"], task["seed"]))
    async with Client(server, client_info=Implementation(name=f"virtualmle-{task['agent']}", version="1")) as client:
        try:
            await run_agent(client, agent, task["dataset"], task["backbone"], on_event=print_trial)
        except SessionOver as over:
            ended = over  # caught here, because the client's task groups would wrap it in an exception group
    return ended


def trial_row(trial: TrialRecord) -> dict[str, Any]:
    """The fields of a trial that the benchmark stores."""
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
    """Run the session of the task on standard input and write its result file."""
    task = json.load(sys.stdin)
    home = Path(task["home"])
    options = {**task["settings"], "threads": 1, "keep_warm": WARM_SECONDS, "seed": task["seed"]}
    settings = Settings(**options, max_trials=task["trials"], protocol_path=Path(task["sandbox"]))
    started = time.perf_counter()
    ended = asyncio.run(run_session(task, settings))
    ws = Workspace.open(home, settings=settings)
    with ws.memory:
        session = ws.memory.sessions.all()[-1]
        retire(ws.inbox(session.id))
        trials = [trial_row(trial) for trial in ws.memory.trials.all(session.id)]
        if task["freeze"] and session.state == "open":
            freeze(ws, session, ended.action.summary, list(ended.action.rules))
    seconds = round(time.perf_counter() - started, 1)
    about = {name: task[name] for name in ("name", "arm", "dataset", "backbone", "agent", "seed")}
    write_json(Path(task["result"]), {**about, "seconds": seconds, "trials": trials, "summary": ended.action.summary})


if __name__ == "__main__":
    main()

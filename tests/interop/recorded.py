"""Prints what the memory of a home has recorded of its one session, as JSON: `python -P recorded.py HOME`."""

import json
import sys
from pathlib import Path
from typing import Any

from virtualmle.tools.workspace import Settings, Workspace


def recorded(home: Path) -> dict[str, Any]:
    """State, trials with their reflections, summary and rules of the home's session."""
    ws = Workspace.open(home, settings=Settings())
    [session] = ws.memory.sessions.all()
    lessons = {reflection.trial: reflection.lesson for reflection in ws.memory.reflections.all(session.id)}
    trials = [
        {
            "status": trial.status,
            "changes": trial.changes,
            "hypothesis": trial.hypothesis.model_dump() if trial.hypothesis else None,
            "lesson": lessons.get(trial.handle),
        }
        for trial in ws.memory.trials.all(session.id)
    ]
    summaries = [summary.text for summary in ws.memory.knowledge().latest_summaries()]
    rules = [rule.statement for rule in ws.memory.rules.all()]
    return {"state": session.state, "trials": trials, "summaries": summaries, "rules": rules}


if __name__ == "__main__":
    print(json.dumps(recorded(Path(sys.argv[1]))))

"""A session over a synthetic response surface, described as the tools would: for tests of planning without training.

Only the scores are synthetic. The action space, the keep rule, duplicates and patience are those of the sandbox.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter

from virtualmle.agents.base import (
    Action,
    Agent,
    Brief,
    Finalize,
    Outcome,
    ReadMemory,
    Reflect,
    Refusal,
    RunTrial,
    Situation,
    WaitTrial,
)
from virtualmle.data.errors import ConfigError
from virtualmle.models.config import TrialConfig
from virtualmle.sandbox.action_space import effective
from virtualmle.sandbox.conditions import parse_condition
from virtualmle.sandbox.program import Stop
from virtualmle.sandbox.protocol import load_protocol
from virtualmle.tools.knob_entries import knob_rows
from virtualmle.tools.results import Budget
from virtualmle.tools.views import PriorEntry, StateView, TrajectoryView

SPACE = load_protocol().space
SE = 0.0005
PRIOR = TypeAdapter(list[PriorEntry])
Surface = Callable[[TrialConfig], float]


def smooth(config: TrialConfig) -> float:
    """NDCG@10 with a maximum at lr 1e-3, dropout .35, transition_weight 8, full_softmax; other knobs have no effect."""
    score = 0.05
    score -= 0.004 * abs(math.log10(config.lr / 1e-3))
    score -= 0.01 * abs(config.dropout - 0.35)
    score += 0.006 * math.exp(-(((config.transition_weight - 8) / 8) ** 2))
    return score + (0.003 if config.loss == "full_softmax" else 0.0)


class World:
    """One session. `act` applies an agent's action; `situation` is what the tools would return now."""

    raced = False  # whether every second trial that would not be kept is stopped early

    def __init__(
        self,
        surface: Surface = smooth,
        *,
        backbone: str = "sasrec",
        trials_max: int = 30,
        patience: int = 1000,
        knobs: set[str] | None = None,
        prior: list[dict[str, Any]] | None = None,
        reflection: bool = True,
        avoid: str | None = None,
        memory: bool = True,
        known: dict[str, Any] | None = None,  # history_effects, proposals
    ) -> None:
        self.surface, self.backbone, self.trials_max, self.patience = surface, backbone, trials_max, patience
        self.space = SPACE.model_copy(
            update={"entries": tuple(k for k in SPACE.entries if knobs is None or k.name in knobs)}
        )
        self.prior, self.reflection, self.memory = PRIOR.validate_python(prior or []), reflection, memory
        self.known = {"history_effects": {}, "proposals": [], **(known or {})}
        self.avoid = parse_condition(avoid) if avoid else None
        self.trials: list[dict[str, Any]] = []
        self.configs: dict[str, TrialConfig] = {}
        self.reflections: list[Reflect] = []
        self.refused: list[Refusal] = []
        self.outcomes: list[Outcome] = []
        self.incumbent: str | None = None
        self.running: str | None = None
        self.over: Finalize | None = None

    def execute(self, actions: Sequence[Action], *, corrects: bool = False) -> None:
        """Do what the loop would do: execute in order until one is refused.

        corrects: an invalid configuration is refused, because the agent reads the reason; otherwise it is an error.
        """
        for action in actions:
            before = len(self.refused)
            try:
                self.act(action)
            except ConfigError as error:
                if not corrects or not isinstance(action, RunTrial):
                    raise
                self.refused.append(Refusal(action.changes, action.base, str(error)))
            refused = isinstance(action, RunTrial) and bool(self.refused) and len(self.refused) != before
            text = self.refused[-1].reason if refused else str(self.trials[-1] if self.trials else "done")
            self.outcomes.append(Outcome(action, text, refused))
            if refused:
                return

    def act(self, action: Action) -> None:
        """Do what the server would do; invalid actions raise an error, as there."""
        match action:
            case RunTrial():
                self._run(action)
            case Reflect():
                assert action.trial == self._pending()
                self._row(action.trial)["reflected"] = True
                self.reflections.append(action)
            case WaitTrial(trial):
                assert trial == self.running
                self.running = None
            case ReadMemory():
                assert action.view  # it changes nothing; the outcome has what it returns
            case Finalize():
                self.over = action

    def base_name(self, name: str) -> str:
        """The handle of a base, or "default"."""
        handle = self.incumbent if name == "incumbent" else name
        return handle if handle in self.configs else "default"

    def base(self, name: str) -> TrialConfig:
        """The configuration of a base."""
        handle = self.base_name(name)
        return self.configs[handle] if handle in self.configs else self.space.default(self.backbone)

    def _run(self, action: RunTrial) -> None:
        assert self.running is None and self._pending() is None and not self._stop()
        base = self.base(action.base)
        config = self.space.resolve(base, action.changes)
        if any(effective(config) == effective(other) for other in self.configs.values()):
            self.refused.append(Refusal(action.changes, action.base, "already tried"))
        elif self.avoid and self.avoid.matches(config) and not (self.avoid.matches(base) or action.override):
            self.refused.append(Refusal(action.changes, action.base, "a discard heuristic applies"))
        else:
            self.refused.clear()
            self._finish(action, base, config)

    def _finish(self, action: RunTrial, base: TrialConfig, config: TrialConfig) -> None:
        handle = f"t{len(self.trials) + 1:03d}"
        score, first = self.surface(config), not self.trials
        row = {
            "trial": handle, "number": len(self.trials) + 1, "changes": action.changes,
            "base": self.base_name(action.base),
            "settings": self.space.differences(config), "reflected": False,
        }  # fmt: skip
        if math.isnan(score):
            row |= {"status": "crashed", "verdict": "crash", "metrics": {}}
        else:
            best = self.surface(self.configs[self.incumbent]) if self.incumbent else None
            verdict = "keep" if best is None or (score - best) / SE >= 1 else "discard"
            delta = None if first else score - self.surface(base)
            row |= {
                "status": "finished", "verdict": verdict, "metrics": {"ndcg@10": score}, "ndcg10_se": SE,
                "base_delta": delta, "base_delta_se": None if delta is None else SE, "best_epoch": 9,
            }  # fmt: skip
            if self.raced and verdict == "discard" and len(self.trials) % 2:
                row |= _stopped(score + SE, score + SE - self.surface(base))
        self.trials.append(row)
        self.configs[handle] = config
        if row["verdict"] == "keep":
            self.incumbent = handle

    def _row(self, handle: str) -> dict[str, Any]:
        return next(row for row in self.trials if row["trial"] == handle)

    def _pending(self) -> str | None:
        finished = [row for row in self.trials if row["status"] in ("finished", "stopped")]
        return finished[-1]["trial"] if self.reflection and finished and not finished[-1]["reflected"] else None

    def _stop(self) -> str:
        kept = max((row["number"] for row in self.trials if row["verdict"] == "keep"), default=0)
        if len(self.trials) >= self.trials_max:
            return "all trials of the budget are used"
        return "patience" if len(self.trials) - kept >= self.patience else ""

    @property
    def situation(self) -> Situation:
        """The situation that an agent receives now."""
        budget = Budget(
            trials_used=len(self.trials), trials_max=self.trials_max, train_seconds_used=0.0, train_seconds_max=1e6
        )
        rows = knob_rows(self.space, self.backbone)
        knobs = [row.to_knob(self.backbone) for row in rows]
        brief = Brief("s", False, "d", self.backbone, budget, knobs, self.prior, {"users": 100})
        stop = self._stop()
        state = {
            "session": "s", "dataset": "d", "dataset_id": "d1", "backbone": self.backbone, "state": "open", "seed": 0,
            "with_reflection": self.reflection, "with_memory": self.memory, "memory_from": [],
            "budget": budget, "incumbent": self.incumbent, "incumbent_ndcg10": None, "default_trial": None,
            "best": [], "effects": {}, "untried": {}, "coverage": {}, **self.known,
            "pending_reflection": self._pending(), "running": self.running,
            "stop": {"stop": bool(stop), "reason": stop}, "next": "",
        }  # fmt: skip
        trajectory = {"session": "s", "trials": self.trials, "reflections": []}
        situation = Situation(
            brief, StateView.model_validate(state), TrajectoryView.model_validate(trajectory), tuple(self.refused),
            outcomes=tuple(self.outcomes),
        )  # fmt: skip
        return situation if self.memory else without_memory(situation)

    def play(self, agent: Any, limit: int = 400) -> "World":
        """Let an agent act until it finalizes."""
        for _ in range(limit):
            if self.over:
                return self
            self.execute(decide(agent, self.situation), corrects=agent.corrects)
        raise AssertionError(f"not finalized after {limit} actions")

    @property
    def best(self) -> float:
        """The best score reached."""
        return max(row["metrics"]["ndcg@10"] for row in self.trials if row["metrics"])


def _stopped(bound: float, delta: float) -> dict[str, Any]:
    """What the row of a stopped trial has, with the bounds of its NDCG@10 and of its difference to the base."""
    z = delta / SE if delta < 0 else None
    known = {
        "epoch": 3, "epochs": 20, "reached": bound / 2, "at_most": bound, "base_delta_at_most": delta,
        "base_z_at_most": z, "saved_seconds": 1.0,
    }  # fmt: skip
    unknown = {"metrics": {}, "ndcg10_se": None, "base_delta": None, "base_delta_se": None, "best_epoch": 3}
    return {**unknown, "status": "stopped", "verdict": "discard", "reason": "too low", "stopped": known}


def decide(agent: Agent, situation: Situation) -> Sequence[Action]:
    """The agent's next actions."""
    return asyncio.run(agent.decide(situation))  # type: ignore[arg-type]


def without_memory(situation: Situation) -> Situation:
    """The situation in a session without memory: no prior, no evidence in the state view, and the last trial only."""
    blank = {"best": [], "effects": {}, "history_effects": {}, "untried": {}, "coverage": {}, "proposals": []}
    trajectory = situation.trajectory
    last = {"trials": trajectory.trials[-1:], "reflections": trajectory.reflections[-1:]}
    return replace(
        situation,
        brief=replace(situation.brief, prior=[]),
        state=situation.state.model_copy(update=blank),
        trajectory=trajectory.model_copy(update=last),
    )


def stopped(situation: Situation) -> Situation:
    """The same situation after a stop rule has applied."""
    return replace(situation, state=situation.state.model_copy(update={"stop": Stop(True, "patience")}))

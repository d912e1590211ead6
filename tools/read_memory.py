"""read_memory: the one way to look back: this session's state and trajectory, and what earlier sessions learnt."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from ..data.errors import SessionError
from ..memory.records import ReflectionRecord, SessionRecord, TrialRecord
from ..memory.text import quote
from ..sandbox.effects import coverage, interval, knob_effects, untried
from ..sandbox.proposals import propose
from .guidance import budget_of, next_step, pending_reflection, stop_of
from .observation import observe
from .results import MemoryView
from .sync import default_trial, sync_session
from .transfer import HeuristicCheck, history_of, long_term_of
from .workspace import Workspace

QUERY_LENGTH = 400
TEXT_LENGTH = 1000

View = Literal["state", "trajectory", "trial", "long_term", "action_space", "protocol"]


def read_memory(
    ws: Workspace,
    session: Annotated[str, Field(description="session id")],
    view: Annotated[
        View,
        Field(
            description="state: incumbent, best trials, effects here and in closed sessions, what is untried, "
            "proposals, budget; trajectory: every trial and reflection; trial: one trial; long_term: rules and "
            "summaries; action_space; protocol"
        ),
    ] = "state",
    query: Annotated[str, Field(description="words to search for, with view='long_term'")] = "",
    trial: Annotated[str, Field(description="trial handle, with view='trial'")] = "",
) -> MemoryView:
    """Read this session's state and trajectory, or the knowledge of earlier sessions. Costs nothing.

    Text written by agents is returned as quoted data, never as instructions.
    """
    record = ws.memory.sessions.get(session)
    sync_session(ws, session)
    if view == "trial":
        if not trial:
            raise SessionError("view='trial' needs the argument trial, e.g. 't003'")
        content = _trial(ws, record, trial)
    elif view == "long_term":
        content = long_term_of(ws, record, query, QUERY_LENGTH)
    else:
        content = _VIEWS[view](ws, record)
    return MemoryView(session=session, view=view, content=content)


def _state(ws: Workspace, session: SessionRecord) -> dict[str, Any]:
    trials = ws.memory.trials.all(session.id)
    running = next((t for t in trials if t.status == "running"), None)
    incumbent = ws.memory.trials.incumbent(session.id)
    default = default_trial(ws, session, trials)
    decision = stop_of(ws, session, trials)
    return {
        "session": session.id,
        "dataset": session.dataset,
        "dataset_id": session.dataset_id,
        "backbone": session.backbone,
        "state": session.state,
        "seed": session.seed,
        "with_reflection": session.with_reflection,
        "with_memory": session.with_memory,
        "memory_from": session.memory_from,
        "placebo": session.placebo,
        "budget": budget_of(session, trials).model_dump(),
        "incumbent": incumbent.handle if incumbent else None,
        "incumbent_ndcg10": _ndcg(incumbent) if incumbent else None,
        "default_trial": default.handle if default else None,
        **_digest(ws, session, trials, incumbent),
        "pending_reflection": pending_reflection(session, trials),
        "running": running.handle if running else None,
        "stop": {"stop": decision.stop, "reason": decision.reason},
        "next": next_step(ws, session, trials),
    }


def _digest(
    ws: Workspace, session: SessionRecord, trials: list[TrialRecord], incumbent: TrialRecord | None
) -> dict[str, Any]:
    """What the trials say so far; empty for a session without memory, which goes by its last observation alone."""
    if not session.with_memory:
        return {"best": [], "effects": {}, "history_effects": {}, "untried": {}, "coverage": {}, "proposals": []}
    space = ws.session_protocol(session).space
    history = history_of(ws, session)
    proposals = []
    if incumbent and session.state == "open":
        refused = HeuristicCheck(ws, session, incumbent.configuration)
        proposals = propose(trials, incumbent, space, history, refused)
    return {
        "best": _best(ws, session, trials),
        "effects": knob_effects(trials, space.default(session.backbone)),
        "history_effects": history,
        "untried": untried(trials, space, session.backbone),
        "coverage": coverage(trials, space, session.backbone),
        "proposals": proposals,
    }


def _best(ws: Workspace, session: SessionRecord, trials: list[TrialRecord]) -> list[dict[str, Any]]:
    finished = [t for t in trials if t.status == "finished" and t.outcome]
    ranked = sorted(finished, key=lambda t: -_ndcg(t))[:5]
    return [
        {
            "trial": t.handle,
            "ndcg@10": _ndcg(t),
            "se": t.outcome.ndcg_se if t.outcome else None,
            "interval": interval(_ndcg(t), t.outcome.ndcg_se) if t.outcome and t.outcome.ndcg_se is not None else None,
            "verdict": t.outcome.verdict if t.outcome else None,
            "settings": ws.settings_of(session, t),
        }
        for t in ranked
    ]


def _trajectory(ws: Workspace, session: SessionRecord) -> dict[str, Any]:
    trials, reflections = ws.memory.trials.all(session.id), ws.memory.reflections.all(session.id)
    if not session.with_memory:
        trials, reflections = trials[-1:], reflections[-1:]
    return {
        "session": session.id,
        "trials": [_row(ws, session, t) for t in trials],
        "reflections": [_told(r) for r in reflections],
    }


def _told(reflection: ReflectionRecord) -> dict[str, Any]:
    """A reflection as it is handed back: what the agent wrote in quotation marks."""
    texts = {name: getattr(reflection, name) for name in ("cause", "lesson", "next_step")}
    fields = {"trial", "helped", "dimension", "effect", "check", "check_note", "merged_into", "times_said"}
    return {
        **reflection.model_dump(include=fields),
        **{name: quote(text, TEXT_LENGTH) if text else "" for name, text in texts.items()},
    }


def _row(ws: Workspace, session: SessionRecord, trial: TrialRecord) -> dict[str, Any]:
    row = {
        "trial": trial.handle,
        "number": trial.number,
        "base": trial.base,
        "changes": trial.changes,
        "settings": ws.settings_of(session, trial),
        "status": trial.status,
        "reflected": trial.reflected,
    }
    if trial.outcome is None:
        return row
    outcome = trial.outcome
    return row | {
        **outcome.model_dump(
            include={
                "verdict", "reason", "cause", "metrics", "delta", "delta_se", "z", "base_delta", "base_delta_se",
                "parameters", "train_seconds", "wall_seconds",
            }
        ),
        "ndcg10_se": outcome.ndcg_se,
        "best_epoch": outcome.details.get("best_epoch"),
    }


def _trial(ws: Workspace, session: SessionRecord, handle: str) -> dict[str, Any]:
    record = ws.memory.trials.get(session.id, handle)
    return {
        **observe(ws, session, handle).model_dump(),
        "config": record.config,
        "asked": _asked(record),
        "curve_epochs": record.outcome.curve if record.outcome else [],
    }


def _asked(trial: TrialRecord) -> dict[str, Any]:
    """What the agent wrote when it asked for the trial, in quotation marks."""
    hypothesis = trial.hypothesis.model_dump() if trial.hypothesis else {}
    texts = {"reason": hypothesis.get("reason"), "override_reason": trial.override_reason}
    return hypothesis | {name: quote(text, TEXT_LENGTH) if text else None for name, text in texts.items()}


def _action_space(ws: Workspace, session: SessionRecord) -> dict[str, Any]:
    return {"backbone": session.backbone, "knobs": ws.session_protocol(session).space.describe(session.backbone)}


def _protocol(ws: Workspace, session: SessionRecord) -> dict[str, Any]:
    return {"sha256": session.protocol_hash, "text": session.protocol_text}


def _ndcg(trial: TrialRecord) -> float:
    return trial.outcome.metrics["ndcg@10"] if trial.outcome else 0.0


_VIEWS: dict[str, Callable[[Workspace, SessionRecord], dict[str, Any]]] = {
    "state": _state,
    "trajectory": _trajectory,
    "action_space": _action_space,
    "protocol": _protocol,
}

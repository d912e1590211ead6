"""The loop between an agent and an MCP server: read the situation, act, wait, until the session is finalized.

It uses a real `mcp.Client`, connected to a server on stdio, over HTTP or in this process. It holds no state that the
session needs: if it is killed at any point, it can be restarted with the session's id.
"""

from typing import Any, TypeVar

from mcp import Client
from mcp.types import CallToolResult, TextContent
from pydantic import BaseModel

from ..data.errors import AdmissionError, MachineError, SessionError
from ..tools.results import FinalResult, MemoryView, OpenedSession, ReflectionReceipt, TrialObservation
from ..tools.views import ActionSpaceView, LongTermView, StateView, TrajectoryView, View
from .base import Action, Agent, Brief, Finalize, Reflect, Refusal, RunTrial, Situation, WaitTrial
from .events import (
    Event,
    Finalized,
    OnEvent,
    Reflected,
    SessionOpened,
    TrialFinished,
    TrialProgress,
    TrialRefused,
    TrialStarted,
    ignore,
)

MAX_REFUSALS = 40
"""Consecutive refusals after which the loop gives up; more than the engineer has opening moves."""


Result = TypeVar("Result", bound=BaseModel)
AnyView = TypeVar("AnyView", bound=View)


class ToolCrashed(RuntimeError):
    """The server failed, although the caller made no mistake; the traceback is on the server's stderr."""


async def run_agent(
    client: Client,
    agent: Agent,
    dataset: str,
    backbone: str,
    *,
    session: str | None = None,
    new: bool = False,
    on_event: OnEvent = ignore,
) -> FinalResult:
    """Tune until the agent finalizes.

    session: resume the session with this id instead of opening one. new: open a new session even if one is open.
    Raises SessionError if a tool refuses a call, AdmissionError after `MAX_REFUSALS` refused trials in a row, and
    ToolCrashed if the server failed.
    """
    return await _Loop(client, agent, on_event).run(dataset, backbone, session, new)


class _Loop:
    def __init__(self, client: Client, agent: Agent, on_event: OnEvent) -> None:
        self._client = client
        self._agent = agent
        self._emit = on_event
        self._refused: list[Refusal] = []
        self._session = ""
        self._announced = ""  # the last trial for which TrialStarted was emitted
        self._finished = ""  # the last trial for which TrialFinished was emitted

    async def run(self, dataset: str, backbone: str, session: str | None, new: bool) -> FinalResult:
        brief = await (self._reopen(session) if session else self._open(dataset, backbone, new))
        self._session = brief.session
        self._emit(SessionOpened(brief))
        while True:
            event = await self._perform(await self._agent.decide(await self._situation(brief)))
            if isinstance(event, Finalized):
                return event.result

    async def _open(self, dataset: str, backbone: str, new: bool) -> Brief:
        return Brief.of(await self._call(OpenedSession, "open_session", dataset=dataset, backbone=backbone, new=new))

    async def _reopen(self, session: str) -> Brief:
        """The brief of a session by its id; open_session would return the latest one of its dataset and backbone."""
        self._session = session
        state = await self._view(StateView, "state")
        space = await self._view(ActionSpaceView, "action_space")
        long_term = await self._view(LongTermView, "long_term")
        return Brief.from_views(state, space, long_term)

    async def _situation(self, brief: Brief) -> Situation:
        state = await self._view(StateView, "state")
        trajectory = await self._view(TrajectoryView, "trajectory")
        return Situation(brief, state, trajectory, tuple(self._refused))

    async def _perform(self, action: Action) -> Event | None:
        """Execute an action; returns None for a reflection that another client has written in the meantime."""
        match action:
            case RunTrial():
                return await self._run_trial(action)
            case WaitTrial(trial):
                self._started(trial, None)
                return await self._wait(trial)
            case Reflect():
                return await self._reflect(action)
            case Finalize():
                return await self._finalize(action)

    async def _run_trial(self, action: RunTrial) -> Event:
        """Start a trial and wait for it; refusals are remembered until the server runs the next trial."""
        hypothesis = action.hypothesis.model_dump() if action.hypothesis else None
        arguments: dict[str, Any] = {"changes": action.changes, "base": action.base, "hypothesis": hypothesis}
        if action.override:
            arguments["override_reason"] = action.override
        answer = await self._ask("run_trial", session=self._session, wait_seconds=0, **arguments)
        if answer.is_error:
            return self._refuse(action, refusal_text(answer, "run_trial"))
        observation = TrialObservation.model_validate(answer.structured_content)
        if observation.duplicate:
            return self._refuse(action, f"already tried as {observation.trial}")
        self._refused.clear()
        self._started(observation.trial, action)
        return await self._wait(observation.trial)

    def _refuse(self, action: RunTrial, reason: str) -> TrialRefused:
        self._refused.append(Refusal(action.changes, action.base, reason))
        if len(self._refused) > MAX_REFUSALS:
            raise AdmissionError(f"{MAX_REFUSALS} trials in a row were refused; the last one: {reason}")
        event = TrialRefused(action, reason)
        self._emit(event)
        return event

    def _started(self, trial: str, action: RunTrial | None) -> None:
        if trial != self._announced:
            self._announced = trial
            self._emit(TrialStarted(trial, action))

    async def _wait(self, trial: str) -> TrialFinished:
        """Wait for a trial, in as many calls as the server's limit per call requires."""

        async def report(progress: float, total: float | None, message: str | None) -> None:
            self._emit(TrialProgress(trial, progress, total, message or ""))

        arguments = {"session": self._session, "trial": trial}
        while True:
            answer = await self._client.call_tool("wait_trial", arguments, progress_callback=report)
            observation = _read(TrialObservation, answer, "wait_trial")
            if observation.status != "running":
                break
        event = TrialFinished(observation)
        self._finished = trial
        self._emit(event)
        if observation.machine_fault:
            raise MachineError(f"{observation.reason}; no budget was used, and the session can be resumed")
        return event

    async def _reflect(self, action: Reflect) -> Reflected | None:
        if action.trial != self._finished:  # it ended before this process resumed the session
            self._started(action.trial, None)
            await self._wait(action.trial)
        answer = await self._ask(
            "write_reflection",
            session=self._session,
            trial=action.trial,
            helped=action.helped,
            dimension=action.dimension,
            lesson=action.lesson,
            next_step=action.next_step,
            evidence=list(action.evidence),
            rule=action.rule.model_dump() if action.rule else None,
            cause=action.cause,
            effect=action.effect,
        )
        if answer.is_error and (await self._view(StateView, "state")).pending_reflection != action.trial:
            return None  # this reflection is written already
        event = Reflected(action, _read(ReflectionReceipt, answer, "write_reflection"))
        self._emit(event)
        return event

    async def _finalize(self, action: Finalize) -> Finalized:
        rules = [rule.model_dump() for rule in action.rules]
        arguments = {"cognition_summary": action.summary, "rules": rules, "confirm": True}
        event = Finalized(await self._call(FinalResult, "finalize", session=self._session, **arguments))
        self._emit(event)
        return event

    async def _view(self, kind: type[AnyView], view: str) -> AnyView:
        answer = await self._call(MemoryView, "read_memory", session=self._session, view=view)
        return kind.model_validate(answer.content)

    async def _ask(self, tool: str, **arguments: Any) -> CallToolResult:
        return await self._client.call_tool(tool, arguments)

    async def _call(self, result: type[Result], tool: str, **arguments: Any) -> Result:
        return _read(result, await self._ask(tool, **arguments), tool)


def refusal_text(answer: CallToolResult, tool: str) -> str:
    """The reason why the tool refused the call; raises ToolCrashed if it gave none."""
    text = " ".join(part.text for part in answer.content if isinstance(part, TextContent))
    prefix = f"Error executing tool {tool}"
    if text == prefix:  # the SDK hides the cause of a crash; the text of a refusal follows a colon
        raise ToolCrashed(f"the server crashed in {tool}; its log on stderr has the traceback")
    return text.removeprefix(f"{prefix}: ")


def _read(result: type[Result], answer: CallToolResult, tool: str) -> Result:
    """The structured result of a tool as its model; raises SessionError for a refusal."""
    if answer.is_error:
        raise SessionError(refusal_text(answer, tool))
    return result.model_validate(answer.structured_content)

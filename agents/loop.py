"""The loop between an agent and an MCP server: look, act, wait, until the session is finalized.

It drives a real `mcp.Client`, whatever that is connected to: a server on stdio, an HTTP address, or one in this
process. It holds no state that a session needs: killed anywhere, it is started again with the session's id.
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
"""Refusals in a row after which an agent is taken to have no way on: more than the engineer's whole opening list."""


Result = TypeVar("Result", bound=BaseModel)
Viewed = TypeVar("Viewed", bound=View)


class ToolCrashed(RuntimeError):
    """The server failed in a way that is not the caller's mistake; its own stderr has the traceback."""


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

    session: take up this one instead of opening one. new: open another session even if one is open. Raises
    SessionError for what a tool refuses, AdmissionError when trial after trial is refused, ToolCrashed.
    """
    return await _Loop(client, agent, on_event).run(dataset, backbone, session, new)


class _Loop:
    def __init__(self, client: Client, agent: Agent, on_event: OnEvent) -> None:
        self._client = client
        self._agent = agent
        self._tell = on_event
        self._refused: list[Refusal] = []
        self._session = ""
        self._announced = ""  # the trial whose start was reported last
        self._finished = ""  # the trial whose end was reported last

    async def run(self, dataset: str, backbone: str, session: str | None, new: bool) -> FinalResult:
        brief = await (self._reopen(session) if session else self._open(dataset, backbone, new))
        self._session = brief.session
        self._tell(SessionOpened(brief))
        while True:
            event = await self._perform(self._agent.act(await self._look(brief)))
            if isinstance(event, Finalized):
                return event.result

    async def _open(self, dataset: str, backbone: str, new: bool) -> Brief:
        return Brief.of(await self._call(OpenedSession, "open_session", dataset=dataset, backbone=backbone, new=new))

    async def _reopen(self, session: str) -> Brief:
        """The brief of a session by its id: open_session would take the latest of its dataset and backbone."""
        self._session = session
        state = await self._view(StateView, "state")
        space = await self._view(ActionSpaceView, "action_space")
        long_term = await self._view(LongTermView, "long_term")
        return Brief.from_views(state, space, long_term)

    async def _look(self, brief: Brief) -> Situation:
        state = await self._view(StateView, "state")
        trajectory = await self._view(TrajectoryView, "trajectory")
        return Situation(brief, state, trajectory, tuple(self._refused))

    async def _perform(self, action: Action) -> Event | None:
        """Do what the agent decided; None where another driver of the session has just done it."""
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
        """Start a trial and wait for it; what the server does not run is remembered until it runs one."""
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
        self._tell(event)
        return event

    def _started(self, trial: str, action: RunTrial | None) -> None:
        if trial != self._announced:
            self._announced = trial
            self._tell(TrialStarted(trial, action))

    async def _wait(self, trial: str) -> TrialFinished:
        """Wait as often as the server's bound per call makes necessary."""

        async def news(progress: float, total: float | None, message: str | None) -> None:
            self._tell(TrialProgress(trial, progress, total, message or ""))

        arguments = {"session": self._session, "trial": trial}
        while True:
            answer = await self._client.call_tool("wait_trial", arguments, progress_callback=news)
            observation = _read(TrialObservation, answer, "wait_trial")
            if observation.status != "running":
                break
        event = TrialFinished(observation)
        self._finished = trial
        self._tell(event)
        if observation.machine_fault:
            raise MachineError(f"{observation.reason}; no budget was spent, and the session can be resumed")
        return event

    async def _reflect(self, action: Reflect) -> Reflected | None:
        if action.trial != self._finished:  # it ended before this process took the session up
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
            return None  # another client has written it meanwhile
        event = Reflected(action, _read(ReflectionReceipt, answer, "write_reflection"))
        self._tell(event)
        return event

    async def _finalize(self, action: Finalize) -> Finalized:
        rules = [rule.model_dump() for rule in action.rules]
        arguments = {"cognition_summary": action.summary, "rules": rules, "confirm": True}
        event = Finalized(await self._call(FinalResult, "finalize", session=self._session, **arguments))
        self._tell(event)
        return event

    async def _view(self, kind: type[Viewed], view: str) -> Viewed:
        answer = await self._call(MemoryView, "read_memory", session=self._session, view=view)
        return kind.model_validate(answer.content)

    async def _ask(self, tool: str, **arguments: Any) -> CallToolResult:
        return await self._client.call_tool(tool, arguments)

    async def _call(self, result: type[Result], tool: str, **arguments: Any) -> Result:
        return _read(result, await self._ask(tool, **arguments), tool)


def refusal_text(answer: CallToolResult, tool: str) -> str:
    """What the tool said against the call; ToolCrashed if it did not say anything."""
    text = " ".join(part.text for part in answer.content if isinstance(part, TextContent))
    prefix = f"Error executing tool {tool}"
    if text == prefix:  # the SDK hides what crashed; a refusal goes on after a colon
        raise ToolCrashed(f"the server crashed in {tool}; its log on stderr has the traceback")
    return text.removeprefix(f"{prefix}: ")


def _read(result: type[Result], answer: CallToolResult, tool: str) -> Result:
    """The structured answer of a tool as its result model; SessionError for a refusal."""
    if answer.is_error:
        raise SessionError(refusal_text(answer, tool))
    return result.model_validate(answer.structured_content)

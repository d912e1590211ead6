"""The loop between an agent and an MCP server: look, act, wait, until the session is finalized.

It drives a real `mcp.Client`, whatever that is connected to: a server on stdio, an HTTP address, or one in this
process. It holds no state that a session needs: killed anywhere, it is started again with the session's id.
"""

from typing import Any

from mcp import Client
from mcp.types import CallToolResult, TextContent

from ..data.errors import AdmissionError, SessionError
from .base import Action, Agent, Finalize, Reflect, Refusal, RunTrial, Situation, WaitTrial
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
) -> dict[str, Any]:
    """Tune until the agent finalizes; returns the FinalResult.

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
        self._announced = ""  # the handle last told as started

    async def run(self, dataset: str, backbone: str, session: str | None, new: bool) -> dict[str, Any]:
        brief = await (self._reopen(session) if session else self._open(dataset, backbone, new))
        self._session = brief["session"]
        self._tell(SessionOpened(self._session, brief["resumed"], brief))
        while True:
            event = await self._perform(self._agent.act(await self._look(brief)))
            if isinstance(event, Finalized):
                return dict(event.result)

    async def _open(self, dataset: str, backbone: str, new: bool) -> dict[str, Any]:
        return await self._call("open_session", dataset=dataset, backbone=backbone, new=new)

    async def _reopen(self, session: str) -> dict[str, Any]:
        """The brief of a session by its id: open_session would take the latest of its dataset and backbone."""
        self._session = session
        state = await self._view("state")
        space = await self._view("action_space")
        long_term = await self._view("long_term")
        return {
            **{name: state[name] for name in ("session", "dataset", "backbone", "budget", "incumbent")},
            "resumed": True,
            "action_space": space["knobs"],
            "prior": long_term["prior"],
        }

    async def _look(self, brief: dict[str, Any]) -> Situation:
        situation = Situation(brief, await self._view("state"), await self._view("trajectory"), tuple(self._refused))
        return situation if situation.state["with_memory"] else situation.without_memory()

    async def _perform(self, action: Action) -> Event:
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
        arguments = {"changes": action.changes, "base": action.base, "hypothesis": action.hypothesis}
        if action.override:
            arguments["override_reason"] = action.override
        answer = await self._ask("run_trial", session=self._session, wait_seconds=0, **arguments)
        if answer.is_error:
            return self._refuse(action, refusal_text(answer, "run_trial"))
        observation = structure(answer)
        if observation["duplicate"]:
            return self._refuse(action, f"already tried as {observation['trial']}")
        self._refused.clear()
        self._started(observation["trial"], action)
        return await self._wait(observation["trial"])

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

        observation: dict[str, Any] = {"status": "running"}
        while observation["status"] == "running":
            arguments = {"session": self._session, "trial": trial}
            answer = await self._client.call_tool("wait_trial", arguments, progress_callback=news)
            observation = _checked(answer, "wait_trial")
        event = TrialFinished(observation)
        self._tell(event)
        return event

    async def _reflect(self, action: Reflect) -> Reflected:
        receipt = await self._call(
            "write_reflection",
            session=self._session,
            trial=action.trial,
            helped=action.helped,
            dimension=action.dimension,
            lesson=action.lesson,
            next_step=action.next_step,
            evidence=list(action.evidence),
            rule=action.rule,
            cause=action.cause,
            effect=action.effect,
        )
        event = Reflected(action, receipt)
        self._tell(event)
        return event

    async def _finalize(self, action: Finalize) -> Finalized:
        arguments = {"cognition_summary": action.summary, "rules": list(action.rules), "confirm": True}
        event = Finalized(await self._call("finalize", session=self._session, **arguments))
        self._tell(event)
        return event

    async def _view(self, view: str) -> dict[str, Any]:
        content: dict[str, Any] = (await self._call("read_memory", session=self._session, view=view))["content"]
        return content

    async def _ask(self, tool: str, **arguments: Any) -> CallToolResult:
        return await self._client.call_tool(tool, arguments)

    async def _call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return _checked(await self._ask(tool, **arguments), tool)


def structure(answer: CallToolResult) -> dict[str, Any]:
    """The structured content of a tool's answer."""
    assert answer.structured_content is not None  # every tool of ours returns a model
    content: dict[str, Any] = answer.structured_content
    return content


def refusal_text(answer: CallToolResult, tool: str) -> str:
    """What the tool said against the call; ToolCrashed if it did not say anything."""
    text = " ".join(part.text for part in answer.content if isinstance(part, TextContent))
    prefix = f"Error executing tool {tool}"
    if text == prefix:  # the SDK hides what crashed; a refusal goes on after a colon
        raise ToolCrashed(f"the server crashed in {tool}; its log on stderr has the traceback")
    return text.removeprefix(f"{prefix}: ")


def _checked(answer: CallToolResult, tool: str) -> dict[str, Any]:
    if answer.is_error:
        raise SessionError(refusal_text(answer, tool))
    return structure(answer)

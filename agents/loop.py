"""The loop between an agent and an MCP server: read the situation, act, wait, until the session is finalized.

It uses a real `mcp.Client`, connected to a server on stdio, over HTTP or in this process. It holds no state that the
session needs: if it is killed at any point, it can be restarted with the session's id.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from mcp import Client
from mcp.types import CallToolResult, TextContent
from pydantic import BaseModel

from ..data.errors import AdmissionError, MachineError, SessionError
from ..server.wire import REFLECTS
from ..tools.results import FinalResult, MemoryView, OpenedSession, ReflectionReceipt, TrialObservation
from ..tools.views import StateView, TrajectoryView, TrialView, View
from .base import (
    SKIPPED,
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
    Sweep,
    WaitTrial,
)
from .events import (
    Confirming,
    Finalized,
    LeftOpen,
    MemoryRead,
    Noted,
    OnEvent,
    Reflected,
    Refused,
    SessionOpened,
    TrialFinished,
    TrialProgress,
    TrialRefused,
    TrialStarted,
    ignore,
)
from .observed import observation_text

MAX_LOST = 5
"""Consecutive trials lost with their node, after which the loop gives up; until then, the agent runs them again."""
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
    """Tune until the agent finalizes. The session of an agent that does not reflect is opened without reflections.

    session: resume the session with this id instead of opening one. new: open a new session even if one is open.
    Raises SessionError if a tool refuses a call that the agent does not correct, AdmissionError after `MAX_REFUSALS`
    refusals in a row, LanguageModelError if the agent's language model gives no usable answer, and ToolCrashed if the
    server failed.
    """
    loop = _Loop(client, agent, on_event)
    await loop.run(dataset, backbone, session, new)
    assert loop.result is not None  # it runs until the agent has finalized
    return loop.result


async def run_trials(
    client: Client,
    agent: Agent,
    dataset: str,
    backbone: str,
    *,
    session: str | None = None,
    new: bool = False,
    on_event: OnEvent = ignore,
) -> LeftOpen:
    """Like `run_agent`, but the session stays open: it ends where the agent would finalize, or a stop rule holds."""
    loop = _Loop(client, agent, on_event, finalizes=False)
    await loop.run(dataset, backbone, session, new)
    assert loop.left_open is not None  # it runs until the agent would finalize
    return loop.left_open


class _Loop:
    def __init__(self, client: Client, agent: Agent, on_event: OnEvent, *, finalizes: bool = True) -> None:
        self.result: FinalResult | None = None
        self.left_open: LeftOpen | None = None
        self._finalizes = finalizes
        self._client = client
        self._agent = agent
        self._emit = on_event
        self._refused: list[Refusal] = []
        self._outcomes: list[Outcome] = []
        self._num_refused = 0  # in a row, of any tool
        self._num_lost = 0  # in a row
        self._session = ""
        self._announced: set[str] = set()  # trials for which TrialStarted was emitted
        self._in_flight: list[str] = []  # those of them whose end was not reported yet, in the order of their start
        self._parallel = 1
        self._last: TrialObservation | None = None  # of the last trial that has ended

    async def run(self, dataset: str, backbone: str, session: str | None, new: bool) -> None:
        tools = frozenset(tool.name for tool in (await self._client.list_tools()).tools)
        opened = await (self._reopen(session) if session else self._open(dataset, backbone, new))
        brief = Brief.of(opened, tools)
        self._session, self._parallel = brief.session, brief.parallel
        self._emit(SessionOpened(brief))
        while self.result is None and self.left_open is None:
            situation = await self._situation(brief)
            if not self._finalizes and (reason := _stops(situation)):  # asked first: a closing summary may cost money
                self._leave_open(reason)
            else:
                await self._execute(await self._agent.decide(situation))

    def _leave_open(self, reason: str, summary: str = "") -> None:
        self.left_open = LeftOpen(self._session, reason, summary)
        self._emit(self.left_open)

    async def _open(self, dataset: str, backbone: str, new: bool) -> OpenedSession:
        arguments = {"dataset": dataset, "backbone": backbone, "new": new}
        meta: dict[str, Any] = {} if self._agent.reflects else {REFLECTS: False}
        answer = await self._client.call_tool("open_session", arguments, meta=meta)  # type: ignore[arg-type]
        return _read(OpenedSession, answer, "open_session")

    async def _reopen(self, session: str) -> OpenedSession:
        """The brief of a session by its id; open_session would return the latest one of its dataset and backbone."""
        self._session = session
        answer = await self._call(MemoryView, "read_memory", session=session, view="brief")
        return OpenedSession.model_validate(answer.content)

    async def _situation(self, brief: Brief) -> Situation:
        state, trajectory = await self._views()
        ended = [row for row in trajectory.trials if row.status != "running"]
        for trial in [handle for handle in self._in_flight if any(row.trial == handle for row in ended)]:
            await self._wait([trial])  # it ended while another one was waited for
        last = max(ended, key=lambda row: row.ended or row.number, default=None)
        if last and (self._last is None or self._last.trial != last.trial):  # it ended in an earlier process
            self._last = await self._view(TrialView, "trial", trial=last.trial)
        return Situation(brief, state, trajectory, tuple(self._refused), self._last, tuple(self._outcomes))

    async def _views(self) -> tuple[StateView, TrajectoryView]:
        """The two views at one moment: they are read again if one of several running trials has ended in between."""
        while True:
            state = await self._view(StateView, "state")
            trajectory = await self._view(TrajectoryView, "trajectory")
            running = [row.trial for row in trajectory.trials if row.status == "running"]
            if self._parallel == 1 or state.running_trials == running:
                return state, trajectory

    async def _execute(self, actions: Sequence[Action]) -> None:
        """Execute the actions in order; after a refusal, the remaining ones are not executed."""
        for number, action in enumerate(actions, 1):
            outcome = await self._perform(action)
            self._outcomes.append(outcome)
            if outcome.refused:
                self._outcomes += [Outcome(skipped, SKIPPED, refused=True) for skipped in actions[number:]]
                return

    async def _perform(self, action: Action) -> Outcome:
        match action:
            case RunTrial() | Sweep():
                return await self._run_trial(action)
            case WaitTrial():
                for trial in action.trials:
                    self._started(trial, None)
                return Outcome(action, observation_text(await self._wait(action.trials)))
            case ReadMemory():
                return await self._read_memory(action)
            case Reflect():
                return await self._reflect(action)
            case Finalize():
                return await self._finalize(action)

    async def _run_trial(self, action: RunTrial | Sweep) -> Outcome:
        """Start a trial, and wait for it if the session runs one at a time; refusals are remembered until then."""
        tool = "sweep" if isinstance(action, Sweep) else "run_trial"
        answer = await self._ask(tool, session=self._session, wait_seconds=0, **_trial_arguments(action))
        if answer.is_error:
            return self._refuse(action, refusal_text(answer, tool))
        observation = TrialObservation.model_validate(answer.structured_content)
        if observation.duplicate:
            return self._refuse(action, f"already tried as {observation.trial}", observation)
        self._refused.clear()
        self._num_refused = 0
        self._started(observation.trial, action)
        if self._parallel > 1:
            return Outcome(action, f"{observation.trial} is running. {observation.rounded}".rstrip())
        ended = await self._wait([observation.trial])
        return Outcome(action, observation_text(ended.model_copy(update={"rounded": observation.rounded})))

    def _refuse(self, action: RunTrial | Sweep, reason: str, known: TrialObservation | None = None) -> Outcome:
        """The outcome of a trial that did not run; `known` is the observation of the trial that it equals."""
        self._refused.append(Refusal(action.changes, action.base, reason, swept=isinstance(action, Sweep)))
        self._count_refusal(reason)
        self._emit(TrialRefused(action, reason))
        return Outcome(action, f"{reason}: {observation_text(known)}" if known else reason, refused=True)

    def _count_refusal(self, reason: str) -> None:
        self._num_refused += 1
        if self._num_refused > MAX_REFUSALS:
            raise AdmissionError(f"{MAX_REFUSALS} calls in a row were refused; the last one: {reason}")

    def _started(self, trial: str, action: RunTrial | Sweep | None) -> None:
        if trial not in self._announced:
            self._announced.add(trial)
            self._in_flight.append(trial)
            self._emit(TrialStarted(trial, action))

    async def _wait(self, trials: Sequence[str]) -> TrialObservation:
        """Wait for the first of these trials to end, in as many calls as the server's limit per call requires."""

        async def report(progress: float, total: float | None, message: str | None) -> None:
            self._emit(TrialProgress(trials[0], progress, total, message or ""))

        arguments = {"session": self._session, "trial": trials[0] if len(trials) == 1 else list(trials)}
        while True:
            answer = await self._client.call_tool("wait_trial", arguments, progress_callback=report)
            observation = _read(TrialObservation, answer, "wait_trial")
            if observation.status != "running":
                break
        self._last = observation
        if observation.trial in self._in_flight:
            self._in_flight.remove(observation.trial)
            if self._parallel > 1:  # what was refused because of a running trial may run now
                self._refused.clear()
                self._num_refused = 0
            self._emit(TrialFinished(observation))
        self._num_lost = self._num_lost + 1 if observation.lost else 0
        if observation.machine_fault and not (observation.lost and self._num_lost <= MAX_LOST):
            raise MachineError(f"{observation.reason}; no budget was used, and the session can be resumed")
        return observation

    async def _read_memory(self, action: ReadMemory) -> Outcome:
        answer = await self._ask("read_memory", session=self._session, **asdict(action))
        if answer.is_error:
            return self._correctable(action, answer, "read_memory")
        view = _read(MemoryView, answer, "read_memory")
        self._emit(MemoryRead(action))
        return Outcome(action, json.dumps(view.content, ensure_ascii=False, separators=(",", ":")))

    async def _reflect(self, action: Reflect) -> Outcome:
        if action.trial not in self._announced:  # it ended before this process resumed the session
            self._started(action.trial, None)
            await self._wait([action.trial])
        answer = await self._ask("write_reflection", session=self._session, **_reflection_arguments(action))
        if answer.is_error and (await self._view(StateView, "state")).pending_reflection != action.trial:
            return Outcome(action, f"the reflection on {action.trial} is written already")
        if answer.is_error:
            return self._correctable(action, answer, "write_reflection")
        receipt = _read(ReflectionReceipt, answer, "write_reflection")
        self._emit(Reflected(action, receipt))
        rule = f" {receipt.rule.summary} {receipt.rule_note}" if receipt.rule else ""
        return Outcome(action, f"{receipt.check}: {receipt.note}{rule}".strip())

    async def _finalize(self, action: Finalize) -> Outcome:
        if not self._finalizes:
            self._leave_open("the agent has nothing more to run", action.summary)
            return Outcome(action, "the session stays open")
        if action.note:
            self._emit(Noted(action.note))
        rules = [rule.model_dump() for rule in action.rules]
        arguments = {"cognition_summary": action.summary, "rules": rules, "confirm": True}

        async def report(progress: float, total: float | None, message: str | None) -> None:
            self._emit(Confirming(progress, total, message or ""))

        arguments["session"] = self._session
        while True:
            answer = await self._client.call_tool("finalize", arguments, progress_callback=report)
            if answer.is_error and (await self._view(StateView, "state")).state == "open":
                return self._correctable(action, answer, "finalize")
            result = _read(FinalResult, answer, "finalize")
            if result.state != "confirming":
                break
        self.result = result
        self._emit(Finalized(result))
        return Outcome(action, result.state)

    def _correctable(self, action: Action, answer: CallToolResult, tool: str) -> Outcome:
        """The outcome of a refused call, for an agent that corrects its calls; raises SessionError for others."""
        reason = refusal_text(answer, tool)
        if not self._agent.corrects:
            raise SessionError(reason)
        self._count_refusal(reason)
        self._emit(Refused(tool, reason))
        return Outcome(action, reason, refused=True)

    async def _view(self, kind: type[AnyView], view: str, **arguments: str) -> AnyView:
        answer = await self._call(MemoryView, "read_memory", session=self._session, view=view, **arguments)
        return kind.model_validate(answer.content)

    async def _ask(self, tool: str, **arguments: Any) -> CallToolResult:
        return await self._client.call_tool(tool, arguments)

    async def _call(self, result: type[Result], tool: str, **arguments: Any) -> Result:
        return _read(result, await self._ask(tool, **arguments), tool)


def _stops(situation: Situation) -> str:
    """Why the session takes no further trial and nothing is left to do but finalize; empty if there is."""
    state = situation.state
    busy = situation.running or state.pending_reflection
    return "" if busy or not state.stop.stop else state.stop.reason


def _trial_arguments(action: RunTrial | Sweep) -> dict[str, Any]:
    """The arguments of run_trial or sweep."""
    hypothesis = action.hypothesis.model_dump() if action.hypothesis else None
    if isinstance(action, Sweep):
        return {"settings": list(action.settings), "base": action.base, "hypothesis": hypothesis}
    arguments: dict[str, Any] = {"changes": action.changes, "base": action.base, "hypothesis": hypothesis}
    return arguments | ({"override_reason": action.override} if action.override else {})


def _reflection_arguments(action: Reflect) -> dict[str, Any]:
    """The arguments of write_reflection."""
    rule = action.rule.model_dump() if action.rule else None
    return {**vars(action), "evidence": list(action.evidence), "rule": rule}


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

"""The tasks extension of MCP (`io.modelcontextprotocol/tasks`, 2026-07-28): a wait that needs no open call.

A client that declares the extension gets a task instead of an answer from a tool that would wait for a trial, and asks
with tasks/get until the task has the result. A task is nothing but a name of the trials that it waits for, so it is as
durable as memory.db, and a restarted server knows it. Only that of a finalize which confirms its best trials lives in
this process, because it needs the Cognition Summary: after a restart, finalize is called again.

tasks/cancel is acknowledged and stops nothing, as with every other end of a wait: the specification leaves that to the
server, and a trial that has cost minutes must not end because a client has lost interest. cancel_trial stops it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, NamedTuple

import anyio.to_thread
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp.types import INTERNAL_ERROR, INVALID_PARAMS, CallToolRequestParams, CallToolResult, RequestParams, Result

from ..data.errors import MemoryStoreError, VirtualMLEError
from ..tools.progress import RunningProgress
from ..tools.results import TrialObservation
from ..tools.wait_trial import awaited, wait_trial
from ..tools.withholding import shown_state
from ..tools.workspace import Workspace
from .answers import answer
from .waits import describe
from .wire import WAIT

TASKS = "io.modelcontextprotocol/tasks"
VERSIONS = frozenset({"2026-07-28"})
WAITING = frozenset({"run_trial", "sweep", "wait_trial", "cancel_trial", "finalize"})
"""The tools that may wait, all of which take WAIT."""
FINALIZE = "finalize"
USUAL_POLL, SHORTEST_POLL, LONGEST_POLL = 5.0, 2.0, 30.0  # seconds between two tasks/get
POLLS = 4  # in the time that a trial is expected to take
MAX_FINALIZING = 100  # that this process remembers; more are forgotten, the oldest first

Handled = ServerRequestContext[Any, Any]


class Task(Result):
    """A task as the extension defines it, with its result once it is completed."""

    result_type: Literal["task", "complete"]
    task_id: str
    status: Literal["working", "completed"]
    status_message: str | None = None
    created_at: str
    last_updated_at: str
    ttl_ms: None = None  # no end: a trial stays in memory.db
    poll_interval_ms: int
    result: dict[str, Any] | None = None

    def on_the_wire(self) -> dict[str, Any]:
        """The JSON object; `ttlMs` is null, other fields without a value are left out."""
        return {**self.model_dump(by_alias=True, exclude_none=True, mode="json"), "ttlMs": None}


class TaskParams(RequestParams):
    """The parameters of tasks/get and tasks/cancel."""

    task_id: str


class UpdateParams(TaskParams):
    """The parameters of tasks/update."""

    input_responses: dict[str, Any] = {}


class TrialTasks(Extension):
    """Waits for trials, and for a confirmation, as tasks."""

    identifier = TASKS

    def __init__(self, ws: Workspace) -> None:
        self._ws = ws
        self._finalizing: dict[str, _Confirming] = {}  # by task
        self._rounded: dict[str, str] = {}  # by task: what only the call that started the trial knows

    def methods(self) -> Sequence[MethodBinding]:
        """tasks/get, tasks/update and tasks/cancel."""
        return (
            MethodBinding("tasks/get", TaskParams, self.on_get, VERSIONS),
            MethodBinding("tasks/update", UpdateParams, self.on_acknowledged, VERSIONS),
            MethodBinding("tasks/cancel", TaskParams, self.on_acknowledged, VERSIONS),
        )

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: Handled, call_next: CallNext
    ) -> HandlerResult:
        """Answer a call that would wait with a task, if the client has declared the extension in this request."""
        arguments = params.arguments
        if params.name not in WAITING or not arguments or arguments.get(WAIT) == 0 or not _declares_tasks(ctx):
            return await call_next(ctx)
        arguments[WAIT] = 0  # the handler gets these very params
        waits_for = await self._waits_for(arguments) if params.name == wait_trial.__name__ else []
        result = await call_next(ctx)
        content = (result.structured_content or {}) if isinstance(result, CallToolResult) else {}
        if content.get("state") == "confirming":
            return self._confirming(f"{content['session']}/{FINALIZE}", call_next, content)
        if content.get("status") != "running":
            return result
        task = f"{content['session']}/{'+'.join(waits_for or [content['trial']])}"
        if content.get("rounded"):
            self._rounded[task] = content["rounded"]
        return (await self._trial_task(task, "task")).on_the_wire()

    async def on_get(self, ctx: Handled, params: TaskParams) -> HandlerResult:
        """Serve tasks/get. MCPError for an unknown task."""
        require_client_extension(ctx, TASKS)
        if params.task_id not in self._finalizing:
            return (await self._trial_task(params.task_id, "complete")).on_the_wire()
        known = self._finalizing[params.task_id]
        if known.result is None or not await anyio.to_thread.run_sync(self._may_be_shown, known.result):
            result = await known.again(ctx)
            assert isinstance(result, CallToolResult)
            is_over = result.is_error or (result.structured_content or {}).get("state") != "confirming"
            known = known._replace(result=result if is_over else None, content=result.structured_content or {})
            self._finalizing[params.task_id] = known
        return _finalizing(params.task_id, "complete", known).on_the_wire()

    async def on_acknowledged(self, ctx: Handled, params: TaskParams) -> HandlerResult:
        """Serve tasks/cancel, which stops nothing, and tasks/update, for which no task asks. MCPError if unknown."""
        require_client_extension(ctx, TASKS)
        if params.task_id not in self._finalizing:
            await self._observe(params.task_id)
        return {}

    def _may_be_shown(self, result: CallToolResult) -> bool:
        """Whether a finalize would still say this: later, another session on the same data may withhold the figures."""
        content = result.structured_content or {}
        if "session" not in content:  # it was refused, maybe because memory.db was busy
            return False
        session = self._ws.memory.sessions.get(content["session"])
        return bool(content["state"] == shown_state(self._ws.home, self._ws.memory, session))

    async def _waits_for(self, arguments: dict[str, Any]) -> list[str]:
        """The trials that a call of wait_trial waits for; [] if the tool will refuse the call."""
        session, trial = arguments.get("session"), arguments.get("trial")
        if not isinstance(session, str) or not (trial is None or isinstance(trial, str | list)):
            return []
        try:
            return await anyio.to_thread.run_sync(awaited, self._ws, session, trial)
        except VirtualMLEError:
            return []

    async def _trial_task(self, task: str, result_type: Literal["task", "complete"]) -> Task:
        observation = await self._observe(task)
        record = self._ws.memory.trials.get(observation.session, observation.trial)
        running = observation.status == "running"
        rounded = {"rounded": self._rounded.get(task, "")}
        return Task(
            result_type=result_type,
            task_id=task,
            status="working" if running else "completed",
            status_message=describe(observation, []) if running else None,
            created_at=record.created_at,
            last_updated_at=record.finished_at or _now(),
            poll_interval_ms=_poll_milliseconds(observation),
            result=None if running else _dumped(answer(observation.model_copy(update=rounded))),
        )

    async def _observe(self, task: str) -> TrialObservation:
        """Of the first trial of a task to end, or of one that runs. MCPError if there is no such task."""
        session, _, handles = task.rpartition("/")
        try:
            return await anyio.to_thread.run_sync(partial(wait_trial, self._ws, session, handles.split("+"), 0))
        except MemoryStoreError as error:  # another process has locked it: the client asks again
            raise MCPError(INTERNAL_ERROR, str(error)) from error
        except VirtualMLEError as error:
            again = "call finalize again" if handles == FINALIZE else "list_sessions and read_memory show what there is"
            raise MCPError(INVALID_PARAMS, f"there is no task {task!r:.100}; {again}") from error

    def _confirming(self, task: str, again: CallNext, content: dict[str, Any]) -> HandlerResult:
        known = self._finalizing[task] = _Confirming(again, _now(), content)
        while len(self._finalizing) > MAX_FINALIZING:
            del self._finalizing[next(iter(self._finalizing))]
        return _finalizing(task, "task", known).on_the_wire()


class _Confirming(NamedTuple):
    """A finalize that confirms its best trials."""

    again: CallNext  # asks how far it is
    since: str
    content: dict[str, Any]  # of its last answer
    result: CallToolResult | None = None  # once it is over: a further finalize is refused


def _finalizing(task: str, result_type: Literal["task", "complete"], known: _Confirming) -> Task:
    progress = known.content.get("progress") or {}
    running = f"confirming {progress.get('done')} of {progress.get('total')}"
    return Task(
        result_type=result_type,
        task_id=task,
        status="completed" if known.result else "working",
        status_message=None if known.result else running,
        created_at=known.since,
        last_updated_at=_now(),
        poll_interval_ms=round(1000 * USUAL_POLL),
        result=_dumped(known.result) if known.result else None,
    )


def _declares_tasks(ctx: Handled) -> bool:
    capabilities = ctx.session.client_capabilities
    declared = capabilities.extensions if capabilities else None
    return ctx.protocol_version in VERSIONS and bool(declared) and TASKS in (declared or {})


def _poll_milliseconds(observation: TrialObservation) -> int:
    """A share of the time that the trial is expected to take at least."""
    progress = RunningProgress.model_validate(observation.progress or {"stage": "loading"})
    left = progress.eta_seconds if progress.eta_earliest_seconds is None else progress.eta_earliest_seconds
    seconds = USUAL_POLL if left is None else left / POLLS
    return round(1000 * min(LONGEST_POLL, max(SHORTEST_POLL, seconds)))


def _dumped(result: CallToolResult) -> dict[str, Any]:
    return result.model_dump(by_alias=True, exclude_none=True, mode="json")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""Turns a plain function over a Workspace into an MCP tool.

The tool's schema has no parameter that an agent must not choose: the workspace is removed from the signature. An
argument outside the signature, for instance a seed, is refused by name; the SDK would drop it silently. Arguments are
read by the tool's schema (`arguments.py`) before the SDK sees them.
"""

import inspect
import math
from collections.abc import Awaitable, Callable
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.mcpserver.tools import Tool
from mcp.types import InputRequiredResult, ToolAnnotations
from pydantic import BaseModel, ValidationError

from ..data.errors import ArgumentError, VirtualMLEError
from ..tools.finalize import finalize
from ..tools.results import FinalResult, TrialObservation
from ..tools.wait_trial import awaited, wait_trial
from ..tools.workspace import Workspace
from .answers import answer, name_of
from .arguments import read_arguments
from .asking import ANSWER, answer_type, asks_person, check_answer, in_our_words
from .schemas import Schema, input_schema, output_schema, published
from .trajectory_view import META, SHOWN_BY
from .waits import wait_cap, wait_until_confirmed, wait_until_over

PlainTool = Callable[..., BaseModel]

MAX_REFUSAL = 4000  # characters
PREFIX = "Error executing tool "  # of the SDK, before the text of an error
LLM_USD = "virtualmle/llm_usd"
"""Key in a request's `_meta`: dollars that the client's language model cost in this session; no model can set it."""
REFLECTS = "virtualmle/reflects"
"""Key in a request's `_meta`: false opens the session of an agent that does not reflect; no model can set it."""
WAIT = "wait_seconds"


class WireTool(Tool):
    """A tool whose arguments are read leniently, and refused in our words."""

    read_by: Schema = {}  # the published schema, and the bounds that only the server checks

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Any:
        """Run the tool; ToolError for unknown arguments and for every error that the caller can correct."""
        try:
            read = read_arguments(self.name, self.read_by, arguments)
        except ArgumentError as error:
            raise ToolError(str(error)) from error
        try:
            result = await super().run(read, context)
            is_question = isinstance(result, InputRequiredResult)  # to a person, whose answer the next call carries
            return answer(result) if convert_result and not is_question else result
        except UnexpectedToolError:
            raise
        except ToolError as error:  # it may quote names of any length
            unread = isinstance(error.__cause__, ValidationError)
            text = _unread(self.name, error.__cause__) if unread else str(error).removeprefix(f"{PREFIX}{self.name}: ")
            text = in_our_words(text)
            raise ToolError(text if len(text) <= MAX_REFUSAL else f"{text[:MAX_REFUSAL]}…") from error


def wire_tool(ws: Workspace, tool: PlainTool, annotations: ToolAnnotations, override: float | None) -> Tool:
    """The MCP tool of a function: description from its docstring, schema from its parameters without `ws`."""
    function = inspect.unwrap(tool)  # its signature has the descriptions and bounds of the arguments
    title = tool.__name__.replace("_", " ").capitalize()
    wired = WireTool.from_function(_mcp_function(ws, function, override), title=title, annotations=annotations)
    schema = input_schema(function)
    assert wired.fn_metadata.output_schema is not None  # every tool returns a model
    wired.fn_metadata.output_schema = output_schema(wired.fn_metadata.output_schema)
    meta = META if tool.__name__ == SHOWN_BY else None
    return wired.model_copy(update={"parameters": published(schema), "read_by": schema, "meta": meta})


def _unread(tool: str, error: BaseException | None) -> str:
    """What a client reads if the types of a function refuse what its schema allows."""
    problems = error.errors(include_url=False) if isinstance(error, ValidationError) else []
    names = dict.fromkeys(str(problem["loc"][0]) for problem in problems if problem["loc"])
    return f"{tool} cannot use {', '.join(names) or 'its arguments'}; give what the schema of the tool says"


def _mcp_function(ws: Workspace, tool: PlainTool, override: float | None) -> Callable[..., Awaitable[BaseModel]]:
    """An async `tool` without its first parameter, run in a thread; a wait becomes bounded polling in the server."""
    signature = inspect.signature(tool, eval_str=True)
    _, *parameters = signature.parameters.values()
    waits = WAIT in signature.parameters
    names_trials = tool is inspect.unwrap(wait_trial)
    asks = tool is inspect.unwrap(finalize) and asks_person()

    async def call(context: Context[Workspace], **arguments: Any) -> BaseModel:
        requested = arguments.pop(WAIT, None)
        if given := arguments.get("session"):
            arguments["session"] = await anyio.to_thread.run_sync(ws.memory.sessions.spelt, given)
        if asks:
            check_answer(arguments.pop(ANSWER), arguments["session"])
        if waits:
            arguments[WAIT] = 0
        try:
            await anyio.to_thread.run_sync(record_cost, ws, context, arguments.get("session"))
            if names_trials:
                arguments["trial"] = await anyio.to_thread.run_sync(
                    awaited, ws, arguments["session"], arguments.get("trial")
                )
            result = await anyio.to_thread.run_sync(partial(tool, workspace_for(ws, context), **arguments))
            cap = wait_cap(name_of(context.request_context), override, sends_token=sends_progress_token(context))
            seconds = cap if requested is None else min(requested, cap)
            if isinstance(result, FinalResult):
                again = partial(tool, workspace_for(ws, context), **arguments)
                return await wait_until_confirmed(again, result, context, seconds)
            if not isinstance(result, TrialObservation) or not waits:
                return result
            handles = arguments["trial"] if names_trials else [result.trial]
            return await wait_until_over(ws, result, handles, context, seconds, cap)
        except VirtualMLEError as error:
            raise ToolError(str(error)) from error

    context_parameter = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=Context[Workspace])
    call.__name__, call.__doc__ = tool.__name__, inspect.getdoc(tool)
    added = [context_parameter]
    if asks:
        call.__annotations__[ANSWER] = answer_type(ws)  # where the SDK looks for what it asks a person
        added.append(inspect.Parameter(ANSWER, inspect.Parameter.KEYWORD_ONLY, annotation=call.__annotations__[ANSWER]))
    call.__signature__ = signature.replace(parameters=[*parameters, *added])  # type: ignore[attr-defined]
    return call


def sends_progress_token(context: Context[Workspace]) -> bool:
    """Whether the client wants progress messages for this call."""
    return (context.request_context.meta or {}).get("progress_token") is not None


def record_cost(ws: Workspace, context: Context[Workspace], session: object) -> None:
    """Record the language-model cost if the client reports it; SessionError for an unknown session."""
    cost = (context.request_context.meta or {}).get(LLM_USD)
    is_amount = isinstance(cost, int | float) and not isinstance(cost, bool) and math.isfinite(cost) and cost > 0
    if is_amount and isinstance(session, str):
        ws.memory.sessions.record_llm_cost(session, float(cost))  # type: ignore[arg-type]


def workspace_for(ws: Workspace, context: Context[Workspace]) -> Workspace:
    """The workspace with the settings of this request.

    They have the client's name, unless the workspace names one already, and no reflections if the client's agent does
    not reflect; sessions record both.
    """
    client = ws.settings.client or name_of(context.request_context)
    reflects = (context.request_context.meta or {}).get(REFLECTS) is not False
    settings = replace(ws.settings, client=client, with_reflection=ws.settings.with_reflection and reflects)
    if settings == ws.settings:
        return ws
    named = copy(ws)
    named.settings = settings
    return named

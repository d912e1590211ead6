"""From a plain function over a Workspace to an MCP tool.

What the agent must not choose never reaches the wire: the workspace is cut from the signature, and an argument that
is not in the signature (a seed, say) is refused by name instead of being dropped in silence, as the SDK would.
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
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.types import ToolAnnotations
from pydantic import BaseModel

from ..data.errors import VirtualMLEError
from ..memory.text import clean_text
from ..models.config import TrialConfig
from ..tools.results import TrialObservation
from ..tools.workspace import Workspace
from .waits import wait_cap, wait_until_over

PlainTool = Callable[..., BaseModel]

CLIENT_NAME_LENGTH = 80
LLM_USD = "virtualmle/llm_usd"
"""In a request's `_meta`: dollars that the client's language model cost this session so far. No model can set it."""
WAIT = "wait_seconds"

OUT_OF_REACH = {
    "seed": "Seeds belong to the server: one per configuration, so that no lucky seed can be picked.",
    "split": "Trials are measured on validation; the test set is looked at once, by finalize.",
} | dict.fromkeys(TrialConfig.model_fields, "Knobs go inside `changes`.")
"""Arguments that agents try, and why they do not exist."""


class WireTool(Tool):
    """A tool that refuses arguments it does not know."""

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Any:
        """Run the tool; ToolError for unknown arguments and for every mistake that the caller can mend."""
        known = list(self.parameters.get("properties", {}))
        unknown = sorted(set(arguments) - set(known))
        if unknown:
            reasons = " ".join(dict.fromkeys(OUT_OF_REACH[name] for name in unknown if name in OUT_OF_REACH))
            raise ToolError(
                f"{self.name} has no argument {', '.join(map(repr, unknown))}; "
                f"its arguments are {', '.join(known) or 'none'}. {reasons}".rstrip()
            )
        return await super().run(arguments, context, convert_result)


def wire_tool(ws: Workspace, tool: PlainTool, annotations: ToolAnnotations, override: float | None) -> Tool:
    """`tool` as it is offered to clients: its docstring the description, its parameters the schema, minus `ws`."""
    wired = WireTool.from_function(_on_the_wire(ws, tool, override), annotations=annotations)
    wired.parameters["additionalProperties"] = False
    return wired


def _on_the_wire(ws: Workspace, tool: PlainTool, override: float | None) -> Callable[..., Awaitable[BaseModel]]:
    """`tool` without its first parameter, run off the event loop; a wait becomes looking from here, within bounds."""
    signature = inspect.signature(tool, eval_str=True)
    _, *parameters = signature.parameters.values()
    waits = WAIT in signature.parameters

    async def call(context: Context[Workspace], **arguments: Any) -> BaseModel:
        client = client_name(context)
        asked = arguments.pop(WAIT, None)
        if waits:
            arguments[WAIT] = 0
        try:
            await anyio.to_thread.run_sync(note_cost, ws, context, arguments.get("session"))
            result = await anyio.to_thread.run_sync(partial(tool, for_client(ws, client), **arguments))
            if not isinstance(result, TrialObservation) or not waits:
                return result
            cap = wait_cap(client, override)
            return await wait_until_over(ws, result, context, cap if asked is None else min(asked, cap))
        except VirtualMLEError as error:
            raise ToolError(str(error)) from error

    context_parameter = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=Context[Workspace])
    call.__name__, call.__doc__ = tool.__name__, inspect.getdoc(tool)
    call.__signature__ = signature.replace(parameters=[*parameters, context_parameter])  # type: ignore[attr-defined]
    return call


def client_name(context: Context[Workspace]) -> str:
    """The name that the client gave itself, cleaned; empty when it gave none."""
    parameters = context.request_context.session.client_params
    return clean_text(parameters.client_info.name, CLIENT_NAME_LENGTH) if parameters else ""


def note_cost(ws: Workspace, context: Context[Workspace], session: object) -> None:
    """Record what the client says its language model has cost, where it says so; SessionError for no such session."""
    cost = (context.request_context.meta or {}).get(LLM_USD)
    number = isinstance(cost, int | float) and not isinstance(cost, bool) and math.isfinite(cost) and cost > 0
    if number and isinstance(session, str):
        ws.memory.spend_llm(session, float(cost))  # type: ignore[arg-type]


def for_client(ws: Workspace, client: str) -> Workspace:
    """The workspace, with the client's name in its settings unless a person has set one: sessions record it."""
    if ws.settings.client or not client:
        return ws
    named = copy(ws)
    named.settings = replace(ws.settings, client=client)
    return named

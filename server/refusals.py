"""Protocol errors for a client's mistakes: the code that its protocol version defines, and a sentence of ours.

The SDK answers an unknown prompt or a missing argument with an internal error and a traceback in the log, and an
unknown tool with a result; for malformed parameters it has no words. A mistake of a client is never a traceback here.
"""

from collections.abc import Mapping
from typing import Any

from mcp import MCPError
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver.prompts import Prompt
from mcp.types import INVALID_PARAMS
from pydantic import ValidationError

from ..data.wording import listed

RESOURCE_NOT_FOUND = -32002
"""The code for an unknown resource before 2026-07-28, which made it INVALID_PARAMS."""
FIRST_WITHOUT_HANDSHAKE = "2026-07-28"
UNMATCHED = "Unknown resource: "
"""How the SDK's message begins if no template matches."""
PAGED = ("resources/list",)
LISTS = ("tools/list", "prompts/list", "resources/templates/list", *PAGED)
SHOWN = 80  # characters of a client's text that a sentence repeats


class Refusals:
    """The middleware that refuses a request which no handler can serve."""

    def __init__(self, tools: list[str], prompts: list[Prompt]) -> None:
        self._tools = tools
        self._prompts = {prompt.name: prompt for prompt in prompts}

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Serve one message. Raises MCPError for a request that cannot be served."""
        if ctx.request_id is None:
            return await call_next(ctx)
        self._check(ctx.method, ctx.params or {})
        try:
            return await call_next(ctx)
        except ValidationError as error:
            raise invalid(malformed(ctx.method, error)) from None
        except MCPError as error:
            if ctx.method == "resources/read" and error.code == INVALID_PARAMS:
                raise unknown_resource(error, ctx.protocol_version) from None
            raise

    def _check(self, method: str, params: Mapping[str, Any]) -> None:
        name = params.get("name")
        if method == "tools/call" and isinstance(name, str) and name not in self._tools:
            raise invalid(f"there is no tool {shown(name)}; the tools are {listed(self._tools)}")
        if method == "prompts/get" and isinstance(name, str):
            check_prompt(self._prompts, name, params.get("arguments") or {})
        if method in LISTS and method not in PAGED and params.get("cursor"):
            raise unknown_cursor(params["cursor"])


def check_prompt(prompts: Mapping[str, Prompt], name: str, given: object) -> None:
    """Raise MCPError for a prompt that does not exist, an argument that it does not have, or one that is missing."""
    if name not in prompts:
        raise invalid(f"there is no prompt {shown(name)}; the prompts are {listed(list(prompts))}")
    if not isinstance(given, Mapping):
        return  # the validation of the parameters has the words for this
    arguments = prompts[name].arguments or []
    known = [argument.name for argument in arguments]
    for argument in given:
        if argument not in known:
            raise invalid(f"the prompt {name} has no argument {shown(argument)}; its arguments are {listed(known)}")
    missing = [a.name for a in arguments if a.required and given.get(a.name) in (None, "")]
    if missing:
        raise invalid(f"the prompt {name} needs {listed(missing)}; its arguments are {listed(known)}")


def malformed(method: str, error: ValidationError) -> str:
    """The sentence for parameters that do not have the form of their method; it names the fields, never a value."""
    fields = sorted({".".join(map(str, each["loc"])) for each in error.errors(include_input=False)} - {""})
    named = f": see {shown(', '.join(fields))}" if fields else ""
    return f"the parameters of {method} do not have the form that the protocol defines{named}"


def unknown_resource(error: MCPError, protocol_version: str) -> MCPError:
    """The error for a resource that does not exist, with the code of the protocol version."""
    code = INVALID_PARAMS if protocol_version >= FIRST_WITHOUT_HANDSHAKE else RESOURCE_NOT_FOUND
    uri = error.data.get("uri") if isinstance(error.data, dict) else None
    is_ours = not error.message.startswith(UNMATCHED)
    sentence = error.message if is_ours else f"there is no resource {shown(uri)}; see resources/list and its templates"
    return MCPError(code, sentence, error.data)


def unknown_cursor(cursor: object) -> MCPError:
    """The error for a cursor that this server has not given."""
    return invalid(f"the cursor {shown(cursor)} is none of this server; leave it out to begin with the first page")


def invalid(sentence: str) -> MCPError:
    """The error for parameters that a client can correct."""
    return MCPError(INVALID_PARAMS, sentence)


def shown(text: object) -> str:
    """A client's text in quotation marks, cut to a length that a sentence can bear."""
    return f"{str(text)!r:.{SHOWN}}"

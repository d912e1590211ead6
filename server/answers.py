"""The answer of a tool on the wire: a text for models and the typed structure for programs.

Which of the two a client shows its model differs. Most show the text. Some show the structure as JSON instead and drop
the text: Claude Code from 2.0.21, Codex, opencode, Copilot CLI, Visual Studio Code. They get the text alone, and a list
of tools without output schemas, since a tool that has one must return a structure.
"""

from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.types import CallToolResult, TextContent
from pydantic import BaseModel

from ..memory.text import clean_text
from ..tools.views import View
from .texts.rendering import text_of

CLIENT_NAME_LENGTH = 80
SHOW_STRUCTURE_ONLY = ("claude-code", "codex", "github-copilot", "opencode", "visual studio code", "vscode")
"""Clients, by prefix of their names, whose model would not see the text beside a structure."""
STRUCTURES = ("structuredContent", "outputSchema")


def name_of(ctx: ServerRequestContext[Any, Any]) -> str:
    """The name that the client of a request reported, cleaned; empty if it reported none."""
    parameters = ctx.session.client_params
    return clean_text(parameters.client_info.name, CLIENT_NAME_LENGTH) if parameters else ""


def takes_text_only(client: str) -> bool:
    """Whether the client of this name gets texts without structures."""
    return client.casefold().startswith(SHOW_STRUCTURE_ONLY)


def answer(result: BaseModel) -> CallToolResult:
    """The result of a tool, as a text and as a structure."""
    text = TextContent(type="text", text=text_of(result))
    return CallToolResult(content=[text], structured_content=structure_of(result))


def structure_of(result: BaseModel) -> dict[str, Any]:
    """The fields of the result that say something: what is left out has the default of its field."""
    if isinstance(result, View):
        return result.content()
    return result.model_dump(mode="json", by_alias=True, exclude_defaults=True)


async def texts_alone(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Middleware: answers without structures for clients that take texts only.

    It stands outside everything that makes an answer, such as tasks, which therefore can rely on the structures.
    """
    result = await call_next(ctx)
    return without_structures(result) if isinstance(result, dict) and takes_text_only(name_of(ctx)) else result


def without_structures(result: dict[str, Any]) -> dict[str, Any]:
    """A result on the wire without structures: that of a call, or of a task, or a list of tools."""
    kept = {key: part for key, part in result.items() if key not in STRUCTURES}
    if isinstance(kept.get("tools"), list):
        kept["tools"] = [without_structures(tool) for tool in kept["tools"]]
    if isinstance(kept.get("result"), dict):
        kept["result"] = without_structures(kept["result"])
    return kept

"""The answer of a tool on the wire: a text for models and the typed structure for programs."""

from mcp.types import CallToolResult, TextContent
from pydantic import BaseModel

from .texts.rendering import text_of


def answer(result: BaseModel) -> CallToolResult:
    """The result of a tool as the wire carries it."""
    return CallToolResult(
        content=[TextContent(type="text", text=text_of(result))],
        structured_content=result.model_dump(mode="json", by_alias=True),
    )

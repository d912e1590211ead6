"""Before finalize, a person is asked where the client can ask: both protocol eras, every answer, and no capability."""

from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.client import ClientRequestContext
from mcp.types import ElicitRequestParams, ElicitResult

from tests.mcp_worlds import ERAS, connect
from tests.quick_home import quick_home
from virtualmle.data.errors import ServerError
from virtualmle.server.app import build_server
from virtualmle.server.asking import ASK

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Person:
    """Answers every question in the same way, and remembers what was asked."""

    def __init__(self, action: str, content: dict[str, Any] | None = None) -> None:
        self.answer = ElicitResult(action=action, content=content)  # type: ignore[arg-type]
        self.questions: list[ElicitRequestParams] = []

    async def __call__(self, context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        self.questions.append(params)
        return self.answer


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home, to be copied, with an open session that has one trial."""
    ...


async def call(client: Client, tool: str, **arguments: Any) -> tuple[bool, str, dict[str, Any]]:
    result = await client.call_tool(tool, arguments)
    text = "".join(block.text for block in result.content if block.type == "text")
    return bool(result.is_error), text, result.structured_content or {}

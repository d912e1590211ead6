"""Clients of a server over a home: in memory, in both protocol eras, and a real process over stdio."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mcp import Client
from mcp.types import Implementation

from virtualmle.server.app import build_server
from virtualmle.tools.workspace import Settings

ERAS = ("auto", "legacy")


@asynccontextmanager
async def connect(home: Path, mode: str = "auto", **options: Any) -> AsyncIterator[Client]:
    """A client of protocol era `mode` in this process; `options` go to the SDK's Client."""
    info = Implementation(name="virtualmle", version="1")  # its waits have no limit
    async with Client(build_server(home, Settings(threads=1)), mode=mode, client_info=info, **options) as client:
        yield client

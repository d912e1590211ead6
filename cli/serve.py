"""`virtualmle serve`: run the MCP server, for clients such as Claude Desktop, Cursor or Codex."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer

from .options import (
    HERE,
    WARM_SECONDS,
    Address,
    AllowedHosts,
    Device,
    Home,
    KeepWarm,
    LauncherName,
    MaxSessions,
    MemoryFrom,
    Parallel,
    Replay,
    Sandbox,
    Seconds,
    Seed,
    Threads,
    Trials,
    WithoutMemory,
    WithoutReflection,
    make_settings,
)
from .token_options import Token, TokenFile, bearer_token


class Transport(StrEnum):
    """How clients reach the server."""

    stdio = "stdio"
    http = "http"


@contextmanager
def _without_pandas() -> Iterator[None]:
    """Imports inside do not find pandas.

    Where it is installed, sqlite-utils loads it, which takes half a second, to store pandas' own times; we have none.
    """
    if "pandas" in sys.modules:
        yield
        return
    sys.modules["pandas"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["pandas"]


@contextmanager
def _without_collecting() -> Iterator[None]:
    """The garbage collector rests inside: what imports make stays, and searching it takes an eighth of their time.

    Afterwards these objects are left out of later collections as well.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def serve(  # noqa: PLR0913, PLR0917 - one parameter per option
    home: Home = HERE,
    transport: Annotated[
        Transport, typer.Option(help="stdio: the client starts the server; http: the server listens on a port.")
    ] = Transport.stdio,
    host: Annotated[str, typer.Option(help="Address to listen on, for --transport http.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on, for --transport http; 0 = any free port.")
    ] = 8000,
    token_file: TokenFile = None,
    token: Token = None,
    allowed_host: AllowedHosts = None,
    trials: Trials = None,
    seconds: Seconds = None,
    max_sessions: MaxSessions = None,
    parallel: Parallel = None,
    seed: Seed = 0,
    without_reflection: WithoutReflection = False,
    without_memory: WithoutMemory = False,
    memory_from: MemoryFrom = "",
    device: Device = "auto",
    threads: Threads = 0,
    keep_warm: KeepWarm = WARM_SECONDS,
    launcher: LauncherName = "local",
    address: Address = None,
    sandbox: Sandbox = None,
    replay: Replay = None,
) -> None:
    """Serve the tools over MCP.

    Runs until the client disconnects (stdio) or the server is stopped (http).

    Example: virtualmle serve --home ~/recsys --trials 30

    Behind a proxy: virtualmle serve --transport http --token-file ~/token --allowed-host recsys.example.org
    """
    with _without_pandas(), _without_collecting():
        from ..server.serve import serve as run  # imports the MCP library, which takes most of a second
    settings = make_settings(
        trials, seconds, seed, without_reflection, without_memory, device, threads, sandbox, keep_warm, memory_from,
        replay, parallel, launcher, address, max_sessions,
    )  # fmt: skip
    run(home, settings, transport.value, host, port, bearer_token(token, token_file), allowed_host or ())

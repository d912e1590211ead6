"""`virtualmle call`: call one tool as a plain function, without MCP; for scripts and for inspection."""

import inspect
import json
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import typer

from .options import (
    HERE,
    WARM_SECONDS,
    Device,
    Home,
    KeepWarm,
    MaxSessions,
    Seed,
    Threads,
    Trials,
    make_settings,
    open_workspace,
)

TOOLS = (
    "open_session", "run_trial", "sweep", "wait_trial", "cancel_trial",
    "read_memory", "write_reflection", "finalize", "list_sessions",
)  # fmt: skip


def call(
    tool: Annotated[str, typer.Argument(help=f"The tool: {', '.join(TOOLS)}.")],
    arguments: Annotated[
        str, typer.Argument(metavar="JSON", help="Its arguments as a JSON object; - reads them from standard input.")
    ] = "{}",
    home: Home = HERE,
    trials: Trials = None,
    max_sessions: MaxSessions = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = 0,
    keep_warm: KeepWarm = WARM_SECONDS,
    text: Annotated[bool, typer.Option("--text", help="Print the text that a language model reads instead.")] = False,
) -> None:
    """Call one tool without a server.

    Prints the result of the tool as JSON, or with --text as a language model reads it.

    Example: virtualmle call open_session '{"dataset": "demo", "backbone": "sasrec"}'
    """
    if tool not in TOOLS:
        raise typer.BadParameter(f"{tool!r} is not a tool; choose one of {', '.join(TOOLS)}", param_hint="TOOL")
    given = _parse(sys.stdin.read() if arguments == "-" else arguments)
    settings = make_settings(
        trials, None, seed, device=device, threads=threads, keep_warm=keep_warm, max_sessions=max_sessions
    )
    ws = open_workspace(home, settings)
    with ws.memory:
        result = _invoke(_function(tool), ws, given)
        print(_text_of(result) if text else result.model_dump_json(indent=1))


def _parse(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
        json.dumps(given, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # UnicodeEncodeError, a ValueError: a lone surrogate
        raise typer.BadParameter(f"not JSON: {error}", param_hint="JSON") from None
    if not isinstance(given, dict):
        raise typer.BadParameter("give a JSON object, e.g. '{\"dataset\": \"demo\"}'", param_hint="JSON")
    return given


def _function(tool: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(import_module(f"..tools.{tool}", __package__), tool)
    plain: Callable[..., Any] = inspect.unwrap(function)  # its signature has the bounds of the arguments
    return plain


def _text_of(result: Any) -> str:
    from ..server.texts.rendering import text_of

    return text_of(result)


def _invoke(function: Callable[..., Any], ws: Any, given: dict[str, Any]) -> Any:
    """Call `function` with arguments that are read as the server reads them. Raises ArgumentError."""
    from pydantic import ConfigDict, validate_call

    from ..server.arguments import read_arguments
    from ..server.schemas import input_schema

    read = read_arguments(function.__name__, input_schema(function), given)
    return validate_call(config=ConfigDict(arbitrary_types_allowed=True))(function)(ws, **read)

"""A headless session: start a server on stdio, connect a real MCP client, run an agent, print the result.

`tune` and `sessions resume` differ only in the `HeadlessRun` that they pass.
"""

import asyncio
import contextlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from mcp import Client, MCPError, StdioServerParameters
from mcp.types import CONNECTION_CLOSED, Implementation
from rich.console import Console

from .. import __version__
from ..agents.base import Agent, Brief
from ..agents.events import Answered, Event, LeftOpen, Noted, OnEvent, SessionOpened
from ..agents.loop import run_agent, run_trials
from ..agents.registry import ASKING, AgentOptions, make_agent
from ..agents.seeding import Seeding
from ..agents.watched import WatchedModel
from ..data.errors import SessionError, VirtualMLEError
from ..memory.store import Memory
from ..tools.results import FinalResult
from ..tracking.targets import Target
from ..trials.device import check_device
from .advice import SessionCommands, ignored_options, in_commands, look_notice
from .driver_lock import driver_lock
from .follower import Follower
from .live import Display
from .model_options import ModelOptions, cost_text

if TYPE_CHECKING:
    from ..tools.workspace import Settings

CLIENT_PREFIX = "virtualmle-"
"""Clients of this module are called virtualmle-AGENT; the server lets them wait without limit and records the name."""
LEDGER_SECONDS = 60.0  # the server writes to memory.db, too, and a paid reply must not be lost to a busy file
INTERRUPTED = 130  # the exit code that shells report for Ctrl-C


@dataclass(frozen=True)
class HeadlessRun:
    """What to run: the existing `session`, or else a session for `dataset` and `backbone`."""

    home: Path
    agent: str
    seed: int
    dataset: str
    backbone: str
    session: str | None = None
    new: bool = False
    model: ModelOptions = ModelOptions()
    seeding: Seeding = "default"
    finalize: bool = True  # False: the session stays open when its budget is spent or a stop rule applies
    track: tuple[Target, ...] = ()


def run_headless(plan: HeadlessRun, settings: "Settings", as_json: bool) -> None:
    """Run a session to its end and print the result. Ctrl-C exits with 130; the running trial continues by itself."""
    if settings.ray_address is None:
        check_device(settings.device)
    display = Display(Console(stderr=True))
    with Follower(plan.home, plan.track, lambda text: display(Noted(text))) as follower:
        _run(plan, settings, as_json, display, follower)


def _run(plan: HeadlessRun, settings: "Settings", as_json: bool, display: Display, follower: Follower) -> None:

    def commands() -> SessionCommands:
        session = display.session or plan.session or ""
        return SessionCommands(plan.home, plan.dataset, plan.backbone, session, no_finalize=not plan.finalize)

    try:
        with driver_lock(plan.home) as lock, display:
            if plan.session:
                lock.acquire(plan.session)

            def on_event(event: Event) -> None:
                if isinstance(event, SessionOpened):
                    lock.acquire(event.brief.session)
                    if plan.agent in ASKING:
                        plan.model.remember(plan.home, event.brief.session)
                display(event)
                if isinstance(event, SessionOpened):
                    _announce(plan, event.brief, settings, display)
                    follower.start(event.brief.session)

            result = asyncio.run(_connected(plan, settings, on_event))
    except KeyboardInterrupt:
        again = commands().resume if commands().session else "the same command"
        print("\ninterrupted; a running trial or test evaluation continues in the background.", file=sys.stderr)
        print(f"To resume: {again}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except VirtualMLEError as error:
        raise type(error)(in_commands(str(error), commands())) from None
    except (MCPError, ExceptionGroup) as error:
        if not _is_connection_lost(error):
            raise
        again = commands().resume if commands().session else "the same command"
        raise SessionError(
            "the server has ended; its running trials continue in the background, and nothing is lost. To resume: "
            f"{again}"
        ) from None
    if isinstance(result, LeftOpen):
        _show_open(plan.home, result, commands(), as_json)
    else:
        show_result(plan.home, result, as_json)


def _is_connection_lost(error: Exception) -> bool:
    """Whether the error, or one in a group of errors, is that the connection to the server has ended."""
    if isinstance(error, ExceptionGroup):
        return any(_is_connection_lost(each) for each in error.exceptions)
    return isinstance(error, MCPError) and error.error.code == CONNECTION_CLOSED


def _announce(plan: HeadlessRun, brief: Brief, settings: "Settings", on_event: OnEvent) -> None:
    """Say which options have no effect on a resumed session, and whether the run will use a look at the test set."""
    with Memory(plan.home / "memory.db") as memory:
        record = memory.sessions.get(brief.session)
    note = ignored_options(settings, record) if brief.resumed and not plan.session else ""
    if note:
        print(note, file=sys.stderr)
    if plan.finalize and record.state == "open" and not record.replay:
        on_event(Noted(look_notice(record, plan.home)))


async def _connected(plan: HeadlessRun, settings: "Settings", on_event: OnEvent) -> FinalResult | LeftOpen:
    with contextlib.ExitStack() as stack:
        agent = _agent(plan, stack, on_event)
        name = plan.agent if plan.seeding == "default" else f"{plan.agent}:{plan.seeding}"
        client_info = Implementation(name=f"{CLIENT_PREFIX}{name}", version=__version__)
        async with Client(server_parameters(plan.home, settings), client_info=client_info) as client:
            try:
                run = run_agent if plan.finalize else run_trials
                return await run(
                    client, agent, plan.dataset, plan.backbone, session=plan.session, new=plan.new, on_event=on_event
                )
            except VirtualMLEError as error:
                refusal = error  # raised below: the client's task groups would wrap it in an exception group
        raise refusal


def _agent(plan: HeadlessRun, stack: contextlib.ExitStack, on_event: OnEvent) -> Agent:
    """The agent of a run, with its language model if it asks one; the model's ledger is open until `stack` closes."""
    if plan.agent not in ASKING:
        return make_agent(plan.agent, options=AgentOptions(plan.seed, plan.seeding))
    memory = stack.enter_context(Memory(plan.home / "memory.db", busy_seconds=LEDGER_SECONDS))

    def notify(text: str) -> None:
        on_event(Noted(text))

    def report(session: str) -> None:
        on_event(Answered(cost_text(memory.ledger.totals(session))))

    model = WatchedModel(plan.model.client(plan.home, memory.ledger, notify), report)
    options = AgentOptions(
        plan.seed,
        plan.seeding,
        model=model,
        driver="chat" if plan.model.driver == "chat" else "stateless",
        max_steps=plan.model.max_steps,
        sessions=plan.home / ".virtualmle" / "sessions",
    )
    return make_agent(plan.agent, options=options)


def server_parameters(home: Path, settings: "Settings") -> StdioServerParameters:
    """How to start the server. The full environment is passed on; by default, a stdio server receives little of it."""
    return StdioServerParameters(
        command=sys.executable,
        args=["-P", "-m", "virtualmle", "serve", "--home", str(home), *settings_options(settings)],
        env=dict(os.environ),
    )


def settings_options(settings: "Settings") -> list[str]:
    """The options of `virtualmle serve` that correspond to `settings`."""
    valued = {
        "--trials": settings.max_trials,
        "--seconds": settings.max_train_seconds,
        "--max-sessions": settings.max_sessions,
        "--parallel": settings.parallel,
        "--seed": settings.seed,
        "--device": settings.device,
        "--threads": settings.threads,
        "--keep-warm": settings.keep_warm,
        "--sandbox": settings.protocol_path,
        "--replay": settings.replay,
        "--launcher": None if settings.ray_address is None else "ray",
        "--address": settings.ray_address,
        "--memory-from": ",".join(settings.memory_from) or None,
    }
    flags = {
        "--without-reflection": not settings.with_reflection,
        "--without-memory": not settings.with_memory,
    }
    options = [word for name, value in valued.items() if value is not None for word in (name, str(value))]
    return options + [name for name, wanted in flags.items() if wanted]


def show_result(home: Path, result: FinalResult, as_json: bool) -> None:
    """Write the report of a finalized session and print its result."""
    # Imported after the session: matplotlib takes a second to import, which should not delay the first trial
    from ..report.gather import gather
    from ..report.html import write_report
    from ..report.tables import result_table, test_table, trials_table

    path = write_report(home, result.session)
    with Memory(home / "memory.db") as memory:
        costs = memory.ledger.totals(result.session)
    if as_json:
        llm = [row.model_dump() for row in costs]
        print(json.dumps({**result.model_dump(), "report": str(path), "llm": llm}, indent=1))
        return
    data = gather(home, result.session)
    console = Console()
    console.print(trials_table(data.trials))
    console.print(result_table(data))
    if compared := test_table(data):
        console.print(compared)
    if costs:
        print(f"language model: {cost_text(costs)}")
    if result.state in ("frozen", "attempted") and not data.session.replay:
        print(result.next)
    print(f"report: {path}")


def _show_open(home: Path, left: LeftOpen, commands: SessionCommands, as_json: bool) -> None:
    """Write the report of a session that stays open, and print its trials and the commands that go on."""
    from ..report.gather import gather
    from ..report.html import write_report
    from ..report.tables import result_table, trials_table

    path = write_report(home, left.session)
    data = gather(home, left.session)
    going_on = {"finalize": commands.finalize, "extend": commands.extend, "export": commands.export}
    if as_json:
        best = data.selected
        print(json.dumps({
            "session": left.session, "state": data.session.state, "reason": left.reason, "trials": len(data.trials),
            "best": best.handle if best else None,
            "validation": best.outcome.metrics if best and best.outcome else {},
            "cognition_summary": left.summary, "report": str(path), "commands": going_on,
        }, indent=1))  # fmt: skip
        return
    console = Console()
    console.print(trials_table(data.trials))
    console.print(result_table(data))
    print(f"{left.session} stays open ({left.reason}); its test set has not been looked at. To go on:")
    for verb, command in going_on.items():
        print(f"  {verb:<9} {command}")
    print(f"report: {path}")

"""`virtualmle sessions`: list and show the sessions of a home, and resume interrupted ones.

`closing.py` has the commands that finalize and extend a session.
"""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from .memory import existing_memory
from .model_options import NO_MODEL, ModelOptions, asks_a_model, remembered
from .options import (
    AGENT_NAMES,
    HERE,
    WARM_SECONDS,
    Address,
    Device,
    Home,
    Json,
    KeepWarm,
    LauncherName,
    NoFinalize,
    ResumedParallel,
    Reveal,
    Threads,
    Track,
    make_settings,
    open_workspace,
    parallel_of,
    seeding_named,
)

if TYPE_CHECKING:
    from ..memory.records import SessionRecord
    from ..tools.workspace import Workspace

app = typer.Typer(
    help="List, show, resume, extend and finalize sessions.\n\nExample: virtualmle sessions resume demo-sasrec-1",
    no_args_is_help=True,
)

Session = Annotated[str, typer.Argument(help="The id of a session, e.g. demo-sasrec-1.")]


@app.command("list")
def list_all(home: Home = HERE, as_json: Json = False) -> None:
    """List all sessions.

    Example: virtualmle sessions list
    """
    from ..tools.list_sessions import list_sessions  # imports sqlite-utils

    existing_memory(home).close()
    ws = open_workspace(home)
    with ws.memory:
        listed = list_sessions(ws)
    if as_json:
        print(listed.model_dump_json(indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)  # no frame, so that seven columns fit into a terminal of width 80
    table.add_column("session", no_wrap=True)  # ids are there to be copied, so they are never truncated
    for heading in ("dataset", "backbone", "state", "trials", "best NDCG@10", "opened"):
        table.add_column(heading, overflow="fold")
    for s in listed.sessions:
        best = "–" if s.best_ndcg10 is None else f"{s.best_ndcg10:.4f}"
        table.add_row(s.session, s.dataset, s.backbone, s.state, str(s.trials), best, s.opened_at[:10])
    Console().print(table)


@app.command()
def show(session: Session, reveal: Reveal = False, home: Home = HERE, as_json: Json = False) -> None:
    """Show the trials and result of a session.

    While another session on the same data is open, the test result is shown with --reveal only.

    Example: virtualmle sessions show demo-sasrec-1
    """
    from ..report.gather import gather

    data = gather(home, session, reveal=reveal)
    if as_json:
        content = {
            "session": data.session.model_dump(exclude={"protocol_text"}),
            "trials": [trial.model_dump() for trial in data.trials],
            "reflections": [reflection.model_dump() for reflection in data.reflections],
            "test": data.test.model_dump() if data.test else None,
            "withheld_by": list(data.withheld_by),
        }
        print(json.dumps(content, indent=1))
        return
    from rich.console import Console

    from ..report.tables import result_table, test_table, trials_table

    console = Console()
    console.print(trials_table(data.trials))
    console.print(result_table(data))
    if compared := test_table(data):
        console.print(compared)


@app.command()
@asks_a_model
def resume(  # noqa: PLR0913, PLR0917 - one parameter per option
    session: Session,
    agent: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(AGENT_NAMES)}.", show_default="as opened")
    ] = None,
    seeding: Annotated[
        str | None, typer.Option(help="none, default, moves or memory.", show_default="as opened")
    ] = None,
    parallel: ResumedParallel = None,
    no_finalize: NoFinalize = False,
    track: Track = None,
    device: Device = "auto",
    threads: Threads = 0,
    keep_warm: KeepWarm = WARM_SECONDS,
    launcher: LauncherName = "local",
    address: Address = None,
    asked: ModelOptions = NO_MODEL,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Resume an interrupted session.

    Uses the agent, seeding, seed and protocol that the session was opened with, and the language model that it was
    last run with; another --model, --parallel, or a higher --max-usd, holds from now on.

    Example: virtualmle sessions resume demo-sasrec-1
    """
    from ..agents.registry import ASKING
    from ..data.errors import ConfigError, SessionError
    from ..tracking.targets import parse_targets
    from .advice import describe_end
    from .headless import HeadlessRun, run_headless  # imports the MCP library

    existing_memory(home).close()
    ws = open_workspace(home)
    with ws.memory:
        record = ws.memory.sessions.get(session)
        if record.state in ("revealed", "void") or (record.replay and record.state == "frozen"):
            raise SessionError(describe_end(record, home))
        if no_finalize and record.state != "open":
            raise SessionError(f"session {session} is {record.state} already; resume it without --no-finalize")
        if record.state == "open":
            _check_dataset(ws, record)
            if launcher == "ray" and parallel == "auto":
                raise ConfigError("--parallel auto counts the places of this machine; give a number with Ray")
            _set_parallel(ws, record, parallel, device, threads)
    asked = asked.over(remembered(home, session))
    name = agent or agent_of(record)
    if name in ASKING:
        asked.check(home)
    plan = HeadlessRun(
        home, name, record.seed, record.dataset, record.backbone, session, model=asked,
        seeding=seeding_named(seeding or seeding_of(record)), finalize=not no_finalize,
        track=parse_targets(track or ()),
    )  # fmt: skip
    settings = make_settings(
        seed=record.seed, device=device, threads=threads, keep_warm=keep_warm, launcher=launcher, address=address
    )
    run_headless(plan, settings, as_json)


def _check_dataset(ws: "Workspace", record: "SessionRecord") -> None:
    """Raise DataError if the session's dataset was replaced or removed, because each of its trials would be refused."""
    from ..data.errors import DataError
    from .advice import SessionCommands, in_commands

    try:
        ws.session_dataset(record)
    except DataError as error:
        commands = SessionCommands(ws.home, record.dataset, record.backbone, record.id)
        raise DataError(f"session {record.id} cannot be resumed: {in_commands(str(error), commands)}") from None


def _set_parallel(ws: "Workspace", record: "SessionRecord", given: str | None, device: str, threads: int) -> None:
    """Change how many trials of the session may run at a time, if a number is given; running ones go on."""
    from ..trials.places import most_places

    parallel = parallel_of(given)
    if parallel is not None:
        places = most_places(device, threads) if parallel == "auto" else parallel
        ws.memory.sessions.set_parallel(record.id, places, auto=parallel == "auto")


def agent_of(record: "SessionRecord") -> str:
    """The name of the agent that opened a session; engineer if another client opened it."""
    from ..agents.registry import AGENTS, RECIPE
    from .headless import CLIENT_PREFIX

    whole = record.client.removeprefix(CLIENT_PREFIX)
    name = whole.partition(":")[0]
    if name == RECIPE:  # its file is part of its name
        return whole
    return name if name in AGENTS else "engineer"


def seeding_of(record: "SessionRecord") -> str:
    """The seeding of the agent that opened a session."""
    from ..agents.seeding import SEEDINGS

    name = record.client.partition(":")[2]
    return name if name in SEEDINGS else "default"

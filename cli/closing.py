"""`virtualmle sessions finalize` and `extend`: a person ends an open session, or gives it a larger budget.

Neither is a tool: an agent's own `finalize` needs no person, and no agent may raise its budget.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from .memory import existing_memory
from .options import HERE, Address, Device, Home, Json, LauncherName, Threads, make_settings, open_workspace
from .sessions import Session

if TYPE_CHECKING:
    from ..memory.records import SessionRecord
    from ..tools.results import FinalResult
    from ..tools.workspace import Workspace
    from .live import Display

WAIT_SECONDS = 1.0  # between two reports of a confirmation
INTERRUPTED = 130


def finalize(  # noqa: PLR0913, PLR0917 - one parameter per option
    session: Session,
    summary: Annotated[
        str | None,
        typer.Option(help="What the session taught, for later sessions.", show_default="computed from its trials"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    device: Device = "auto",
    threads: Threads = 0,
    launcher: LauncherName = "local",
    address: Address = None,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Finalize an open session: freeze it and use its one look at the test set.

    Asks first, unless --yes is given. The best trial on validation is selected, after a confirmation if the protocol
    has one. Without --summary, the Cognition Summary is computed from the trials. A session whose finalization was
    interrupted continues where it stopped.

    Example: virtualmle sessions finalize demo-sasrec-1
    """
    from .headless import show_result  # imports the MCP library

    existing_memory(home).close()
    settings = make_settings(device=device, threads=threads, launcher=launcher, address=address)
    ws = open_workspace(home, settings)
    with ws.memory:
        record = ws.memory.sessions.get(session)
        _refuse_ended(record, home)
        if not yes:
            _ask(ws, record)
        result = _finalized(ws, record, summary)
    show_result(home, result, as_json)


def extend(
    session: Session,
    trials: Annotated[int, typer.Option("--trials", min=0, help="Trials to add to the budget.")] = 0,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="Training seconds to add to the budget.")] = 0.0,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Add trials or training seconds to the budget of an open session.

    The patience counts anew from here. The report lists every extension. Once a session is frozen, its budget is fixed.

    Example: virtualmle sessions extend demo-sasrec-1 --trials 6
    """
    from ..data.errors import SessionError
    from ..data.wording import counted
    from ..tools.recording import extend_recorded  # imports sqlite-utils
    from .advice import SessionCommands, describe_closed

    with existing_memory(home) as memory:
        record = memory.sessions.get(session)
        if record.state != "open":
            raise SessionError(describe_closed(record, home))
        extended = extend_recorded(home, memory, session, trials, seconds)
        count = len(memory.sessions.extensions(session))
    if as_json:
        budget = extended.model_dump(include={"id", "max_trials", "max_train_seconds"})
        print(json.dumps({**budget, "extensions": count}, indent=1))
        return
    commands = SessionCommands(home, record.dataset, record.backbone, record.id)
    print(
        f"{record.id} may now run {counted(extended.max_trials, 'trial')} and train "
        f"{extended.max_train_seconds:g} seconds in total; go on with `{commands.resume}`"
    )


def _refuse_ended(record: "SessionRecord", home: Path) -> None:
    from ..data.errors import SessionError
    from .advice import describe_end

    if record.state in ("revealed", "void") or (record.replay and record.state == "frozen"):
        raise SessionError(describe_end(record, home))


def _ask(ws: "Workspace", record: "SessionRecord") -> None:
    """Ask on standard error whether to finalize; raises SessionError if nobody can answer, or the answer is no."""
    from ..data.errors import SessionError
    from ..data.wording import counted
    from ..examiner.vault import Vault

    number = counted(len(ws.memory.trials.all(record.id)), "trial")
    look = "a replay has no test set" if record.replay else "this uses its one look at the test set"
    if not record.replay and Vault(ws.home).mode == "operator":
        look = "the holder of the key then takes its one look at the test set"
    try:
        agreed = typer.confirm(f"Finalize {record.id} after {number}? It takes no more trials; {look}.", err=True)
    except typer.Abort:
        raise SessionError("finalizing asks for a confirmation, and standard input gives none; add --yes") from None
    if not agreed:
        raise SessionError(f"session {record.id} was not finalized and stays {record.state}")


def _finalized(ws: "Workspace", record: "SessionRecord", summary: str | None) -> "FinalResult":
    """Finalize as the only run of the session, with its progress on standard error."""
    from rich.console import Console

    from ..data.errors import VirtualMLEError
    from .advice import SessionCommands, in_commands
    from .driver_lock import driver_lock
    from .live import Display

    commands = SessionCommands(ws.home, record.dataset, record.backbone, record.id)
    try:
        with driver_lock(ws.home) as lock, Display(Console(stderr=True)) as display:
            lock.acquire(record.id)
            return _until_over(ws, record, summary, display)
    except KeyboardInterrupt:
        _interrupted(commands.finalize)
    except VirtualMLEError as error:
        raise type(error)(in_commands(str(error), commands)) from None


def _until_over(ws: "Workspace", record: "SessionRecord", summary: str | None, display: "Display") -> "FinalResult":
    """Call the tool until a confirmation is over and the examiner has answered."""
    from ..agents.closing import computed_closing
    from ..agents.events import Confirming, Finalized
    from ..tools.finalize import finalize as finalize_tool

    is_open = record.state == "open"
    computed = computed_closing(ws, record.id) if is_open else None
    text = summary if summary is not None else computed.summary if computed else "stored at the freeze"
    rules = list(computed.rules) if computed else []
    while True:
        result = finalize_tool(ws, record.id, text, rules, confirm=True, wait_seconds=WAIT_SECONDS)
        if result.progress is None:
            display(Finalized(result))
            return result
        display(Confirming(result.progress.position, result.progress.total, result.progress.running))


def _interrupted(command: str) -> NoReturn:
    print("\ninterrupted; a running repetition or test evaluation continues in the background.", file=sys.stderr)
    print(f"To continue: {command}", file=sys.stderr)
    raise typer.Exit(INTERRUPTED)

"""`virtualmle track`: bring MLflow, an Optuna storage or TensorBoard up to date with a session."""

import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from .memory import existing_memory
from .options import HERE, Home
from .sessions import Session

POLL_SECONDS = 2.0


def track(
    session: Session,
    mlflow: Annotated[
        str | None, typer.Option(help="Tracking URI of MLflow, e.g. http://localhost:5000.", metavar="URI")
    ] = None,
    optuna: Annotated[
        str | None, typer.Option(help="URL of an Optuna storage, e.g. sqlite:///studies.db.", metavar="URL")
    ] = None,
    tensorboard: Annotated[
        str | None, typer.Option(help="Directory for TensorBoard event files.", metavar="DIR")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="A directory of `virtualmle export`, uploaded to MLflow.", metavar="DIR")
    ] = None,
    until_closed: Annotated[
        bool, typer.Option("--follow", help="Go on until the session is closed; Ctrl-C ends it.")
    ] = False,
    until_eof: Annotated[bool, typer.Option("--until-eof", hidden=True)] = False,  # of `tune --track`
    home: Home = HERE,
) -> None:
    """Show a session in MLflow, optuna-dashboard or TensorBoard.

    Adds what is missing there: a run per trial with its parameters and epochs, and the result. May be repeated at any
    time, also to complete what `tune --track` could not send. Test figures are sent once they are revealed, not before.

    Example: virtualmle track demo-sasrec-1 --mlflow http://localhost:5000
    """
    from ..data.errors import ConfigError
    from ..tracking.targets import open_tracker, parse_targets
    from ..tracking.tracker import follow, one_at_a_time

    given = {"mlflow": mlflow, "optuna": optuna, "tensorboard": tensorboard}
    targets = parse_targets([f"{kind}={address}" for kind, address in given.items() if address is not None])
    if not targets:
        raise ConfigError("track has no place to send to; give --mlflow URI, --optuna URL or --tensorboard DIR")
    with existing_memory(home) as memory:
        record = memory.sessions.get(session)
    trackers = [open_tracker(target) for target in targets]
    wait = _until_eof() if until_eof else _until_interrupted if until_closed else _once
    with ExitStack() as locks:
        for tracker in trackers:
            locks.enter_context(one_at_a_time(home, record.id, tracker.target))
        failed = follow(home, record.id, trackers, warn=_warn, wait=wait, export=export)
    if failed:
        raise failed[0]
    for tracker in trackers:
        print(f"{record.id} is up to date in {tracker.target}", file=sys.stderr)


def _warn(text: str) -> None:
    print(f"tracking: {text}", file=sys.stderr, flush=True)


def _once() -> bool:
    return False


def _until_interrupted() -> bool:
    try:
        time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        return False
    return True


def _until_eof() -> Callable[[], bool]:
    """Waits until standard input ends, which happens when the process that started this one ends, however it does."""
    reader = threading.Thread(target=sys.stdin.read, daemon=True)
    reader.start()

    def wait() -> bool:
        reader.join(POLL_SECONDS)
        return reader.is_alive()

    return wait

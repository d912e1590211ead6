"""Live output of a running session on stderr: a progress bar on a terminal, plain lines otherwise."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from ..agents.base import Brief
from ..agents.events import (
    Answered,
    Confirming,
    Event,
    Finalized,
    LeftOpen,
    MemoryRead,
    Noted,
    Reflected,
    Refused,
    SessionOpened,
    TrialFinished,
    TrialProgress,
    TrialRefused,
    TrialStarted,
)
from ..data.wording import counted
from ..report import formats
from ..tools.results import FinalResult, TrialObservation

STYLES = {"keep": "green", "discard": "dim", "crash": "red"}


class Display:
    """Prints events as lines and the running trial as a progress bar. `session` is its id once it is known."""

    def __init__(self, console: Console) -> None:
        self.session = ""
        self._console = console
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._trial: TaskID | None = None
        self._trials_max = 0
        self._confirmed: int | None = None  # repetitions of the confirmation that are over

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case SessionOpened(brief):
                self.session, self._trials_max = brief.session, brief.budget.trials_max
                self._line(_opened(brief))
            case TrialStarted(trial, action):
                label = formats.settings(action.changes, empty="the default") if action else "resumed"
                self._start(f"{trial} {label}")
            case TrialProgress(_, done, total, message):
                self._advance(done, total, message)
            case TrialFinished(observation):
                self._stop()
                self._line(_finished(observation, self._trials_max), STYLES.get(observation.verdict or "", ""))
            case TrialRefused(action, reason):
                self._line(f"     not run: {formats.settings(action.changes)} ({reason})", "dim")
            case MemoryRead(action):
                self._line(f"     reads {' '.join(filter(None, (action.view, action.trial, action.query)))}", "dim")
            case Refused(tool, reason):
                self._line(f"     {tool} refused: {reason}", "dim")
            case Noted(text):
                self._line(f"note: {text}")
            case Answered(cost):
                self._line(f"     model: {cost}", "dim")
            case Reflected(action, receipt):
                self._line(f"     reflection: {action.helped}, {action.dimension} ({receipt.check})", "dim")
            case Confirming(done, total, message):
                self._confirm(done, total, message)
            case Finalized() | LeftOpen():
                self._ended(event)

    def _line(self, text: str, style: str = "") -> None:
        # Text shows markup in agents' texts literally; soft_wrap keeps each event on one line of a log file
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _ended(self, event: Finalized | LeftOpen) -> None:
        self._stop()
        if isinstance(event, LeftOpen):
            if event.summary:
                self._line(f"     summary that the agent would store: {event.summary}", "dim")
            self._line(f"stopped {event.session}: {event.reason}; the session stays open")
        else:
            self._finalized(event.result)

    def _finalized(self, result: FinalResult) -> None:
        if result.confirmation:
            self._line(f"confirmed: {result.confirmation.reason}")
        self._line(f"finalized {result.session}: {result.selected} selected, state {result.state}")

    def _confirm(self, done: float, total: float | None, message: str) -> None:
        """A bar for the whole confirmation, and a line for each repetition that is over."""
        if self._confirmed is None:
            self._start("confirming")
        if int(done) != self._confirmed:
            self._confirmed = int(done)
            self._line(f"     {message}", "dim")
        self._advance(done, total, message)

    def _start(self, description: str) -> None:
        self._stop()
        self._trial = self._bar.add_task(description, total=None)

    def _advance(self, done: float, total: float | None, message: str) -> None:
        if self._trial is None:  # one of several trials has ended, and another one goes on
            self._trial = self._bar.add_task(message, total=total)
        self._bar.update(self._trial, completed=done, total=total, description=message)

    def _stop(self) -> None:
        if self._trial is not None:
            self._bar.remove_task(self._trial)
            self._trial = None


def _opened(brief: Brief) -> str:
    budget = brief.budget
    verb = "resumed" if brief.resumed else "opened"
    seconds = budget.train_seconds_max - budget.train_seconds_used
    return (
        f"{verb} {brief.session}: {brief.backbone} on {brief.dataset}; {budget.trials_used} of "
        f"{counted(budget.trials_max, 'trial')} used, {formats.duration(seconds)} of training left"
    )


def _finished(observation: TrialObservation, trials_max: int) -> str:
    """`t003/12 keep      NDCG@10 0.0612 ± 0.0011  +0.0031 ± 0.0012 (z +2.6)  lr=0.001  8.4 s`."""
    head = f"{observation.trial}/{trials_max} {observation.verdict or observation.status:<9}"
    changes = formats.settings(observation.changes, empty="the default")
    seconds = formats.duration(observation.seconds)
    if stopped := observation.stopped:
        head = f"{observation.trial}/{trials_max} {'stopped':<9}"
        saved = f"{seconds}, about {formats.duration(stopped.saved_seconds)} saved"
        epochs = f"after epoch {stopped.epoch} of {stopped.epochs}"
        return f"{head} NDCG@10 {formats.at_most(stopped.at_most)}  {epochs}  {changes}  {saved}"
    if not observation.metrics:
        return f"{head} {observation.reason}  {changes}  {seconds}"
    figures = f"NDCG@10 {formats.with_error(observation.metrics['ndcg@10'], observation.ndcg10_se)}"
    delta = observation.delta
    difference = formats.change(delta["delta"], delta["se"], delta["z"]) if delta else ""
    return "  ".join(part for part in (f"{head} {figures}", difference, changes, seconds) if part)


@contextmanager
def download_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress callback that shows a download on stderr; nothing is shown before the first call."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: list[TaskID] = []

        def progress(done: int, total: int | None) -> None:
            if not tasks:
                tasks.append(bar.add_task(name))
            bar.update(tasks[0], completed=done, total=total)

        yield progress

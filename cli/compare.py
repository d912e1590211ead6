"""`virtualmle compare`: agents against each other, on many sessions."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .model_options import NO_MODEL, ModelOptions, asks_a_model
from .options import HERE, Device, Home, Json, Replay, Sandbox, absolute

if TYPE_CHECKING:
    from ..compare.models import ModelChoice
    from ..compare.runner import Advance

INTERRUPTED = 130  # the exit code that shells report for Ctrl-C
FAILED = 1

Datasets = Annotated[
    str,
    typer.Option(
        "--datasets",
        help="Names of datasets or paths of logs, separated by commas.",
        show_default="demo, or that of the replay table",
    ),
]
Backbones = Annotated[str, typer.Option("--backbones", help="sasrec, hstu, or both.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Sessions per arm, dataset and backbone.")]
Jobs = Annotated[
    int, typer.Option("--jobs", min=1, help="Sessions side by side; more than one distorts training seconds.")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Directory of the sessions and the report.", show_default="HOME/compare"),
]
MemoryFrom = Annotated[
    str,
    typer.Option(
        "--memory-from",
        help="What +carried arms start with: datasets whose sessions are run first, or one file of `memory export`.",
    ),
]
Set = Annotated[
    str, typer.Option("--set", help="Narrow knobs of the protocol, e.g. epochs.high=3,epochs.default=3.")
]
NoLook = Annotated[bool, typer.Option("--no-look", help="Freeze the sessions, and leave the test sets sealed.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Torch threads of a session on CPU.")]


@asks_a_model
def compare(  # noqa: PLR0913, PLR0917 - one parameter per option
    agents: Annotated[
        str,
        typer.Option(
            "--agents",
            help="Arms, separated by commas: AGENT[@MODEL][:SEEDING][+without-reflection][+without-memory][+carried].",
        ),
    ] = "engineer,random",
    datasets: Datasets = "",
    backbones: Backbones = "sasrec,hstu",
    seeds: Seeds = 5,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Trials of a session.")] = 30,
    train_seconds: Annotated[
        float | None,
        typer.Option("--train-seconds", min=1, help="Training seconds of a session.", show_default="no limit"),
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="The arm that the others are tested against.",
        show_default="first")
    ] = None,
    level: Annotated[
        float | None, typer.Option("--level", help="Validation NDCG@10 to which trials and seconds are counted.")
    ] = None,
    level_of: Annotated[
        str | None,
        typer.Option("--level-of", help="Or: the mean final level of this arm.", show_default="best of the others"),
    ] = None,
    memory_from: MemoryFrom = "",
    replay: Replay = None,
    settings: Set = "",
    no_look: NoLook = False,
    asked: ModelOptions = NO_MODEL,
    jobs: Jobs = 1,
    threads: Threads = 1,
    device: Device = "auto",
    sandbox: Sandbox = None,
    out: Out = None,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Compare agents over datasets, backbones and seeds, on two clocks: trials and training seconds.

    Every session runs in a process and a home of its own. Sessions that are over are never run again: after Ctrl-C or a
    kill, the same command goes on where it was. Writes a report as HTML, Markdown, CSV, SVG and PNG.

    Example: virtualmle compare --agents engineer,random --seeds 3 --trials 10 --out demo-compare
    """
    from ..compare.comparison import Request, report_of, summary_of
    from ..compare.comparison import compare as run
    from ..data.errors import ConfigError

    request = Request(
        home=home,
        out=absolute(out) if out else home / "compare",
        datasets=words(datasets) or (() if replay else ("demo",)),
        arms=words(agents),
        backbones=words(backbones),
        seeds=seeds,
        trials=trials,
        train_seconds=train_seconds,
        sandbox=sandbox,
        settings=words(settings),
        memory_from=words(memory_from),
        replay=absolute(replay) if replay else None,
        device=device,
        threads=threads,
        jobs=jobs,
        look=not no_look,
        model=model_choice(asked),
    )
    if level is not None and not 0 <= level <= 1:
        raise ConfigError(f"level={level} is no NDCG@10; give a value from 0 to 1")
    with progress() as bar:
        compared = run(request, bar.advance, bar.begin)
    summary = summary_of(compared, reference, level, level_of)
    paths = report_of(compared, summary)
    if as_json:
        print(json.dumps({"report": str(paths[0]), "summary": summary.model_dump()}, indent=1, allow_nan=False))
    else:
        print(paths[0].with_suffix(".md").read_text(encoding="utf-8"))
        print(f"report: {paths[0]}")
    end(compared.failures)


def model_choice(options: ModelOptions) -> "ModelChoice":
    """The options of a language model as a task has them."""
    from ..compare.models import ModelChoice

    given = {name: value for name, value in asdict(options).items() if value is not None}
    return ModelChoice(name=given.pop("model", ""), **given)


def words(text: str) -> tuple[str, ...]:
    """The words of an option, which are separated by commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def end(failures: Mapping[str, str]) -> None:
    """Exit with 1, after one line per failed session on standard error, if there is one."""
    for key, error in failures.items():
        print(f"virtualmle: session {key} failed: {error}", file=sys.stderr)
    if failures:
        raise typer.Exit(FAILED)


class _Bar:
    """A progress bar over the trials of all sessions, and one line per session that ends."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self.bar.add_task("sessions", total=None)
        self._sessions, self._over = 0, 0
        self._trials: dict[str, int] = {}
        self._budget, self._total = 0, 0

    def begin(self, sessions: int, trials: int) -> None:
        """Sessions of `trials` trials each are about to run, after those of earlier calls."""
        self._sessions, self._budget = self._sessions + sessions, trials
        self._total += sessions * trials
        self.bar.update(self._task, total=self._total)

    def advance(self, step: "Advance") -> None:
        """Show a finished trial, or the end of a session; called from several threads."""
        over = bool(step.result or step.error)
        self._trials[step.task.home] = self._budget if over else step.trials
        self._over += over
        self.bar.update(
            self._task,
            completed=sum(self._trials.values()),
            description=f"{self._over} of {self._sessions} sessions, trials",
        )
        if over and not step.stored:
            ending = step.result.ending if step.result else f"failed: {step.error}"
            self._console.print(f"{step.task.key}: {ending}", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress() -> Iterator[_Bar]:
    """The progress bar of a comparison. Ctrl-C within the block exits with 130."""
    shown = _Bar()
    try:
        with shown.bar:
            yield shown
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where it was", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None

"""`virtualmle exhibit record`: the audited figures of given configurations."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .compare import end, progress
from .composed import Option, with_options

if TYPE_CHECKING:
    from ..compare.record import RecordRequest

MOST_REPETITIONS = 10  # as in the rule confirm_repetitions of the protocol


@dataclass(frozen=True)
class RecordOptions:
    """The options of the record that no other exhibit has."""

    recipes: Path | None = None
    ties: str | None = None
    with_default: bool = False
    ensemble: bool = False
    parallel: int = 1


_OPTIONS: dict[str, Option] = {
    "recipes": (
        Annotated[
            Path | None,
            typer.Option("--recipes", metavar="FILE", help="Record: its configurations.", show_default="those shipped"),
        ],
        None,
    ),
    "ties": (
        Annotated[
            str | None,
            typer.Option(
                "--ties",
                help="Record: order of a user's events at one time: file, random, or both, side by side.",
                show_default="file",
            ),
        ],
        None,
    ),
    "with_default": (
        Annotated[bool, typer.Option("--with-default", help="Record: also the plain default, in the same look.")],
        False,
    ),
    "ensemble": (
        Annotated[bool, typer.Option("--ensemble", help="Record: also an ensemble of the sessions' best models.")],
        False,
    ),
    "parallel": (
        Annotated[int, typer.Option("--parallel", min=1, help="Record: trials or repetitions at a time.")],
        1,
    ),
}


def has_record_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of the record in place of its parameter `recorded`, a RecordOptions."""
    return with_options(command, "recorded", _OPTIONS, RecordOptions)


def refuse_options(exhibit: str, given: dict[str, Any]) -> None:
    """Raise ConfigError for the first option that is given although the exhibit has no use for it."""
    from ..data.errors import ConfigError

    for name, value in given.items():
        if value:
            raise ConfigError(f"--{name.replace('_', '-')} has no effect on the exhibit {exhibit}; leave it out")


def refuse_record_options(exhibit: str, options: RecordOptions) -> None:
    """Raise ConfigError if options of the record are given to another exhibit."""
    given = asdict(options)
    refuse_options(exhibit, {**given, "parallel": given["parallel"] > 1})


def make_record(request: "RecordRequest", as_json: bool) -> None:
    """Run the sessions of the record, write it, and print it."""
    from ..compare.record import record
    from ..compare.record_report import write_record
    from ..data.errors import ConfigError

    if request.repetitions is not None and not 2 <= request.repetitions <= MOST_REPETITIONS:
        raise ConfigError(f"seeds={request.repetitions} of a record must be from 2 to {MOST_REPETITIONS}")
    with progress() as bar:
        recorded = record(request, bar.advance, bar.begin)
    if not recorded.results:
        raise ConfigError(f"no record is over; the first error: {next(iter(recorded.failures.values()), 'none')}")
    path = write_record(recorded)[0]
    if as_json:
        content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        print(json.dumps({"report": str(path), **content}, indent=1))
    else:
        print(path.read_text(encoding="utf-8"))
        print(f"report: {path}")
    end(recorded.failures)

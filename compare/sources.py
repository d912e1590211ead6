"""Cognition to start with: from sessions on other datasets, which are run first, or from exported files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.errors import ConfigError
from .arms import Arm, parse_arm
from .homes import export_cognition
from .plan import Plan
from .runner import OnAdvance, run_tasks
from .task import Task

SOURCE_ARM = "engineer"


@dataclass(frozen=True)
class Sources:
    """Datasets on which the engineer plays one session each, or one file of exported cognition; not both."""

    datasets: tuple[str, ...] = ()
    file: Path | None = None


def check_sources(arms: Sequence[Arm], sources: Sources) -> None:
    """Raise ConfigError unless there are sources exactly if an arm is carried."""
    carried = [arm.name for arm in arms if arm.carried]
    given = bool(sources.datasets or sources.file)
    if carried and not given:
        raise ConfigError(f"arm {carried[0]!r} starts with a memory; name its datasets or its file with --memory-from")
    if given and not carried:
        raise ConfigError("--memory-from is given, but no arm starts with a memory; mark one, e.g. engineer+carried")


def source_cognition(plan: Plan, sources: Sources, on_advance: OnAdvance) -> dict[str, Path]:
    """Per backbone, the file with the cognition of the sources; their sessions are run unless they are over.

    The sessions of a backbone run in the given order, and each starts with what the ones before it learnt. Raises
    ConfigError with the first error of a source session that failed.
    """
    if sources.file:
        return dict.fromkeys(plan.backbones, sources.file)
    if not sources.datasets:
        return {}
    return {backbone: _cognition(plan, sources.datasets, backbone, on_advance) for backbone in plan.backbones}


def _cognition(plan: Plan, datasets: Sequence[str], backbone: str, on_advance: OnAdvance) -> Path:
    cognition: Path | None = None
    for dataset in datasets:
        task = _source_task(plan, dataset, backbone, cognition)
        done = run_tasks(plan, [task], on_advance)
        if done.failures:
            raise ConfigError(f"the source session {task.key} failed: {done.failures[task.key]}; run the command again")
        cognition = Path(task.home) / "cognition.json"
        if not cognition.exists():  # the hash of this file is part of what determines the sessions that start with it
            export_cognition(Path(task.home), cognition)
    assert cognition is not None  # there is at least one dataset
    return cognition


def _source_task(plan: Plan, dataset: str, backbone: str, cognition: Path | None) -> Task:
    """A session whose knowledge is of interest, not its test result, so that it takes no look at the test set."""
    task = plan.task(parse_arm(SOURCE_ARM), dataset, backbone, plan.first_seed, cognition)
    return plan.placed(task.model_copy(update={"arm": "source", "look": False}))

"""The record: audited figures of given configurations, with nothing searched for.

Per dataset and backbone one session runs the configurations of a recipe, confirms the best one on validation under
fresh seeds that the server draws, and looks at the test set once. `record_session.py` runs the sessions of a dataset.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..agents.recipe import read_recipes
from ..data.errors import ConfigError
from ..data.prepared import FILE
from ..models.knobs.declaration import BACKBONES
from ..sandbox.protocol import load_protocol
from .comparison import Begin, no_begin
from .exhibits import SCALES
from .homes import SESSIONS, digest_of, home_of
from .page import NO_LIMIT, budgeted, with_rules
from .plan import write_page
from .record_datasets import datasets_of
from .record_outcome import RecordResult, other_looks, stored_record
from .record_task import RecordTask, num_steps
from .runner import Kind, OnAdvance, run_jobs

RECIPES = Path(__file__).with_name("record.toml")
"""The configurations that are shipped."""
RECORDS = Kind("virtualmle.compare.record_session", stored_record)
CONFIRM_TOP = 1
SEEDS = {"demo": 2, "office": 5, "full": 5}
"""Fresh seeds of a scale."""
NAME = "record"
MAX_STEPS = 1000
"""Trials of a session at most: its recipe ends it, not its budget."""


@dataclass(frozen=True)
class RecordRequest:
    """What a person asks for. `datasets`: names, or paths of logs; () = those of the scale.

    repetitions: fresh seeds; None = those of the scale.
    ties: one of `record_datasets.TIES`.
    """

    home: Path
    out: Path
    datasets: tuple[str, ...] = ()
    backbones: tuple[str, ...] = BACKBONES
    scale: str = "demo"
    repetitions: int | None = None
    recipes: Path | None = None
    ties: str = FILE
    with_default: bool = False
    ensemble: bool = False
    settings: tuple[str, ...] = ()
    sandbox: Path | None = None
    parallel: int = 1
    device: str = "auto"
    threads: int = 1
    jobs: int = 1


@dataclass(frozen=True)
class Recorded:
    """The records that are over, one per dataset; the errors of the others; and looks elsewhere, by dataset."""

    request: RecordRequest
    tasks: Sequence[RecordTask]
    results: list[RecordResult]
    failures: dict[str, str]
    looks_elsewhere: dict[str, int]

    def home_of(self, dataset: str) -> Path:
        """The home of the sessions on a dataset."""
        return Path(next(task.home for task in self.tasks if task.dataset == dataset))


def record(request: RecordRequest, on_advance: OnAdvance, begin: Begin = no_begin) -> Recorded:
    """Run the sessions that have no result yet. Raises ConfigError, ProtocolError or DataError for a request that
    cannot be run, SessionError if another process runs it."""
    tasks = tasks_of(request)
    _refuse_to_replace(request.out / f"{NAME}.json", tasks)
    begin(len(tasks), max(num_steps(task.parts(), task.repetitions) for task in tasks))
    done = run_jobs(request, tasks, RECORDS, on_advance)
    looks = {task.dataset: _looks_elsewhere(request, tasks, task) for task in tasks}
    return Recorded(request, tasks, done.results, done.failures, looks)


def _refuse_to_replace(path: Path, tasks: Sequence[RecordTask]) -> None:
    """Raise ConfigError if the file holds a record of sessions that are not among those of the tasks."""
    try:
        stored = {(record["dataset"], record["task"]) for record in json.loads(path.read_bytes())["records"]}
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, KeyError):
        raise ConfigError(f"{path} is no record of this version; move it away, or choose another --out") from None
    if others := sorted(dataset for dataset, _ in stored - {(task.dataset, task.digest) for task in tasks}):
        raise ConfigError(
            f"{path} holds a record of {', '.join(others)} that this request would not write again; choose another "
            "--out, or repeat the command of that record, with further datasets if you like"
        )


def _looks_elsewhere(request: RecordRequest, tasks: Sequence[RecordTask], task: RecordTask) -> int:
    """The looks at the content of a dataset that neither its sessions nor those of its control have taken."""
    own = {Path(other.home) for other in tasks if other.listed_as == task.listed_as}
    homes = [request.home, *sorted((request.out / SESSIONS).iterdir())]
    return other_looks(request.home, own, homes, task.dataset_id)


def tasks_of(request: RecordRequest) -> list[RecordTask]:
    """One task per dataset; registers the datasets in the home. Raises ConfigError as `record`."""
    backbones = tuple(backbone for backbone in BACKBONES if backbone in request.backbones)
    unknown = [backbone for backbone in request.backbones if backbone not in BACKBONES]
    if unknown or not backbones:
        raise ConfigError(f"backbone={''.join(unknown[:1])!r} is not known; choose among {', '.join(BACKBONES)}")
    recipes = (request.recipes or RECIPES).expanduser().resolve()
    read_recipes(recipes)  # before a dataset is prepared
    repetitions = request.repetitions or SEEDS[request.scale]
    datasets = datasets_of(request.home, request.datasets or SCALES[request.scale].datasets, request.ties)
    page = write_page(request.out, page_of(request, repetitions))
    tasks = [
        RecordTask(
            home="",
            dataset=one.manifest.name,
            dataset_id=one.manifest.dataset_id,
            listed_as=one.listed_as,
            backbones=backbones,
            with_default=request.with_default,
            ensemble=request.ensemble,
            repetitions=repetitions,
            parallel=request.parallel,
            device=request.device,
            threads=request.threads,
            jobs=request.jobs,
            page=str(page),
            page_sha256=digest_of(page),
            recipes=str(recipes),
            recipes_sha256=digest_of(recipes),
        )
        for one in datasets
    ]
    return [_placed(request, task) for task in tasks]


def page_of(request: RecordRequest, repetitions: int) -> str:
    """The protocol page of a record: every configuration runs to its end, and the best one is confirmed."""
    own = request.home / "SANDBOX.md"
    text = load_protocol(request.sandbox or (own if own.exists() else None)).text
    rules = {
        "racing": "false",
        "trial_seconds": f"{NO_LIMIT}",
        "confirm_top": f"{CONFIRM_TOP}",
        "confirm_repetitions": f"{repetitions}",
    }
    return with_rules(budgeted(text, MAX_STEPS, None, request.settings), rules)


def _placed(request: RecordRequest, task: RecordTask) -> RecordTask:
    """The task with its key and its home, whose name ends with the digest of the task."""
    key = f"{NAME}.{task.dataset}"
    return task.model_copy(update={"key": key, "home": str(home_of(request.out, key, task.digest))})

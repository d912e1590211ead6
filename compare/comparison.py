"""A comparison from a request to its report: datasets and sources first, then the sessions, then the files."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .. import __version__
from ..agents.registry import ASKING
from ..data.catalogue import Catalogue
from ..data.errors import ConfigError
from ..examiner.vault import Vault
from ..models.knobs.declaration import BACKBONES
from ..sandbox.protocol import load_protocol
from ..trials.replay_table import read_footer
from .arms import Arm, parse_arms
from .caveats import Setting, caveats
from .homes import digest_of
from .models import ModelChoice
from .outcome import SessionResult
from .page import budgeted
from .plan import Plan
from .report import Document, about, write_document
from .runner import OnAdvance, Outcome, run_tasks
from .sources import Sources, check_sources, source_cognition
from .summary import Summary, summarise
from .tables import tables_of

COGNITION = ".json"  # the suffix of a file in --memory-from


@dataclass(frozen=True)
class Request:
    """What a person asks to compare, in words: names of datasets or paths of logs, arms, ends of ranges."""

    home: Path
    out: Path
    datasets: tuple[str, ...]
    arms: tuple[str, ...]
    backbones: tuple[str, ...] = tuple(BACKBONES)
    seeds: int = 5
    trials: int = 30
    train_seconds: float | None = None
    sandbox: Path | None = None
    settings: tuple[str, ...] = ()
    memory_from: tuple[str, ...] = ()
    replay: Path | None = None
    device: str = "auto"
    threads: int = 1
    jobs: int = 1
    look: bool = True
    first_seed: int = 0
    model: ModelChoice = ModelChoice()


@dataclass(frozen=True)
class Compared:
    """The sessions of a comparison that are over, how they were run, and the errors of those that failed."""

    plan: Plan
    setting: Setting
    results: list[SessionResult]
    failures: dict[str, str]


Begin = Callable[[int, int], None]
"""Called with the number of sessions and the number of trials of each before the first one starts."""


def no_begin(_sessions: int, _trials: int) -> None:
    """For callers that display nothing."""


def compare(request: Request, on_advance: OnAdvance, begin: Begin = no_begin) -> Compared:
    """Run the sessions of a request that have no result yet, and return all results.

    Raises ConfigError, ProtocolError or DataError for a request that cannot be run, SessionError if another process
    runs it.
    """
    plan, sources = plan_of(request)
    tasks = len(plan.backbones) * (len(plan.datasets) * len(plan.arms) * plan.seeds + len(sources.datasets))
    begin(tasks, plan.trials)
    cognition = source_cognition(plan, sources, on_advance)
    done = run_tasks(plan, plan.tasks(cognition), on_advance)
    return Compared(plan, _setting(request, plan, done), done.results, done.failures)


def plan_of(request: Request) -> tuple[Plan, Sources]:
    """The plan of a request; registers its datasets in the home."""
    unknown = [backbone for backbone in request.backbones if backbone not in BACKBONES]
    if unknown or not request.backbones:
        raise ConfigError(f"backbone={''.join(unknown[:1])!r} is not known; choose among {', '.join(BACKBONES)}")
    arms = parse_arms(request.arms)
    sources = _sources(request)
    check_sources(arms, sources)
    _check_models(arms, request)
    if request.replay and sources.datasets:
        raise ConfigError("with --replay, sessions on other datasets cannot be run; give a file with --memory-from")
    page, replayed = _page_and_dataset(request)
    plan = Plan(
        out=request.out,
        home=request.home,
        datasets=(),
        backbones=request.backbones,
        arms=arms,
        seeds=request.seeds,
        trials=request.trials,
        train_seconds=request.train_seconds,
        page=budgeted(page, request.trials, request.train_seconds, request.settings),
        replay=request.replay,
        device=request.device,
        threads=request.threads,
        jobs=request.jobs,
        look=request.look,
        first_seed=request.first_seed,
        model=request.model,
        replay_sha256=digest_of(request.replay) if request.replay else "",
    )
    sources = replace(sources, datasets=_registered(request.home, sources.datasets))
    return replace(plan, datasets=replayed or _registered(request.home, request.datasets)), sources


def _check_models(arms: Sequence[Arm], request: Request) -> None:
    """Raise ConfigError for an arm without its language model, LanguageModelError for one that cannot be asked."""
    for arm in arms:
        choice = request.model.model_copy(update={"name": arm.model or request.model.name})
        if arm.agent in ASKING:
            if not choice.name:
                raise ConfigError(
                    f"arm {arm.name!r} asks a language model; name it, as in {arm.agent}@MODEL, or with --model"
                )
            choice.check(request.home)


def _page_and_dataset(request: Request) -> tuple[str, tuple[str, ...]]:
    """The protocol page before its budgets are replaced, and the dataset of the replay table if there is one."""
    own = request.home / "SANDBOX.md"
    if request.replay is None:
        return load_protocol(request.sandbox or (own if own.exists() else None)).text, ()
    footer = read_footer(request.replay)
    name = footer.dataset.name
    if request.datasets and set(request.datasets) != {name}:
        raise ConfigError(f"{request.replay.name} replays dataset {name!r}; leave --datasets out, or give this name")
    if request.sandbox:
        raise ConfigError("a replay table contains its protocol page; use either --replay or --sandbox")
    return footer.page, (name,)


def _sources(request: Request) -> Sources:
    files = [word for word in request.memory_from if word.endswith(COGNITION)]
    if not files:
        return Sources(request.memory_from)
    if len(request.memory_from) > 1:
        raise ConfigError("--memory-from names a file of cognition and something else; give one file, or datasets")
    return Sources(file=Path(files[0]).resolve())


def _registered(home: Path, words: Sequence[str]) -> tuple[str, ...]:
    """The names of datasets, which are prepared in the home unless they are there."""
    home.mkdir(parents=True, exist_ok=True)
    catalogue = Catalogue(home)
    names = [catalogue.resolve(word, Vault(home).public_key()) for word in words]
    return tuple(dict.fromkeys(names))


def _setting(request: Request, plan: Plan, done: Outcome[SessionResult]) -> Setting:
    return Setting(
        seeds=plan.seeds,
        trials=plan.trials,
        train_seconds=plan.train_seconds,
        jobs=plan.jobs,
        threads=plan.threads,
        device=plan.device,
        replay=plan.replay.name if plan.replay else "",
        memory_from=", ".join(Path(word).name for word in request.memory_from),
        page_sha256=hashlib.sha256(plan.page.encode()).hexdigest(),
        version=__version__,
        missing=tuple(done.failures),
    )


def report_of(compared: Compared, summary: Summary, name: str = "compare") -> list[Path]:
    """Write the report of a comparison into its directory; returns the paths, the HTML page first."""
    from .pictures import curves, differences  # noqa: PLC0415 - matplotlib is slow to import

    results, setting = compared.results, compared.setting
    pictures = [picture for picture in (curves(summary, results), differences(summary)) if picture]
    document = Document(
        name=name,
        title=f"{summary.reference} against {', '.join(arm for arm in summary.arms if arm != summary.reference)}"
        if len(summary.arms) > 1
        else summary.reference,
        about=about(setting),
        tables=tables_of(summary),
        pictures=pictures,
        caveats=caveats(summary, results, setting),
    )
    return write_document(compared.plan.out, document, summary, results, setting)


def summary_of(
    compared: Compared, reference: str | None = None, level: float | None = None, level_of: str | None = None
) -> Summary:
    """The figures of a comparison. Raises ConfigError if no session finished, or for a name that is no arm."""
    if not compared.results:
        first = next(iter(compared.failures.items()), ("", "there is none"))
        raise ConfigError(f"no session finished; the first error ({first[0]}): {first[1]}")
    arms = [arm.name for arm in compared.plan.arms]
    return summarise(compared.results, arms, reference or arms[0], compared.plan.trials, level, level_of)


"""The exhibits of the VirtualMLE paper (arXiv 2606.03221), each as one comparison: what runs, and which tables it
shows.

table1: overall; table2: trials to best; table3: ablations; table4: language models with their cost; figure2: best so
far with cross-domain cognition. Sessions that several exhibits share run once if they have one directory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..data.demo import generate_demo
from ..data.errors import ConfigError
from ..report import formats
from ..sandbox.protocol import packaged_page
from .arms import Arm, parse_arm
from .caveats import caveats
from .comparison import Begin, Compared, Request, compare
from .outcome import SessionResult
from .published import METRICS, published_table, source_lines
from .report import Document, about, write_document
from .runner import OnAdvance
from .summary import Summary, group_of, summarise
from .tables import Table, clocks_table, models_table, spread, tables_of

PLAIN = "plain default"
DEMO_SOURCE = "demo-source"
PAPER_SPACE = "paper"


@dataclass(frozen=True)
class Scale:
    """How large an exhibit is. `budgets`: trials of agents that get others than `trials`, in Table 2."""

    datasets: tuple[str, ...]
    sources: tuple[str, ...]
    seeds: int
    trials: int
    settings: tuple[str, ...] = ()
    budgets: tuple[tuple[str, int], ...] = ()


SCALES = {
    "demo": Scale(("demo",), (DEMO_SOURCE,), 2, 6, ("epochs.high=5", "epochs.default=5")),
    "office": Scale(
        ("office",), ("beauty", "tools"), 5, 25,
        ("epochs.high=3", "epochs.default=3", "hidden_dim.high=64", "hidden_dim.default=64", "lr.default=0.001"),
    ),
    "full": Scale(
        ("amazon-beauty", "amazon-baby", "amazon-pet-supplies"), ("amazon-beauty",), 3, 30,
        budgets=(("tpe", 500), ("grid", 729)),
    ),
}  # fmt: skip
"""demo: minutes on a CPU. office: hours on a CPU, with capped epochs. full: the paper's datasets, on a GPU."""


@dataclass(frozen=True)
class Exhibit:
    """One exhibit. `paper_space`: run in the paper's six-knob space; `per_model`: its arms are language models."""

    name: str
    title: str
    arms: tuple[str, ...]
    paper_space: bool = False
    plain: bool = False  # also shows the plain default, as sessions of one trial
    carried: bool = False
    per_model: bool = False


EXHIBITS = {
    exhibit.name: exhibit
    for exhibit in (
        Exhibit("table1", "Table 1: overall performance", ("engineer", "tpe:default", "random"), plain=True),
        Exhibit(
            "table2", "Table 2: trials to best", ("engineer", "tpe:default", "grid", "random"), paper_space=True
        ),
        Exhibit(
            "table3", "Table 3: ablations",
            (
                "engineer", "engineer+without-reflection", "engineer+without-memory",
                "engineer+without-reflection+without-memory",
            ),
        ),
        Exhibit("table4", "Table 4: language models and their cost", ("engineer",), per_model=True),
        Exhibit(
            "figure2", "Figure 2: best so far with cross-domain cognition", ("engineer+carried", "engineer", "random"),
            carried=True,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """An exhibit that was run: its sessions, its figures, and the files of its report, the HTML page first."""

    compared: Compared
    summary: Summary
    paths: list[Path]


def show(exhibit: Exhibit, requests: Sequence[Request], on_advance: OnAdvance, begin: Begin) -> Shown:
    """Run the sessions of an exhibit that have no result yet, and write its report. Raises as `comparison.compare`."""
    parts = [compare(request, on_advance, begin) for request in requests]
    plain = [result.model_copy(update={"arm": PLAIN}) for result in parts.pop().results] if exhibit.plain else []
    compared = _merged(parts)
    if not compared.results:
        raise ConfigError(f"no session finished; the first error: {next(iter(compared.failures.values()), 'none')}")
    present = {result.arm for result in compared.results}
    arms = [arm.name for part in parts for arm in part.plan.arms if arm.name in present]
    summary = summarise(compared.results, arms, arms[0], compared.plan.trials)
    return Shown(compared, summary, _write(exhibit, compared, summary, plain))


def _merged(parts: Sequence[Compared]) -> Compared:
    """The parts of an exhibit, which differ in their budgets, as one comparison."""
    trials = max(part.plan.trials for part in parts)
    failures = {key: error for part in parts for key, error in part.failures.items()}
    setting = parts[0].setting.model_copy(update={"trials": trials, "missing": tuple(failures)})
    results = [result for part in parts for result in part.results]
    return Compared(replace(parts[0].plan, trials=trials), setting, results, failures)


def requests_of(exhibit: Exhibit, request: Request, scale: Scale, models: Sequence[str] = ()) -> list[Request]:
    """The comparisons that an exhibit consists of; `request` says where they run, and may replace parts of the scale.

    Raises ConfigError if the exhibit compares language models and none is named.
    """
    arms = [parse_arm(word) for word in request.arms or exhibit.arms]
    if exhibit.per_model:
        if not models:
            raise ConfigError(f"{exhibit.name} compares language models; name at least one with --models")
        arms = [*(parse_arm(f"llm@{model}") for model in models), *arms]
    common = replace(
        request,
        datasets=request.datasets or (() if request.replay else scale.datasets),
        sandbox=request.sandbox or (packaged_page(PAPER_SPACE) if exhibit.paper_space and not request.replay else None),
        settings=request.settings or (() if exhibit.paper_space or request.replay else scale.settings),
        memory_from=_source_logs(request, scale) if exhibit.carried else (),
    )
    parts = _by_budget(common, arms, scale if exhibit.paper_space else replace(scale, budgets=()))
    if exhibit.plain:
        parts.append(replace(common, arms=("engineer",), trials=1))
    return parts


def _by_budget(common: Request, arms: Sequence[Arm], scale: Scale) -> list[Request]:
    """One request per number of trials, in the order of the arms."""
    budgets = dict(scale.budgets)
    words: dict[int, list[str]] = {}
    for arm in arms:
        words.setdefault(budgets.get(arm.agent, common.trials), []).append(arm.name)
    return [replace(common, arms=tuple(names), trials=trials) for trials, names in words.items()]


def _source_logs(request: Request, scale: Scale) -> tuple[str, ...]:
    """The datasets that cognition comes from; the demo's is generated with another seed, so that it differs."""
    chosen = request.memory_from or scale.sources
    return tuple(_demo_source(request.home) if name == DEMO_SOURCE else name for name in chosen)


def _demo_source(home: Path) -> str:
    path = home / f"{DEMO_SOURCE}.csv"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        generate_demo(num_users=500, num_items=200, seed=2015).write_csv(part)
        part.replace(path)
    return str(path)


def _write(exhibit: Exhibit, compared: Compared, summary: Summary, plain: Sequence[SessionResult]) -> list[Path]:
    from .pictures import curves, differences  # noqa: PLC0415 - matplotlib is slow to import

    results, setting = compared.results, compared.setting
    pictures = [picture for picture in (curves(summary, results, exhibit.title), differences(summary)) if picture]
    own = [overall_table([*plain, *results])] if exhibit.name == "table1" else []
    if exhibit.name == "table2":
        own.append(clocks_table(summary))
    if exhibit.name == "table4":
        own.append(models_table(summary))
    rest = [table for table in tables_of(summary) if table.title not in {mine.title for mine in own}]
    quoted = exhibit.name == "table1"
    document = Document(
        name=exhibit.name,
        title=exhibit.title,
        about=about(setting),
        tables=[*own, *rest],
        pictures=pictures,
        caveats=caveats(summary, results, setting),
        quoted=[published_table()] if quoted else [],
        sources=source_lines() if quoted else (),
    )
    return write_document(compared.plan.out, document, summary, results, setting)


def overall_table(results: Sequence[SessionResult]) -> Table:
    """The four test metrics per group and arm: mean ± standard deviation over seeds."""
    rows = []
    for group in dict.fromkeys(group_of(result) for result in results):
        for arm in dict.fromkeys(result.arm for result in results):
            tests = [r.test for r in results if r.test and (r.arm, group_of(r)) == (arm, group)]
            if tests:
                rows.append((group, arm, str(len(tests)), *(_metric(tests, name) for name in METRICS)))
    columns = ("data", "arm", "sessions", *(formats.METRIC_TITLES[name] for name in METRICS))
    note = f"Test split, one look per session; mean ± standard deviation over seeds. {PLAIN}: a session of one trial."
    return Table("Overall", columns, tuple(rows), note)


def _metric(tests: Sequence[dict[str, float]], name: str) -> str:
    values = [test[name] for test in tests]
    return spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)

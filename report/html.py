"""The HTML report of a session: one self-contained file that loads nothing from the network and runs no script.

The template escapes all text. Only the charts are inserted without escaping; they contain numbers and names of knobs.
"""

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .. import __version__
from ..data.atomic import write_bytes
from ..data.errors import HomeError
from ..examiner.request import TestResult
from ..sandbox.program import trials_used
from . import explained, formats
from .baselines import scorers, strongest
from .curves import top_curves
from .gather import ReportData, gather, ndcg
from .split_agreement import targets_of
from .steps import step_rows
from .tables import (
    STYLES,
    confirmation_rows,
    confirmation_sentence,
    extension_sentences,
    selection_sentence,
    split_sentences,
    test_cells,
    test_sentence,
    verdict_label,
)
from .templates import page_template

EXPORT = "my-model"
PYTHON = f"""from virtualmle.serving import Recommender
r = Recommender.load("{EXPORT}")
r.recommend(["item-7"], k=10)"""
"""The use of an export; `item-7` stands for the ids of the reader's own log."""


def write_report(home: Path, session: str, *, reveal: bool = False) -> Path:
    """Write `home/.virtualmle/reports/SESSION.html` and return its path; works in every state of a session.

    reveal: also show a test result that is withheld because another session on the same content is open.

    Raises HomeError if `home` has no memory.db or cannot be written, SessionError for an unknown session.
    """
    data = gather(home, session, reveal=reveal)
    folder = home / ".virtualmle" / "reports"
    path = folder / f"{data.session.id}.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(path, render(data).encode(), mode=0o600)  # private, as test metrics may be in it
    except OSError as error:
        raise HomeError(f"{str(path)!r} cannot be written: {error.strerror}; check permissions and space") from None
    return path


def render(data: ReportData) -> str:
    """The report as HTML."""
    from .data_plots import data_charts  # noqa: PLC0415 - matplotlib is slow to import
    from .knob_plots import knob_charts  # noqa: PLC0415
    from .plots import best_so_far, learning_curves  # noqa: PLC0415

    best = strongest(data.baselines)
    steps, more_steps = step_rows(data.steps, data.dimensions)
    return page_template(Path(__file__).with_name("report.html.j2")).render(
        data=data,
        session=data.session,
        formats=formats,
        explained=explained,
        ndcg=ndcg,
        label=verdict_label,
        cards=_cards(data),
        results=_results(data),
        selection_sentence=selection_sentence(data),
        scorers=_scorer_rows(data),
        test_sentence=test_sentence(data),
        extensions=extension_sentences(data.extensions),
        split_sentences=split_sentences(data),
        targets=targets_of(data.session),
        best_chart=Markup(best_so_far(data.trials, ndcg(data.default) if data.default else None, best and best[1])),
        curves_chart=Markup(learning_curves(top_curves(data.trials, data.default), "curves")),
        judged_chart=Markup(learning_curves(top_curves(data.trials, data.default, "judged"), "judged")),
        knob_charts=[Markup(chart) for chart in knob_charts(data.steps, data.default_config)],
        steps=steps,
        more_steps=more_steps,
        configuration=_configuration(data),
        profile=_flat(data.session.profile),
        data_charts=[(Markup(chart.svg), chart.caption) for chart in data_charts(data.dataset)] if data.dataset else [],
        computed=_computed(data),
        confirmed=confirmation_rows(data.confirmation) if data.confirmation else [],
        confirmation_sentence=confirmation_sentence(data.confirmation) if data.confirmation else "",
        commands=_commands(data),
        use=_use(data),
        version=__version__,
    )


def _cards(data: ReportData) -> list[dict[str, str]]:
    after = ndcg(data.selected) if data.selected else None
    counts = Counter(verdict_label(trial) for trial in data.trials)
    session = data.session
    return [
        {
            "title": "Best validation NDCG@10",
            "figure": formats.metric(after),
            "note": "\n".join(_gains(data)),
        },
        {
            "title": "Test NDCG@10",
            "figure": formats.metric(data.test.metrics.get("ndcg@10") if data.test else None),
            "note": _test_note(data.test) if data.test
            else "a replay has none" if data.session.replay else "withheld" if data.withheld_by else "not revealed",
        },
        {
            "title": "Trials",
            "figure": f"{trials_used(data.trials)} of {session.max_trials}",
            "note": " · ".join(f"{counts[label]} {label}" for label in STYLES if counts[label]) or "none yet",
        },
        {
            "title": "Time per trial",
            "figure": formats.duration(data.seconds_per_trial),
            "note": f"{formats.duration(data.train_seconds)} of {formats.duration(session.max_train_seconds)} budget"
            + (f" · about {formats.duration(data.saved_seconds)} saved by racing" if data.saved_seconds else ""),
        },
    ]


def _gains(data: ReportData) -> list[str]:
    """The gain of the selected trial over the default, and over the best baseline without a model."""
    before = ndcg(data.default) if data.default else None
    after = ndcg(data.selected) if data.selected else None
    best = strongest(data.baselines)
    default = f"default {formats.metric(before)} · {formats.relative(before, after)}"
    lines = [default if before else "the default has not finished"]
    return lines + ([f"{best[0]} {formats.metric(best[1])} · {formats.relative(best[1], after)}"] if best else [])


def _test_note(test: TestResult) -> str:
    """The spread of the test figure: over users, or over the models of a confirmation; and the look."""
    models = len(test.repetitions)
    spread = f"± {formats.metric(test.metrics_sd.get('ndcg@10'))} over {models} seeds" if models else (
        f"± {formats.metric(test.ndcg10_se)}"
    )
    return f"{spread} · look number {test.look}"


def _results(data: ReportData) -> list[list[str]]:
    before = data.default.outcome.metrics if data.default and data.default.outcome else {}
    after = data.selected.outcome.metrics if data.selected and data.selected.outcome else {}
    return [
        [
            formats.METRIC_TITLES[name],
            formats.metric(before.get(name)),
            formats.metric(after.get(name)),
            formats.relative(before.get(name), after.get(name)),
            *(test_cells(data.test, name) if data.test else []),
        ]
        for name in formats.METRICS
    ]


def _scorer_rows(data: ReportData) -> list[list[str]]:
    """Rows: scorer; NDCG@10, Recall@10 and the selected model's gain over it, on validation and, if looked at, test."""
    lines = scorers(data.baselines, data.default, data.selected, data.test)
    return [
        [line.title, *_compared(line.validation, lines[-1].validation)]
        + (_compared(line.test, lines[-1].test) if data.test else [])
        for line in lines
    ]


def _compared(one: Mapping[str, float], selected: Mapping[str, float]) -> list[str]:
    gain = formats.relative(one.get("ndcg@10"), selected.get("ndcg@10")) if one is not selected else formats.MISSING
    return [formats.metric(one.get("ndcg@10")), formats.metric(one.get("recall@10")), gain]


def _computed(data: ReportData) -> list[tuple[str, str]]:
    """What the server computed for the Cognition Summary, without what the report shows elsewhere."""
    computed = data.summary.computed if data.summary else {}
    return _flat({name: part for name, part in computed.items() if name not in ("confirmation", "effects")})


def _configuration(data: ReportData) -> list[list[str]]:
    """Rows of knob, dimension, default, selected value, for each knob that differs from the default."""
    if data.selected is None:
        return []
    return [
        [
            knob,
            data.dimensions.get(knob, formats.MISSING),
            formats.value(data.default_config.get(knob)),
            formats.value(chosen),
        ]
        for knob, chosen in data.differences(data.selected).items()
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Name and formatted value of every leaf of a profile or summary; nested names are joined by dots."""
    rows: list[tuple[str, str]] = []
    for name, node in tree.items():
        rows += _flat(node, f"{prefix}{name}.") if isinstance(node, Mapping) else [(prefix + name, formats.plain(node))]
    return rows


def _commands(data: ReportData) -> list[str]:
    """Shell commands that run the selected configuration again and write this report again."""
    session = data.session
    opening = json.dumps({"dataset": session.dataset, "backbone": session.backbone, "new": True})
    lines = [f"virtualmle call open_session {shlex.quote(opening)} --seed {session.seed}"]
    if data.selected:
        trial = {"session": "SESSION", "base": "default", "changes": data.differences(data.selected)}
        lines.append(f"virtualmle call run_trial {shlex.quote(json.dumps(trial))}")
    return [*lines, f"virtualmle report {shlex.quote(session.id)}"]


def _use(data: ReportData) -> dict[str, str]:
    """The command that exports the selected model, and the lines of Python that use it; empty if there is none."""
    if data.selected is None or data.session.replay:
        return {}
    return {"shell": f"virtualmle export {shlex.quote(data.session.id)} {EXPORT}", "python": PYTHON}

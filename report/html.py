"""The HTML report of a session: one self-contained file that loads nothing from the network and runs no script.

The template escapes all text. Only the two charts, which are generated from numbers, are inserted without escaping.
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
from . import formats
from .gather import ReportData, gather, ndcg
from .tables import STYLES, confirmation_rows, confirmation_sentence, split_sentences, test_sentence, verdict_label
from .templates import page_template


def write_report(home: Path, session: str) -> Path:
    """Write `home/.virtualmle/reports/SESSION.html` and return its path; works in every state of a session.

    Raises HomeError if `home` has no memory.db or cannot be written, SessionError for an unknown session.
    """
    data = gather(home, session)
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
    from .plots import best_so_far, knob_effects  # noqa: PLC0415 - matplotlib is slow to import

    return page_template(Path(__file__).with_name("report.html.j2")).render(
        data=data,
        session=data.session,
        formats=formats,
        ndcg=ndcg,
        label=verdict_label,
        cards=_cards(data),
        results=_results(data),
        test_sentence=test_sentence(data),
        split_sentences=split_sentences(data),
        curve=Markup(best_so_far(data.trials, ndcg(data.default) if data.default else None)),
        effects_chart=Markup(knob_effects(data.effects)),
        effects=_effects(data),
        configuration=_configuration(data),
        profile=_flat(data.session.profile),
        computed=_flat({k: v for k, v in data.summary.computed.items() if k != "confirmation"}) if data.summary else [],
        confirmed=confirmation_rows(data.confirmation) if data.confirmation else [],
        confirmation_sentence=confirmation_sentence(data.confirmation) if data.confirmation else "",
        commands=_commands(data),
        version=__version__,
    )


def _cards(data: ReportData) -> list[dict[str, str]]:
    before = ndcg(data.default) if data.default else None
    after = ndcg(data.selected) if data.selected else None
    counts = Counter(verdict_label(trial) for trial in data.trials)
    session = data.session
    return [
        {
            "title": "Best validation NDCG@10",
            "figure": formats.metric(after),
            "note": f"default {formats.metric(before)} · {formats.relative(before, after)}" if before
            else "the default has not finished",
        },
        {
            "title": "Test NDCG@10",
            "figure": formats.metric(data.test.metrics.get("ndcg@10") if data.test else None),
            "note": _test_note(data.test) if data.test
            else "a replay has none" if data.session.replay else "not revealed",
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
            formats.with_error(data.test.metrics.get(name), data.test.metrics_sd.get(name)) if data.test else "",
        ]
        for name in formats.METRICS
    ]


def _effects(data: ReportData) -> list[list[str]]:
    """Rows: knob, dimension, effect, trials changing it alone, values tried, trials changing others too; best first."""
    best_first = sorted(data.effects.items(), key=lambda entry: -entry[1].mean_delta)
    return [
        [
            knob,
            data.dimensions.get(knob, formats.MISSING),
            formats.change(effect.mean_delta, effect.se),
            str(effect.n - effect.confounded),
            "; ".join(f"{formats.value(one.value)}: {formats.signed(one.delta)}" for one in effect.values),
            str(effect.confounded),
        ]
        for knob, effect in best_first
    ]


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

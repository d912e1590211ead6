"""The report of a session in HTML and in the terminal, from a real memory.db and a real vault."""

import io
import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from virtualmle.data.errors import HomeError, SessionError
from virtualmle.examiner.request import TestResult
from virtualmle.examiner.vault import Vault
from virtualmle.memory.records import (
    Hypothesis,
    ReflectionRecord,
    RuleRecord,
    SessionRecord,
    SummaryRecord,
    TrialOutcome,
    TrialRecord,
)
from virtualmle.memory.store import Memory
from virtualmle.models.config import TrialConfig, fingerprint, train_hash
from virtualmle.report import formats
from virtualmle.report.gather import gather
from virtualmle.report.html import render, write_report
from virtualmle.report.tables import result_table, trials_table
from virtualmle.sandbox.protocol import parse_protocol

PROTOCOL = parse_protocol("""# A small protocol
| rule | value |
|---|---|
| metric | ndcg@10 |
| max_trials | 20 |
| max_train_seconds | 3600 |
| trial_seconds | 600 |
| patience | 8 |
| keep_z | 1.0 |
| require_reflection | true |

### optimisation
| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| lr | 1e-5 … 1e-2, log | 3e-4 | 3e-4 |

### capacity
| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| hidden_dim | 16 … 256 | 128 | 128 |
| num_blocks | 1 … 4 | 1 | 1 |

### regularisation
| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| dropout | 0.0 … 0.9 | 0.2 | 0.2 |

### scoring
| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| transition_weight | 0.0 … 20.0 | 0.0 | 0.0 |
| cooccurrence_weight | 0.0 … 20.0 | 0.0 | 0.0 |
| cooccurrence_window | 1 … 20 | 5 | 5 |
""")
PROFILE = {
    "users": 4905, "items": 2420, "interactions": 43448, "density": 0.00366, "length_mean": 8.858,
    "length_median": 6.0, "popularity_gini": 0.5213, "repeat_rate": 0.0, "time_span_days": 1821.0,
}  # fmt: skip
EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)> [red]&amp; \"quoted\"[/red]"

# changes over the incumbent, validation NDCG@10, Δ and its standard error, verdict
STORY: list[tuple[dict[str, Any], float, float | None, float | None, str]] = [
    ({}, 0.05512, None, None, "keep"),
    ({"lr": 0.001}, 0.05931, 0.00419, 0.00121, "keep"),
    ({"hidden_dim": 192}, 0.05894, -0.00037, 0.00102, "discard"),
    ({"dropout": 0.4}, 0.06127, 0.00196, 0.00094, "keep"),
    ({"transition_weight": 4.0}, 0.06688, 0.00561, 0.00113, "keep"),
    ({"cooccurrence_weight": 2.0, "cooccurrence_window": 3}, 0.06803, 0.00115, 0.00071, "keep"),
    ({"num_blocks": 2}, 0.06711, -0.00092, 0.00088, "discard"),
]


def finished(ndcg: float, delta: float | None, se: float | None, verdict: str) -> TrialOutcome:
    return TrialOutcome(
        status="finished",
        verdict=verdict,  # type: ignore[arg-type]
        reason="first finished trial" if delta is None else f"z={delta / (se or 1):.2f} against the incumbent",
        metrics={
            "ndcg@10": ndcg, "ndcg@5": 0.84 * ndcg, "recall@10": 1.75 * ndcg, "recall@5": 1.2 * ndcg, "mrr": 0.88 * ndcg
        },
        ndcg_se=0.00263,
        delta=delta,
        delta_se=se,
        z=None if delta is None or se is None else delta / se,
        base_delta=delta,
        base_delta_se=se,
        parameters=684_416,
        train_seconds=41.3,
        wall_seconds=44.8,
    )  # fmt: skip


CRASHED = TrialOutcome(
    status="crashed", verdict="crash", reason=EVIL, cause=f"the loss became NaN in epoch 2 {EVIL}",
    train_seconds=9.1, wall_seconds=12.0,
)  # fmt: skip


class Story:
    """A home with one session, to which tests add trials."""

    def __init__(self, home: Path, dataset: str = "office") -> None:
        self.home = home
        self.memory = Memory(home / "memory.db")
        self.session = self.memory.sessions.open(
            SessionRecord(
                id="", dataset=dataset, dataset_id="d41f0c9ab2e7", backbone="sasrec", seed=7,
                protocol_hash=PROTOCOL.sha256, protocol_text=PROTOCOL.text, max_trials=20, max_train_seconds=3600,
                profile=PROFILE, client=f"agent {EVIL}",
            )
        ).id  # fmt: skip
        self.incumbent = PROTOCOL.space.default("sasrec")
        self.base = "default"

    def start(self, changes: dict[str, Any]) -> tuple[TrialRecord, TrialConfig]:
        config = PROTOCOL.space.resolve(self.incumbent, changes)
        dumped = config.model_dump()
        record = TrialRecord(
            session=self.session, handle="", number=0, base=self.base, changes=changes, config=dumped,
            config_hash=fingerprint(dumped), train_hash=train_hash(config),
            hypothesis=Hypothesis(dimension="capacity", reason=EVIL), override_reason=EVIL if changes else None,
        )  # fmt: skip
        return self.memory.trials.start(record), config

    def run(self, changes: dict[str, Any], outcome: TrialOutcome) -> TrialRecord:
        record, config = self.start(changes)
        self.memory.trials.finish(self.session, record.handle, outcome)
        if outcome.verdict == "keep":
            self.incumbent, self.base = config, record.handle
        return self.memory.trials.get(self.session, record.handle)

    def reflect(self, record: TrialRecord, lesson: str) -> None:
        self.memory.reflections.add(
            ReflectionRecord(
                session=self.session, trial=record.handle, what_changed=formats.settings(record.changes),
                verdict=record.outcome.verdict or "discard" if record.outcome else "discard",
                helped="yes" if record.outcome and record.outcome.verdict == "keep" else "no", dimension="scoring",
                lesson=lesson, next_step="try a wider transition window", check="supported",
                check_note="Δ +0.0056 ± 0.0011 over t004",
            )
        )  # fmt: skip

    def end(self, look: int = 3) -> None:
        """Freeze the session and reveal its test result, as finalize does."""
        selected = max(
            (t for t in self.memory.trials.all(self.session) if t.outcome and t.outcome.metrics),
            key=lambda t: t.outcome.metrics["ndcg@10"] if t.outcome else 0.0,
        )
        self.memory.rules.add(
            RuleRecord(
                kind="prefer", statement=f"mix in item transitions {EVIL}", condition="transition_weight > 0",
                backbone="sasrec", session=self.session, evidence=["t005"], check="supported", support=2,
            )
        )  # fmt: skip
        self.memory.summaries.add(
            SummaryRecord(
                session=self.session, dataset="office", dataset_id="d41f0c9ab2e7", backbone="sasrec",
                text=f"Learning rate first, then priors.\nCapacity did not help. {EVIL}",
                computed={"selected": selected.handle, "validation": {"ndcg@10": 0.06803}}, profile=PROFILE,
            )
        )  # fmt: skip
        self.memory.sessions.set_state(self.session, "open", "frozen", selected=selected.handle)
        self.memory.sessions.set_state(self.session, "frozen", "attempted")
        result = TestResult(
            session=self.session, trial=selected.handle, dataset="office", dataset_id="d41f0c9ab2e7",
            metrics={"ndcg@10": 0.04321, "ndcg@5": 0.03456, "recall@10": 0.07891, "recall@5": 0.05432, "mrr": 0.03987},
            ndcg10_se=0.00234, ties=0, num_users=4905, look=look, fingerprint_short="0123456789ab",
            at="2026-01-02T03:04:05+00:00",
        )  # fmt: skip
        path = Vault(self.home).revealed_path(self.session)
        path.parent.mkdir(parents=True)
        path.write_text(result.model_dump_json())
        self.memory.sessions.set_state(self.session, "attempted", "revealed")


def tell(home: Path) -> Story:
    """An open session with all trials of STORY, a crash and a cancelled trial."""
    story = Story(home)
    for changes, ndcg, delta, se, verdict in STORY:
        record = story.run(changes, finished(ndcg, delta, se, verdict))
        story.reflect(record, f"{formats.settings(changes)}: {verdict}. {EVIL}")
    story.run({"lr": 0.005}, CRASHED)
    story.run({"hidden_dim": 160}, TrialOutcome(status="cancelled", reason="cancelled", train_seconds=3.0))
    return story


class Page(HTMLParser):
    """The parsed page: elements, attributes, text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def values(self, *names: str) -> list[str]:
        return [value or "" for name, value in self.attributes if name in names]


def page_of(story: Story) -> Page:
    return Page(write_report(story.home, story.session).read_text(encoding="utf-8"))


def terminal(*tables: Any, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(*tables)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_report_is_one_private_file_that_loads_nothing_from_the_network(tmp_path: Path) -> None:
    story = tell(tmp_path)
    story.end()
    path = write_report(tmp_path, story.session)
    assert path == tmp_path / ".virtualmle" / "reports" / f"{story.session}.html"
    assert path.stat().st_mode & 0o777 == 0o600 or sys.platform == "win32"
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert all(target.startswith("#") for target in page.values("src", "href", "xlink:href", "srcset", "action"))
    assert not re.search(r"@import|url\((?!#)", source)
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_text_written_by_agents_is_escaped(tmp_path: Path) -> None:
    story = tell(tmp_path)
    story.end()
    page = page_of(story)
    shown = page.text.count("<script>alert('x')</script><img src=x onerror=alert(1)>")
    # client, 8 overrides, crash, 7 lessons, rule, summary
    assert shown == 1 + 8 + 1 + 7 + 1 + 1
    assert "Learning rate first, then priors." in page.text


def test_a_dataset_name_is_escaped_in_the_title_and_the_commands(tmp_path: Path) -> None:
    story = Story(tmp_path, dataset="a<b>'c")
    page = Page(render(gather(tmp_path, story.session)))
    assert "b" not in page.tags
    assert "a<b>'c · SASRec" in page.text


def test_validation_metrics_agree_in_memory_report_and_terminal(tmp_path: Path) -> None:
    story = tell(tmp_path)
    page, text = page_of(story), terminal(trials_table(story.memory.trials.all(story.session)))
    for record in story.memory.trials.all(story.session):
        assert record.handle in text
        if record.outcome and record.outcome.metrics:
            figure = f"{record.outcome.metrics['ndcg@10']:.4f}"
            assert f"{figure} ± 0.0026" in page.text and figure in text
    for delta, error, z in (("+0.0042", "0.0012", "(z +3.5)"), ("-0.0009", "0.0009", "(z -1.0)")):
        assert f"{delta} ± {error} {z}" in page.text
        assert f"{delta} {z}" in text


def test_the_trials_table_fits_into_eighty_columns(tmp_path: Path) -> None:
    story = tell(tmp_path)
    lines = terminal(trials_table(story.memory.trials.all(story.session)), width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(re.search(r"t002 +t001 \+ lr=0.001 +keep +0.0593 +\+0.0042 \(z \+3.5\) +44.8", line) for line in lines)


def test_the_terminal_does_not_interpret_markup_written_by_agents(tmp_path: Path) -> None:
    story = Story(tmp_path)
    record = story.start({})[0].model_copy(update={"changes": {"[red]lr[/red]": "[bold]x"}})
    assert "[red]lr[/red]=[bold]x" in terminal(trials_table([record]))


def test_a_revealed_session_shows_test_metrics_and_the_number_of_the_look(tmp_path: Path) -> None:
    story = tell(tmp_path)
    story.end(look=3)
    page, text = page_of(story), terminal(result_table(gather(tmp_path, story.session)))
    for figure in ("0.0432", "0.0346", "0.0789", "0.0543", "0.0399", "0.0551", "0.0680", "+23.4 %"):
        assert figure in page.text and figure in text
    assert "look number 3" in page.text and "look number 3" in text
    assert "t006, test" in page.text and "test (look 3)" in text


def test_an_open_session_shows_no_test_metrics_and_says_why(tmp_path: Path) -> None:
    story = tell(tmp_path)
    story.start({"lr": 0.002})
    page, text = page_of(story), terminal(result_table(gather(tmp_path, story.session)))
    for shown in (page.text, " ".join(text.split())):
        assert "test set is sealed" in shown
        assert ", test" not in shown and "test (look" not in shown
    assert "t006, validation" in page.text and "running" in page.text and "Cognition Summary" not in page.text


def test_the_bound_on_selection_bias_is_shown_with_the_result(tmp_path: Path) -> None:
    story = tell(tmp_path)
    expected = "0.0052"  # 0.00263 * sqrt(2 ln 7)
    assert f"SE·√(2 ln K) = {expected}" in page_of(story).text
    assert expected in terminal(result_table(gather(tmp_path, story.session)))


def test_a_session_with_only_crashes_has_a_report(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.run({"lr": 0.005}, CRASHED)
    page, text = page_of(story), terminal(result_table(gather(tmp_path, story.session)))
    assert "No trial has finished yet" in page.text and "the loss became NaN in epoch 2" in page.text
    assert "svg" not in page.tags and "Final configuration" not in page.text
    assert formats.MISSING in text


def test_a_session_without_trials_has_a_report(tmp_path: Path) -> None:
    assert "No trial has been run yet" in page_of(Story(tmp_path)).text


def test_charts_have_titles_and_unique_ids(tmp_path: Path) -> None:
    page = page_of(tell(tmp_path))
    assert page.tags.count("svg") == 2
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    for names in page.values("aria-labelledby"):
        assert set(names.split()) <= set(ids)
    missing = [target for target in page.values("xlink:href") if target[1:] not in ids]
    assert not missing
    assert "Best validation NDCG@10 so far, by trial" in page.text


def test_equal_sessions_give_equal_bytes(tmp_path: Path) -> None:
    story = tell(tmp_path)
    first = write_report(tmp_path, story.session).read_bytes()
    assert write_report(tmp_path, story.session).read_bytes() == first


def test_the_commands_of_the_report_reproduce_the_selected_configuration(tmp_path: Path) -> None:
    story = tell(tmp_path)
    source = write_report(tmp_path, story.session).read_text(encoding="utf-8")
    block = Page(source.split("<pre>")[1].split("</pre>")[0])
    opening, trial, again = (shlex.split(line) for line in "".join(block.words).splitlines())
    assert json.loads(opening[3]) == {"dataset": "office", "backbone": "sasrec", "new": True}
    changes = json.loads(trial[3])["changes"]
    assert PROTOCOL.space.resolve(PROTOCOL.space.default("sasrec"), changes) == story.incumbent
    assert again == ["virtualmle", "report", story.session]


def test_knobs_that_differ_from_the_default_are_listed_with_their_dimension(tmp_path: Path) -> None:
    data = gather(tmp_path, tell(tmp_path).session)
    assert data.selected is not None and data.default is not None
    assert (data.default.handle, data.selected.handle) == ("t001", "t006")
    assert data.differences(data.selected) == {
        "lr": 0.001, "dropout": 0.4, "transition_weight": 4.0, "cooccurrence_weight": 2.0, "cooccurrence_window": 3
    }  # fmt: skip
    assert data.dimensions["lr"] == "optimisation"


def test_an_earlier_rule_with_new_evidence_is_in_the_report(tmp_path: Path) -> None:
    story = tell(tmp_path)
    story.memory.rules.add(RuleRecord(kind="avoid", statement="of nowhere", condition="lr > 0.004"))
    known = story.memory.rules.add(RuleRecord(kind="avoid", statement="no wide models", condition="hidden_dim > 128"))
    story.memory.rules.count(story.session, {known.id: (1, 0, ["t003"])})
    assert [rule.statement for rule in gather(tmp_path, story.session).rules] == ["no wide models"]


def test_an_unknown_session_or_home_is_refused_without_creating_files(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match="--home"):
        write_report(tmp_path, "office-sasrec-1")
    assert list(tmp_path.iterdir()) == []
    Story(tmp_path)
    with pytest.raises(SessionError, match="office-sasrec-9"):
        write_report(tmp_path, "office-sasrec-9")


def test_terminal_tables_do_not_import_matplotlib() -> None:
    program = "import sys, virtualmle.report.tables, virtualmle.report.html; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(formats.metric(0.06125), "0.0612", id="four decimals"),
        pytest.param(formats.metric(None), "–", id="no value"),
        pytest.param(formats.change(-0.00001), "+0.0000", id="no negative zero"),
        pytest.param(formats.change(0.1, 0.0, 1e6), "+0.1000 ± 0.0000 (z > 999)", id="no variance over users"),
        pytest.param(formats.relative(0.0, 0.1), "–", id="no baseline"),
        pytest.param(formats.duration(8.44), "8.4 s", id="seconds"),
        pytest.param(formats.duration(200), "3 min 20 s", id="minutes"),
        pytest.param(formats.duration(3720), "1 h 02 min", id="hours"),
        pytest.param(formats.moment("2026-01-02T03:04:05.678+00:00"), "2026-01-02 03:04 UTC", id="time"),
        pytest.param(formats.settings({"lr": 3e-4, "causal": True}), "lr=0.0003, causal=true", id="knobs"),
        pytest.param(formats.plain({"a": [1200, 0.123456]}), "a 1,200, 0.1235", id="nested profile"),
    ],
)
def test_numbers_have_one_format(text: str, expected: str) -> None:
    assert text == expected

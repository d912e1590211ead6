"""The report of a session in HTML and in the terminal, from a real memory.db and a real vault."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.report_world import CRASHED, PROTOCOL, Page, Story, finished, page_of, tell, terminal
from virtualmle.data.catalogue import Catalogue
from virtualmle.data.errors import HomeError, SessionError
from virtualmle.examiner.vault import Vault
from virtualmle.memory.records import (
    RuleRecord,
    SessionRecord,
)
from virtualmle.memory.store import Memory
from virtualmle.report import formats
from virtualmle.report.curves import TOP, top_curves
from virtualmle.report.dataset import dataset_view
from virtualmle.report.gather import gather
from virtualmle.report.html import render, write_report
from virtualmle.report.tables import result_table, trials_table


@dataclass(frozen=True)
class Told:
    """A story with its report, for tests that only read."""

    story: Story
    source: str

    @property
    def page(self) -> Page:
        return Page(self.source)

    @property
    def text(self) -> str:
        return self.page.text


def written(story: Story) -> Told:
    return Told(story, write_report(story.home, story.session).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """The open session of `tell`."""
    return written(tell(tmp_path_factory.mktemp("told")))


@pytest.fixture(scope="module")
def revealed(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """The same session after its look, number 3."""
    story = tell(tmp_path_factory.mktemp("revealed"))
    story.end(look=3)
    return written(story)


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


def test_text_written_by_agents_is_escaped(revealed: Told) -> None:
    page = revealed.page
    shown = page.text.count("<script>alert('x')</script><img src=x onerror=alert(1)>")
    # client, 8 overrides, crash, 7 lessons, rule, summary
    assert shown == 1 + 8 + 1 + 7 + 1 + 1
    assert "Learning rate first, then priors." in page.text


def test_a_dataset_name_is_escaped_in_the_title_and_the_commands(tmp_path: Path) -> None:
    story = Story(tmp_path, dataset="a<b>'c")
    page = Page(render(gather(tmp_path, story.session)))
    assert "b" not in page.tags
    assert "a<b>'c · SASRec" in page.text


def test_validation_metrics_agree_in_memory_report_and_terminal(told: Told) -> None:
    story, page = told.story, told.page
    text = terminal(trials_table(story.memory.trials.all(story.session)))
    for record in story.memory.trials.all(story.session):
        assert record.handle in text
        if record.outcome and record.outcome.metrics:
            figure = f"{record.outcome.metrics['ndcg@10']:.4f}"
            assert f"{figure} ± 0.0026" in page.text and figure in text
    for delta, error, z in (("+0.0042", "0.0012", "(z +3.5)"), ("-0.0009", "0.0009", "(z -1.0)")):
        assert f"{delta} ± {error} {z}" in page.text
        assert f"{delta} {z}" in text


def test_the_trials_table_fits_into_eighty_columns(told: Told) -> None:
    story = told.story
    lines = terminal(trials_table(story.memory.trials.all(story.session)), width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(re.search(r"t002 +t001 \+ lr=0.001 +keep +0.0593 +\+0.0042 \(z \+3.5\) +44.8", line) for line in lines)


def test_the_terminal_does_not_interpret_markup_written_by_agents(tmp_path: Path) -> None:
    story = Story(tmp_path)
    record = story.start({})[0].model_copy(update={"changes": {"[red]lr[/red]": "[bold]x"}})
    assert "[red]lr[/red]=[bold]x" in terminal(trials_table([record]))


def test_a_revealed_session_shows_test_metrics_and_the_number_of_the_look(revealed: Told) -> None:
    story, page = revealed.story, revealed.page
    text = terminal(result_table(gather(story.home, story.session)))
    for figure in ("0.0432", "0.0346", "0.0789", "0.0543", "0.0399", "0.0551", "0.0680", "+23.4 %"):
        assert figure in page.text and figure in text
    assert "look number 3" in page.text and "look number 3" in text
    assert "t006, test" in page.text and "test (look 3)" in text


def test_a_revealed_session_names_the_near_duplicates_of_earlier_looks(tmp_path: Path) -> None:
    story, note = tell(tmp_path), "99% the same test targets as shop-a, 2 looks"
    story.end(look_note=note)
    text = " ".join(terminal(result_table(gather(tmp_path, story.session))).split())
    for shown in (page_of(story).text, text):
        assert f"look number 3 in this home ({note})." in shown


def test_an_open_session_shows_no_test_metrics_and_says_why(tmp_path: Path) -> None:
    story = tell(tmp_path)
    story.start({"lr": 0.002})
    page, text = page_of(story), terminal(result_table(gather(tmp_path, story.session)))
    for shown in (page.text, " ".join(text.split())):
        assert "test set is sealed" in shown
        assert ", test" not in shown and "test (look" not in shown
    assert "t006, validation" in page.text and "running" in page.text and "Cognition Summary" not in page.text


def test_the_bound_on_selection_bias_is_shown_with_the_result(told: Told) -> None:
    expected = "0.0052"  # 0.00263 * sqrt(2 ln 7)
    assert f"SE·√(2 ln K) = {expected}" in told.text
    assert expected in terminal(result_table(gather(told.story.home, told.story.session)))


def test_a_session_with_only_crashes_has_a_report(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.run({"lr": 0.005}, CRASHED)
    page, text = page_of(story), terminal(result_table(gather(tmp_path, story.session)))
    assert "No trial has finished yet" in page.text and "the loss became NaN in epoch 2" in page.text
    assert "svg" not in page.tags and "Final configuration" not in page.text
    assert formats.MISSING in text


def test_a_session_without_trials_has_a_report(tmp_path: Path) -> None:
    assert "No trial has been run yet" in page_of(Story(tmp_path)).text


def test_charts_have_titles_and_unique_ids(told: Told) -> None:
    page = told.page
    assert page.tags.count("svg") == 1 + 7 + 1  # best so far, a chart per changed knob, learning curves
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    for names in page.values("aria-labelledby"):
        assert set(names.split()) <= set(ids)
    missing = [target for target in page.values("xlink:href") if target[1:] not in ids]
    assert not missing
    assert "Best validation NDCG@10 so far, by trial" in page.text


def test_equal_sessions_give_equal_bytes(told: Told) -> None:
    assert written(told.story).source == told.source


def test_the_selected_model_stands_beside_scorers_without_a_model(told: Told, revealed: Told) -> None:
    assert "item transitions alone 0.0623 0.1246 +9.2 %" in told.text  # 0.06803 / 0.0623
    assert "item transitions alone 0.0623 · +9.2 %" in told.text and "default 0.0551 · +23.4 %" in told.text  # the card
    assert "0.0573" not in told.text  # the baseline's test figure
    assert "item transitions alone 0.0623 0.1246 +9.2 % 0.0573 0.1246 -24.6 %" in revealed.text


def test_a_session_that_measured_no_baselines_has_a_report_without_them(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.run({}, finished(0.05, None, None, "keep").model_copy(update={"details": {}}))
    assert "without a model" not in page_of(story).text


def test_steps_are_shown_from_and_to_with_their_sign(told: Told) -> None:
    text = told.text
    assert "lr 0.0003 → 0.001 ▲ +0.0042 ± 0.0012 (z +3.5) measured alone t002 optimisation" in text
    assert "num_blocks 1 → 2 ▼ -0.0009 ± 0.0009 (z -1.0) measured alone t007 capacity" in text
    assert "cooccurrence_window 5 → 3" in text and "estimated share" in text


def test_learning_curves_are_those_of_the_best_models_and_the_default(told: Told) -> None:
    data = gather(told.story.home, told.story.session)
    curves = top_curves(data.trials, data.default)
    assert curves[0].label == "t006 (0.0680)"  # re-scores the model of t004, and shares its curve
    assert curves[-1].label == "t001, default (0.0551)" and curves[-1].epochs == [1, 2]
    assert len({curve.label for curve in curves}) == len(curves) <= TOP + 1


def test_terms_are_explained_in_every_state(told: Told, revealed: Told) -> None:
    assert "sealed, that is, encrypted" in told.text
    text = revealed.text
    assert "This evaluation is the session's look." in text and "evaluated 3 times on these test targets" in text


def test_every_table_has_column_and_row_headers_and_can_be_scrolled_by_keyboard(revealed: Told) -> None:
    page = revealed.page
    tables = page.tags.count("table")
    assert tables >= 5 and page.values("role").count("region") == tables + 2  # two wide charts
    assert page.values("scope").count("row") >= tables and page.values("tabindex").count("0") == tables + 2


def test_the_data_section_describes_the_train_part_of_the_dataset(tmp_path: Path) -> None:
    with Memory(tmp_path / "memory.db") as memory:
        Catalogue(tmp_path).ensure_demo(Vault(tmp_path).public_key())
        found = Catalogue(tmp_path).manifest("demo")
        session = memory.sessions.open(
            SessionRecord(
                id="", dataset="demo", dataset_id=found.dataset_id, backbone="sasrec", profile=found.profile,
                protocol_hash=PROTOCOL.sha256, protocol_text=PROTOCOL.text, max_trials=20, max_train_seconds=3600,
            )
        )  # fmt: skip
    data = gather(tmp_path, session.id)
    assert data.dataset is not None and data.dataset.has_clock
    assert data.dataset.lengths.sum() == data.dataset.popularity.sum() == found.profile["interactions"]
    page = Page(render(data))
    assert page.tags.count("svg") == 3 and f"{found.num_users:,} {found.num_items:,}" in page.text
    assert "The most popular tenth of the items" in page.text
    assert dataset_view(tmp_path, session.model_copy(update={"dataset_id": "replaced"})) is None
    page = Page(render(replace(data, dataset=None)))
    assert "svg" not in page.tags and "only the profile" in page.text


def test_the_report_says_how_to_use_the_model(told: Told) -> None:
    shell, python = ("".join(Page(block.split("</pre>")[0]).words) for block in told.source.split("<pre>")[2:])
    assert shlex.split(shell) == ["virtualmle", "export", told.story.session, "my-model"]
    compile(python, "the report", "exec")


def test_the_commands_of_the_report_reproduce_the_selected_configuration(told: Told) -> None:
    story = told.story
    block = Page(told.source.split("<pre>")[1].split("</pre>")[0])
    opening, trial, again = (shlex.split(line) for line in "".join(block.words).splitlines())
    assert json.loads(opening[3]) == {"dataset": "office", "backbone": "sasrec", "new": True}
    changes = json.loads(trial[3])["changes"]
    assert PROTOCOL.space.resolve(PROTOCOL.space.default("sasrec"), changes) == story.incumbent
    assert again == ["virtualmle", "report", story.session]


def test_knobs_that_differ_from_the_default_are_listed_with_their_dimension(told: Told) -> None:
    data = gather(told.story.home, told.story.session)
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
        pytest.param(formats.settings({"teachers": "", "lr": 0.1}), "teachers=none, lr=0.1", id="no teachers"),
        pytest.param(formats.plain({"a": [1200, 0.123456]}), "a 1,200, 0.1235", id="nested profile"),
    ],
)
def test_numbers_have_one_format(text: str, expected: str) -> None:
    assert text == expected

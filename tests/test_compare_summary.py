"""Arms, protocol pages, the two clocks and the figures of a comparison, from sessions that are written down here."""

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from virtualmle.compare.arms import parse_arm, parse_arms
from virtualmle.compare.caveats import Setting, caveats
from virtualmle.compare.clocks import Course, anytime, band, course
from virtualmle.compare.comparison import Request
from virtualmle.compare.exhibits import EXHIBITS, SCALES, requests_of
from virtualmle.compare.outcome import ModelUse, ProposalCounts, SessionResult, TrialResult
from virtualmle.compare.page import budgeted
from virtualmle.compare.pictures import curves, differences
from virtualmle.compare.published import METRICS, published, sources
from virtualmle.compare.report import Document, about, write_document
from virtualmle.compare.sources import Sources, check_sources
from virtualmle.compare.summary import ALL, ANYTIME, TEST, VALIDATION, Summary, summarise
from virtualmle.compare.tables import figure, sessions_csv, tables_of, trials_csv
from virtualmle.data.errors import ConfigError, ProtocolError
from virtualmle.sandbox.protocol import PACKAGED, load_protocol, packaged_page, parse_protocol


def session(
    arm: str, seed: int, scores: list[float | None], seconds: float = 10.0, **changed: Any
) -> SessionResult:
    """A session whose trials take `seconds` each; None is a crash."""
    trials = tuple(
        TrialResult(
            trial=f"t{number:03d}", status="crashed" if score is None else "finished", verdict=None, ndcg10=score,
            ndcg10_se=0.001, train_seconds=seconds, wall_seconds=seconds, rescored=False, base="default", changes={},
        )
        for number, score in enumerate(scores, 1)
    )  # fmt: skip
    fields: dict[str, Any] = {
        "key": f"{arm}.{seed}", "arm": arm, "dataset": "demo", "backbone": "sasrec", "seed": seed, "session": "s",
        "state": "revealed", "trials": trials, "selected": "t001", "settings": {}, "validation": {},
        "test": {"ndcg@10": 0.9 * max(score or 0.0 for score in scores)}, "look": 1, "num_users": 100,
        "wall_seconds": 5.0, "refused": 0, "duplicates": 0,
    }  # fmt: skip
    return SessionResult(**{**fields, **changed})


SETTING = Setting(
    seeds=2, trials=4, train_seconds=None, jobs=1, threads=1, device="cpu", replay="", memory_from="",
    page_sha256="ab" * 32, version="1",
)  # fmt: skip
TWO_ARMS = [
    session("engineer", 0, [0.1, 0.4, 0.3, 0.5]),
    session("engineer", 1, [0.2, 0.2, 0.6, 0.6]),
    session("random", 0, [0.1, None, 0.2, 0.4], seconds=40),
    session("random", 1, [0.1, 0.1, 0.1, 0.3], seconds=40),
]


def both() -> Summary:
    return summarise(TWO_ARMS, ["engineer", "random"], "engineer", 4)


@pytest.mark.parametrize(
    ("word", "agent", "seeding", "model"),
    [
        pytest.param("engineer", "engineer", "default", "", id="plain"),
        pytest.param("tpe:moves", "tpe", "moves", "", id="seeded"),
        pytest.param("llm@qwen3:8b", "llm", "default", "qwen3:8b", id="a model's name may contain a colon"),
    ],
)
def test_an_arm_is_parsed_from_its_word(word: str, agent: str, seeding: str, model: str) -> None:
    arm = parse_arm(word)
    assert (arm.name, arm.agent, arm.seeding, arm.model) == (word, agent, seeding, model)
    assert arm.with_memory and arm.with_reflection and not arm.carried


def test_modifiers_of_an_arm_switch_its_ablations() -> None:
    arm = parse_arm("engineer+without-memory+without-reflection")
    assert not arm.with_memory and not arm.with_reflection
    assert parse_arm("engineer+carried").carried and parse_arm("random:memory").carried
    assert re.fullmatch(r"[\w.-]+", arm.slug)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("nobody", "names the agent 'nobody'"), ("random:well", "seeding 'well'"), ("random+fast", "modifier 'fast'"),
        ("engineer+carried+without-memory", "has none"),
    ],
)  # fmt: skip
def test_an_unknown_part_of_an_arm_is_refused(word: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_arm(word)


def test_every_exhibit_has_arms_of_known_agents_and_table_2_the_papers_budgets() -> None:
    for shown in EXHIBITS.values():
        assert [arm.name for arm in parse_arms(shown.arms)] == list(shown.arms)
    base = Request(Path("home"), Path("out"), (), (), trials=30)
    requests = requests_of(EXHIBITS["table2"], base, SCALES["full"])
    assert {request.trials: request.arms for request in requests} == {
        30: ("engineer", "random"), 500: ("tpe:default",), 729: ("grid",),
    }  # fmt: skip
    assert requests[0].sandbox == packaged_page("paper")
    last = requests_of(EXHIBITS["table1"], base, SCALES["full"])[-1]
    assert (last.arms, last.trials) == (("engineer",), 1)  # the plain default


def test_arms_are_named_once_and_at_least_one() -> None:
    with pytest.raises(ConfigError, match="named twice"):
        parse_arms(["engineer", "random", "engineer"])
    with pytest.raises(ConfigError, match="no arm"):
        parse_arms([" "])


def test_a_carried_arm_and_its_sources_need_each_other() -> None:
    carried, plain = parse_arms(["engineer+carried"]), parse_arms(["engineer"])
    with pytest.raises(ConfigError, match="--memory-from"):
        check_sources(carried, Sources())
    with pytest.raises(ConfigError, match=r"mark one, e\.g\. engineer\+carried"):
        check_sources(plain, Sources(("beauty",)))
    check_sources(carried, Sources(("beauty",)))
    check_sources(plain, Sources())


def test_a_budgeted_page_changes_the_budget_and_the_named_knobs_only() -> None:
    text = PACKAGED.read_text(encoding="utf-8")
    before = parse_protocol(text)
    further = ["epochs.high=3", "epochs.default=3", "hidden_dim.high=64", "hidden_dim.default=64"]
    after = parse_protocol(budgeted(text, 25, 100.0, further))
    assert (after.max_trials, after.patience, after.max_train_seconds) == (25, 25, 100)
    changed = [new.name for old, new in zip(before.space.entries, after.space.entries, strict=True) if old != new]
    assert changed == ["epochs", "hidden_dim"]
    assert after.space.default("hstu").epochs == 3


def test_a_rule_and_a_knob_of_one_name_are_told_apart() -> None:
    page = parse_protocol(budgeted(PACKAGED.read_text(encoding="utf-8"), 25, None, ["patience.default=7"]))
    assert page.patience == 25 and page.space.default("sasrec").patience == 7


@pytest.mark.parametrize("setting", ["epochs=3", "nothing.high=3", "loss.high=3"])
def test_a_setting_that_does_not_fit_the_page_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError):
        budgeted(PACKAGED.read_text(encoding="utf-8"), 5, None, [setting])


def test_a_setting_beyond_the_engine_is_refused() -> None:
    with pytest.raises(ProtocolError):
        budgeted(PACKAGED.read_text(encoding="utf-8"), 5, None, ["epochs.high=100000"])


def test_the_papers_page_spans_729_configurations_with_the_plain_default_among_them() -> None:
    page, packaged = load_protocol(packaged_page("paper")), load_protocol()
    for backbone in ("sasrec", "hstu"):
        knobs = page.space.knobs(backbone)
        assert math.prod(len(knob.levels) for knob in knobs) == 729
        assert page.space.default(backbone) == packaged.space.default(backbone)
        assert all(knob.defaults[backbone] in knob.levels for knob in knobs)
    with pytest.raises(ProtocolError, match="paper"):
        packaged_page("paper2")


def test_a_course_is_the_best_so_far_on_a_clock() -> None:
    one = session("random", 0, [None, 0.2, 0.1, 0.3], seconds=5)
    assert course(one, "trials") == Course((1, 2, 3, 4), (0.0, 0.2, 0.2, 0.3))
    assert course(one, "seconds").times == (5, 10, 15, 20)
    assert list(course(one, "seconds").at([0, 9.9, 10, 19, 99])) == [0, 0, 0.2, 0.2, 0.3]
    assert course(one, "seconds").reach(0.25) == (20, True)
    assert course(one, "trials").reach(0.4) == (4, False)  # censored at the end
    assert course(one, "trials").time_of_best == 4
    assert anytime([course(one, "trials")], 4) == pytest.approx((0 + 0.2 + 0.2 + 0.3) / 4)


def test_a_session_that_ended_early_keeps_its_best() -> None:
    one = course(session("random", 0, [0.1, 0.3]), "trials")
    assert anytime([one], 4) == pytest.approx((0.1 + 0.3 + 0.3 + 0.3) / 4)


def test_a_band_starts_where_every_session_has_a_figure_and_contains_its_mean() -> None:
    courses = [course(session("a", 0, [None, 0.2, 0.4]), "trials"), course(session("a", 1, [0.1, 0.1, 0.2]), "trials")]
    found = band(courses, [1, 2, 3])
    assert found is not None
    assert list(found.moments) == [2, 3] and list(found.mean) == pytest.approx([0.15, 0.3])
    assert np.all(found.low <= found.mean) and np.all(found.mean <= found.high)
    assert band([course(session("a", 0, [None]), "trials")], [1.0]) is None


def test_the_figures_of_two_arms_by_hand() -> None:
    summary = both()
    engineer, random = summary.rows
    assert summary.groups == ("demo sasrec",)
    assert (engineer.validation, random.validation) == (pytest.approx(0.55), pytest.approx(0.35))
    assert engineer.validation_sd == pytest.approx(np.std([0.5, 0.6], ddof=1))
    assert engineer.test == pytest.approx(0.9 * 0.55) and engineer.looks == 2
    assert engineer.level == pytest.approx(0.35)  # the mean final figure of random, the best other arm
    trials, seconds = engineer.reach
    assert (trials.reached, trials.median.value, seconds.median.value) == (2, 2.0, 20.0)  # trials 2 and 3
    slow = random.reach[0]
    assert (slow.reached, slow.median.value, slow.median.high) == (1, 4.0, None)  # one is censored at its end
    assert seconds.limit == 40  # the engineer's sessions end after 40 seconds, random's after 160
    assert random.reach[1].restricted_mean == 40


def test_tests_are_paired_by_seed_and_corrected() -> None:
    by_outcome = {row.outcome: row for row in both().comparisons}
    assert set(by_outcome) == {VALIDATION, ANYTIME, TEST}
    row = by_outcome[VALIDATION]
    assert row.difference.value == pytest.approx(((0.5 - 0.4) + (0.6 - 0.3)) / 2) and row.pairs == 2
    assert row.p_sign_flip == row.p_signed_rank == row.p_holm == 0.5 and row.exact
    third = [*TWO_ARMS, *(session("other", seed, [0.1, 0.2, 0.2, 0.2 + seed / 10]) for seed in (0, 1))]
    corrected = summarise(third, ["engineer", "random", "other"], "engineer", 4)
    assert [row.p_holm for row in corrected.comparisons if row.outcome == VALIDATION] == [1.0, 1.0]


def test_a_race_is_the_time_to_the_rivals_final_as_a_share_of_its_session() -> None:
    trials, seconds = both().races
    # seed 0: .4 is reached by trial 2 of 4; seed 1: .3 by trial 3 of 4; random found its own best in its last trial
    assert trials.of_session.value == 0.5 and trials.reached == 2
    assert seconds.of_session.value == 20 / 160 and seconds.of_time_to_best.value == 20 / 160
    back = summarise(TWO_ARMS, ["random", "engineer"], "random", 4).races
    assert back[0].reached == 0 and back[0].of_session.value is None


def test_the_level_is_a_number_or_that_of_an_arm() -> None:
    fixed = summarise(TWO_ARMS, ["engineer", "random"], "engineer", 4, level=0.55)
    assert [row.reach[0].reached for row in fixed.rows] == [1, 0] and "0.55" in fixed.level
    own = summarise(TWO_ARMS, ["engineer", "random"], "engineer", 4, level_of="engineer")
    assert own.rows[0].level == pytest.approx(0.55) and "of engineer on" in own.level
    for names in ({"reference": "nobody"}, {"level_of": "nobody"}):
        with pytest.raises(ConfigError, match="is no arm"):
            summarise(TWO_ARMS, ["engineer", "random"], **{"reference": "engineer", "trials": 4, **names})


def test_several_groups_are_pooled_for_the_tests_but_seconds_are_not() -> None:
    more = [s.model_copy(update={"backbone": "hstu"}) for s in TWO_ARMS]
    summary = summarise([*TWO_ARMS, *more], ["engineer", "random"], "engineer", 4)
    assert summary.groups == ("demo sasrec", "demo hstu", ALL)
    pooled = next(row for row in summary.comparisons if row.group == ALL and row.outcome == VALIDATION)
    assert pooled.pairs == 4 and pooled.p_sign_flip == 2 / 16
    row = next(row for row in summary.rows if row.group == ALL and row.arm == "engineer")
    assert [reach.clock for reach in row.reach] == ["trials"] and row.sessions == 4


def test_the_caveats_follow_from_how_the_comparison_was_run() -> None:
    text = " ".join(caveats(both(), TWO_ARMS, SETTING))
    for part in ("2 seeds on 1 dataset (demo)", "2 pairs can give is 0.5", "4 looks", "one at a time", "generated"):
        assert part in text
    setting = SETTING.model_copy(update={"replay": "office.parquet", "missing": ("a.b",), "jobs": 3})
    short = [session("engineer", 0, [0.1], dataset="office", test=None, look=None)]
    text = " ".join(caveats(summarise(short, ["engineer"], "engineer", 4), short, setting))
    for part in ("office.parquet", "A table has no test set", "No test set was looked at", "1 session ended before 4"):
        assert part in text
    assert "a.b" in text and "public data" in text and "one arm" in text


def test_equal_sessions_give_equal_files_and_a_page_that_loads_nothing(tmp_path: Path) -> None:
    def written(folder: Path) -> dict[str, bytes]:
        summary = both()
        pictures = [picture for picture in (curves(summary, TWO_ARMS), differences(summary)) if picture]
        document = Document(
            "compare", "engineer <against> random", about(SETTING), tables_of(summary), pictures,
            caveats(summary, TWO_ARMS, SETTING),
        )  # fmt: skip
        paths = write_document(folder, document, summary, TWO_ARMS, SETTING)
        assert paths[0].name == "compare.html"
        return {path.name: path.read_bytes() for path in paths}

    files = written(tmp_path / "a")
    assert files == written(tmp_path / "b")
    assert {Path(name).suffix for name in files} == {".html", ".md", ".json", ".csv", ".svg", ".png"}
    page = files["compare.html"].decode()
    assert "engineer &lt;against&gt; random" in page and "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!#)', page.replace("xlink:href=\"#", ""))
    assert json.loads(files["compare.json"])["summary"]["reference"] == "engineer"
    assert files["compare-curves.png"].startswith(b"\x89PNG")


def test_the_csv_files_hold_a_line_per_session_and_per_trial() -> None:
    sessions = list(csv.DictReader(io.StringIO(sessions_csv(TWO_ARMS))))
    trials = list(csv.DictReader(io.StringIO(trials_csv(TWO_ARMS))))
    assert (len(sessions), len(trials)) == (4, 16)
    assert float(sessions[0]["validation_ndcg10"]) == 0.5 and trials[9]["validation_ndcg10"] == ""


def test_numbers_are_shown_with_about_three_digits() -> None:
    assert [figure(value) for value in (None, 3.0, 0.1234, 12.34, 1234.5)] == ["∞", "3", "0.12", "12.3", "1,234"]


def test_published_rows_are_consistent_and_name_their_source() -> None:
    rows = published()
    assert {row.method for row in rows} >= {"TIGER", "ReaRec", "LC-Rec", "OpenOneRec", "SASRec", "HSTU"}
    assert {row.dataset for row in rows} == {"Baby", "Beauty", "Pet Supplies"}
    for row in rows:
        recall5, recall10, ndcg5, ndcg10 = row.figures
        assert len(row.figures) == len(METRICS) and row.source in sources()
        assert 0 < ndcg5 < ndcg10 < recall10 < 0.2 and ndcg5 < recall5 < recall10
    assert len({(row.dataset, row.method, row.source) for row in rows}) == len(rows)


def test_proposals_and_language_models_are_counted_over_the_sessions_of_an_arm() -> None:
    use = {"source": "measured", "calls": 3, "lost": 1, "cached": 50, "cache_write": 10, "reasoning": 5, "output": 7}
    priced = ModelUse(model="a", input=40, usd=0.5, **use)
    unknown = priced.model_copy(update={"usd": None})
    talking = [
        session("llm", 0, [0.1], models=(priced,), proposals=ProposalCounts(yes=2, no=1, unclear=4)),
        session("llm", 1, [0.1], models=(priced, priced), proposals=ProposalCounts(yes=1)),
    ]
    (row,) = summarise(talking, ["llm"], "llm", 1).rows
    assert (row.calls, row.input_tokens, row.output_tokens, row.usd) == (6, 150, 10.5, 0.75)
    assert (row.proposals_true, row.proposals_false, row.proposals_unclear) == (3, 1, 4)
    tables = {table.title: table for table in tables_of(summarise(talking, ["llm"], "llm", 1))}
    assert "3 of 4 (8 followed)" in tables["Effort"].rows[0] and "0.7500" in tables["Language models"].rows[0]
    silent = [session("llm", 0, [0.1], models=(unknown,))]
    assert summarise(silent, ["llm"], "llm", 1).rows[0].usd is None  # unknown is never 0
    assert "Language models" not in {table.title for table in tables_of(both())}


def test_one_seed_has_no_standard_deviation() -> None:
    sessions = [session("engineer", 0, [0.1, 0.4]), session("random", 0, [0.1, 0.2])]
    summary = summarise(sessions, ["engineer", "random"], "engineer", 2)
    assert [(row.validation_sd, row.test_sd) for row in summary.rows] == [(None, None)] * 2
    results = tables_of(summary)[0]
    assert not any("±" in cell for row in results.rows for cell in row)

"""A test result is withheld from agents while another session on the same content is open; so many may be opened."""

import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.quick_home import quick_home
from virtualmle.cli.app import app
from virtualmle.cli.headless import settings_options
from virtualmle.data.demo import generate_demo
from virtualmle.data.errors import SessionError
from virtualmle.data.prepared import PrepareOptions
from virtualmle.examiner.ledger import Ledger
from virtualmle.examiner.request import TestResult, read_revealed
from virtualmle.examiner.vault import Vault
from virtualmle.memory.store import Memory
from virtualmle.report.gather import gather
from virtualmle.report.html import render
from virtualmle.report.side_by_side import side_by_side, side_table
from virtualmle.tools.contents import same_content
from virtualmle.tools.finalize import finalize
from virtualmle.tools.list_sessions import list_sessions
from virtualmle.tools.open_session import open_session
from virtualmle.tools.read_memory import read_memory
from virtualmle.tools.results import FinalResult
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.views import StateView
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.tracking.snapshot import read_snapshot

SETTINGS = Settings(threads=1, device="cpu", with_reflection=False, keep_warm=30)
FIRST, SECOND = "demo-sasrec-1", "demo-hstu-1"
LATER = "revealed when the last open session on this data ends"


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FinalResult]:
    """A home with two sessions on the same data: the first is finalized while the second, with a trial, is open."""
    home = quick_home(tmp_path_factory.mktemp("withheld") / "home")
    ws = Workspace.open(home, settings=SETTINGS)
    for backbone in ("sasrec", "hstu"):
        run_trial(ws, open_session(ws, "demo", backbone).session, {})  # type: ignore[arg-type]
    result = finalize(ws, FIRST, "a small model", confirm=True)
    ws.close()
    return home, result


@pytest.fixture
def ws(played: tuple[Path, FinalResult], tmp_path: Path) -> Iterator[Workspace]:
    """A copy of this home."""
    home = tmp_path / "home"
    shutil.copytree(played[0], home)
    workspace = Workspace.open(home, settings=SETTINGS)
    yield workspace
    workspace.close()


def figures_of(home: Path, session: str) -> TestResult:
    found = read_revealed(home, session)
    assert found is not None
    return found


def figures_in(text: str, test: TestResult) -> list[str]:
    """The metrics of which a text shows the test figure to four digits; recalls may equal others by chance."""
    return [name for name, value in test.metrics.items() if "recall" not in name and f"{value:.4f}" in text]


def command(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_the_answer_of_finalize_says_that_the_result_is_withheld(played: tuple[Path, FinalResult]) -> None:
    home, result = played
    assert (result.state, result.test, result.test_sd, result.look) == ("withheld", None, None, 1)
    assert LATER in result.next and SECOND in result.next and f"sessions show {FIRST} --reveal" in result.next
    assert not figures_in(result.model_dump_json(), figures_of(home, FIRST))
    with Memory(home / "memory.db") as memory:
        assert memory.sessions.get(FIRST).state == "revealed", "it is frozen and examined all the same"


def test_no_tool_shows_a_withheld_result(ws: Workspace) -> None:
    test = figures_of(ws.home, FIRST)
    shown = [list_sessions(ws).model_dump_json()]
    for session in (FIRST, SECOND):
        views = ("state", "trajectory", "long_term", "action_space", "protocol", "brief")
        shown += [read_memory(ws, session, view).model_dump_json() for view in views]
        shown.append(read_memory(ws, session, "trial", trial="t001").model_dump_json())
    with pytest.raises(SessionError, match=f"is withheld: .*{LATER}") as refusal:
        finalize(ws, FIRST, "what was it again?", confirm=True)
    assert not [found for text in [*shown, str(refusal.value)] if (found := figures_in(text, test))]
    state = read_memory(ws, FIRST).content
    assert state["state"] == "withheld" and LATER in state["next"] and "test" not in state
    assert {row.session: row.state for row in list_sessions(ws).sessions} == {FIRST: "withheld", SECOND: "open"}


def test_reports_and_trackers_show_a_withheld_result_only_to_a_person_who_asks(ws: Workspace) -> None:
    home, test = ws.home, figures_of(ws.home, FIRST)
    data = gather(home, FIRST)
    assert data.test is None and data.withheld_by == [SECOND]
    assert not figures_in(render(data), test) and LATER in render(data)
    assert read_snapshot(home, ws.memory, FIRST).test == {}
    pair = str(side_by_side(home, [FIRST, SECOND]).facts)
    assert "withheld" in pair and not figures_in(pair, test)
    assert gather(home, FIRST, reveal=True).test == test
    assert figures_in(str(side_by_side(home, [FIRST, SECOND], reveal=True).facts), test)
    assert side_table(side_by_side(home, [FIRST, SECOND]))


def test_a_person_reads_the_result_on_the_command_line(ws: Workspace) -> None:
    where, test = ("--home", str(ws.home)), figures_of(ws.home, FIRST)
    hidden = command("sessions", "show", FIRST, *where)
    assert hidden.exit_code == 0 and not figures_in(hidden.output, test)
    assert "--reveal" in hidden.output
    shown = json.loads(command("sessions", "show", FIRST, "--reveal", "--json", *where).stdout)
    assert shown["test"]["metrics"] == test.metrics
    page = Path(json.loads(command("report", FIRST, "--json", *where).stdout)["report"])
    assert not figures_in(page.read_text(), test)
    command("report", FIRST, "--reveal", *where)
    assert figures_in(page.read_text(), test)
    called = command("call", "list_sessions", *where)
    assert '"withheld"' in called.stdout and not figures_in(called.stdout, test)


def test_all_results_are_shown_once_the_last_open_session_has_ended(ws: Workspace) -> None:
    last = finalize(ws, SECOND, "an hstu", confirm=True)
    assert last.state == "revealed" and last.test == figures_of(ws.home, SECOND).metrics
    test = figures_of(ws.home, FIRST)
    state = StateView.model_validate(read_memory(ws, FIRST).content)
    assert (state.state, state.test, state.look) == ("revealed", test.metrics, 1)
    with pytest.raises(SessionError, match=f"{test.metrics['ndcg@10']:.4f}"):
        finalize(ws, FIRST, "what was it again?", confirm=True)
    assert {row.state for row in list_sessions(ws).sessions} == {"revealed"}
    assert gather(ws.home, FIRST).test == test
    open_session(ws, "demo", "sasrec")  # from here on, nothing is shown again
    assert "test" not in read_memory(ws, FIRST).content


def test_a_session_on_other_data_or_on_replaced_data_withholds_nothing(ws: Workspace) -> None:
    record = ws.memory.sessions.get(SECOND)
    other = ws.memory.sessions.open(record.model_copy(update={"id": "", "dataset_id": "elsewhere"}))
    assert gather(ws.home, FIRST).withheld_by == [SECOND], "its dataset was replaced: it runs no more trials"
    assert read_memory(ws, other.id).content["state"] == "open"


def test_a_session_on_another_split_of_the_log_withholds_as_well(ws: Workspace) -> None:
    split = PrepareOptions(split="time", holdout="90d")
    name = ws.catalogue.ensure_demo(Vault(ws.home).public_key(), split).name
    finalize(ws, SECOND, "an hstu", confirm=True)
    assert read_memory(ws, FIRST).content["state"] == "revealed"
    by_time = open_session(ws, name, "sasrec").session
    assert gather(ws.home, FIRST).withheld_by == [by_time]
    assert read_memory(ws, FIRST).content["state"] == "withheld"


def test_content_is_known_by_id_by_log_and_by_the_fingerprint_of_a_look(tmp_path: Path) -> None:
    ws = Workspace.open(tmp_path, settings=SETTINGS)
    log = tmp_path / "log.csv"
    generate_demo(num_users=120, num_items=40).write_csv(log)
    key = Vault(tmp_path).public_key()
    names = {"shop": PrepareOptions(), "again": PrepareOptions(max_events=20)}
    ids = [ws.catalogue.add(name, log, public_key=key, options=options).dataset_id for name, options in names.items()]
    assert len(set(ids)) == 2 and same_content(ws, ids[0]) == same_content(ws, ids[1]) == set(ids)
    assert same_content(ws, "gone") == {"gone"}
    ledger = Ledger(Vault(tmp_path).directory)
    for session, dataset_id in (("a", ids[1]), ("b", "gone")):
        ledger.record(session, "any", dataset_id, "f" * 64)
    ledger.record("c", "any", "other", "e" * 64)
    assert same_content(ws, "gone") == same_content(ws, ids[0]) == {*ids, "gone"}
    (tmp_path / ".virtualmle" / "data" / "again" / "manifest.json").write_text("{")
    assert same_content(ws, ids[0]) == {ids[0]}, "a damaged dataset does not block the others"
    assert same_content(ws, ids[1]) == {ids[1], "gone"}
    ws.close()


def test_two_logs_that_are_parts_of_a_third_one_are_the_same_content(tmp_path: Path) -> None:
    ws = Workspace.open(tmp_path, settings=SETTINGS)
    ids: dict[str, str] = {}
    left, right = (generate_demo(num_users=150, num_items=60, seed=seed) for seed in (1, 9))
    right = right.with_columns(pl.format("other {}", "user").alias("user"), pl.format("other {}", "item").alias("item"))
    key = Vault(tmp_path).public_key()
    for name, frame in {"left": left, "right": right, "both": pl.concat([left, right])}.items():
        assert len(same_content(ws, ids.get("left", ""))) == 1, "the two parts alone have nothing in common"
        frame.write_csv(tmp_path / f"{name}.csv")
        ids[name] = ws.catalogue.add(name, tmp_path / f"{name}.csv", public_key=key).dataset_id
    assert all(same_content(ws, each) == {*ids.values()} for each in ids.values())
    ws.close()


def test_an_edited_copy_of_a_log_is_the_same_content_and_another_log_is_not(tmp_path: Path) -> None:
    ws = Workspace.open(tmp_path / "home", settings=SETTINGS)
    key, frame = Vault(ws.home).public_key(), generate_demo(num_users=300, num_items=120)
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=0)[3:].with_columns(timestamp=pl.col("timestamp") + 3600)
    logs = {"shop": frame, "edited": shuffled, "other": generate_demo(num_users=300, num_items=120, seed=9)}
    ids = {}
    for name, log in logs.items():
        log.write_csv(tmp_path / f"{name}.csv")
        ids[name] = ws.catalogue.add(name, tmp_path / f"{name}.csv", public_key=key).dataset_id
    assert same_content(ws, ids["shop"]) == {ids["shop"], ids["edited"]}
    assert same_content(ws, ids["other"]) == {ids["other"]}
    ws.close()


def test_agents_open_three_sessions_on_the_same_content_and_a_person_raises_that(tmp_path: Path) -> None:
    ws = Workspace.open(tmp_path, settings=SETTINGS)
    names = [open_session(ws, "demo", backbone, new=True).session for backbone in ("sasrec", "sasrec", "hstu")]
    refusal = "has had 3 sessions, and max_sessions=3; go on with .*demo-hstu-1.*--max-sessions 4"
    split = PrepareOptions(split="time", holdout="90d")
    for dataset in ("demo", ws.catalogue.ensure_demo(Vault(tmp_path).public_key(), split).name):
        with pytest.raises(SessionError, match=refusal):
            open_session(ws, dataset, "sasrec", new=True)
    assert open_session(ws, "demo", "sasrec").session == names[1], "an open one is resumed"
    assert [record.id for record in ws.memory.sessions.all()] == names
    ws.settings = replace(SETTINGS, max_sessions=4)
    assert open_session(ws, "demo", "sasrec", new=True).session == "demo-sasrec-3"
    ws.settings = SETTINGS
    page = ws.protocol.text.replace("| `max_sessions` | 3 |", "| `max_sessions` | 5 |")
    (tmp_path / "SANDBOX.md").write_text(page)
    raised = Workspace.open(tmp_path, settings=SETTINGS)
    assert open_session(raised, "demo", "sasrec", new=True).session == "demo-sasrec-4"
    with pytest.raises(SessionError, match="max_sessions=5"):
        open_session(raised, "demo", "sasrec", new=True)
    for workspace in (ws, raised):
        workspace.close()


def test_a_page_without_the_rule_allows_three(tmp_path: Path) -> None:
    ws = Workspace.open(quick_home(tmp_path), settings=SETTINGS)
    assert "max_sessions" not in ws.protocol.text and ws.protocol.max_sessions == 3
    ws.close()


def test_servers_that_open_sessions_at_once_stay_within_the_bound(tmp_path: Path) -> None:
    servers = [Workspace.open(tmp_path, settings=SETTINGS) for _ in range(4)]
    servers[0].dataset("demo")

    def attempt(number: int) -> str:
        try:
            return open_session(servers[number % 4], "demo", "sasrec", new=True).session
        except SessionError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(attempt, range(8)))
    assert sum(bool(re.fullmatch(r"demo-sasrec-\d", answer)) for answer in answers) == 3, answers
    assert len(servers[0].memory.sessions.all()) == 3
    for server in servers:
        server.close()


def test_the_servers_of_a_persons_commands_are_told_the_bound() -> None:
    options = settings_options(replace(SETTINGS, max_sessions=12))
    assert options[options.index("--max-sessions") + 1] == "12"
    assert "--max-sessions" not in settings_options(SETTINGS)


@pytest.mark.slow
def test_tune_opens_a_session_beyond_the_bound_because_a_person_asks_for_it(tmp_path: Path) -> None:
    ws = Workspace.open(quick_home(tmp_path), settings=SETTINGS)
    for _ in range(3):
        open_session(ws, "demo", "sasrec", new=True)
    ws.close()
    where = ("--home", str(tmp_path), "--threads", "1", "--keep-warm", "0")
    tuned = command("tune", "demo", "--new", "--no-finalize", "--agent", "random", "--trials", "1", *where)
    assert tuned.exit_code == 0, tuned.output
    with Memory(tmp_path / "memory.db") as memory:
        assert len(memory.sessions.all()) == 4

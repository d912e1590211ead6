"""Several sessions side by side: in the terminal, as a page, and on the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report_world import EVIL, Page, Story, finished, terminal
from virtualmle.cli.app import main
from virtualmle.data.errors import SessionError
from virtualmle.report.side_by_side import Row, side_by_side, side_table
from virtualmle.report.side_page import NAME_LENGTH, _name, write_side_page
from virtualmle.tools.workspace import trial_directory


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two sessions on the same data, of which the second one learns faster and ends higher."""
    slow, fast = Story(tmp_path), Story(tmp_path)
    for changes, ndcg, delta in (({}, 0.050, None), ({"lr": 0.001}, 0.052, 0.002), ({"dropout": 0.3}, 0.055, 0.003)):
        slow.run(changes, finished(ndcg, delta, 0.001, "keep"))
    for changes, ndcg, delta in (({}, 0.050, None), ({"transition_weight": 8.0}, 0.060, 0.010)):
        fast.run(changes, finished(ndcg, delta, 0.001, "keep"))
    fast.end(look=2)
    return tmp_path


SLOW, FAST = "office-sasrec-1", "office-sasrec-2"


def facts_of(home: Path) -> dict[str, list[str]]:
    return {row.title: row.cells for row in side_by_side(home, [SLOW, FAST]).facts}


def test_the_facts_of_both_sessions_stand_in_their_order(home: Path) -> None:
    facts = facts_of(home)
    assert facts["trials"] == ["3 of 20", "2 of 20"]
    assert facts["selected, validation NDCG@10"] == ["0.0550 ± 0.0026", "0.0600 ± 0.0026"]
    assert facts["selected, test NDCG@10"] == ["–", "0.0432 ± 0.0023 (look 2)"]
    assert facts["gain over the default"] == ["+10.0 %", "+20.0 %"]
    assert facts["best without a model, validation NDCG@10"] == ["0.0623 (item transitions alone)"] * 2
    assert facts["gain over the best without a model"] == ["-11.7 %", "-3.7 %"]


def test_it_is_said_how_soon_each_session_reached_the_level_of_the_lower_one(home: Path) -> None:
    assert facts_of(home)["reached 0.0550 at"] == ["t003, 2 min 04 s", "t002, 1 min 23 s"]  # 41.3 s a trial


def test_only_knobs_in_which_the_selections_differ_are_listed(home: Path) -> None:
    assert side_by_side(home, [SLOW, FAST]).settings == [
        Row("lr", ["0.001", "0.0003"]), Row("dropout", ["0.3", "0.2"]), Row("transition_weight", ["0", "8"])
    ]  # fmt: skip


def test_the_selected_models_are_compared_user_by_user_where_their_ranks_exist(home: Path) -> None:
    assert side_by_side(home, [SLOW, FAST]).notes == []
    for session, handle, ranks in ((SLOW, "t003", [1, 20, 20, 20]), (FAST, "t002", [1, 1, 20, 20])):
        directory = trial_directory(home, session, handle)
        directory.mkdir(parents=True)
        np.save(directory / "ranks.npy", np.array(ranks, dtype=np.int32))
    (note,) = side_by_side(home, [SLOW, FAST]).notes
    assert note.startswith(f"Selected models on validation, {FAST} minus {SLOW}, paired over users: +0.2500 ± ")


def test_different_data_or_protocols_are_named_and_levels_are_left_out(home: Path) -> None:
    other = Story(home, dataset="beauty")
    other.memory.close()
    compared = side_by_side(home, [SLOW, "beauty-sasrec-1"])
    data = compared.sessions[1]
    object.__setattr__(data, "session", data.session.model_copy(update={"dataset_id": "x", "protocol_hash": "y"}))
    assert [note.split()[4] for note in compared.notes] == ["data:", "protocols"]
    assert not any(row.title.startswith("reached") for row in compared.facts)


def test_the_page_has_the_same_figures_as_the_terminal_and_escapes_texts(home: Path) -> None:
    compared = side_by_side(home, [SLOW, FAST])
    page = Page(write_side_page(compared).read_text(encoding="utf-8"))
    text = terminal(*side_table(compared))
    for figure in ("0.0550 ± 0.0026", "0.0600 ± 0.0026", "(look 2)", "+20.0 %"):
        assert figure in page.text and figure in text
    assert page.tags.count("svg") == 2 and page.text.count(f"agent {EVIL[:7]}") == 2
    assert not {"script", "link", "img", "iframe"} & set(page.tags)


def test_too_few_too_many_or_unknown_sessions_are_refused(home: Path) -> None:
    for sessions, message in (([SLOW], "2 to 6"), ([SLOW] * 7, "not 7"), ([SLOW, "nowhere-sasrec-1"], "nowhere")):
        with pytest.raises(SessionError, match=message):
            side_by_side(home, sessions)


def test_long_names_of_pages_are_shortened_and_stay_apart() -> None:
    names = [f"{'x' * 100}-sasrec-{number}" for number in range(3)]
    one, other = _name(names), _name([*names[:2], "y"])
    assert len(one) < NAME_LENGTH + 20 and one != other


def test_the_command_prints_a_table_and_the_path_or_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> Any:
        with pytest.raises(SystemExit) as left:
            main(["report", SLOW, FAST, "--home", str(home), *arguments])
        assert not left.value.code
        return capsys.readouterr().out

    *table, path = run().splitlines()
    assert Path(path).exists() and any("0.0600" in line for line in table)
    found = json.loads(run("--json"))
    assert found["sessions"] == [SLOW, FAST] and found["report"] == path
    assert found["settings"]["lr"] == ["0.001", "0.0003"]

"""The default beside the selected trial: one look at both, fixed before it, and receipted like the winner's."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.quick_home import quick_home
from virtualmle.cli.app import app
from virtualmle.data.prepared import PreparedDataset
from virtualmle.examiner.answers import reveal_choice, write_answer
from virtualmle.examiner.audit import AuditLog
from virtualmle.examiner.choice import Choice
from virtualmle.examiner.entries import digest_of
from virtualmle.examiner.ledger import Ledger
from virtualmle.examiner.main import histories_before_test, load_candidate
from virtualmle.examiner.operator_keys import create_keys, read_public_keys
from virtualmle.examiner.receipt_checks import check_receipt
from virtualmle.examiner.receipts import issue
from virtualmle.examiner.request import TestResult, read_revealed
from virtualmle.examiner.unseal import open_test
from virtualmle.examiner.vault import Vault
from virtualmle.report.gather import gather
from virtualmle.report.html import render
from virtualmle.report.tables import test_table as table_of_test
from virtualmle.tools.auditing import walk_home
from virtualmle.tools.beside import beside_to_freeze, frozen_beside
from virtualmle.tools.finalize import final_result, finalize
from virtualmle.tools.open_session import open_session
from virtualmle.tools.read_memory import read_memory
from virtualmle.tools.receipts import receipt_of
from virtualmle.tools.results import FinalResult
from virtualmle.tools.revealing import bring_back, pack_choice
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.tools.write_reflection import RuleInput
from virtualmle.training.metrics import ndcg_per_user
from virtualmle.training.spec import CHECKPOINT

SESSION = "demo-sasrec-1"
SETTINGS = Settings(threads=1, device="cpu", with_reflection=False, keep_warm=30, max_trials=6)
RULES = [
    RuleInput(kind="prefer", statement="transitions help", condition="transition_weight > 0"),
    RuleInput(kind="prefer", statement="transitions help, again", condition="transition_weight >= 8"),
    RuleInput(kind="insight", statement="the catalogue is small"),
]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workspace, FinalResult, list[str]]]:
    """A session with the default and a better trial, finalized; and what its tools said before the look."""
    home = quick_home(tmp_path_factory.mktemp("beside") / "home")
    ws = Workspace.open(home, settings=SETTINGS)
    session = open_session(ws, "demo", "sasrec").session
    before = [run_trial(ws, session, changes).model_dump_json() for changes in ({}, {"transition_weight": 8.0})]
    before.append(read_memory(ws, session).model_dump_json())
    result = finalize(ws, session, "transitions carry this dataset", rules=RULES, confirm=True)
    yield ws, result, before
    ws.close()


def ranks_of(ws: Workspace, trial: str) -> np.ndarray:  # type: ignore[type-arg]
    """The ranks of the test targets, computed here from the checkpoint and the opened seal."""
    record = ws.memory.sessions.get(SESSION)
    dataset = PreparedDataset.load(ws.session_dataset(record))
    key = Vault(ws.home).private_key()
    targets = open_test(ws.session_dataset(record), key, dataset.dataset_id, dataset.num_users)
    candidate = load_candidate(ws.trial_directory(SESSION, trial), dataset)
    histories = histories_before_test(dataset).of_users(targets.users)
    return candidate.rank(histories, targets.items[targets.users], dataset.num_items)[0]


def revealed(ws: Workspace) -> TestResult:
    found = read_revealed(ws.home, SESSION)
    assert found is not None
    return found


def test_the_default_is_evaluated_in_the_same_look_and_compared_user_by_user(
    played: tuple[Workspace, FinalResult, list[str]],
) -> None:
    ws, result, _ = played
    assert (result.state, result.selected, result.look) == ("revealed", "t002", 1)
    ours, theirs = (ndcg_per_user(ranks_of(ws, trial)) for trial in ("t002", "t001"))
    assert result.default is not None and result.test is not None and result.test_se is not None
    assert result.default.trial == "t001"
    assert result.test["ndcg@10"] == pytest.approx(ours.mean()) and result.default.metrics["ndcg@10"] == pytest.approx(
        theirs.mean()
    )
    difference, n = ours - theirs, len(ours)
    assert result.default.delta["ndcg@10"] == pytest.approx(difference.mean())
    assert result.default.delta_se["ndcg@10"] == pytest.approx(difference.std(ddof=1) / n**0.5)
    assert result.test_se["ndcg@10"] == pytest.approx(ours.std(ddof=1) / n**0.5)
    assert set(result.test) == set(result.test_se) == set(result.default.metrics) == set(result.default.delta_se)
    assert "of the default (t001)" in result.default.summary and f"paired over {n:,} users" in result.default.summary
    assert len(Ledger(Vault(ws.home).directory).looks()) == 1, "both are one look"


def test_the_default_is_fixed_before_the_look_and_the_receipt_holds(
    played: tuple[Workspace, FinalResult, list[str]],
) -> None:
    ws, _, _ = played
    entries = [e for e in AuditLog(Vault(ws.home).directory).entries() if e.session == SESSION]
    frozen, look = (next(e for e in entries if e.kind == kind) for kind in ("frozen", "look"))
    assert frozen.seq < look.seq and frozen.body["beside"]["trial"] == "t001"
    assert set(frozen.body["beside"]["checkpoints"]) == {"t001"}
    receipt = receipt_of(ws.home, ws.memory.sessions.get(SESSION))
    checks = check_receipt(receipt)
    assert all(check.holds for check in checks) and "of the default, t001" in checks[-1].detail
    assert walk_home(ws.home) == []

    swapped = {**receipt.choice, "beside": {**receipt.choice["beside"], "trial": "t009"}}
    forged = issue(Vault(ws.home), receipt.model_copy(update={"choice": swapped}))
    details = {check.name: check.detail for check in check_receipt(forged) if not check.holds}
    assert "the default of the result is not the one that was fixed with the choice" in details["result"]


def test_no_tool_shows_a_figure_of_the_default_before_the_look(
    played: tuple[Workspace, FinalResult, list[str]],
) -> None:
    ws, result, before = played
    assert result.default is not None
    figures = [f"{value:.6f}" for name, value in result.default.metrics.items() if "recall" not in name]
    assert not [figure for figure in figures for text in before if figure in text]
    memory = b"".join(path.read_bytes() for path in ws.home.glob("memory.db*"))
    assert not any(repr(v).encode() in memory for n, v in result.default.metrics.items() if "recall" not in n)


def test_the_result_says_why_the_trial_was_selected_and_what_became_of_each_rule(
    played: tuple[Workspace, FinalResult, list[str]],
) -> None:
    _, result, _ = played
    assert result.selection.startswith("t002 has the best validation NDCG@10 of 2 finished trials: ")
    stored, merged, plain = result.rules
    assert (stored.outcome, stored.check, stored.support, stored.contradiction) == ("stored", "supported", 1, 0)
    assert (merged.outcome, merged.rule_id, merged.times_said) == ("merged", stored.rule_id, 2)
    assert merged.summary == (
        f"'prefer {merged.condition}' merged with rule {stored.rule_id}, which was stated 2 times: supported, 1 trial "
        "for it, 0 against."
    )
    assert (plain.outcome, plain.condition, plain.check) == ("stored", None, "unverified")


def test_reports_and_commands_show_both(played: tuple[Workspace, FinalResult, list[str]]) -> None:
    ws, result, _ = played
    assert result.default is not None
    data = gather(ws.home, SESSION)
    figure = f"{result.default.metrics['ndcg@10']:.4f} ± {result.default.se['ndcg@10']:.4f}"
    assert figure in render(data)
    console = Console(width=80, record=True)
    console.print(table_of_test(data))
    printed = console.export_text()
    assert figure in printed and "t001, the default" in printed
    shown = CliRunner().invoke(app, ["sessions", "show", SESSION, "--home", str(ws.home)])
    assert shown.exit_code == 0 and figure in shown.output
    as_json = CliRunner().invoke(app, ["sessions", "show", SESSION, "--home", str(ws.home), "--json"])
    assert json.loads(as_json.output)["test"]["default"]["trial"] == "t001"


def test_a_default_that_is_selected_or_has_lost_its_model_is_left_out(
    played: tuple[Workspace, FinalResult, list[str]],
) -> None:
    ws, _, _ = played
    session = ws.memory.sessions.get(SESSION)
    trials = ws.memory.trials.all(SESSION)
    assert beside_to_freeze(ws, session, trials[0], trials) is None
    kept = beside_to_freeze(ws, session, trials[1], trials)
    assert kept is not None and kept == frozen_beside(ws, session)
    checkpoint = ws.trial_directory(SESSION, "t001") / CHECKPOINT
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-1] + b"x")
    try:
        assert beside_to_freeze(ws, session, trials[1], trials) is None and frozen_beside(ws, session) is None
    finally:
        checkpoint.write_bytes(content)


def test_results_and_choices_of_earlier_versions_keep_their_digests(
    played: tuple[Workspace, FinalResult, list[str]],
) -> None:
    now = revealed(played[0]).model_dump()
    old = {name: value for name, value in now.items() if name not in ("default", "metrics_se")}
    read = TestResult.model_validate(old)
    assert read.default is None and read.model_dump() == old and digest_of(read.model_dump()) == digest_of(old)
    assert json.loads(read.model_dump_json()) == json.loads(json.dumps(old))
    choice = {
        "format": 1, "session": "s", "origin": "0" * 8, "trial": "t002", "models": ["sessions/s/t002"],
        "dataset": "data/d", "dataset_id": "x", "files": {"data/d/f": "0"},
    }  # fmt: skip
    assert json.loads(Choice.model_validate(choice).text()) == choice
    with_default = {**choice, "beside": "t001", "beside_models": ["sessions/s/t001"]}
    assert Choice.model_validate(with_default).digest != Choice.model_validate(choice).digest


def test_figures_of_the_default_are_withheld_with_the_winners(
    played: tuple[Workspace, FinalResult, list[str]],
) -> None:
    ws, result, _ = played
    assert result.default is not None and result.default.summary == read_memory(ws, SESSION).content["test_comparison"]
    other = open_session(ws, "demo", "sasrec", new=True).session
    answer = final_result(ws, ws.memory.sessions.get(SESSION), revealed(ws))
    assert (answer.state, answer.test, answer.test_se, answer.default) == ("withheld", None, None, None)
    shown = answer.model_dump_json() + read_memory(ws, SESSION).model_dump_json() + render(gather(ws.home, SESSION))
    shown += read_memory(ws, other).model_dump_json() + read_memory(ws, other, "long_term").model_dump_json()
    figures = {f"{value:.4f}" for name, value in result.default.metrics.items() if "recall" not in name}
    figures |= {f"{value:.4f}" for name, value in result.default.delta.items() if "recall" not in name}
    assert not [figure for figure in figures if figure in shown]


def test_the_holder_of_the_key_evaluates_the_default_too(tmp_path: Path) -> None:
    home = quick_home(tmp_path / "home")
    key, public = create_keys(tmp_path / "keys")
    keys = read_public_keys(public)
    Vault(home).use_operator_key(keys.sealing, keys.verifying)
    ws = Workspace.open(home, settings=SETTINGS)
    session = open_session(ws, "demo", "sasrec").session
    for changes in ({}, {"transition_weight": 8.0}):
        run_trial(ws, session, changes)
    sealed = finalize(ws, session, "transitions carry this dataset", confirm=True)
    assert (sealed.state, sealed.default, sealed.test) == ("frozen", None, None)
    choice = pack_choice(ws, session, tmp_path / "choice.tar")
    assert (choice.trial, choice.beside, choice.beside_models) == ("t002", "t001", [f"sessions/{session}/t001"])
    _, answer = reveal_choice(tmp_path / "holder", tmp_path / "choice.tar", key, 250.0)
    write_answer(tmp_path / "answer.json", answer)
    result = bring_back(ws, session, tmp_path / "answer.json")
    assert result.default is not None and (result.default.trial, result.look) == ("t001", 1)
    assert result.test is not None and result.test["ndcg@10"] > result.default.metrics["ndcg@10"]
    assert len(Ledger(Vault(tmp_path / "holder").directory).looks()) == 1
    receipt = receipt_of(home, ws.memory.sessions.get(session))
    assert all(check.holds for check in check_receipt(receipt)) and walk_home(home) == []
    ws.close()

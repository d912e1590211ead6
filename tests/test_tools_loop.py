"""The tools as plain functions, in a real home with real worker processes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtualmle.data.errors import AdmissionError, ConfigError, DataError, SessionError
from virtualmle.examiner.ledger import Ledger
from virtualmle.examiner.receipt_checks import check_receipt
from virtualmle.examiner.request import read_revealed
from virtualmle.examiner.vault import MAC_KEY, PRIVATE, Vault
from virtualmle.memory.records import Hypothesis, TrialRecord
from virtualmle.models.config import fingerprint, make_config, train_hash
from virtualmle.tools.auditing import walk_home
from virtualmle.tools.cancel_trial import cancel_trial
from virtualmle.tools.finalize import finalize
from virtualmle.tools.list_sessions import list_sessions
from virtualmle.tools.open_session import open_session
from virtualmle.tools.read_memory import read_memory
from virtualmle.tools.receipts import receipt_of
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.sync import sync_session
from virtualmle.tools.wait_trial import wait_trial
from virtualmle.tools.workspace import Settings, Workspace, trial_seed
from virtualmle.tools.write_reflection import RuleInput, write_reflection
from virtualmle.training.spec import SPEC, read_spec, write_model

TINY = {"epochs": 1, "hidden_dim": 16, "batch_size": 512}


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace.open(tmp_path, settings=Settings(max_trials=6, threads=1))
    yield workspace
    workspace.close()


def reflect(ws: Workspace, session: str, trial: str) -> None:
    write_reflection(ws, session, trial, helped="unclear", dimension="capacity", lesson="a small model is quick")


def test_a_session_goes_from_brief_to_one_look_at_the_test_set(ws: Workspace) -> None:
    brief = open_session(ws, "demo", "sasrec")
    assert brief.incumbent is None and brief.prior == [] and brief.budget.trials_max == 6

    first = run_trial(ws, brief.session, TINY, Hypothesis(dimension="capacity", direction="worse"))
    assert (first.status, first.verdict, first.incumbent) == ("finished", "keep", first.trial)
    assert 0 < first.metrics["ndcg@10"] <= first.metrics["recall@10"] <= 1
    assert len(first.model_dump_json()) < 2048

    with pytest.raises(AdmissionError, match="write_reflection"):
        run_trial(ws, brief.session, {"transition_weight": 8.0})
    reflect(ws, brief.session, first.trial)

    second = run_trial(ws, brief.session, {"transition_weight": 8.0})
    assert second.base == first.trial and second.delta is not None
    assert second.metrics["ndcg@10"] > first.metrics["ndcg@10"]  # the demo data contains item transitions
    trained = ws.memory.trials.get(brief.session, second.trial)
    assert trained.outcome is not None and trained.outcome.details["rescored"] is True
    again = run_trial(ws, brief.session, {"transition_weight": 8.0}, base=first.trial)
    assert again.duplicate and again.trial == second.trial and again.budget.trials_used == 2

    receipt = write_reflection(
        ws, brief.session, second.trial, helped="yes", dimension="scoring", lesson="transitions are strong here",
        evidence=[first.trial, second.trial],
        rule=RuleInput(kind="prefer", statement="use a transition prior", condition="transition_weight > 0"),
    )
    assert receipt.rule and (receipt.check, receipt.rule.check) == ("supported", "supported")

    with pytest.raises(SessionError, match="confirm=true"):
        finalize(ws, brief.session, "transitions carry this dataset")
    final = finalize(ws, brief.session, "transitions carry this dataset", confirm=True)
    assert (final.state, final.selected, final.look) == ("revealed", second.trial, 1)
    assert final.test is not None and set(final.test) == set(final.validation)
    assert list_sessions(ws).sessions[0].state == "revealed"
    with pytest.raises(SessionError, match=f"finalized.*{final.test['ndcg@10']:.4f}"):
        finalize(ws, brief.session, "again", confirm=True)
    with pytest.raises(AdmissionError, match="revealed"):
        run_trial(ws, brief.session, {"lr": 0.01})
    assert_no_test_figures_in_memory(ws, final.test)
    assert walk_home(ws.home) == []
    receipt = receipt_of(ws.home, ws.memory.sessions.get(brief.session))
    assert receipt.stage == "revealed" and all(check.holds for check in check_receipt(receipt))

    transferred = open_session(ws, "demo", "sasrec")
    assert transferred.session != brief.session
    assert any(str(entry.get("condition")).startswith("transition_weight >") for entry in transferred.prior)


def assert_no_test_figures_in_memory(ws: Workspace, test: dict[str, float]) -> None:
    files = [path.read_bytes() for path in ws.home.glob("memory.db*")]
    assert files
    for name, value in test.items():
        if name.startswith("recall"):
            continue  # a multiple of 1 / num_users, so a validation recall may be equal by chance
        assert not any(repr(value).encode() in content for content in files)


def test_everything_an_agent_sees_is_identical_if_only_test_targets_differ(tmp_path: Path) -> None:
    seen = []
    for variant in ("a", "b"):
        home = tmp_path / variant
        home.mkdir()
        ws = Workspace.open(home, settings=Settings(threads=1))
        log = home / "log.tsv"
        log.write_text("\n".join(log_rows(swap_tests=variant == "b")) + "\n")
        ws.catalogue.add("log", log, public_key=vault_key(home))
        session = open_session(ws, "log", "hstu")
        trial = run_trial(ws, session.session, TINY)
        views = [read_memory(ws, session.session, view) for view in ("state", "trajectory", "long_term")]
        seen.append(json.dumps([without_times(v.model_dump()) for v in (session, trial, *views)], sort_keys=True))
        ws.close()
    assert seen[0] == seen[1]


def vault_key(home: Path) -> bytes:
    return Vault(home).public_key()


def log_rows(*, swap_tests: bool) -> list[str]:
    """60 users on a ring of 20 items; with `swap_tests`, neighbouring users swap their last items."""
    rows = []
    for user in range(60):
        items = [(user * 7 + step) % 20 for step in range(8)]
        owner = user ^ 1 if swap_tests else user
        items[-1] = (owner * 7 + 7) % 20
        rows += [f"u{user}\ti{item}\t{1000 * user + step}" for step, item in enumerate(items)]
    return rows


def without_times(value: object) -> object:
    """The value without wall-clock times, which differ from run to run."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if "seconds" not in k}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def test_a_running_trial_can_be_cancelled_and_the_session_continues(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec").session
    started = run_trial(ws, session, {"epochs": 100, "patience": 20}, wait_seconds=0)
    assert started.status == "running" and "wait_trial" in started.next
    with pytest.raises(AdmissionError, match="running"):
        run_trial(ws, session, TINY)
    with pytest.raises(SessionError, match="running"):
        finalize(ws, session, "too early", confirm=True)
    cancelled = cancel_trial(ws, session, started.trial)
    assert cancelled.status == "cancelled" and cancelled.verdict is None and cancelled.budget.trials_used == 1
    assert wait_trial(ws, session, started.trial).status == "cancelled"
    assert run_trial(ws, session, TINY).verdict == "keep"


def test_changes_that_an_agent_may_not_make_are_refused_with_a_reason(ws: Workspace) -> None:
    session = open_session(ws, "demo", "hstu").session
    for changes, reason in [
        ({"seed": 3}, "server"),
        ({"hidden_dims": 64}, "hidden_dim"),
        ({"lr": 5.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"lr": "fast"}, "lr"),
        ({"causal": False}, "supervision"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            run_trial(ws, session, changes)
    assert ws.memory.trials.all(session) == []


def test_unknown_names_are_refused_with_the_known_ones(ws: Workspace) -> None:
    with pytest.raises(DataError, match="nowhere"):
        open_session(ws, "nowhere", "sasrec")
    session = open_session(ws, "demo", "sasrec").session
    with pytest.raises(SessionError, match=session):
        run_trial(ws, "s-unknown", {})
    with pytest.raises(SessionError, match="t999"):
        wait_trial(ws, session, "t999")
    with pytest.raises(SessionError, match="nothing to select"):
        finalize(ws, session, "nothing was tried", confirm=True)


def test_an_open_session_is_resumed_and_new_opens_another(ws: Workspace) -> None:
    first = open_session(ws, "demo", "sasrec")
    assert open_session(ws, "demo", "sasrec").resumed
    assert open_session(ws, "demo", "sasrec", new=True).session != first.session
    assert open_session(ws, "demo", "hstu").session not in (first.session, None)


def test_a_session_killed_between_freeze_and_look_is_completed_by_the_next_call(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec").session
    trial = run_trial(ws, session, TINY)
    assert ws.memory.sessions.set_state(session, "open", "frozen", selected=trial.trial)
    final = finalize(ws, session, "resumed", confirm=True)
    assert final.state == "revealed" and read_revealed(ws.home, session) is not None


def test_a_trial_whose_process_is_still_starting_is_reported_as_running(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec").session
    config = make_config("sasrec")
    part = train_hash(config)
    record = TrialRecord(
        session=session, handle="", number=0, base="default", changes={}, config=config.model_dump(),
        config_hash=fingerprint(config.model_dump()), train_hash=part,
    )
    added = ws.memory.trials.start(record)
    running = sync_session(ws, session)  # a second call, before the directory exists
    assert [trial.handle for trial in running] == [added.handle]


def test_a_used_look_without_a_result_voids_the_session(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec").session
    trial = run_trial(ws, session, TINY)
    ws.memory.sessions.set_state(session, "open", "frozen", selected=trial.trial)
    ws.memory.sessions.set_state(session, "frozen", "attempted")
    vault = Vault(ws.home)
    Ledger(vault.directory).record(session, "demo", ws.dataset("demo").dataset_id, "f" * 64)  # then killed
    final = finalize(ws, session, "the examiner was killed", confirm=True)
    assert final.state == "void" and final.test is None


def test_an_examination_that_cannot_start_uses_no_look_and_can_be_repeated(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec").session
    run_trial(ws, session, TINY)
    private = ws.vault.directory / PRIVATE
    private.chmod(0o644)
    with pytest.raises(SessionError, match="no look at the test set was used"):
        finalize(ws, session, "the key is readable by others", confirm=True)
    private.chmod(0o600)
    final = finalize(ws, session, "and restored", confirm=True)
    assert (final.state, final.look) == ("revealed", 1)


def test_a_model_of_an_earlier_version_is_re_scored_with_the_seed_that_it_was_trained_with(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec").session
    trained = run_trial(ws, session, TINY)
    reflect(ws, session, trained.trial)
    directory = ws.trial_directory(session, trained.trial)
    write_model(directory / SPEC, read_spec(directory).model_copy(update={"seed": 5}))
    (ws.vault.directory / MAC_KEY).unlink()  # of an earlier version: nothing was signed
    again = run_trial(ws, session, {"transition_weight": 8.0})
    assert (again.status, again.rescored) == ("finished", True)


def test_all_trials_of_a_session_share_a_seed_that_differs_by_session_dataset_and_repetition() -> None:
    assert trial_seed(0, "dataset") == 227827824
    assert trial_seed(0, "dataset", 1) == 434447982
    seeds = {trial_seed(0, "dataset"), trial_seed(1, "dataset"), trial_seed(0, "other"), trial_seed(0, "dataset", 2)}
    assert len(seeds) == 4

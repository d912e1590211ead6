"""Admission, verdicts and stopping: the Program as pure functions."""

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from virtualmle.memory.records import TrialOutcome, TrialRecord
from virtualmle.models.config import TrialConfig, fingerprint, make_config
from virtualmle.sandbox.program import (
    Admission,
    Heuristic,
    TrialSize,
    admit,
    judge,
    seconds_used,
    stop,
)
from virtualmle.sandbox.statistics import Comparison

DEFAULT = make_config("sasrec")
TOO_WIDE = Heuristic(7, "“wide models overfit”", "hidden_dim > 128")


@dataclass
class Spent:
    trials_used: int = 0
    trials_max: int = 30
    train_seconds_used: float = 0.0
    train_seconds_max: float = 3600.0
    llm_usd_used: float = 0.0
    llm_usd_max: float | None = None


def trial(number: int, config: TrialConfig = DEFAULT, status: Any = "finished", **outcome: Any) -> TrialRecord:
    over = TrialOutcome(status=status, **outcome) if status != "running" else None
    changes = {k: v for k, v in config.model_dump().items() if v != getattr(DEFAULT, k)}
    return TrialRecord(
        session="demo-sasrec-1",
        handle=f"t{number:03}",
        number=number,
        base="default",
        changes=changes,
        config=config.model_dump(),
        config_hash=fingerprint(config.model_dump()),
        train_hash="",
        status=status,
        outcome=over,
    )


def ask(changes: dict[str, Any], base: TrialConfig = DEFAULT, **overrides: Any) -> Admission:
    """admit() for a session where nothing stands in the way, but for `overrides`."""
    config = TrialConfig(**{**base.model_dump(), **changes})
    arguments: dict[str, Any] = {
        "session_state": "open",
        "trials": [],
        "budget": Spent(),
        "running": None,
        "pending_reflection": None,
        "base": base,
        "config": config,
        "changes": changes,
    }
    return admit(**{**arguments, **overrides})


def test_a_new_configuration_is_admitted() -> None:
    assert ask({"lr": 1e-3}, trials=[trial(1)]).kind == "admitted"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"session_state": "frozen"}, "the session is frozen and takes no more trials"),
        ({"budget": Spent(trials_used=30)}, "all 30 trials of the budget are used; call finalize"),
        ({"budget": Spent(train_seconds_used=3600.0)}, "3600 of 3600 training seconds are used"),
        ({"budget": Spent(llm_usd_used=2.5, llm_usd_max=2.0)}, "2.50 of 2.00 dollars for the language model are used"),
        ({"running": "t002"}, "t002 is running; call wait_trial or cancel_trial"),
        ({"pending_reflection": "t001"}, "call write_reflection for t001 first"),
        ({"config": make_config("sasrec").model_copy(update={"num_heads": 3})}, "not divisible by num_heads=3"),
        ({"heuristics": [TOO_WIDE]}, "discard heuristic 7 (“wide models overfit”) applies: hidden_dim > 128 holds"),
    ],
    ids=["frozen", "trials", "seconds", "llm", "running", "reflection", "combination", "heuristic"],
)
def test_a_refusal_says_which_rule_and_what_to_do(overrides: dict[str, Any], reason: str) -> None:
    admission = ask({"hidden_dim": 256}, **overrides)
    assert admission.kind == "refused" and reason in admission.reason and admission.trial is None


def test_rules_are_asked_in_the_order_of_the_protocol() -> None:
    obstacles: dict[str, Any] = {
        "session_state": "frozen",
        "config": make_config("sasrec", hidden_dim=256).model_copy(update={"num_heads": 3}),
        "trials": [trial(1, make_config("sasrec", hidden_dim=256))],
        "budget": Spent(trials_used=30),
        "running": "t002",
        "pending_reflection": "t001",
        "heuristics": [TOO_WIDE],
    }
    reasons = []
    while obstacles:
        reasons.append(ask({"hidden_dim": 256}, **obstacles).reason)
        obstacles.pop(next(iter(obstacles)))
    expected = ["frozen", "divisible", "already", "budget", "running", "write_reflection", "heuristic"]
    assert [word in reason for word, reason in zip(expected, reasons, strict=True)] == [True] * 7


def test_a_call_that_is_sent_again_gets_the_trial_that_is_already_running() -> None:
    running = trial(2, make_config("sasrec", lr=1e-3)).model_copy(update={"status": "running", "outcome": None})
    admission = ask({"lr": 1e-3}, trials=[trial(1), running], running="t002")
    assert (admission.kind, admission.trial) == ("duplicate", "t002") and "is running" in admission.reason


def test_a_configuration_already_tried_is_a_duplicate_with_its_handle() -> None:
    past = [trial(1), trial(2, make_config("sasrec", lr=1e-3))]
    assert ask({"lr": 1e-3}, trials=past) == Admission(
        "duplicate", "t002 had this configuration already; nothing was spent", "t002"
    )
    assert ask({"lr": 3e-4}, base=make_config("sasrec", lr=1e-3), trials=past).trial == "t001"


def test_a_change_without_effect_is_a_duplicate_and_is_told_why() -> None:
    admission = ask({"readout_k": 7}, trials=[trial(1)])
    assert (admission.kind, admission.trial) == ("duplicate", "t001")
    assert "readout_k has no effect (it acts only with readout='last_k')" in admission.reason


def test_a_change_without_effect_runs_where_its_base_never_finished() -> None:
    assert ask({"readout_k": 7}, trials=[]).kind == "admitted"


@pytest.mark.parametrize("status", ["crashed", "cancelled"])
def test_a_trial_that_did_not_finish_may_be_repeated(status: str) -> None:
    assert ask({}, trials=[trial(1, status=status)]).kind == "admitted"


def test_a_heuristic_spares_trials_whose_base_satisfied_it_already() -> None:
    wide = make_config("sasrec", hidden_dim=256)
    assert ask({"lr": 1e-3}, base=wide, heuristics=[TOO_WIDE]).kind == "admitted"
    assert ask({"hidden_dim": 64}, heuristics=[TOO_WIDE]).kind == "admitted"


def test_a_reason_overrides_a_heuristic_and_blanks_do_not() -> None:
    overridden = ask({"hidden_dim": 256}, heuristics=[TOO_WIDE], override_reason="ten times the users")
    assert overridden == Admission("admitted", "runs against discard heuristic 7")
    assert ask({"hidden_dim": 256}, heuristics=[TOO_WIDE], override_reason="  ").kind == "refused"


def test_an_imported_rule_about_an_unknown_knob_refuses_nothing() -> None:
    assert ask({"hidden_dim": 256}, heuristics=[Heuristic(1, "", "warmup > 3")]).kind == "admitted"


def verdict(delta: float, se: float, parameters: int = 1000, keep_z: float = 1.0) -> tuple[str, str]:
    z = delta / se if se else 0.0
    judgement = judge(
        TrialSize("t002", parameters),
        TrialSize("t001", 1000),
        Comparison(delta, se, z, 500),
        keep_z,
    )
    return judgement.verdict, judgement.reason


@pytest.mark.parametrize(
    ("over_incumbent", "over_best", "parameters", "expected"),
    [
        pytest.param(1.5, 0.2, 2000, "discard", id="better than the simpler incumbent, not than what was reached"),
        pytest.param(1.5, 1.2, 2000, "keep", id="better than both"),
        pytest.param(-0.5, -0.9, 500, "keep", id="simpler still, within noise of what was reached"),
        pytest.param(-0.5, -1.4, 500, "discard", id="simpler, within noise of the incumbent alone"),
    ],
)
def test_what_was_reached_stays_the_mark_after_a_simpler_one_won(
    over_incumbent: float, over_best: float, parameters: int, expected: str
) -> None:
    against = [Comparison(z * 0.001, 0.001, z, 500) for z in (over_incumbent, over_best)]
    judgement = judge(
        TrialSize("t003", parameters), TrialSize("t002", 1000), against[0], 1.0, best_trial=("t001", against[1])
    )
    assert judgement.verdict == expected
    assert "against t001 over 500 users, the best one kept" in judgement.reason


def test_the_first_finished_trial_becomes_the_incumbent() -> None:
    judgement = judge(TrialSize("t001", 1000), None, None, 1.0)
    assert (judgement.verdict, judgement.reason) == ("keep", "the first finished trial becomes the incumbent")


@pytest.mark.parametrize(
    ("delta", "se", "parameters", "expected"),
    [
        pytest.param(0.002, 0.001, 9000, "keep", id="clearly better, though larger"),
        pytest.param(0.001, 0.001, 1000, "keep", id="exactly one standard error"),
        pytest.param(0.0009, 0.001, 1000, "discard", id="within noise, as large"),
        pytest.param(0.0009, 0.001, 1001, "discard", id="within noise, larger"),
        pytest.param(0.0009, 0.001, 999, "keep", id="within noise, smaller"),
        pytest.param(-0.001, 0.001, 999, "keep", id="one standard error worse, smaller"),
        pytest.param(-0.0011, 0.001, 999, "discard", id="clearly worse, smaller"),
        pytest.param(0.0, 0.0, 1000, "discard", id="the same, as large"),
        pytest.param(0.0, 0.0, 999, "keep", id="the same, smaller"),
    ],
)
def test_the_verdict_follows_from_z_and_within_noise_from_size(
    delta: float, se: float, parameters: int, expected: str
) -> None:
    assert verdict(delta, se, parameters)[0] == expected


def test_keep_z_moves_the_gate_and_zero_still_wants_a_gain() -> None:
    assert verdict(0.0015, 0.001, keep_z=2.0)[0] == "discard"
    assert verdict(0.0001, 0.001, keep_z=0.0)[0] == "keep"
    assert verdict(0.0, 0.0, keep_z=0.0)[0] == "discard"


def test_the_reason_of_a_verdict_has_its_numbers() -> None:
    assert verdict(0.002, 0.001)[1] == (
        "NDCG@10 +0.0020 ± 0.0010 (z = +2.00) against t001 over 500 users; keep needs z >= 1"
    )
    assert "the simpler configuration wins: 999 parameters against 1,000" in verdict(0.0, 0.001, 999)[1]


LIMITS: dict[str, Any] = {"max_trials": 30, "max_train_seconds": 3600.0, "patience": 3}


def test_a_fresh_session_goes_on() -> None:
    decision = stop([trial(1, verdict="keep")], **LIMITS)
    assert (decision.stop, decision.reason) == (False, "29 of 30 trials are left")


def test_a_session_stops_when_trials_or_seconds_are_spent() -> None:
    past = [trial(1, verdict="keep", train_seconds=1800.0), trial(2, status="crashed", train_seconds=1800.0)]
    assert seconds_used(past) == 3600.0
    assert stop(past, **{**LIMITS, "max_trials": 2}).reason == "all 2 trials of the budget are used"
    assert stop(past, **LIMITS).reason == "3600 of 3600 training seconds are used"


def test_patience_counts_finished_trials_since_the_last_keep() -> None:
    discards = [trial(n, verdict="discard") for n in (2, 3)]
    crash = trial(4, status="crashed", verdict="crash")
    past = [trial(1, verdict="keep"), *discards, crash]
    assert not stop(past, **LIMITS).stop
    assert stop([*past, trial(5, verdict="discard")], **LIMITS).reason == (
        "3 finished trials without a keep (patience 3)"
    )
    assert not stop([*past, trial(5, verdict="keep")], **LIMITS).stop


def test_a_session_stops_at_its_target() -> None:
    past = [trial(1, verdict="keep", metrics={"ndcg@10": 0.05})]
    assert not stop(past, **LIMITS, target_ndcg=0.06).stop
    decision = stop(past, **LIMITS, target_ndcg=0.05)
    assert decision.stop and decision.reason == "t001 reached the target: NDCG@10 0.0500 >= 0.05"


def test_the_sandbox_never_imports_torch() -> None:
    rooms = "action_space blocks conditions effects knob_table program protocol reflection statistics"
    imports = "; ".join(f"import virtualmle.sandbox.{room}" for room in rooms.split())
    code = f"{imports}; import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("spent", "stops"), [(1.99, False), (2.0, True), (50.0, True)])
def test_what_the_language_model_may_cost_ends_a_session(spent: float, stops: bool) -> None:
    decision = stop([trial(1)], max_trials=9, max_train_seconds=9.0, patience=9, llm_usd=spent, max_llm_usd=2.0)
    assert decision.stop is stops
    assert ("dollars for the language model" in decision.reason) is stops
    unlimited = stop([trial(1)], max_trials=9, max_train_seconds=9.0, patience=9, llm_usd=spent)
    assert not unlimited.stop

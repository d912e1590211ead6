"""The Program's pure functions: admission of trials, verdicts, and the stopping rule."""

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
    Occupation,
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
class Budget:
    trials_used: int = 0
    trials_max: int = 30
    train_seconds_used: float = 0.0
    train_seconds_max: float = 3600.0
    llm_usd_used: float = 0.0
    llm_usd_max: float | None = None


def trial(number: int, config: TrialConfig = DEFAULT, status: Any = "finished", **outcome: Any) -> TrialRecord:
    ended = TrialOutcome(status=status, **outcome) if status != "running" else None
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
        outcome=ended,
    )


def admission_of(changes: dict[str, Any], base: TrialConfig = DEFAULT, **overrides: Any) -> Admission:
    """Call admit() for an open session without obstacles, except for those in `overrides`."""
    config = TrialConfig(**{**base.model_dump(), **changes})
    arguments: dict[str, Any] = {
        "session_state": "open",
        "trials": [],
        "budget": Budget(),
        "running": Occupation(),
        "pending_reflection": None,
        "base": base,
        "config": config,
        "changes": changes,
    }
    return admit(**{**arguments, **overrides})


def test_a_new_configuration_is_admitted() -> None:
    assert admission_of({"lr": 1e-3}, trials=[trial(1)]).kind == "admitted"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"session_state": "frozen"}, "the session is frozen and takes no more trials"),
        ({"budget": Budget(trials_used=30)}, "all 30 trials of the budget are used; call finalize"),
        ({"budget": Budget(train_seconds_used=3600.0)}, "3600 of 3600 training seconds are used"),
        ({"budget": Budget(llm_usd_used=2.5, llm_usd_max=2.0)}, "2.50 of 2.00 dollars for the language model are used"),
        ({"running": Occupation(["t002"])}, "t002 is running; call wait_trial or cancel_trial"),
        ({"pending_reflection": "t001"}, "call write_reflection for t001 first"),
        ({"config": make_config("sasrec").model_copy(update={"num_heads": 3})}, "not divisible by num_heads=3"),
        ({"heuristics": [TOO_WIDE]}, "discard heuristic 7 (“wide models overfit”) applies: hidden_dim > 128 holds"),
    ],
    ids=["frozen", "trials", "seconds", "llm", "running", "reflection", "combination", "heuristic"],
)
def test_a_refusal_names_the_rule_and_the_remedy(overrides: dict[str, Any], reason: str) -> None:
    admission = admission_of({"hidden_dim": 256}, **overrides)
    assert admission.kind == "refused" and reason in admission.reason and admission.trial is None


def test_rules_are_checked_in_the_order_of_the_protocol() -> None:
    obstacles: dict[str, Any] = {
        "session_state": "frozen",
        "config": make_config("sasrec", hidden_dim=256).model_copy(update={"num_heads": 3}),
        "trials": [trial(1, make_config("sasrec", hidden_dim=256))],
        "budget": Budget(trials_used=30),
        "running": Occupation(["t002"]),
        "pending_reflection": "t001",
        "heuristics": [TOO_WIDE],
    }
    reasons = []
    while obstacles:
        reasons.append(admission_of({"hidden_dim": 256}, **obstacles).reason)
        obstacles.pop(next(iter(obstacles)))
    expected = ["frozen", "divisible", "already", "budget", "running", "write_reflection", "heuristic"]
    assert [word in reason for word, reason in zip(expected, reasons, strict=True)] == [True] * 7


def test_a_repeated_call_is_answered_with_the_trial_that_is_already_running() -> None:
    running = trial(2, make_config("sasrec", lr=1e-3)).model_copy(update={"status": "running", "outcome": None})
    admission = admission_of({"lr": 1e-3}, trials=[trial(1), running], running=Occupation(["t002"]))
    assert (admission.kind, admission.trial) == ("duplicate", "t002") and "is already running" in admission.reason


def test_a_configuration_already_tried_is_a_duplicate_that_names_the_earlier_trial() -> None:
    past = [trial(1), trial(2, make_config("sasrec", lr=1e-3))]
    assert admission_of({"lr": 1e-3}, trials=past) == Admission(
        "duplicate", "t002 already had this configuration; nothing was spent", "t002"
    )
    assert admission_of({"lr": 3e-4}, base=make_config("sasrec", lr=1e-3), trials=past).trial == "t001"


def test_a_change_without_effect_is_a_duplicate_with_the_reason() -> None:
    admission = admission_of({"readout_k": 7}, trials=[trial(1)])
    assert (admission.kind, admission.trial) == ("duplicate", "t001")
    assert "readout_k has no effect (it acts only with readout='last_k')" in admission.reason


def test_a_change_without_effect_is_admitted_if_its_base_never_finished() -> None:
    assert admission_of({"readout_k": 7}, trials=[]).kind == "admitted"


@pytest.mark.parametrize("status", ["crashed", "cancelled"])
def test_a_trial_that_did_not_finish_may_be_repeated(status: str) -> None:
    assert admission_of({}, trials=[trial(1, status=status)]).kind == "admitted"


def test_a_heuristic_ignores_trials_whose_base_already_satisfies_its_condition() -> None:
    wide = make_config("sasrec", hidden_dim=256)
    assert admission_of({"lr": 1e-3}, base=wide, heuristics=[TOO_WIDE]).kind == "admitted"
    assert admission_of({"hidden_dim": 64}, heuristics=[TOO_WIDE]).kind == "admitted"


def test_a_reason_overrides_a_heuristic_unless_it_is_blank() -> None:
    overridden = admission_of({"hidden_dim": 256}, heuristics=[TOO_WIDE], override_reason="ten times the users")
    assert overridden == Admission("admitted", "runs against discard heuristic 7")
    assert admission_of({"hidden_dim": 256}, heuristics=[TOO_WIDE], override_reason="  ").kind == "refused"


def test_an_imported_rule_on_an_unknown_knob_is_ignored() -> None:
    assert admission_of({"hidden_dim": 256}, heuristics=[Heuristic(1, "", "warmup > 3")]).kind == "admitted"


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
        pytest.param(1.5, 0.2, 2000, "discard", id="better than the simpler incumbent, not than the best kept"),
        pytest.param(1.5, 1.2, 2000, "keep", id="better than both"),
        pytest.param(-0.5, -0.9, 500, "keep", id="even simpler, within noise of the best kept"),
        pytest.param(-0.5, -1.4, 500, "discard", id="even simpler, within noise of the incumbent only"),
    ],
)
def test_the_best_trial_kept_remains_a_reference_after_a_simpler_one_replaced_it(
    over_incumbent: float, over_best: float, parameters: int, expected: str
) -> None:
    against = [Comparison(z * 0.001, 0.001, z, 500) for z in (over_incumbent, over_best)]
    judgement = judge(
        TrialSize("t003", parameters), TrialSize("t002", 1000), against[0], 1.0, best_kept=("t001", against[1])
    )
    assert judgement.verdict == expected
    assert "against t001 over 500 users, the best trial kept so far" in judgement.reason


def test_the_first_finished_trial_becomes_the_incumbent() -> None:
    judgement = judge(TrialSize("t001", 1000), None, None, 1.0)
    assert (judgement.verdict, judgement.reason) == ("keep", "the first finished trial becomes the incumbent")


@pytest.mark.parametrize(
    ("delta", "se", "parameters", "expected"),
    [
        pytest.param(0.002, 0.001, 9000, "keep", id="clearly better, larger"),
        pytest.param(0.001, 0.001, 1000, "keep", id="exactly one standard error"),
        pytest.param(0.0009, 0.001, 1000, "discard", id="within noise, same size"),
        pytest.param(0.0009, 0.001, 1001, "discard", id="within noise, larger"),
        pytest.param(0.0009, 0.001, 999, "keep", id="within noise, smaller"),
        pytest.param(-0.001, 0.001, 999, "keep", id="one standard error worse, smaller"),
        pytest.param(-0.0011, 0.001, 999, "discard", id="clearly worse, smaller"),
        pytest.param(0.0, 0.0, 1000, "discard", id="no difference, same size"),
        pytest.param(0.0, 0.0, 999, "keep", id="no difference, smaller"),
    ],
)
def test_the_verdict_depends_on_z_and_within_noise_on_size(
    delta: float, se: float, parameters: int, expected: str
) -> None:
    assert verdict(delta, se, parameters)[0] == expected


def test_keep_z_sets_the_threshold_and_zero_still_requires_a_gain() -> None:
    assert verdict(0.0015, 0.001, keep_z=2.0)[0] == "discard"
    assert verdict(0.0001, 0.001, keep_z=0.0)[0] == "keep"
    assert verdict(0.0, 0.0, keep_z=0.0)[0] == "discard"


def test_the_reason_of_a_verdict_includes_its_numbers() -> None:
    assert verdict(0.002, 0.001)[1] == (
        "NDCG@10 +0.0020 ± 0.0010 (z = +2.00) against t001 over 500 users; keep needs z >= 1"
    )
    assert "the simpler configuration wins: 999 parameters against 1,000" in verdict(0.0, 0.001, 999)[1]


LIMITS: dict[str, Any] = {"max_trials": 30, "max_train_seconds": 3600.0, "patience": 3}


def test_a_new_session_continues() -> None:
    decision = stop([trial(1, verdict="keep")], **LIMITS)
    assert (decision.stop, decision.reason) == (False, "29 of 30 trials are left")


def test_a_session_stops_when_its_trials_or_seconds_are_used_up() -> None:
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
        "3 trials in a row without a keep (patience 3)"
    )
    assert not stop([*past, trial(5, verdict="keep")], **LIMITS).stop


def test_patience_counts_anew_after_an_extension() -> None:
    past = [trial(1, verdict="keep"), *(trial(n, verdict="discard") for n in (2, 3, 4))]
    assert stop(past, **LIMITS).stop and not stop(past, **LIMITS, patience_after=4).stop
    assert not stop([*past, trial(5, verdict="discard")], **LIMITS, patience_after=4).stop


def test_a_session_stops_at_its_target() -> None:
    past = [trial(1, verdict="keep", metrics={"ndcg@10": 0.05})]
    assert not stop(past, **LIMITS, target_ndcg=0.06).stop
    decision = stop(past, **LIMITS, target_ndcg=0.05)
    assert decision.stop and decision.reason == "t001 reached the target: NDCG@10 0.0500 >= 0.05"


def test_a_session_that_has_stopped_takes_no_more_trials_but_still_names_known_ones() -> None:
    decision = stop([trial(n) for n in (1, 2)], max_trials=9, max_train_seconds=9.0, patience=2)
    found = admission_of({"lr": 1e-3}, stop=decision)
    assert found.kind == "refused"
    assert found.reason.startswith("the session has stopped: 2 trials in a row without a keep")
    assert admission_of({}, trials=[trial(1)], stop=decision).kind == "duplicate"
    assert admission_of({"lr": 1e-3}, stop=stop([], max_trials=9, max_train_seconds=9.0, patience=2)).kind == "admitted"


def test_the_sandbox_does_not_import_torch() -> None:
    modules = "action_space conditions effects knob_entry page program protocol reflection statistics tables toml_page"
    imports = "; ".join(f"import virtualmle.sandbox.{module}" for module in modules.split())
    code = f"{imports}; import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("spent", "stops"), [(1.99, False), (2.0, True), (50.0, True)])
def test_a_session_stops_at_its_language_model_budget(spent: float, stops: bool) -> None:
    decision = stop([trial(1)], max_trials=9, max_train_seconds=9.0, patience=9, llm_usd=spent, max_llm_usd=2.0)
    assert decision.stop is stops
    assert ("dollars for the language model" in decision.reason) is stops
    unlimited = stop([trial(1)], max_trials=9, max_train_seconds=9.0, patience=9, llm_usd=spent)
    assert not unlimited.stop

"""The rules for stopped trials, without processes: admission, patience, claims, rules, proposals and costs."""

from typing import Any

import pytest

from tests.effects_world import DEFAULT, FIRST, NDCG, trial
from virtualmle.memory.records import FollowedProposal, TrialOutcome, TrialRecord
from virtualmle.models.config import TrialConfig
from virtualmle.sandbox.action_space import ActionSpace
from virtualmle.sandbox.bundles import take_backs
from virtualmle.sandbox.costs import estimate_seconds, saved_seconds
from virtualmle.sandbox.effects import knob_effects
from virtualmle.sandbox.joint import evidence, model_of
from virtualmle.sandbox.program import Heuristic, Occupation, admit, stop, trials_measured
from virtualmle.sandbox.proposal_scores import proposal_scores
from virtualmle.sandbox.proposals import propose
from virtualmle.sandbox.protocol import load_protocol
from virtualmle.sandbox.reflection import Claim, check_reflection, needs_reflection
from virtualmle.sandbox.rule_evidence import check_rule
from virtualmle.sandbox.steps import knob_steps
from virtualmle.tools.results import Budget
from virtualmle.tools.stopping import bounds_of
from virtualmle.training.racing import StopCause


@pytest.fixture(scope="module")
def space() -> ActionSpace:
    return load_protocol(None).space


def epochs(number: int, seconds: float = 2.0) -> list[dict[str, Any]]:
    return [{"epoch": n + 1, "loss": 1.0, "ndcg10": 0.01 * n, "train_seconds": seconds} for n in range(number)]


def stopped(number: int, changes: dict[str, Any], bound: float, se: float = 0.001, **more: Any) -> TrialRecord:
    """A stopped trial over the default; `se` is the error of the comparison that stopped it."""
    record = trial(number, changes, **more)
    details = {"bound": bound, "floor": bound / 2, "bound_se": se, "stopped": {"epoch": 3, "ndcg10": bound / 2}}
    outcome = TrialOutcome(
        status="stopped", verdict="discard", details=details, train_seconds=6.0, curve=epochs(3), reason="stopped"
    )
    return record.model_copy(update={"status": "stopped", "outcome": outcome})


WORSE, OPEN = NDCG - 0.01, NDCG + 0.001
DEEPER = {"num_blocks": 2}


def admitted(trials: list[TrialRecord], changes: dict[str, Any], **more: Any) -> str:
    config = TrialConfig(**{**DEFAULT.model_dump(), **changes})
    budget = Budget(trials_used=len(trials), trials_max=9, train_seconds_used=0.0, train_seconds_max=9.0)
    found = admit(
        session_state="open", trials=trials, budget=budget, running=Occupation(), pending_reflection=None,
        base=DEFAULT, config=config, changes=changes, **more,
    )  # fmt: skip
    return found.kind


def test_a_stopped_configuration_may_run_again_once_and_no_heuristic_refuses_it() -> None:
    trials = [FIRST, stopped(2, DEEPER, WORSE)]
    avoid = [Heuristic(1, "no depth", "num_blocks >= 2")]
    assert admitted(trials, DEEPER, heuristics=avoid) == "admitted"
    assert admitted([FIRST], DEEPER, heuristics=avoid) == "refused"
    finished = trial(3, DEEPER, NDCG * 0.9)
    assert admitted([*trials, finished], DEEPER) == "duplicate"
    running = finished.model_copy(update={"status": "running", "outcome": None})
    assert admitted([*trials, running], DEEPER) == "duplicate"


def test_a_stopped_trial_counts_in_patience_and_among_the_configurations_of_the_selection() -> None:
    trials = [FIRST, *(stopped(n, {"num_blocks": n}, WORSE) for n in (2, 3))]
    decision = stop(trials, max_trials=9, max_train_seconds=99.0, patience=3)
    assert decision.stop and "3 trials in a row without a keep" in decision.reason  # FIRST has no verdict
    assert not stop(trials[:2], max_trials=9, max_train_seconds=99.0, patience=3).stop
    assert trials_measured(trials) == 3
    assert trials_measured([*trials, trial(4, DEEPER, NDCG)]) == 3, "t004 is t002, run to its end"


def test_a_stopped_student_is_no_evidence_on_its_knobs() -> None:
    plain = [FIRST, trial(2, {**DEEPER, "loss": "full_softmax"}, NDCG + 0.001)]
    student = stopped(3, {"loss": "full_softmax", "teachers": "t001+t002"}, WORSE)
    assert student.uses_models and evidence(plain, DEFAULT)
    for found in (evidence, knob_effects, knob_steps):
        assert found([*plain, student], DEFAULT) == found(plain, DEFAULT)


def test_a_stopped_trial_wants_one_reflection() -> None:
    record = stopped(2, DEEPER, WORSE)
    assert needs_reflection(record, 1.0)
    assert not needs_reflection(record.model_copy(update={"reflected": True}), 1.0)


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        pytest.param(WORSE, {"yes": "contradicted", "no": "supported", "unclear": "unsupported"}, id="below the base"),
        pytest.param(OPEN, {"yes": "unsupported", "no": "unsupported", "unclear": "supported"}, id="above the base"),
        pytest.param(NDCG, {"yes": "unsupported", "no": "unsupported", "unclear": "supported"}, id="equal"),
    ],
)
def test_whether_a_change_helped_is_checked_against_the_bound(
    space: ActionSpace, bound: float, expected: dict[str, str]
) -> None:
    record = stopped(2, DEEPER, bound)
    for answer, check in expected.items():
        found, note = check_reflection(record, Claim(answer, "capacity"), [FIRST, record], space)  # type: ignore[arg-type]
        assert (found, f"{bound:.4f}" in note) == (check, True), note


def test_a_size_above_the_bound_is_contradicted_and_one_below_cannot_be_verified(space: ActionSpace) -> None:
    record = stopped(2, DEEPER, WORSE)

    def checked(effect: float) -> str:
        return check_reflection(record, Claim("no", "capacity", effect), [FIRST, record], space)[0]

    assert (checked(-0.009), checked(-0.011), checked(0.004)) == ("contradicted", "unsupported", "contradicted")


def test_a_rule_counts_a_stopped_trial_as_a_loss_only_where_its_bound_is_clearly_below() -> None:
    def counted(bound: float) -> tuple[str, int, int]:
        found = check_rule("prefer", "num_blocks >= 2", [FIRST, stopped(2, DEEPER, bound)], DEFAULT)
        return found.check, found.support, found.contradiction

    assert counted(WORSE) == ("contradicted", 0, 1)
    assert counted(NDCG - 0.0005) == counted(OPEN) == ("unverified", 0, 0)  # half a standard error; not below


def test_a_followed_proposal_that_was_stopped_did_not_come_true_if_its_bound_is_below() -> None:
    proposal = FollowedProposal(
        source="surrogate", evidence="none", changes=DEEPER, whole=True, expected_delta=0.01, sd=0.01
    )
    came_true = [
        proposal_scores([FIRST, stopped(2, DEEPER, bound).model_copy(update={"proposal": proposal})])[0]
        for bound in (WORSE, OPEN)
    ]
    assert [(score.came_true, score.measured) for score in came_true] == [("no", None), ("unclear", None)]


def test_a_stopped_configuration_is_not_proposed_and_its_changes_may_be_separated(space: ActionSpace) -> None:
    bundle = stopped(3, {"num_blocks": 2, "lr": 3e-3}, WORSE)
    history = {"num_blocks": {"n": 3, "values": [{"value": 2, "n": 3, "mean_relative": 0.1, "se": 0.02}]}}
    trials = [FIRST, stopped(2, DEEPER, NDCG * 1.5)]  # a bound that leaves the gain in closed sessions possible

    def proposed(known: list[TrialRecord]) -> list[dict[str, Any]]:
        return [row["changes"] for row in propose(known, FIRST, space, history, lambda changes: changes != DEEPER)]

    assert (proposed(trials[:1]), proposed(trials)) == ([DEEPER], [])
    trials = [FIRST, bundle]
    model = model_of(trials, DEFAULT)
    assert model is not None
    separated = take_backs(model, trials, FIRST, DEFAULT, lambda *_: True)
    assert ({"num_blocks": 2}, FIRST) in separated and all(base.status == "finished" for _, base in separated)


def test_stopping_saves_the_epochs_that_were_left_and_continuing_costs_them() -> None:
    first = trial(1, {})
    assert first.outcome is not None
    full = first.model_copy(update={"outcome": first.outcome.model_copy(update={"curve": epochs(DEFAULT.epochs)})})
    config = TrialConfig(**{**DEFAULT.model_dump(), **DEEPER})
    left = DEFAULT.epochs - 3
    assert saved_seconds(config, epochs(3), [full]) == pytest.approx(2.0 * left)
    begun = stopped(2, DEEPER, WORSE)
    fresh = estimate_seconds(config, [full])
    again = estimate_seconds(config, [full, begun])
    assert fresh is not None and again == pytest.approx(2.0 * left)
    ended_early = full.model_copy(update={"outcome": first.outcome.model_copy(update={"curve": epochs(5)})})
    assert saved_seconds(config, epochs(3), [ended_early]) == pytest.approx(4.0), "early stopping ended after 5 epochs"


def cause(**changes: Any) -> StopCause:
    fields = {
        "epoch": 3, "ndcg10": 0.02, "bound": 0.045, "needed": 0.05, "incumbent": "t001", "incumbent_at_epoch": 0.03,
        "incumbent_ndcg10": 0.05, "z_at_epoch": -5.0, "family": "f", "sources": ["t001"], "sentence": "s",
    }  # fmt: skip
    return StopCause.model_validate(fields | changes)


def test_bounds_are_those_of_the_score_that_is_judged() -> None:
    assert bounds_of(cause(se=0.002), False) == {"floor": 0.02, "bound": 0.045, "bound_se": 0.002}
    assert bounds_of(cause(se=0.002), True) == pytest.approx({"floor": 0.018, "bound": 0.045, "bound_se": 0.002})
    assert bounds_of(cause(), False)["bound_se"] is None, "the cause of an earlier version does not have it"

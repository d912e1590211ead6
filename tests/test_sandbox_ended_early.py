"""Which trials that were ended on request still answer for their configuration. Pure functions."""

from typing import Any

from tests.test_sandbox_program import DEFAULT, Budget, trial
from virtualmle.memory.records import TrialRecord
from virtualmle.models.config import TrialConfig, train_hash
from virtualmle.sandbox.costs import estimate_seconds
from virtualmle.sandbox.ended_early import has_complete_model, may_run_again, trains_on
from virtualmle.sandbox.program import Admission, Occupation, admit

LONG = DEFAULT.model_copy(update={"epochs": 30})
SCORED = LONG.model_copy(update={"transition_weight": 9.0})
CURVE = [{"epoch": epoch, "ndcg10": 0.01 * epoch, "train_seconds": 2.0} for epoch in (1, 2, 3)]


def ended(number: int, config: TrialConfig, after: int | None = 3, **details: Any) -> TrialRecord:
    known = {"ended_after": after} if after else {}
    record = trial(number, config, metrics={"ndcg@10": 0.03}, curve=CURVE, details={**known, **details})
    return record.model_copy(update={"train_hash": train_hash(config)})


def admitted(trials: list[TrialRecord], config: TrialConfig) -> Admission:
    changes = {"epochs": 30}
    return admit(
        session_state="open", trials=trials, budget=Budget(), running=Occupation(), pending_reflection=None,
        base=DEFAULT, config=config, changes=changes,
    )  # fmt: skip


def test_the_configuration_itself_trains_on_and_other_scores_are_scored_with_what_is_there() -> None:
    early = [ended(1, LONG)]
    assert not has_complete_model(early, LONG) and trains_on(early, LONG)
    assert not trains_on(early, SCORED), "the change of a scoring knob re-scores the model"
    assert admitted(early, LONG).kind == "admitted"


def test_a_complete_model_ends_the_exception() -> None:
    trials = [ended(1, LONG), ended(2, LONG, after=None)]
    assert has_complete_model(trials, LONG) and not trains_on(trials, LONG)
    assert admitted(trials, LONG) == Admission("duplicate", admitted(trials, LONG).reason, "t002")


def test_a_rescoring_of_an_unfinished_model_is_a_duplicate_until_the_model_is_complete() -> None:
    trials = [ended(1, LONG), ended(2, SCORED, rescored=True)]
    assert admitted(trials, SCORED).trial == "t002" and not may_run_again(trials[1], trials, SCORED)
    trials.append(ended(3, LONG, after=None))
    assert admitted(trials, SCORED).kind == "admitted" and may_run_again(trials[1], trials, SCORED)


def test_the_cost_of_training_on_is_that_of_the_epochs_left() -> None:
    assert estimate_seconds(LONG, [ended(1, LONG)]) == 2.0 * 27
    complete = [ended(1, LONG), ended(2, LONG, after=None)]
    assert (estimate_seconds(LONG, complete) or 0.0) < 2.0, "nothing is trained"

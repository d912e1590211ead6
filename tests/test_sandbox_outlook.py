"""What is said about a running trial: the time left, the score that will be judged, the incumbent's at that epoch."""

import pytest

from virtualmle.memory.records import TrialOutcome, TrialRecord
from virtualmle.models.config import TrialConfig, make_config
from virtualmle.sandbox.outlook import TimeLeft, evaluated_from, score_at, score_now, time_left
from virtualmle.tools.progress import RunningProgress
from virtualmle.training.spec import EpochRecord, TrialProgress
from virtualmle.training.stopping import seconds_per_epoch

CONFIG = make_config("sasrec", epochs=30, patience=5)
BARE = CONFIG.model_copy(update={"popularity_weight": 0.0, "transition_weight": 0.0})


def progress(**changes: object) -> TrialProgress:
    return TrialProgress(stage="training", epochs=30).model_copy(update=changes)


def finished(config: TrialConfig, curve: list[dict[str, float]], ndcg10: float, best_epoch: int) -> TrialRecord:
    outcome = TrialOutcome(
        status="finished", metrics={"ndcg@10": ndcg10}, curve=curve, details={"best_epoch": best_epoch}
    )
    return TrialRecord(
        session="s", handle="t001", number=1, base="default", changes={}, config=config.model_dump(), config_hash="c",
        train_hash="t", status="finished", outcome=outcome,
    )  # fmt: skip


def record(epoch: int, seconds: float) -> EpochRecord:
    return EpochRecord(epoch=epoch, loss=1.0, ndcg10=0.1, train_seconds=seconds * 0.9, evaluate_seconds=seconds * 0.1)


@pytest.mark.parametrize(
    ("epochs", "seconds", "expected"),
    [
        pytest.param([1], [7.0], 7.0, id="the first epoch is all that is known"),
        pytest.param([1, 2, 3], [7.0, 2.0, 2.0], 2.0, id="later ones show what the first cost besides"),
        pytest.param([7, 8, 10, 12], [2.0, 2.0, 4.0, 4.0], 2.0, id="two epochs between two evaluations"),
        pytest.param([12], [4.0], 2.0, id="the first record of a resumed training"),
        pytest.param([9], [2.0], 2.0, id="resumed in the middle, the last epoch of its configuration"),
    ],
)
def test_seconds_per_epoch(epochs: list[int], seconds: list[float], expected: float) -> None:
    assert seconds_per_epoch(list(map(record, epochs, seconds))) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("state", "since", "left"),
    [
        pytest.param({"epoch": 2, "best_epoch": 2, "epoch_seconds": 10.0}, 4.0, TimeLeft(276.0, 46.0), id="best"),
        pytest.param({"epoch": 6, "best_epoch": 2, "epoch_seconds": 10.0}, 0.0, TimeLeft(240.0, 10.0), id="patience"),
        pytest.param({"epoch": 28, "best_epoch": 28, "epoch_seconds": 10.0}, 5.0, TimeLeft(15.0, 15.0), id="last two"),
        pytest.param({"epoch": 3, "best_epoch": 1, "epoch_seconds": 1.0}, 99.0, TimeLeft(0.0, 0.0), id="late"),
        pytest.param({"epoch": 12, "best_epoch": 8, "epoch_seconds": 10.0}, 0.0, TimeLeft(180.0, 20.0), id="grid"),
    ],
)
def test_the_time_left_is_that_of_the_epochs_left(state: dict[str, object], since: float, left: TimeLeft) -> None:
    assert time_left(CONFIG, progress(**state), since, 60.0) == left


def test_a_trial_that_was_asked_to_end_ends_after_its_next_evaluated_epoch() -> None:
    state = progress(epoch=10, best_epoch=10, epoch_seconds=10.0)
    assert time_left(CONFIG, state, 5.0, 60.0, ending=True) == TimeLeft(15.0, 15.0)


def test_before_the_first_epoch_the_estimate_counts_and_without_one_nothing_is_said() -> None:
    assert time_left(CONFIG, progress(), 0.0, 10.0, 50.0) == TimeLeft(40.0, 40.0)
    assert time_left(CONFIG, progress(), 0.0, 60.0, 50.0) is None, "the estimate was wrong"
    assert time_left(CONFIG, progress(), 0.0, 10.0) is None
    assert time_left(CONFIG, progress(stage="scoring", epoch_seconds=1.0), 0.0, 10.0, 50.0) is None


def test_epochs_are_evaluated_on_a_grid() -> None:
    assert [evaluated_from(epoch) for epoch in (1, 8, 9, 10)] == [1, 8, 10, 10]


def test_the_score_is_the_one_that_will_be_judged_or_none() -> None:
    state = progress(best_ndcg10=0.07, best_judged=0.08)
    assert score_now(CONFIG.model_copy(update={"popularity_weight": 1.0}), state) == 0.08
    assert score_now(BARE, state) == 0.07
    unranked = progress(best_ndcg10=0.07)
    assert score_now(CONFIG.model_copy(update={"popularity_weight": 1.0}), unranked) is None


def test_the_incumbent_is_compared_at_the_same_epoch_by_the_same_quantity() -> None:
    curve = [
        {"epoch": 1, "ndcg10": 0.03, "judged": None}, {"epoch": 2, "ndcg10": 0.04, "judged": 0.06},
        {"epoch": 3, "ndcg10": 0.05, "judged": None}, {"epoch": 4, "ndcg10": 0.045, "judged": 0.065},
        {"epoch": 5, "ndcg10": 0.07, "judged": None},
    ]  # fmt: skip
    scored = finished(CONFIG.model_copy(update={"popularity_weight": 1.0}), curve, 0.09, best_epoch=5)
    assert [score_at(scored, epoch) for epoch in (1, 2, 3, 4, 5, 9)] == [None, 0.06, 0.06, 0.065, 0.09, 0.09]
    bare = finished(BARE, curve, 0.07, best_epoch=5)
    assert [score_at(bare, epoch) for epoch in (1, 4, 6)] == [0.03, 0.05, 0.07]
    rescored = finished(scored.configuration, [{**point, "judged": None} for point in curve], 0.1, best_epoch=5)
    assert [score_at(rescored, epoch) for epoch in (4, 5)] == [None, 0.1]


def test_the_line_says_what_is_known() -> None:
    assert RunningProgress(stage="loading").line() == "loading"
    full = RunningProgress(
        stage="training", epoch=3, epochs=30, ndcg10=0.08011, incumbent="t002", incumbent_ndcg10=0.0785,
        eta_seconds=270.0, eta_earliest_seconds=40.0,
    )  # fmt: skip
    assert full.line() == "training, epoch 3/30, validation NDCG@10 0.0801 (t002 there 0.0785), 40 s to 4 min left"

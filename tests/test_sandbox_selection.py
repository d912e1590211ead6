"""Why a trial was selected, in words."""

from virtualmle.memory.records import Confirmation, ConfirmedTrial, TrialOutcome, TrialRecord, Verdict
from virtualmle.sandbox.selection import selection_reason


def trial(number: int, ndcg: float, verdict: Verdict, reason: str = "") -> TrialRecord:
    outcome = TrialOutcome(
        status="finished", verdict=verdict, metrics={"ndcg@10": ndcg}, reason=reason, incumbent_before="t001"
    )
    return TrialRecord(
        session="s", handle=f"t{number:03}", number=number, base="default", changes={}, config={}, config_hash="",
        train_hash="", status="finished", outcome=outcome,
    )  # fmt: skip


FIRST = trial(1, 0.0801, "keep")
NOISE = trial(2, 0.0805, "discard", "NDCG@10 +0.0004 ± 0.0009 (z = +0.44) against t001; keep needs z >= 1")


def test_the_best_value_is_named_with_its_rivals() -> None:
    assert selection_reason(FIRST, [FIRST], None) == "t001 has the only validation NDCG@10: 0.0801."
    better = trial(3, 0.09, "keep")
    found = selection_reason(better, [FIRST, NOISE, better], None)
    assert found == "t003 has the best validation NDCG@10 of 3 finished trials: 0.0900."


def test_a_discarded_trial_that_is_selected_is_explained() -> None:
    assert selection_reason(NOISE, [FIRST, NOISE], None) == (
        "t002 has the best validation NDCG@10 of 2 finished trials: 0.0805. Its verdict was discard (NDCG@10 +0.0004 ± "
        "0.0009 (z = +0.44) against t001; keep needs z >= 1), because a keep must improve on the incumbent (t001) by "
        "more than noise; the selection takes the best value."
    )


def test_a_confirmation_gives_the_reason_itself() -> None:
    reason = "t002 has the best mean NDCG@10 over 3 fresh seeds: 0.0803."
    found = Confirmation(
        repetitions=3, trials=[ConfirmedTrial(trial="t002", ndcg10=0.0805)], selected="t002", train_seconds=1.0,
        reason=reason,
    )  # fmt: skip
    assert selection_reason(NOISE, [FIRST, NOISE], found).startswith(f"{reason} Its verdict was discard (")
    kept = NOISE.model_copy(update={"outcome": FIRST.outcome})
    assert selection_reason(kept, [FIRST, kept], found) == reason

"""Which of the confirmed trials is best, and how it is said; against figures computed by hand."""

import numpy as np
import pytest

from virtualmle.sandbox.confirmation import confirmed_trials, reason_of

# NDCG@10 of rank 1 is 1, of rank 3 is .5, beyond 10 it is 0
HIT, HALF, MISS = 1, 3, 11


def ranks(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def test_the_best_mean_over_repetitions_wins_whatever_the_order_before() -> None:
    found = confirmed_trials(
        {"t002": 0.9, "t001": 0.6},
        {
            "t002": [ranks(HIT, MISS, MISS, MISS), ranks(HIT, HALF, MISS, MISS)],  # .25, .375
            "t001": [ranks(HIT, HIT, MISS, MISS), ranks(HIT, MISS, HALF, HALF)],  # .5, .5
        },
        {},
    )
    assert [each.trial for each in found] == ["t001", "t002"]
    best, second = found
    assert (best.mean, best.sd, best.delta, best.se) == (0.5, 0.0, None, None)
    assert second.values == [0.25, 0.375] and second.mean == 0.3125
    assert second.sd == pytest.approx(0.125 / np.sqrt(2))
    # per user: t001 (1, .5, .25, .25), t002 (1, .25, 0, 0): differences 0, -.25, -.25, -.25
    assert second.delta == -0.1875
    assert second.se == pytest.approx(np.std([0, -0.25, -0.25, -0.25], ddof=1) / 2)
    assert reason_of(found, 2) == (
        "t001 has the best mean NDCG@10 over 2 fresh seeds: 0.5000 ± 0.0000. t002, the best before, differs by "
        "-0.1875 ± 0.0625 (z -3.0, paired over users)."
    )


def test_of_equal_means_the_trial_that_was_better_before_wins_and_one_repetition_has_no_spread() -> None:
    same = {"t003": [ranks(HIT, MISS)], "t001": [ranks(MISS, HIT)]}
    found = confirmed_trials({"t003": 0.7, "t001": 0.6}, same, {})
    assert [(each.trial, each.sd) for each in found] == [("t003", None), ("t001", None)]
    assert reason_of(found, 1).startswith("t003 has the best mean NDCG@10 over 1 fresh seed: 0.5000. t001, the next, ")


def test_a_trial_with_a_failed_repetition_comes_last_and_is_named() -> None:
    found = confirmed_trials({"t002": 0.9, "t001": 0.6}, {"t001": [ranks(HIT, MISS)]}, {"t002": "the loss diverged"})
    assert [each.trial for each in found] == ["t001", "t002"] and found[1].values == []
    assert "t002 was not confirmed: the loss diverged." in reason_of(found, 1)
    none = confirmed_trials({"t002": 0.9}, {}, {"t002": "the loss diverged"})
    assert reason_of(none, 1).startswith("No trial could be confirmed; the best validation NDCG@10 decides.")

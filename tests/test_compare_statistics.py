"""The statistics of a comparison against scipy, and hand cases of times that are censored."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtualmle.compare.statistics import (
    EXACT_UNTIL,
    holm,
    kaplan_meier,
    mean_interval,
    median_interval,
    sign_flip_test,
    signed_rank_test,
    standardised,
)

DIFFERENCES = [0.31, -0.12, 0.22, 0.25, 0.05, -0.02, 0.4]


def mean_difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    """The statistic that scipy permutes."""
    return (a - b).mean(axis=axis)


def draws(n: int, seed: int, digits: int = 6) -> list[float]:
    return [round(float(value), digits) for value in np.random.default_rng(seed).normal(0.2, 1.0, n)]


@pytest.mark.parametrize("n", [2, 5, 9, EXACT_UNTIL])
def test_sign_flips_agree_with_scipys_permutation_test(n: int) -> None:
    from scipy.stats import permutation_test  # noqa: PLC0415 (slow to load)

    values = draws(n, n)
    expected = permutation_test(
        (values, [0.0] * n), mean_difference, permutation_type="samples", vectorized=True, n_resamples=2**n
    )
    found = sign_flip_test(values)
    assert found.exact and found.n == n
    assert found.p == pytest.approx(expected.pvalue, abs=1e-12)


def test_more_pairs_are_tested_by_sampled_signs_near_the_exact_p_value() -> None:
    from scipy.stats import permutation_test  # noqa: PLC0415

    values = draws(15, 3)
    exact = permutation_test(
        (values, [0.0] * 15), mean_difference, permutation_type="samples", vectorized=True, n_resamples=2**15
    )
    found = sign_flip_test(values)
    assert not found.exact
    assert found.p == pytest.approx(exact.pvalue, abs=0.02)
    assert found == sign_flip_test(values)  # the same in every process


@pytest.mark.parametrize("n", [3, 6, 10, EXACT_UNTIL])
def test_signed_ranks_agree_with_scipys_exact_test(n: int) -> None:
    from scipy.stats import wilcoxon  # noqa: PLC0415

    values = draws(n, 100 + n)
    assert signed_rank_test(values).p == pytest.approx(wilcoxon(values, method="exact").pvalue, abs=1e-12)


def test_signed_ranks_are_exact_with_ties_and_leave_out_zeros() -> None:
    from scipy.stats import permutation_test, rankdata  # noqa: PLC0415

    values = np.array([0.2, 0.2, -0.2, 0.5, 0.5, -0.1, 0.3])
    scores = np.sign(values) * rankdata(np.abs(values))
    expected = permutation_test(
        (scores, np.zeros(7)), mean_difference, permutation_type="samples", vectorized=True, n_resamples=2**7
    )
    found = signed_rank_test([*values, 0.0, 0.0])
    assert found.n == 7 and found.p == pytest.approx(expected.pvalue)


def test_five_seeds_that_all_agree_give_a_sixteenth() -> None:
    assert sign_flip_test([1, 2, 3, 4, 5]).p == 2 / 32
    assert signed_rank_test([1, 2, 3, 4, 5]).p == 2 / 32


def test_no_pairs_and_no_differences_give_p_1() -> None:
    assert sign_flip_test([]).p == signed_rank_test([]).p == 1.0
    assert sign_flip_test([0.0, 0.0]).p == signed_rank_test([0.0, 0.0]).p == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])  # 2nd: 3*.01; 3rd: 2*.03; 1st: not below it
    assert holm([0.6, 0.5]) == [1.0, 1.0] and holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_a_p_value_nor_their_order_and_never_exceeds_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(a >= p for p, a in zip(p_values, adjusted, strict=True))
    assert all(a <= min(1.0, len(p_values) * p) + 1e-12 for p, a in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert list(np.array(adjusted)[order]) == sorted(adjusted)


def test_the_bootstrap_interval_agrees_with_scipys_percentile_interval() -> None:
    from scipy.stats import bootstrap as scipy_bootstrap  # noqa: PLC0415

    expected = scipy_bootstrap(
        (DIFFERENCES,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    found = mean_interval(DIFFERENCES)
    assert found.value == pytest.approx(np.mean(DIFFERENCES))
    assert found.low == pytest.approx(expected.low, abs=0.01) and found.high == pytest.approx(expected.high, abs=0.01)


def test_one_value_has_no_interval() -> None:
    assert mean_interval([0.5]).low is None and median_interval([3.0], [True]).high is None


def test_cohens_d_needs_two_different_differences() -> None:
    assert standardised(DIFFERENCES) == pytest.approx(np.mean(DIFFERENCES) / np.std(DIFFERENCES, ddof=1))
    assert standardised([0.3]) is None and standardised([0.3, 0.3]) is None


@pytest.mark.parametrize("seed", range(5))
def test_kaplan_meier_agrees_with_scipy(seed: int) -> None:
    from scipy.stats import CensoredData, ecdf  # noqa: PLC0415

    rng = np.random.default_rng(seed)
    times, reached = rng.integers(1, 12, 20).astype(float), rng.random(20) < 0.6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = ecdf(CensoredData(uncensored=times[reached], right=times[~reached])).sf
    found = kaplan_meier(times, reached)
    assert list(found.shares) == pytest.approx(list(expected.evaluate(np.array(found.times))))
    limit = 9.0  # the area below the curve, summed in small steps
    steps = np.arange(0, limit, 0.001)
    assert found.restricted_mean(limit) == pytest.approx(expected.evaluate(steps).sum() * 0.001, rel=1e-3)


def test_a_censored_session_leaves_the_risk_set_without_counting_as_reached() -> None:
    # reached at 2; censored at 3; reached at 5: shares 2/3, then 2/3 * (1 - 1/1) = 0
    curve = kaplan_meier([2, 3, 5], [True, False, True])
    assert curve.times == (2.0, 5.0) and curve.shares == pytest.approx((2 / 3, 0.0))
    assert curve.median == 5.0 and curve.restricted_mean(5) == pytest.approx(2 + 3 * 2 / 3)


def test_the_median_is_infinite_if_fewer_than_half_ever_reach_the_level() -> None:
    assert kaplan_meier([3, 25, 25], [True, False, False]).median == math.inf
    assert kaplan_meier([3, 25], [True, False]).median == 3  # half have reached it then
    assert kaplan_meier([25, 25], [False, False]).restricted_mean(25) == 25


def test_times_that_all_reached_give_the_ordinary_mean_and_median() -> None:
    curve = kaplan_meier([4, 1, 3, 2, 7], [True] * 5)
    assert curve.median == 3 and curve.restricted_mean(100) == pytest.approx(17 / 5)


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=9))
def test_the_median_with_its_interval_is_that_of_the_curve(observed: list[tuple[int, bool]]) -> None:
    times, reached = zip(*observed, strict=True)
    found = median_interval(times, reached)
    assert found.value == kaplan_meier(times, reached).median
    if len(observed) > 1:
        assert found.low is not None and found.high is not None and found.low <= found.high


def test_the_interval_of_a_median_agrees_with_resampling_one_by_one() -> None:
    times, reached = [3.0, 5.0, 8.0, 9.0, 25.0, 25.0], [True, True, True, True, False, False]
    rows = np.random.default_rng(7).integers(6, size=(4000, 6))
    medians = sorted(kaplan_meier([times[i] for i in row], [reached[i] for i in row]).median for row in rows)
    found = median_interval(times, reached)
    assert (found.low, found.high) == (medians[100], medians[3899])

"""The recorded trials and their replay: the file is whole, and the benchmark stops trials where the Program does."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from virtualmle.training.families import race_of
from virtualmle.training.racing import decide

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS / "curves"))

from raced import Raced, have_same_scores, pools_of, run_of  # noqa: E402
from recorded import WITH_PRIORS, Curve, read_curves  # noqa: E402
from replay import KEEP_Z, Pool, is_slow_starter  # noqa: E402


@pytest.fixture(scope="module")
def curves() -> list[Curve]:
    return list(read_curves())


def test_there_are_150_whole_trials_of_three_datasets_and_both_backbones(curves: list[Curve]) -> None:
    whole = [curve for curve in curves if not curve.cause]
    assert len(whole) >= 150
    pools = Counter((curve.dataset, curve.backbone) for curve in whole)
    assert set(pools) == {(name, backbone) for name in ("office", "tools", "beauty") for backbone in ("sasrec", "hstu")}
    assert sum(is_slow_starter(curve) for curve in whole) > len(whole) / 4
    for curve in whole:
        epochs = len(curve.ndcg10)
        assert 0 < epochs <= curve.config.epochs and len(curve.ranks) == len(curve.seconds) == epochs
        assert curve.parameters > 0 and 0 < curve.popularity < 0.1 and (np.diff(curve.seconds) > 0).all()


def test_the_ranks_of_a_trial_have_its_ndcg10(curves: list[Curve]) -> None:
    gains = np.array([0.0, *(1 / np.log2(np.arange(1, 11) + 1)), 0.0])
    for curve in curves[::10]:
        assert gains[curve.ranks].mean(axis=1) == pytest.approx(curve.ndcg10, rel=1e-5)


def stop_of(pool: Pool, candidate: int, incumbent: int, ended: list[int]) -> int | None:
    """The epoch at which a worker that applies `decide` after each epoch but the last stops the trial."""
    runs = {index: run_of(pool.curves[index], pool.num_users) for index in (incumbent, *ended)}
    curve, base = pool.curves[candidate], pool.curves[incumbent]
    same = have_same_scores(base, curve)
    context = race_of(
        curve.config, pool.num_users, runs[incumbent], [runs[index] for index in ended], KEEP_Z, curve.popularity, same,
        base.judged_at if same else (),
    )  # fmt: skip
    if context is None:
        return None
    epochs, rows = curve.epochs.tolist(), [base.epochs.tolist().index(epoch) for epoch in base.judged_at]
    known = np.vstack([base.judged_ranks[rows] if same else base.ranks, base.final_ranks])
    for count in range(1, len(epochs)):
        judged = {at: curve.judged_ranks[epochs.index(at)] for at in curve.judged_at if at <= epochs[count - 1]}
        if decide(epochs[:count], list(curve.ranks[:count]), judged, curve.parameters, known, context):
            return epochs[count - 1]
    return None


@pytest.mark.parametrize("name", ["office sasrec", "office hstu", "tools sasrec", "beauty hstu"])
def test_the_benchmark_stops_trials_at_the_epoch_at_which_the_program_does(curves: list[Curve], name: str) -> None:
    pool = pools_of(curves)[name]
    incumbent = max(range(len(pool)), key=lambda index: pool.curves[index].final)
    ended = {index: [other for other in range(len(pool)) if other != index] for index in range(min(12, len(pool)))}
    ended.pop(incumbent, None)
    rule = Raced(pool, [])
    found = [rule(pool, index, incumbent, known) for index, known in ended.items()]
    assert found == [stop_of(pool, index, incumbent, known) for index, known in ended.items()]
    assert any(found), "one of them is stopped"


def test_the_benchmark_stops_trials_with_score_priors_as_the_program_does() -> None:
    stopped = 0
    for pool in pools_of(read_curves(WITH_PRIORS)).values():
        for index in range(1, len(pool)):
            if pool.curves[index].rescored:
                continue
            ended = [other for other in range(index) if not pool.curves[other].rescored]
            for incumbent in range(index):
                found = Raced(pool, [])(pool, index, incumbent, ended)
                assert found == stop_of(pool, index, incumbent, ended), (index, incumbent)
                stopped += found is not None
    assert stopped, "one of them is stopped"

"""Sketches recognise a log whatever its users and items are called, and do not take different logs for the same."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from virtualmle.data.demo import generate_demo
from virtualmle.data.readers import read_log
from virtualmle.data.sketch import FAMILIES, KEPT, MIN_TOKENS, SAME_CONTENT, Similarity, Sketch, log_sketch, similarity

Change = Callable[[pl.DataFrame], pl.DataFrame]


@pytest.fixture(scope="module")
def demo() -> pl.DataFrame:
    return generate_demo()


def share(one: pl.DataFrame, other: pl.DataFrame) -> float:
    return similarity(log_sketch(one), log_sketch(other)).share


def renamed(frame: pl.DataFrame) -> pl.DataFrame:
    """New names for all users and items, whose order is not that of the old ones."""
    for column in ("user", "item"):
        old = frame[column].unique().sort()
        new = [f"{column}-{number}" for number in np.random.default_rng(3).permutation(old.len())]
        frame = frame.with_columns(pl.col(column).replace_strict(old.to_list(), new))
    return frame


def shuffled(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sample(fraction=1, shuffle=True, seed=1)


def timed(times: pl.Expr) -> Change:
    return lambda frame: frame.with_columns(timestamp=times.cast(pl.Int64))


def without_users(part: float) -> Change:
    def apply(frame: pl.DataFrame) -> pl.DataFrame:
        users = frame["user"].unique().sort()
        return frame.filter(~pl.col("user").is_in(users.sample(fraction=part, seed=11).to_list()))

    return apply


def without_rows(part: float) -> Change:
    return lambda frame: frame.sample(fraction=1 - part, seed=13)


def in_core(k: int) -> Change:
    def apply(frame: pl.DataFrame) -> pl.DataFrame:
        left = frame.filter((pl.len().over("user") >= k) & (pl.len().over("item") >= k))
        return left if left.height == frame.height else apply(left)

    return apply


def with_users(frame: pl.DataFrame) -> pl.DataFrame:
    added = frame.head(300).with_columns(user="new-" + pl.col("user"), item=pl.col("item").shuffle(seed=5))
    return pl.concat([frame, added.select(frame.columns)])


CURVE = (pl.col("timestamp") - pl.col("timestamp").min()) ** 2 + 5  # increasing, not linear
NEAR = {
    "one user dropped": lambda frame: frame.filter(pl.col("user") != frame["user"][50]),
    "one row dropped": lambda frame: pl.concat([frame[:50], frame[51:]]),
    "1 % of the users dropped": without_users(0.01),
    "5 % of the users dropped": without_users(0.05),
    "users added": with_users,
    "1 % of the rows dropped": without_rows(0.01),
    "5 % of the rows dropped": without_rows(0.05),
    "3-core": in_core(3),
    "5-core": in_core(5),
    "last 50 events": lambda frame: frame.filter(
        pl.col("timestamp").rank("ordinal", descending=True).over("user") <= 50
    ),
    "other times, 5 % of the users dropped": lambda frame: without_users(0.05)(timed(CURVE)(frame)),
    "other times, 5 % of the rows dropped": lambda frame: without_rows(0.05)(timed(CURVE)(frame)),
}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(shuffled, id="rows shuffled"),
        pytest.param(timed(pl.col("timestamp") // 86_400), id="days instead of seconds"),
        pytest.param(timed(pl.col("timestamp") * 1000), id="milliseconds"),
        pytest.param(timed(pl.col("timestamp") + 86_400_123), id="times shifted"),
        pytest.param(timed(CURVE), id="times mapped to a curve"),
        pytest.param(timed(pl.col("timestamp").rank("dense").over("user")), id="only the order of times"),
    ],
)
def test_names_order_units_and_shifts_do_not_change_the_content(demo: pl.DataFrame, change: Change) -> None:
    assert share(demo, change(demo)) == 1.0
    assert share(demo, renamed(change(demo))) == 1.0
    assert share(demo, shuffled(renamed(change(demo)))) == 1.0


def test_a_sketch_is_the_same_for_shuffled_rows_and_shifted_times(demo: pl.DataFrame) -> None:
    moved = timed(pl.col("timestamp") * 60 + 7)(shuffled(demo))
    assert log_sketch(demo).to_bytes() == log_sketch(moved).to_bytes()


@pytest.mark.parametrize("change", NEAR)
def test_near_duplicates_are_recognised_with_their_names_and_without(demo: pl.DataFrame, change: str) -> None:
    changed = NEAR[change](demo)
    assert share(changed, demo) > 0.9
    assert share(renamed(changed), demo) > SAME_CONTENT


@pytest.mark.parametrize("size", [(700, 260), (300, 80), (2000, 600)])
def test_another_log_with_the_same_names_is_not_the_same_content(demo: pl.DataFrame, size: tuple[int, int]) -> None:
    other = generate_demo(num_users=size[0], num_items=size[1], seed=5)
    assert set(demo["user"]) & set(other["user"])
    assert share(demo, other) < SAME_CONTENT / 3
    assert share(demo, renamed(other)) < SAME_CONTENT / 3


@pytest.mark.parametrize("part", ["users", "times", "items"])
def test_parts_of_a_log_without_a_common_target_are_not_the_same_content(demo: pl.DataFrame, part: str) -> None:
    chosen = {
        "users": pl.col("user").hash(7) % 2 == 0,
        "times": pl.col("timestamp") <= demo["timestamp"].median(),
        "items": pl.col("item").hash(7) % 2 == 0,
    }[part]
    assert share(demo.filter(chosen), demo.filter(~chosen)) < SAME_CONTENT / 3


def test_numbered_names_in_a_small_catalogue_agree_by_chance_only() -> None:
    def log(seed: int) -> pl.DataFrame:
        rng = np.random.default_rng(seed)
        users = [f"u{user}" for user in range(400) for _ in range(6)]
        items = [f"i{item}" for item in rng.integers(6, size=len(users))]
        return pl.DataFrame({"user": users, "item": items, "timestamp": rng.integers(10**6, size=len(users))})

    assert share(log(1), log(2)) < SAME_CONTENT / 2
    assert share(log(1), shuffled(log(1))) == 1.0


def test_short_patterns_of_times_and_degrees_that_many_logs_have_identify_nobody() -> None:
    def log(seed: int) -> pl.DataFrame:
        """Times are places in an order, of which some are left out; all items are about equally popular."""
        rng = np.random.default_rng(seed)
        kept = rng.random((300, 9)) < 0.6
        users, places = np.nonzero(kept)
        items = rng.integers(40, size=len(users))
        names = {"user": [f"{seed} {user}" for user in users], "item": [f"{seed} {item}" for item in items]}
        return pl.DataFrame({**names, "timestamp": places})

    assert share(log(1), log(2)) < SAME_CONTENT / 3
    assert share(log(1), shuffled(log(1))) == 1.0


def test_users_without_a_test_target_do_not_count(demo: pl.DataFrame) -> None:
    short = demo.with_columns(user="short-" + pl.col("user")).group_by("user", maintain_order=True).head(2)
    assert log_sketch(pl.concat([demo, short])).to_bytes() == log_sketch(demo).to_bytes()


def test_a_part_of_a_log_is_compared_with_the_whole(demo: pl.DataFrame) -> None:
    part = demo.filter(pl.col("user").is_in(demo["user"].unique().sort()[:200].to_list()))
    smaller, larger = log_sketch(part), log_sketch(demo)
    assert similarity(smaller, larger) == Similarity(1.0, "names")
    assert similarity(larger, smaller) == Similarity(1.0, "names", contains=True)


def test_too_few_users_say_nothing(demo: pl.DataFrame) -> None:
    few = demo.filter(pl.col("user").is_in(demo["user"].unique().sort()[: MIN_TOKENS - 1].to_list()))
    last = pl.col("timestamp") == pl.col("timestamp").max().over("user")
    assert few.filter(last).height < MIN_TOKENS
    assert share(few, few) == 0.0


def test_an_estimate_from_the_kept_hashes_is_close_to_the_true_share() -> None:
    log = generate_demo(num_users=2500, num_items=600, seed=4)
    assert log["user"].n_unique() > 2 * KEPT
    half = without_users(0.5)(log)
    other = without_users(0.5)(log.with_columns(item="x" + pl.col("item")))
    mixed = pl.concat([half, other.with_columns(user="y" + pl.col("user"))])
    assert similarity(log_sketch(mixed), log_sketch(log)).share == pytest.approx(0.5, abs=0.08)


def test_a_sketch_has_one_size_and_survives_the_way_through_bytes(demo: pl.DataFrame) -> None:
    sketches = [log_sketch(frame) for frame in (demo, demo.head(40), demo.head(0))]
    assert {each.array.shape for each in sketches} == {(len(FAMILIES), KEPT + 2)}
    for each in sketches:
        found = Sketch.from_bytes(each.to_bytes())
        assert found is not None and (found.array == each.array).all()
    assert Sketch.from_bytes(b"") is None and Sketch.from_bytes(sketches[0].to_bytes()[:-1]) is None


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Similarity(0.994, "names"), "99% the same test targets as shop-a"),
        (Similarity(0.43, "times"), "at least 43% the same test targets as shop-a under other names"),
        (Similarity(1.0, "degrees"), "100% the same test targets as shop-a under other names"),
        (Similarity(0.98, "names", contains=True), "contains 98% of the test targets of shop-a"),
    ],
)
def test_a_similarity_in_words(found: Similarity, words: str) -> None:
    assert found.in_words("shop-a") == words


def test_real_logs_are_separated(shared_data: Path) -> None:
    logs = {name: read_log(shared_data / f"{name}.tsv.gz").frame for name in ("beauty", "tools", "office", "ml100k")}
    sketches = {name: log_sketch(frame) for name, frame in logs.items()}
    for one, other in combinations(logs, 2):
        assert similarity(sketches[one], sketches[other]).share < SAME_CONTENT / 3
    for name in ("office", "ml100k"):
        changed = without_rows(0.05)(logs[name])
        assert similarity(log_sketch(changed), sketches[name]).share > 0.9
        assert similarity(log_sketch(renamed(changed)), sketches[name]).share > SAME_CONTENT

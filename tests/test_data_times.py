"""Times in every notation and unit become Unix seconds; what is not the time of an event is named."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
import torch

from virtualmle.data.errors import DataError
from virtualmle.data.profile import train_profile
from virtualmle.data.rows import Source
from virtualmle.data.time_units import EARLIEST, LATEST, PER_SECOND, TIME_UNITS, TimeUnit, are_seconds
from virtualmle.data.times import Times, read_times
from virtualmle.kernels.jagged.time_buckets import time_buckets

MOMENT = 1_700_000_000  # 2023-11-14T22:13:20Z


def read(values: list, unit: TimeUnit = "auto") -> Times:
    return read_times(pl.Series(values), unit, Source("log.csv", {"timestamp": "when"}, 2))


def usable(values: list, unit: TimeUnit = "auto") -> list[int]:
    times = read(values, unit)
    assert times.bad is None
    return times.seconds.to_list()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2020-02-29", datetime(2020, 2, 29, tzinfo=UTC)),
        ("2020-02-29 13:45", datetime(2020, 2, 29, 13, 45, tzinfo=UTC)),
        ("2020-02-29T13:45:10", datetime(2020, 2, 29, 13, 45, 10, tzinfo=UTC)),
        ("2020/02/29t13:45:10z", datetime(2020, 2, 29, 13, 45, 10, tzinfo=UTC)),
        ("2020-02-29T13:45:10-05:30", datetime(2020, 2, 29, 19, 15, 10, tzinfo=UTC)),
        ("2020-02-29T13:45:10+0530", datetime(2020, 2, 29, 8, 15, 10, tzinfo=UTC)),
        ("2020-02-29T13:45+02:00", datetime(2020, 2, 29, 11, 45, tzinfo=UTC)),
        ("2020-02-29 13:45:10.999+00", datetime(2020, 2, 29, 13, 45, 10, tzinfo=UTC)),
        ("2020-02-29 13:45:10 UTC", datetime(2020, 2, 29, 13, 45, 10, tzinfo=UTC)),
        ("2020-02-29T13:45:10,250Z", datetime(2020, 2, 29, 13, 45, 10, tzinfo=UTC)),
        ("Sat, 29 Feb 2020 13:45:10 GMT", datetime(2020, 2, 29, 13, 45, 10, tzinfo=UTC)),
        ("Sat Feb 29 13:45:10 +0000 2020", datetime(2020, 2, 29, 13, 45, 10, tzinfo=UTC)),
        ("Sun, 1 Mar 2020 00:45 +0130", datetime(2020, 2, 29, 23, 15, tzinfo=UTC)),
    ],
)
def test_dates_in_text_become_unix_seconds(text: str, moment: datetime) -> None:
    assert usable([text, "2001-09-09"]) == [int(moment.timestamp()), 999_993_600]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([MOMENT, MOMENT + 1], id="s"),
        pytest.param([float(MOMENT), MOMENT + 1.0], id="float s"),
        pytest.param([str(MOMENT), f"{MOMENT + 1}.0"], id="text with and without a decimal point"),
        *(pytest.param([MOMENT * n, (MOMENT + 1) * n], id=unit) for unit, n in PER_SECOND.items() if n > 1),
        *(pytest.param([f"{MOMENT * n}", f"{(MOMENT + 1) * n}"], id=f"text {u}") for u, n in PER_SECOND.items()),
        pytest.param([f'"{MOMENT}"', f'"{MOMENT + 1}"'], id="quoted text"),
        pytest.param([Decimal(MOMENT), Decimal(MOMENT + 1)], id="decimal"),
        pytest.param([20231114221320, 20231114221321], id="YYYYMMDDhhmmss"),
        pytest.param([20231114221320000, 20231114221321000], id="YYYYMMDDhhmmss and milliseconds"),
        pytest.param(["1.700000000E+09", "1.700000001E+09"], id="scientific notation with all digits"),
        pytest.param([45244.925925926, 45244.925937500], id="spreadsheet days"),
        pytest.param([19675.925925926, 19675.925937500], id="days since 1970"),
        pytest.param([datetime(2023, 11, 14, 22, 13, 20), datetime(2023, 11, 14, 22, 13, 21)], id="datetime"),
        pytest.param(
            [datetime(2023, 11, 15, 0, 13, 20 + n, tzinfo=timezone(timedelta(hours=2))) for n in (0, 1)], id="zone"
        ),
    ],
)
def test_every_unit_gives_the_same_seconds(values: list) -> None:
    assert usable(values) == [MOMENT, MOMENT + 1]


@pytest.mark.parametrize(
    ("values", "days"),
    [
        ([20231114, 20231231], [19675, 19722]),
        ([19675, 19722], [19675, 19722]),
        ([45244, 45291], [19675, 19722]),
        ([date(2023, 11, 14), date(2023, 12, 31)], [19675, 19722]),
        (["2023-11-14", "2023-12-31"], [19675, 19722]),
    ],
)
def test_days_in_every_notation_give_the_same_seconds(values: list, days: list[int]) -> None:
    assert usable(values) == [day * 86_400 for day in days]


def test_calendar_hours_and_minutes_are_not_taken_for_seconds_or_milliseconds() -> None:
    assert usable([2023111422, 2023111423]) == [MOMENT - 800, MOMENT + 2_800]
    assert usable([202311142213, 202311142214]) == [MOMENT - 20, MOMENT + 40]


def test_order_within_a_second_is_kept_beside_the_whole_seconds() -> None:
    for values in (
        [1_700_000_000_250, 1_700_000_000_125],
        [1_700_000_000.25, 1_700_000_000.125],
        ["2023-11-14T22:13:20.25", "2023-11-14T22:13:20.125"],
        [datetime(2023, 11, 14, 22, 13, 20, 250_000), datetime(2023, 11, 14, 22, 13, 20, 125_000)],
    ):
        times = read(values)
        assert times.seconds.to_list() == [MOMENT, MOMENT]
        assert times.nanoseconds is not None
        assert times.nanoseconds.to_list() == [250_000_000, 125_000_000]


def test_small_whole_numbers_are_an_order_and_a_note_says_so() -> None:
    times = read([3, 1, 2])
    assert times.seconds.to_list() == [3, 1, 2]
    assert "order and not as a clock" in times.notes[0] and "--time-unit" in times.notes[0]
    assert read([3, 1, 2], "s").notes == ()
    assert "if they are ratings" in read([1, 2, 3, 4, 5] * 7).notes[1]
    assert usable([3_000, 1_999], "ms") == [3, 1]
    assert usable([2, 1], "day") == [172_800, 86_400]


@pytest.mark.parametrize(
    ("values", "bad"),
    [
        ([MOMENT, 0, MOMENT], [1]),
        ([MOMENT, -1, MOMENT], [1]),
        ([MOMENT, 2**31 - 1, MOMENT], [1]),
        ([MOMENT, 253_402_300_799, MOMENT], [1]),
        ([MOMENT, 9_999_999_999, MOMENT], [1]),
        ([MOMENT * 1000, -(2**63), 2**63 - 1], [1, 2]),
        ([MOMENT * 10**9, -(2**63), MOMENT * 10**9], [1]),
        ([float(MOMENT), float("nan"), float("inf")], [1, 2]),
        ([float(MOMENT), 1e300, -1e300], [1, 2]),
        ([str(MOMENT), "", "NULL"], [1, 2]),
        ([str(MOMENT), str(2**63), str(-(2**63))], [1, 2]),
        (["2023-11-14", "0001-01-01", "9999-12-31"], [1, 2]),
        (["2023-11-14", "1970-01-01", "1900-01-01 00:00:00"], [1, 2]),
        (["2023-11-14", "2023-02-30", "0"], [1, 2]),
        ([datetime(2023, 11, 14), datetime(1, 1, 1), None], [1, 2]),
        ([date(2023, 11, 14), date(9999, 12, 31), None], [1, 2]),
        ([20231114221320, 20231314221320, 20231114226120], [1, 2]),
        ([20231114] * 9 + [0], [9]),
        ([45244.5] * 9 + [0.0], [9]),
        ([1, 2, 3, -1], [3]),
    ],
)
def test_unusable_times_are_found_and_become_zero(values: list, bad: list[int]) -> None:
    times = read(values)
    assert times.bad is not None
    assert times.bad.arg_true().to_list() == bad
    assert times.seconds.gather(bad).to_list() == [0] * len(bad)
    assert f"log.csv, row {2 + bad[0]}: the time " in times.complaint


def test_days_count_from_one_origin() -> None:
    times = read([19675.0, 45244.5], "day")
    assert times.bad is not None
    assert times.bad.to_list() == [False, True]


def test_a_unit_that_is_given_marks_the_times_in_other_units() -> None:
    times = read([MOMENT, MOMENT * 1000, MOMENT], "s")
    assert times.bad is not None
    assert times.bad.to_list() == [False, True, False]


@pytest.mark.parametrize(
    ("values", "unit", "message"),
    [
        pytest.param([MOMENT, 1000 * MOMENT], "auto", r"seconds \(first in row 2.*milliseconds .*row 3", id="mixed"),
        pytest.param(["", MOMENT * 1000, MOMENT], "auto", r"milliseconds \(first in row 3.*row 4", id="mixed, a gap"),
        pytest.param([MOMENT, "2023-11-14"], "auto", r"mix dates \(first in row 3.*row 2", id="dates and numbers"),
        pytest.param([0.5, 1.5], "auto", r"unknown unit \(row 2: 0\.5.*--time-unit", id="fractions"),
        pytest.param([5 * 10**9], "auto", "unknown unit.*--time-unit", id="between seconds and milliseconds"),
        pytest.param([-1, -1], "auto", "unknown unit", id="nothing but -1"),
        pytest.param(["1.70E+09", "1.70E+09"], "auto", r"rounded \(1\.70E\+09\).*export", id="spreadsheet"),
        pytest.param(["1.70E+09", "", "1.70E+09"], "auto", r"rounded", id="spreadsheet with a gap"),
        pytest.param(["2023-11-14"], "ms", "--time-unit ms does not apply", id="a unit for dates"),
        pytest.param(["soon", "later"], "auto", "row 2: the time 'soon' cannot be read", id="nothing readable"),
        pytest.param([timedelta(1)], "auto", r"column 'when' have the type Duration.*--timestamp", id="duration"),
        pytest.param([datetime(2000, 1, 1).time()], "auto", "have the type Time.*--timestamp", id="time of day"),
    ],
)
def test_a_column_without_one_reading_is_refused(values: list, unit: TimeUnit, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_times(pl.Series([str(v) for v in values]) if str in map(type, values) else pl.Series(values), unit,
                   Source("log.csv", {"timestamp": "when"}, 2))  # fmt: skip


def test_times_that_are_all_equal_or_rounded_are_reported() -> None:
    assert "seem to be rounded" in read([MOMENT, MOMENT + 10**7, MOMENT + 2 * 10**7] * 20).notes[0]
    assert "all equal" in read([MOMENT, MOMENT]).notes[0]
    assert read([MOMENT * 1000 + 1, MOMENT * 1000 + 2]).notes[-1].endswith("stored as seconds")


def test_the_limits_of_every_unit_are_inside_it() -> None:
    for unit, per_second in PER_SECOND.items():
        for seconds in (EARLIEST, LATEST):
            assert unit in TIME_UNITS
            assert usable([seconds * per_second, MOMENT * per_second]) == [seconds, MOMENT]


def test_stored_times_that_are_not_seconds_are_recognised() -> None:
    assert are_seconds(np.array([MOMENT, MOMENT + 1]))
    assert are_seconds(np.array([3, 1, 2]))
    for other in (MOMENT * 1000, MOMENT * 10**6, MOMENT * 10**9, 20231114, 20231114221320, 45_244_968_391, -(2**63)):
        assert not are_seconds(np.array([other, other]))


def test_extreme_times_do_not_overflow_the_profile() -> None:
    items, offsets = np.zeros(2, dtype=np.int32), np.array([0, 2])
    profile = train_profile(items, np.array([-(2**63), 2**63 - 1]), offsets)
    assert profile["time_span_days"] == profile["median_gap_days"] == pytest.approx(2**64 / 86_400, rel=1e-5)


def test_the_longest_distance_of_prepared_times_has_the_bucket_at_which_int32_saturates() -> None:
    buckets = time_buckets(torch.tensor([LATEST - EARLIEST, LATEST, 2**31 - 1]))
    assert buckets.tolist() == [71, 71, 71]

"""How many trials a machine runs at a time, and what each of them gets."""

import os

import pytest

from virtualmle.trials.places import (
    HEADROOM,
    device_of,
    fitting,
    free_bytes,
    held_bytes,
    most_places,
    num_cores,
    num_gpus,
    threads_of,
)

GIB = 2**30


@pytest.mark.parametrize(
    ("peak", "memory", "places"),
    [
        pytest.param(None, 100 * GIB, 1, id="nothing measured"),
        pytest.param(GIB, 100 * GIB, 8, id="cores are the limit"),
        pytest.param(GIB, int(3.1 * HEADROOM * GIB), 3, id="memory is the limit"),
        pytest.param(8 * GIB, GIB, 1, id="one trial runs in any case"),
    ],
)
def test_places_are_limited_by_cores_and_by_the_measured_peak(peak: int | None, memory: int, places: int) -> None:
    assert fitting(8, peak, memory) == places


@pytest.mark.parametrize(
    ("chosen", "places", "cores", "threads"),
    [
        pytest.param(0, 1, 8, 0, id="one place: as torch chooses"),
        pytest.param(0, 2, 8, 4, id="an equal share"),
        pytest.param(0, 3, 8, 2, id="rounded down"),
        pytest.param(0, 16, 8, 1, id="at least one"),
        pytest.param(3, 4, 8, 3, id="as a person has chosen"),
    ],
)
def test_threads_are_an_equal_share_of_the_cores_unless_chosen(
    chosen: int, places: int, cores: int, threads: int
) -> None:
    assert threads_of(chosen, places, cores) == threads


def test_gpus_are_dealt_out_only_where_the_device_leaves_a_choice() -> None:
    assert [device_of("auto", place, 2) for place in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert device_of("cuda", 1, 4) == "cuda:1"
    assert device_of("cuda:3", 1, 4) == "cuda:3" and device_of("cpu", 1, 4) == "cpu"
    assert device_of("auto", 1, 1) == "auto"


def test_cores_and_memory_are_those_of_this_process() -> None:
    assert 1 <= num_cores() <= (os.cpu_count() or 1)
    assert num_gpus("cpu") == 0 and num_gpus("cuda:1") <= 1
    assert most_places("cpu", 0) == num_cores() and most_places("cpu", 10 * num_cores()) == 1
    own = held_bytes([os.getpid(), os.getpid()])
    assert 10e6 < own < free_bytes() + own and held_bytes([2**30]) == 0

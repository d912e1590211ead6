"""Interleaved timing: contestants take turns in every round, so that changes of the machine's load affect all alike.

A turn repeats its calls until it takes long enough to be measured. It rotates over several sets of inputs, so that the
inputs of a call are not in the cache only because the previous call used them.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch

Action = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call: the median and the extremes over the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> "Timing":
        return cls(statistics.median(milliseconds), min(milliseconds), max(milliseconds), len(milliseconds))


def interleaved(
    actions: Mapping[str, Sequence[Action]],
    device: torch.device,
    rounds: int,
    turn_ms: float,
) -> dict[str, Timing]:
    """Time each contestant; `actions` has one action per set of inputs. Every turn lasts about turn_ms."""
    counts = {}
    for name, each in actions.items():
        turn(each, len(each), device)  # the first calls compile, allocate and fill caches
        once = turn(each, len(each), device) / len(each)
        counts[name] = max(len(each), round(turn_ms / max(once, 1e-3)))
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, each in actions.items():
            times[name].append(turn(each, counts[name], device) / counts[name])
    return {name: Timing.of(milliseconds) for name, milliseconds in times.items()}


def turn(actions: Sequence[Action], count: int, device: torch.device) -> float:
    """Milliseconds of `count` calls in rotation, measured with CUDA events on a GPU."""
    if device.type != "cuda":
        started = time.perf_counter()
        for action in islice(cycle(actions), count):
            action()
        return (time.perf_counter() - started) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for action in islice(cycle(actions), count):
        action()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def captured(action: Action) -> Action:
    """The kernels of `action` as one CUDA graph, without the host's launches, which dominate at short histories.

    The returned function keeps the results of the captured action alive, because the graph writes to them.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            action()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = action()

    def replay(results: object = results) -> None:
        graph.replay()

    return replay

"""Interleaved timing: in every round each contestant has its turn, so that all meet the machine in every mood.

A turn is repeated until it takes long enough to be measured, over several sets of inputs in rotation, so that nothing
is found in the cache only because the same call was made before.
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
    """Milliseconds of one call: the median of the rounds, and their extremes."""

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
    """actions: of each contestant one action per set of inputs. Every turn lasts about turn_ms."""
    counts = {}
    for name, each in actions.items():
        turn(each, len(each), device)  # the first calls compile, allocate and fill caches
        once = turn(each, len(each), device) / len(each)
        counts[name] = max(len(each), round(turn_ms / max(once, 1e-3)))
    found: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, each in actions.items():
            found[name].append(turn(each, counts[name], device) / counts[name])
    return {name: Timing.of(milliseconds) for name, milliseconds in found.items()}


def turn(actions: Sequence[Action], count: int, device: torch.device) -> float:
    """Milliseconds of `count` calls in rotation: by the device's own clock where it has one."""
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
    """The same kernels as one CUDA graph: without the host's share, which at short histories is most of it.

    The graph owns the results of the action, which stay referenced as long as it does.
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

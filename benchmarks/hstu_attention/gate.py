"""No speed counts while a result is wrong: every contestant against the reference in float64, before it is timed.

Error: the norm of the difference over the norm of the reference, for the output and for every gradient. Allowed: twice
(output) and five times (gradients) the error of the packed torch path in the same dtype, but never less than 1e-5
(1e-10 in float64). What an op leaves unwritten is NaN here, because torch then fills its new tensors.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from .implementation import Implementation, Result, failure, forward, step, truth
from .shapes import Problem, Shape, draw, gate_shape

FLOOR = {torch.float64: 1e-10}
OUTPUT_FACTOR, GRADIENT_FACTOR = 2, 5


@dataclass(frozen=True)
class Verdict:
    """Relative errors of one contestant, and the most that is allowed, by the names of the results."""

    implementation: str
    shape: str
    errors: dict[str, float]
    limits: dict[str, float]
    reason: str = ""  # why it was not judged
    failed: bool = False  # by an error of its own

    @property
    def green(self) -> bool:
        return not self.reason and all(self.errors[name] <= self.limits[name] for name in self.errors)


@contextmanager
def poisoned() -> Iterator[None]:
    """torch.empty gives NaN within."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ops without a deterministic form say so
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def relative_errors(found: Result, expected: Result, names: Sequence[str]) -> dict[str, float]:
    """By name; NaN where anything is NaN, which no limit allows."""
    errors = {}
    for name, one, other in zip(names, found, expected, strict=False):
        difference = (one.double().cpu() - other).norm()
        errors[name] = float(difference / other.norm().clamp(min=1e-30))
    return errors


def judge(
    implementations: Sequence[Implementation], shape: Shape, device: torch.device, yardstick: Implementation
) -> list[Verdict]:
    """Each on a small problem like `shape`. The yardstick is the packed path in plain torch."""
    kinds = {(each.needs_full, each.asks_next) for each in implementations} | {(False, False)}
    problems = {kind: _problem(shape, device, *kind) for kind in kinds}
    truths = {}
    allowed = _limits(yardstick, problems[False, False], truth(problems[False, False], "hstu"))
    verdicts = []
    for implementation in implementations:
        kind = implementation.needs_full, implementation.asks_next
        problem = problems[kind]
        reason = implementation.refuses(shape, device)
        if reason:
            verdicts.append(Verdict(implementation.name, shape.title, {}, {}, reason))
            continue
        key = implementation.function, kind
        if key not in truths:
            truths[key] = truth(problem, implementation.function)
        try:
            errors = _errors(implementation, problem, truths[key])
        except Exception as error:  # whatever a peer or a compiler raises: the others go on
            verdicts.append(Verdict(implementation.name, shape.title, {}, {}, failure(error), failed=True))
            continue
        verdicts.append(Verdict(implementation.name, shape.title, errors, {name: allowed[name] for name in errors}))
    return verdicts


def _problem(shape: Shape, device: torch.device, full: bool, asks_next: bool) -> Problem:
    small = gate_shape(shape)
    if full:  # the contestants that take no jagged batch
        small = replace(small, batch=3, lengths="full", mean=small.max_len)
    return draw(small, device, 1, asks_next)


def _errors(implementation: Implementation, problem: Problem, expected: Result) -> dict[str, float]:
    once = forward if problem.times.device.type == "cpu" and implementation.forward_only_on_cpu else step
    with poisoned():
        found = once(implementation, problem)()
    return relative_errors(found, expected, ("out", *problem.names))


def _limits(yardstick: Implementation, problem: Problem, expected: Result) -> dict[str, float]:
    floor = FLOOR.get(problem.shape.dtype, 1e-5)
    errors = _errors(yardstick, problem, expected)
    factors = {name: OUTPUT_FACTOR if name == "out" else GRADIENT_FACTOR for name in errors}
    return {name: max(floor, factors[name] * error) for name, error in errors.items()}


def line(verdict: Verdict) -> str:
    """For people."""
    if verdict.reason:
        word = "FAILED" if verdict.failed else "-"
        return f"  {word:6}{verdict.implementation:26} {verdict.shape}: {verdict.reason}"
    worst = ", ".join(f"{name} {error:.1e}" for name, error in verdict.errors.items())
    return f"  {'green' if verdict.green else 'RED  '} {verdict.implementation:26} {verdict.shape}: {worst}"

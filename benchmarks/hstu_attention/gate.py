"""No speed counts while a result is wrong: every contestant against the reference in float64, before it is timed.

Error: the norm of the difference over the norm of the reference, for the output and for every gradient. Allowed: twice
(output) and five times (gradients) the error of the packed torch path in the same dtype, but never less than 1e-5
(1e-10 in float64). What an op leaves unwritten is NaN here, because torch then fills its new tensors.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .implementation import PACKED, Implementation, Result, failure, step, truth
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

    @property
    def wrong(self) -> bool:
        return self.failed or not (self.reason or self.green)

    def __str__(self) -> str:
        if self.reason:
            return f"  {'FAILED' if self.failed else '-':6}{self.implementation:26} {self.shape}: {self.reason}"
        worst = ", ".join(f"{name} {error:.1e}" for name, error in self.errors.items())
        return f"  {'green' if self.green else 'RED  '} {self.implementation:26} {self.shape}: {worst}"


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


def judge(implementations: Sequence[Implementation], shape: Shape, device: torch.device) -> list[Verdict]:
    """Each on a small problem like `shape`. The yardstick among them is the packed path in plain torch."""
    problem = draw(gate_shape(shape), device, 1)
    expected = truth(problem)
    yardstick = next(each for each in implementations if each.name == PACKED)
    allowed = _limits(_errors(yardstick, problem, expected), shape.dtype)
    verdicts = []
    for each in implementations:
        reason = each.refuses(shape, device)
        if reason:
            verdicts.append(Verdict(each.name, shape.title, {}, {}, reason))
            continue
        try:
            errors = _errors(each, problem, expected)
        except Exception as error:  # whatever a peer or a compiler raises: the others go on
            verdicts.append(Verdict(each.name, shape.title, {}, {}, failure(error), failed=True))
            continue
        verdicts.append(Verdict(each.name, shape.title, errors, {name: allowed[name] for name in errors}))
    return verdicts


def _errors(implementation: Implementation, problem: Problem, expected: Result) -> dict[str, float]:
    """By name; NaN where anything is NaN, which no limit allows."""
    with poisoned():
        found = step(implementation, problem)()
    errors = {}
    for name, one, other in zip(("out", *problem.names), found, expected, strict=True):
        errors[name] = float((one.double().cpu() - other).norm() / other.norm().clamp(min=1e-30))
    return errors


def _limits(yardstick: dict[str, float], dtype: torch.dtype) -> dict[str, float]:
    least = FLOOR.get(dtype, 1e-5)
    factors = {name: OUTPUT_FACTOR if name == "out" else GRADIENT_FACTOR for name in yardstick}
    return {name: max(least, factors[name] * error) for name, error in yardstick.items()}

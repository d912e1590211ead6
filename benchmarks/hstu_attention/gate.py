"""The gate compares every contestant with the reference in float64; only contestants that pass are timed.

The error of the output and of every gradient is the norm of the difference divided by the norm of the reference. The
limit is twice (output) or five times (gradients) the error of the packed torch path in the same dtype, and at least
1e-5 (1e-10 in float64). New tensors are filled with NaN, so that elements that an op leaves unwritten show as NaN.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .implementation import PACKED, Implementation, Result, failure, reference_result, step
from .shapes import Problem, Shape, draw, gate_shape

FLOOR = {torch.float64: 1e-10}
OUTPUT_FACTOR, GRADIENT_FACTOR = 2, 5


@dataclass(frozen=True)
class Verdict:
    """The relative errors of one contestant and their limits, by the name of the output or gradient."""

    implementation: str
    shape: str
    errors: dict[str, float]
    limits: dict[str, float]
    reason: str = ""  # why it was not judged
    failed: bool = False  # it raised an exception

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
def nan_filled_tensors() -> Iterator[None]:
    """Within this context torch.empty returns NaN."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ops without a deterministic implementation warn
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def judge(implementations: Sequence[Implementation], shape: Shape, device: torch.device) -> list[Verdict]:
    """Judge each contestant on a small problem like `shape`; one of them is the packed path, which sets the limits."""
    problem = draw(gate_shape(shape), device, 1)
    expected = reference_result(problem)
    packed = next(each for each in implementations if each.name == PACKED)
    limits = _limits(_errors(packed, problem, expected), shape.dtype)
    verdicts = []
    for each in implementations:
        reason = each.refuses(shape, device)
        if reason:
            verdicts.append(Verdict(each.name, shape.title, {}, {}, reason))
            continue
        try:
            errors = _errors(each, problem, expected)
        except Exception as error:  # whatever a peer or a compiler raises, the other contestants continue
            verdicts.append(Verdict(each.name, shape.title, {}, {}, failure(error), failed=True))
            continue
        verdicts.append(Verdict(each.name, shape.title, errors, {name: limits[name] for name in errors}))
    return verdicts


def _errors(implementation: Implementation, problem: Problem, expected: Result) -> dict[str, float]:
    """Relative errors by name; NaN if any element is NaN, which exceeds every limit."""
    with nan_filled_tensors():
        results = step(implementation, problem)()
    errors = {}
    for name, result, exact in zip(("out", *problem.names), results, expected, strict=True):
        errors[name] = float((result.double().cpu() - exact).norm() / exact.norm().clamp(min=1e-30))
    return errors


def _limits(packed_errors: dict[str, float], dtype: torch.dtype) -> dict[str, float]:
    floor = FLOOR.get(dtype, 1e-5)
    factors = {name: OUTPUT_FACTOR if name == "out" else GRADIENT_FACTOR for name in packed_errors}
    return {name: max(floor, factors[name] * error) for name, error in packed_errors.items()}

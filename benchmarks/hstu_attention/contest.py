"""The contest on one shape: choose the contestants, check them in the gate, time them, and compare the times."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from timing import Action, captured, interleaved

from .ceilings import Ceilings, floor_ms
from .gate import Verdict, judge
from .implementation import OURS, PACKED, Implementation, failure, forward, step
from .report import GRAPH, Row, row_of
from .shapes import Shape, draw, forward_flops, step_bytes

INPUT_SETS = 4  # for short shapes, whose inputs would otherwise stay in the cache


@dataclass(frozen=True)
class Contest:
    """The settings that all shapes of a run share."""

    implementations: Sequence[Implementation]
    device: torch.device
    ceilings: Ceilings | None
    rounds: int = 5
    turn_ms: float = 20.0

    def gate(self, shape: Shape) -> list[Verdict]:
        """Judge every contestant on a small shape like this one, and print the verdicts."""
        verdicts = judge(self.implementations, shape, self.device)
        for verdict in verdicts:
            if verdict.failed or not verdict.reason:
                print(verdict, flush=True)
        return verdicts

    def measure(self, shape: Shape, verdicts: Sequence[Verdict]) -> list[Row]:
        """The rows of one shape. A contestant that did not pass the gate has no times."""
        judged = {verdict.implementation: verdict for verdict in verdicts}
        reasons = {each.name: self._reason(each, shape, judged[each.name]) for each in self.implementations}
        rows = self._timed(shape, [each for each in self.implementations if not reasons[each.name]])
        return [*rows, *(Row(shape.title, name, reason=reason) for name, reason in reasons.items() if reason)]

    def _reason(self, implementation: Implementation, shape: Shape, verdict: Verdict) -> str:
        """Why a contestant is not timed; empty if it is timed."""
        return implementation.refuses(shape, self.device) or (
            "" if verdict.green else verdict.reason or "RED in the gate: not timed"
        )

    def _timed(self, shape: Shape, running: Sequence[Implementation]) -> list[Row]:
        problems = [draw(shape, self.device, seed) for seed in range(INPUT_SETS if shape.regime == "a" else 1)]
        actions: dict[str, list[Action]] = {}
        reasons: dict[str, str] = {}
        for each in running:
            pair = {f"fwd {each.name}": [forward(each, problem) for problem in problems],
                    f"step {each.name}": [step(each, problem) for problem in problems]}  # fmt: skip
            reasons[each.name] = _failure_of(pair[f"step {each.name}"][0])
            if reasons[each.name]:
                continue
            actions |= pair
            if shape.regime == "a" and each.captures and self.device.type == "cuda":
                try:
                    actions |= {name + GRAPH: [captured(action) for action in pair[name]] for name in pair}
                except RuntimeError as error:  # torch raises it if an op synchronises with the device
                    torch.cuda.synchronize()
                    reasons[each.name] = f"no CUDA graph: {str(error).splitlines()[0][:100]}"
        times = interleaved(actions, self.device, self.rounds, self.turn_ms)
        flops = sum(forward_flops(shape, problem.offsets) for problem in problems) // len(problems)
        floor = None
        if self.ceilings and f"step {OURS}" in actions:
            least = step_bytes(shape, problems[0].offsets), 3.5 * forward_flops(shape, problems[0].offsets)
            floor = floor_ms(actions[f"step {OURS}"][0], *least, self.ceilings)
        gemm = self.ceilings.gemm_tflops if self.ceilings else None
        rows = [
            replace(
                row_of(shape.title, name, (times[f"fwd {name}"], timing), flops, gemm, floor),
                reason=reasons.get(name, ""),
            )
            for name, timing in ((name.removeprefix("step "), times[name]) for name in times if name.startswith("step"))
        ]
        rows += [Row(shape.title, name, reason=why) for name, why in reasons.items() if f"step {name}" not in times]
        return _compared(rows, self.device)


def _failure_of(action: Action) -> str:
    """Why one call fails, for example for lack of memory; empty if it succeeds."""
    try:
        action()
    except Exception as error:  # whatever a peer raises, the other contestants continue
        return failure(error)
    return ""


def _compared(rows: Sequence[Row], device: torch.device) -> list[Row]:
    """The rows with the ratio of each step to ours: to our CUDA graph if there is one, on a CPU to the packed path."""
    steps = {row.implementation: row.step.median for row in rows if row.step}
    names = (OURS + GRAPH, OURS, PACKED) if device.type == "cuda" else (PACKED, OURS)
    ours = next((steps[name] for name in names if name in steps), None)
    return [replace(row, over_ours=row.step.median / ours if row.step and ours else None) for row in rows]


def run_contest(
    contest: Contest, shapes: Sequence[Shape], out_of_time: Callable[[], bool]
) -> tuple[list[Row], list[Verdict]]:
    """Measure the shapes one after the other until the time is up. The gate runs once per width, bias and dtype."""
    rows: list[Row] = []
    judged: dict[tuple[object, ...], list[Verdict]] = {}
    for shape in shapes:
        if out_of_time():
            rows.append(Row(shape.title, "-", reason="not run: out of time (--minutes)"))
            continue
        key = shape.dim, shape.heads, shape.bias, shape.dtype, shape.regime, min(shape.max_len, 260)
        if key not in judged:
            judged[key] = contest.gate(shape)
        measured = contest.measure(shape, judged[key])
        rows += measured
        for row in measured:
            if row.step:
                print(f"  {row.shape:36} {row.implementation:26} {row.step.median:9.3f} ms per step", flush=True)
        if contest.device.type == "cuda":
            torch.cuda.empty_cache()
    return rows, [verdict for verdicts in judged.values() for verdict in verdicts]

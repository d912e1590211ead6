"""The contest on one shape: who may run, gate, times, ratios."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from .ceilings import Ceilings, floor_of
from .gate import Verdict, judge, line
from .implementation import Implementation, failure, forward, step
from .ours import OURS, PACKED
from .report import Row, row_of
from .shapes import Shape, draw, forward_flops, step_bytes
from .timing import Action, Clock, captured, interleaved

INPUT_SETS = 4  # of short shapes, whose inputs would stay in the cache
GRAPH = " graph"


@dataclass(frozen=True)
class Contest:
    """What all shapes of a run have in common."""

    implementations: Sequence[Implementation]
    device: torch.device
    ceilings: Ceilings | None
    rounds: int = 5
    turn_ms: float = 20.0
    clock: Clock = time.perf_counter  # where there is no CUDA

    @property
    def yardstick(self) -> Implementation:
        """The packed path in plain torch: the gate's measure in each dtype."""
        return next(each for each in self.implementations if each.name == PACKED)

    def gate(self, shape: Shape) -> list[Verdict]:
        verdicts = judge(self.implementations, shape, self.device, self.yardstick)
        for verdict in verdicts:
            if verdict.failed or not verdict.reason:
                print(line(verdict), flush=True)
        return verdicts

    def measure(self, shape: Shape, verdicts: Sequence[Verdict]) -> list[Row]:
        """The rows of one shape. Who is not green has no times."""
        rows, running = [], []
        judged = {verdict.implementation: verdict for verdict in verdicts}
        for each in self.implementations:
            reason = each.refuses(shape, self.device)
            if each.needs_full and shape.lengths != "full":
                reason = "has no jagged batches"
            if not reason and not judged[each.name].green:
                reason = judged[each.name].reason or "RED in the gate: not timed"
            if reason:
                rows.append(Row(shape.title, each.name, reason=reason))
            else:
                running.append(each)
        return [*self._timed(shape, running), *rows]

    def _timed(self, shape: Shape, running: Sequence[Implementation]) -> list[Row]:
        sets = INPUT_SETS if shape.regime == "a" else 1
        kinds = {each.asks_next for each in running} | {False}
        drawn = {kind: [draw(shape, self.device, seed, kind) for seed in range(sets)] for kind in kinds}
        problems = drawn[False]
        actions: dict[str, list[Action]] = {}
        reasons: dict[str, str] = {}
        for each in running:
            forwards = [forward(each, problem) for problem in drawn[each.asks_next]]
            steps = [step(each, problem) for problem in drawn[each.asks_next]]
            reasons[each.name] = _tried(steps[0])
            if reasons[each.name]:
                continue
            actions |= {f"fwd {each.name}": forwards, f"step {each.name}": steps}
            if shape.regime == "a" and each.captures and self.device.type == "cuda":
                graphs = {
                    f"{kind} {each.name}{GRAPH}": _captured(actions[f"{kind} {each.name}"]) for kind in ("fwd", "step")
                }
                if all(isinstance(graph, list) for graph in graphs.values()):
                    actions |= {name: graph for name, graph in graphs.items() if isinstance(graph, list)}
                else:
                    reasons[each.name] = "no CUDA graph: " + next(g for g in graphs.values() if isinstance(g, str))
        times = interleaved(actions, self.device, self.rounds, self.turn_ms, self.clock)
        floor = self._floor_ms(shape, actions)
        flops = sum(forward_flops(shape, problem.offsets) for problem in problems) // sets
        rows = []
        for name in (name.removeprefix("step ") for name in times if name.startswith("step ")):
            pair = times[f"fwd {name}"], times[f"step {name}"]
            gemm = self.ceilings.gemm_tflops if self.ceilings else None
            rows.append(replace(row_of(shape.title, name, pair, flops, gemm, floor), reason=reasons.get(name, "")))
        rows += [Row(shape.title, name, reason=why) for name, why in reasons.items() if f"step {name}" not in times]
        return _compared(rows, {each.name: each.function for each in running}, self.device)

    def _floor_ms(self, shape: Shape, actions: dict[str, list[Action]]) -> float | None:
        """Of ours: its launches with nothing in them and its bytes moved once; at long histories also its products."""
        if self.ceilings is None or f"step {OURS}" not in actions:
            return None
        offsets = draw(shape, self.device, 0).offsets
        least = floor_of(actions[f"step {OURS}"][0], step_bytes(shape, offsets), self.ceilings, self.device).median
        return max(least, 3.5 * forward_flops(shape, offsets) / self.ceilings.gemm_tflops / 1e9)


def _tried(action: Action) -> str:
    """Why one call of it fails, for lack of memory for instance; empty if it does not."""
    try:
        action()
    except Exception as error:  # whatever a peer raises: the others go on
        return failure(error)
    return ""


def _captured(actions: Sequence[Action]) -> list[Action] | str:
    """Each as a CUDA graph, or why that is not possible."""
    try:
        return [captured(action) for action in actions]
    except RuntimeError as error:  # what torch raises where an op waits for the device
        torch.cuda.synchronize()
        return str(error).splitlines()[0][:100]


def _compared(rows: Sequence[Row], functions: dict[str, str], device: torch.device) -> list[Row]:
    """With each one's step over ours: our graph where there is one; on a CPU the packed path, which training takes."""
    steps = {row.implementation: row.step.median for row in rows if row.step}
    names = (OURS + GRAPH, OURS, PACKED) if device.type == "cuda" else (PACKED, OURS)
    best = next((steps[name] for name in names if name in steps), None)
    compared = []
    for row in rows:
        ours = best if row.step else None
        other = functions[row.implementation.removesuffix(GRAPH)] != "hstu"
        ratio = row.step.median / ours if row.step and ours else None
        compared.append(replace(row, over_ours=ratio, another_function=other))
    return compared


def run_contest(
    contest: Contest, shapes: Sequence[Shape], out_of_time: Callable[[], bool]
) -> tuple[list[Row], list[Verdict]]:
    """All shapes in turn, as far as the time goes; one gate per width, bias and dtype."""
    rows: list[Row] = []
    judged: dict[tuple[object, ...], list[Verdict]] = {}
    for shape in shapes:
        if out_of_time():
            rows.append(Row(shape.title, "-", reason="not run: out of time (--minutes)"))
            continue
        key = shape.dim, shape.heads, shape.bias, shape.dtype, shape.regime, min(shape.max_len, 260)
        if key not in judged:
            judged[key] = contest.gate(shape)
        found = contest.measure(shape, judged[key])
        rows += found
        for row in found:
            if row.step:
                print(f"  {row.shape:36} {row.implementation:26} {row.step.median:9.3f} ms a step", flush=True)
        if contest.device.type == "cuda":
            torch.cuda.empty_cache()
    return rows, [verdict for verdicts in judged.values() for verdict in verdicts]

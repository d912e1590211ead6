"""The table for people with the targets, and the record with every figure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from record import RESULTS, environment, save
from timing import Timing

from .ceilings import Ceilings
from .competitors import RESEARCH
from .gate import Verdict
from .implementation import OURS, PACKED

GRAPH = " graph"
ROW = "{:46}{:28}{:>9}{:>9}{:>19}{:>8}{:>8}{:>7}{:>8}  {}"
HEAD = ("shape", "contestant", "fwd ms", "step ms", "low..high", "TF fwd", "TF bwd", "%GEMM", "/floor", "theirs / ours")


@dataclass(frozen=True)
class Row:
    """One contestant on one shape. A step is forward and backward. `reason` says why times are missing."""

    shape: str
    implementation: str
    forward: Timing | None = None
    step: Timing | None = None
    forward_tflops: float | None = None  # counting valid pairs only
    backward_tflops: float | None = None  # step minus forward, with 2.5 times the operations of the forward
    gemm_share: float | None = None  # the step's operations per second over those of the matrix product
    over_floor: float | None = None  # step over the lower bound of `floor_ms`
    over_ours: float | None = None  # step over our step
    reason: str = ""

    def __str__(self) -> str:
        if self.step is None or self.forward is None:
            return ROW.format(self.shape, self.implementation, *[""] * 7, self.reason).rstrip()
        rates = (self.forward_tflops, self.backward_tflops) if self.gemm_share else (None, None)
        return ROW.format(
            self.shape,
            self.implementation,
            _number(self.forward.median, 3),
            _number(self.step.median, 3),
            f"{self.step.low:.3f}..{self.step.high:.3f}",
            *(_number(rate, 1) for rate in rates),
            _number(None if self.gemm_share is None else 100 * self.gemm_share, 0),
            _number(self.over_floor, 2),
            f"{_number(self.over_ours, 2)}{'; ' + self.reason if self.reason else ''}",
        ).rstrip()


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


@dataclass(frozen=True)
class Target:
    """A claim, the measured value (None if there is none), and the bound that it is compared with."""

    claim: str
    shape: str
    found: float | None
    bound: float
    at_least: bool = True

    @property
    def word(self) -> str:
        """The verdict: met, MISSED or not measured."""
        if self.found is None:
            return "not measured"
        holds = self.found >= self.bound if self.at_least else self.found <= self.bound
        return "met" if holds else "MISSED"

    def __str__(self) -> str:
        found, sign = "-" if self.found is None else f"{self.found:.2f}", ">=" if self.at_least else "<="
        return f"  {self.word:13}{self.claim} {sign} {self.bound:g}: {found}   ({self.shape})"


@dataclass
class Report:
    """Everything that one run measured."""

    bench: str
    device: str  # cuda or cpu
    arguments: dict[str, object]
    ceilings: Ceilings | None = None
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    def record(self) -> dict[str, object]:
        return {
            "bench": self.bench,
            **environment(self.device),
            "arguments": self.arguments,
            "ceilings": asdict(self.ceilings) if self.ceilings else None,
            "gate": [{**asdict(verdict), "green": verdict.green} for verdict in self.verdicts if not verdict.reason],
            "rows": [asdict(row) for row in self.rows],
            "targets": [{**asdict(target), "word": target.word} for target in self.targets],
        }

    @property
    def green(self) -> bool:
        """Whether no judged contestant is wrong and ours raised no exception; a peer's exception does not count."""
        judged = all(verdict.green for verdict in self.verdicts if not verdict.reason)
        return judged and not any(v.failed and v.implementation.startswith(OURS) for v in self.verdicts)

    def table(self) -> str:
        targets = ["", "targets", *map(str, self.targets)] if self.targets else []
        return "\n".join([ROW.format(*HEAD), *map(str, self.rows), *targets])

    def save(self, name: str) -> None:
        """Write NAME.json and NAME.md to the folder of results."""
        record = self.record()
        about = ", ".join(f"{key} {record[key]}" for key in ("date", "commit", "hardware", "cores", "torch", "triton"))
        save(RESULTS / name, record, f"# {self.bench}\n\n{about}.\n\n```\n{self.table()}\n```\n")


def row_of(
    shape: str,
    implementation: str,
    times: tuple[Timing, Timing],
    flops: int,
    gemm_tflops: float | None,
    floor: float | None,
) -> Row:
    """times: of the forward and of the step; flops: of the forward on valid pairs; floor: in milliseconds."""
    forward, step = times
    backward_ms = step.median - forward.median
    return Row(
        shape,
        implementation,
        forward,
        step,
        flops / forward.median / 1e9,
        2.5 * flops / backward_ms / 1e9 if backward_ms > 0 else None,
        3.5 * flops / step.median / 1e9 / gemm_tflops if gemm_tflops else None,
        step.median / floor if floor else None,
    )


def targets_of(rows: Sequence[Row]) -> list[Target]:
    """The targets of docs/kernels.md with the values measured in these rows."""
    timed = {(row.shape, row.implementation): row for row in rows if row.step}

    def ratio_of_steps(shape: str, name: str, base_shape: str, base_name: str) -> float | None:
        pair = timed.get((shape, name)), timed.get((base_shape, base_name))
        return pair[0].step.median / pair[1].step.median if all(pair) else None

    targets = []
    for shape in dict.fromkeys(row.shape for row in rows):
        if shape.startswith("A"):
            ours = timed.get((shape, OURS + GRAPH))
            floor = ours and ours.over_floor
            targets.append(Target("step over the floor of launches and bytes", shape, floor, 2, at_least=False))
            ratio = ratio_of_steps(shape, RESEARCH, shape, OURS + GRAPH)
            targets.append(Target("research eager over ours", shape, ratio, 10))
        elif shape.startswith("B d=128") and int(shape.split("N=")[1].split()[0]) >= 4096:
            ours = timed.get((shape, OURS))
            if shape.endswith("bias=none"):
                targets.append(Target("forward, TFLOP/s", shape, ours and ours.forward_tflops, 450))
                targets.append(Target("backward, TFLOP/s", shape, ours and ours.backward_tflops, 300))
            elif shape.endswith("bias=position+time"):
                ratio = ratio_of_steps(shape, OURS, shape.replace("position+time", "none"), OURS)
                targets.append(Target("both biases over none", shape, ratio, 1.5, at_least=False))
        elif shape.startswith("short"):  # the CPU target is for mean length 9
            ratio = ratio_of_steps(shape, RESEARCH, shape, PACKED)
            targets.append(Target("padded research over packed", shape, ratio, 5))
    return targets

"""The table for people, the targets beside it, and the record: hardware, versions, commit, every figure."""

import importlib.util
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from .ceilings import Ceilings
from .gate import Verdict
from .timing import Timing

RESULTS = Path(__file__).resolve().parents[1] / "results"
ROW = "{:46}{:28}{:>9}{:>9}{:>19}{:>8}{:>8}{:>7}{:>8}  {}"
HEAD = ("shape", "contestant", "fwd ms", "step ms", "low..high", "TF fwd", "TF bwd", "%GEMM", "/floor", "theirs / ours")


@dataclass(frozen=True)
class Row:
    """One contestant on one shape; a step is forward and backward. `reason` says why there are no times."""

    shape: str
    implementation: str
    forward: Timing | None = None
    step: Timing | None = None
    forward_tflops: float | None = None  # on valid pairs
    backward_tflops: float | None = None  # what the step takes beyond the forward, at 2.5 times its operations
    gemm_share: float | None = None  # of the step: its operations a second over the rate of the matrix product
    over_floor: float | None = None
    over_ours: float | None = None
    another_function: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Target:
    """A claim, what was found, and whether it holds; `found` None: nothing to judge by."""

    claim: str
    shape: str
    found: float | None
    bound: float
    at_least: bool = True

    @property
    def word(self) -> str:
        if self.found is None:
            return "not measured"
        holds = self.found >= self.bound if self.at_least else self.found <= self.bound
        return "met" if holds else "MISSED"


@dataclass
class Report:
    """Everything of one run, in the order of its making."""

    bench: str
    arguments: dict[str, object]
    ceilings: Ceilings | None = None
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    def record(self) -> dict[str, object]:
        rows, targets = [asdict(row) for row in self.rows], [{**asdict(t), "word": t.word} for t in self.targets]
        ceilings = asdict(self.ceilings) if self.ceilings else None
        gate = [{**asdict(verdict), "green": verdict.green} for verdict in self.verdicts if not verdict.reason]
        parts = {"bench": self.bench, **environment(), "arguments": self.arguments, "ceilings": ceilings}
        return {**parts, "gate": gate, "rows": rows, "targets": targets, "notes": self.notes}

    @property
    def green(self) -> bool:
        """No contestant that was judged is wrong, and ours did not fail. A peer may."""
        judged = all(verdict.green for verdict in self.verdicts if not verdict.reason)
        return judged and not any(v.failed and v.implementation.startswith("ours") for v in self.verdicts)

    def table(self) -> str:
        lines = [ROW.format(*HEAD)]
        lines += [line(row) for row in self.rows if row.step or row.reason]
        if self.targets:
            lines += ["", "targets"]
        for target in self.targets:
            sign = ">=" if target.at_least else "<="
            found = "-" if target.found is None else f"{target.found:.2f}"
            lines.append(f"  {target.word:13}{target.claim} {sign} {target.bound:g}: {found}   ({target.shape})")
        return "\n".join([*lines, *self.notes])

    def save(self, name: str) -> list[Path]:
        """NAME.json and NAME.md among the results."""
        RESULTS.mkdir(exist_ok=True)
        record = self.record()
        as_json, as_text = RESULTS / f"{name}.json", RESULTS / f"{name}.md"
        as_json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        about = ", ".join(f"{key} {record[key]}" for key in ("date", "commit", "device", "cores", "torch", "triton"))
        text = f"# {self.bench}\n\n{about}.\n\n```\n{self.table()}\n```\n"
        as_text.write_text(text, encoding="utf-8")
        return [as_json, as_text]


def line(row: Row) -> str:
    """One line of the table."""
    if row.step is None:
        return ROW.format(row.shape, row.implementation, *[""] * 7, row.reason).rstrip()
    ours = "" if row.over_ours is None else f"{row.over_ours:.2f}"
    notes = f"{ours}{' (another function)' if row.another_function else ''}{'; ' + row.reason if row.reason else ''}"
    return ROW.format(
        row.shape,
        row.implementation,
        _number(row.forward.median if row.forward else None, 3),
        _number(row.step.median, 3),
        f"{row.step.low:.3f}..{row.step.high:.3f}",
        _number(row.forward_tflops if row.gemm_share else None, 1),
        _number(row.backward_tflops if row.gemm_share else None, 1),
        _number(None if row.gemm_share is None else 100 * row.gemm_share, 0),
        _number(row.over_floor, 2),
        notes,
    ).rstrip()


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def row_of(
    shape: str,
    implementation: str,
    times: tuple[Timing, Timing],
    flops: int,
    gemm_tflops: float | None,
    floor_ms: float | None,
) -> Row:
    """times: of the forward and of the step; flops: of the forward on valid pairs."""
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
        step.median / floor_ms if floor_ms else None,
    )


def step_ms(rows: Sequence[Row], shape: str, implementation: str) -> float | None:
    """The median of one contestant's step."""
    found = [row.step.median for row in rows if (row.shape, row.implementation) == (shape, implementation) and row.step]
    return found[0] if found else None


def environment() -> dict[str, object]:
    """Where and with what."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=RESULTS.parent
    )
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": commit.stdout.strip() or "unknown",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": metadata.version("triton") if importlib.util.find_spec("triton") else None,
        "numpy": metadata.version("numpy"),
    }


def processor() -> str:
    """The processor's own name for itself."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    names = [row.split(":")[1].strip() for row in text.splitlines() if row.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]

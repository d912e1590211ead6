"""HSTU attention, forward and backward with every gradient: ours against its peers and against what the device can do.

    python benchmarks/bench_hstu_attention.py --save         # a CUDA device; under ten minutes
    python benchmarks/bench_hstu_attention.py --cpu --save   # the packed path on a CPU, one and two threads
    python benchmarks/bench_hstu_attention.py --cpu-gate     # no times: every contestant's mathematics

Order: what the device can do at most (matrix product, copy, empty kernels in a CUDA graph); then for each shape every
contestant against the reference in float64, and only who is right is timed, in turns, medians of the rounds. Shapes,
contestants and the meaning of the columns: docs/kernels.md, Benchmarks. The last line is the record as JSON.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported; spinning threads slow each other
sys.path.insert(0, str(Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

import torch
from hstu_attention.ceilings import measure_ceilings
from hstu_attention.competitors import padded_implementations
from hstu_attention.contest import Contest, run_contest
from hstu_attention.implementation import DETERMINISTIC, our_implementations
from hstu_attention.report import Report, targets_of
from hstu_attention.shapes import BIASES, Shape, shapes_a, shapes_b, shapes_cpu
from record import environment, parser_of

TINY = [
    Shape("tiny", 14, 50, 9, 2, dim, bias, dtype)
    for bias in BIASES
    for dim, dtype in ((16, torch.float64), (25, torch.float32))
]


def on_cuda(arguments: argparse.Namespace) -> Report:
    """Ceilings, then both regimes, as far as the minutes go."""
    device, started = torch.device("cuda"), time.monotonic()
    torch.set_float32_matmul_precision("high")  # TF32, as research code trains
    torch._dynamo.config.recompile_limit = 64  # beyond it, torch.compile silently runs a contestant eagerly
    report = Report("HSTU attention on CUDA", "cuda", vars(arguments), measure_ceilings(device))
    print(report.ceilings, flush=True)
    implementations = [*our_implementations(compiled=True), *padded_implementations(compiled=True)]
    contest = Contest(implementations, device, report.ceilings, arguments.rounds)
    shapes = [*(shapes_a() if "a" in arguments.regime else []), *(shapes_b() if "b" in arguments.regime else [])]
    report.rows, report.verdicts = run_contest(contest, shapes, _clock(started, arguments.minutes))
    report.targets = targets_of(report.rows)
    return report


def on_cpu(arguments: argparse.Namespace) -> Report:
    """The packed path (its plan made before: it serves every layer) against the padded research form; one, two threads.

    `ours` is the op, which on a CPU makes its plan in every call, and again in the backward.
    """
    report, device = Report("HSTU attention on a CPU", "cpu", vars(arguments)), torch.device("cpu")
    ours = [each for each in our_implementations(compiled=False) if each.name != DETERMINISTIC]
    contestants = [*ours, *padded_implementations(compiled=False)]
    contest = Contest(contestants, device, None, arguments.rounds, turn_ms=200)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        shapes = [replace(shape, name=f"{shape.name} {threads}t") for shape in shapes_cpu()]
        rows, verdicts = run_contest(contest, shapes, _clock(time.monotonic(), arguments.minutes))
        report.rows += rows
        report.verdicts += verdicts
    report.targets = targets_of(report.rows)
    return report


def cpu_gate() -> int:
    """Every contestant that can run here, on tiny problems in float64 and float32; 1 if one is wrong."""
    contestants = [*our_implementations(compiled=False), *padded_implementations(compiled=False)]
    contest = Contest(contestants, torch.device("cpu"), None)
    wrong = [verdict for shape in TINY for verdict in contest.gate(shape) if verdict.wrong]
    for verdict in wrong:
        print(f"wrong: {verdict}")
    print(json.dumps({"bench": "cpu-gate", **environment(), "shapes": len(TINY), "wrong": len(wrong)}))
    return 1 if wrong else 0


def _clock(started: float, minutes: float) -> Callable[[], bool]:
    return lambda: time.monotonic() - started > 60 * minutes


def main() -> int:
    parser = parser_of(__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--cpu", action="store_true", help="time the packed path on the CPU instead")
    what.add_argument("--cpu-gate", action="store_true", help="check the contestants' mathematics on the CPU; no times")
    parser.add_argument("--regime", choices=["a", "b", "ab"], default="ab", help="a: short histories, b: long ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=8.5, help="no new shape is begun after that")
    parser.add_argument("--save", action="store_true", help="write the record to benchmarks/results/")
    arguments = parser.parse_args()
    if arguments.cpu_gate:
        return cpu_gate()
    if not (arguments.cpu or torch.cuda.is_available()):
        print("This needs a CUDA device and there is none: nothing was measured. --cpu and --cpu-gate run without one.")
        print(json.dumps({"bench": "HSTU attention on CUDA", "skipped": "no CUDA device"}))
        return 0
    report = on_cpu(arguments) if arguments.cpu else on_cuda(arguments)
    print(report.table())
    if arguments.save:
        report.save(f"hstu-attention-{report.device}")
    print(json.dumps(report.record(), default=str))
    return 0 if report.green else 1


if __name__ == "__main__":
    sys.exit(main())

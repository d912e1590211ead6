"""HSTU attention, forward and backward with every gradient, against peers and against the limits of the device.

    python benchmarks/bench_hstu_attention.py --save         # a CUDA device; under ten minutes
    python benchmarks/bench_hstu_attention.py --cpu --save   # the packed path on a CPU, one and two threads
    python benchmarks/bench_hstu_attention.py --cpu-gate     # no times: checks that every contestant is correct

First the ceilings of the device are measured (matrix product, copy, empty kernels in a CUDA graph). Then, for each
shape, every contestant is compared with the reference in float64, and the correct ones are timed in turns, with medians
over the rounds. The section Benchmarks of docs/kernels.md explains shapes, contestants and columns. The last line is
the JSON record.
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
sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

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
    """Ceilings, then both regimes, until the time limit."""
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
    """The packed path against the padded research code, on one and on two threads.

    The packed path gets a finished plan, because in training all layers share one. `ours` is the op, which on a CPU
    builds its plan in every call and again in the backward pass.
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
    """Check every contestant that runs on a CPU on tiny problems in float64 and float32; 1 if one is wrong, else 0."""
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
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--cpu", action="store_true", help="time the packed path on the CPU instead")
    mode.add_argument("--cpu-gate", action="store_true", help="check the contestants' results on the CPU; no times")
    parser.add_argument("--regime", choices=["a", "b", "ab"], default="ab", help="a: short histories, b: long ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=8.5, help="start no new shape after this time")
    parser.add_argument("--save", action="store_true", help="write the record to benchmarks/results/")
    arguments = parser.parse_args()
    if arguments.cpu_gate:
        return cpu_gate()
    if not (arguments.cpu or torch.cuda.is_available()):
        print("This benchmark needs a CUDA device: nothing was measured. --cpu and --cpu-gate run without one.")
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

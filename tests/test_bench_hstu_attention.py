"""The HSTU attention benchmark: its contestants are correct, its gate rejects wrong ones, and its figures add up."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from bench_hstu_attention import main  # noqa: E402
from hstu_attention.ceilings import launches_in  # noqa: E402
from hstu_attention.competitors import padded_implementations  # noqa: E402
from hstu_attention.contest import Contest, run_contest  # noqa: E402
from hstu_attention.gate import judge  # noqa: E402
from hstu_attention.implementation import Implementation, Leaves, our_implementations  # noqa: E402
from hstu_attention.report import Target, row_of  # noqa: E402
from hstu_attention.shapes import Problem, Shape, draw, draw_lengths, shapes_a, shapes_b, valid_pairs  # noqa: E402
from timing import Timing, interleaved  # noqa: E402

CPU = torch.device("cpu")
OURS = our_implementations(compiled=False)[0]
SHAPE = Shape("tiny", 14, 50, 9, 2, 8)


def test_every_contestant_that_runs_on_a_cpu_agrees_with_the_reference() -> None:
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent / ".typing")}
    command = [sys.executable, "-P", str(BENCHMARKS / "bench_hstu_attention.py"), "--cpu-gate"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["wrong"] == 0
    names = ("ours", "ours deterministic", "C1 research padded", "C3 packed torch")
    assert not [name for name in names if f"green {name} " not in done.stdout]


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a CUDA device, the script would measure it")
def test_without_a_cuda_device_the_script_says_so_and_measures_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_hstu_attention.py"])
    assert main() == 0
    printed = capsys.readouterr().out
    assert "needs a CUDA device" in printed
    assert json.loads(printed.splitlines()[-1])["skipped"] == "no CUDA device"


def with_unwritten_row(problem: Problem, leaves: Leaves) -> Tensor:
    """Our output, but the last row is unwritten memory."""
    out = OURS.attend(problem, leaves)
    return torch.cat((out[:-1], torch.empty_like(out[-1:]) + 0 * out[-1:]))


def test_the_gate_rejects_unwritten_results_and_the_contestant_is_not_timed() -> None:
    ours = our_implementations(compiled=False)
    contest = Contest([*ours, Implementation("unwritten", with_unwritten_row)], CPU, None, rounds=1, turn_ms=0.1)
    rows, verdicts = run_contest(contest, [SHAPE], lambda: False)
    assert {verdict.implementation: verdict.green for verdict in verdicts} == {
        **{each.name: True for each in ours}, "unwritten": False,
    }  # fmt: skip
    assert {row.implementation for row in rows if row.step} == {each.name for each in ours}


def test_a_contestant_that_raises_is_reported_and_the_others_continue() -> None:
    def broken(problem: Problem, leaves: Leaves) -> Tensor:
        raise RuntimeError("no such kernel")

    contest = Contest([*our_implementations(compiled=False), Implementation("broken", broken)], CPU, None, 1, 0.1)
    rows, verdicts = run_contest(contest, [SHAPE], lambda: False)
    assert [v.implementation for v in verdicts if v.failed] == ["broken"]
    assert {row.reason for row in rows if not row.step} == {"failed: RuntimeError: no such kernel"}


@pytest.mark.parametrize("factor", [0.7, 1.001])
def test_the_gate_rejects_a_forward_that_is_off_by_a_factor(factor: float) -> None:
    scaled = Implementation("scaled", lambda problem, leaves: OURS.attend(problem, leaves) * factor)
    verdicts = judge([*our_implementations(compiled=False), scaled], SHAPE, CPU)
    assert [verdict.green for verdict in verdicts] == [True, True, True, False]


def test_shapes_that_are_out_of_time_are_reported_and_not_run() -> None:
    contest = Contest(our_implementations(compiled=False), CPU, None)
    rows, verdicts = run_contest(contest, [SHAPE], lambda: True)
    assert [row.reason for row in rows] == ["not run: out of time (--minutes)"]
    assert not verdicts


@pytest.mark.parametrize("shape", [*shapes_a(), *shapes_b()[::7]], ids=lambda shape: shape.title)
def test_lengths_have_the_mean_of_the_shape_and_never_exceed_max_len(shape: Shape) -> None:
    lengths = draw_lengths(shape, seed=0)
    assert len(lengths) == shape.batch
    assert abs(lengths.mean() - shape.mean) <= 0.01 * shape.mean
    assert lengths.min() >= 0 and lengths.max() <= shape.max_len


def test_valid_pairs_counts_each_query_with_itself_and_every_earlier_key() -> None:
    offsets = draw(SHAPE, CPU, seed=0).offsets
    assert valid_pairs(offsets) == sum(np.tril(np.ones((n, n))).sum() for n in offsets.diff().tolist())


def test_the_research_code_masks_later_events_and_other_sequences() -> None:
    """A change of the last event of one sequence changes only that event's output."""
    research = padded_implementations(compiled=False)[0]
    problem = draw(replace(SHAPE, dtype=torch.float64), CPU, seed=3)
    end = int(problem.offsets[5])
    leaves = [leaf.detach().clone() for leaf in problem.leaves]
    for leaf in leaves[:3]:
        leaf[end - 1] += 1
    before, after = research.attend(problem, problem.leaves), research.attend(problem, leaves)
    changed = (before - after).abs().flatten(1).amax(1) > 0
    assert changed.nonzero().flatten().tolist() == [end - 1]


def test_contestants_take_turns_and_use_every_set_of_inputs() -> None:
    calls: list[str] = []
    actions = {name: [lambda n=f"{name}{i}": calls.append(n) for i in range(3)] for name in ("a", "b")}
    times = interleaved(actions, CPU, rounds=2, turn_ms=0.0)
    assert {name: timing.rounds for name, timing in times.items()} == {"a": 2, "b": 2}
    assert calls[-12:] == ["a0", "a1", "a2", "b0", "b1", "b2"] * 2


def test_launches_are_the_kernels_fills_and_copies_of_a_trace() -> None:
    events = [
        {"cat": "kernel", "name": "k", "args": {"grid": [3, 2, 1], "block": [128, 1, 1]}},
        {"cat": "gpu_memset", "name": "Memset", "args": {}},
        {"cat": "cpu_op", "name": "aten::mm", "args": {}},
        {"ph": "M", "name": "process_name"},
    ]
    assert launches_in(events) == 2


def test_rates_and_targets_follow_from_the_times() -> None:
    one, three = Timing(1.0, 0.9, 1.1, 5), Timing(3.0, 2.9, 3.1, 5)
    row = row_of("s", "ours", (one, three), flops=10**12, gemm_tflops=2000, floor=1.5)
    assert (row.forward_tflops, row.backward_tflops, row.over_floor) == (1000, 1250, 2)
    assert row.gemm_share == pytest.approx(3.5e12 / 3e-3 / 2e15)
    assert [Target("c", "s", found, 2, at_least=False).word for found in (1.0, 3.0, None)] == [
        "met", "MISSED", "not measured",
    ]  # fmt: skip

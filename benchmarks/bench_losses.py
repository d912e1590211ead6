"""The fused losses against plain torch and, if they are installed, other libraries: time and peak memory.

    python benchmarks/bench_losses.py    # the CUDA part needs a CUDA device; the CPU part always runs

First the gate compares the value and both gradients of every contestant with the reference in float64; a contestant
that is wrong is not timed. Then forward plus backward of the mean loss is timed in one run, contestants in turns, with
median and extremes over the rounds. Peak memory is what a call needs beyond its inputs, gradients included.
Prints tables, then one JSON line.

    full CE     softmax over the whole catalogue; contestants that are not fused store all (n, V) scores
    sampled     the same 512 negatives for all positions, cosine scores, logQ
    own         128 negatives drawn separately for each position
"""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

import torch
import torch.nn.functional as F
from record import environment, parser_of
from timing import interleaved
from torch import Tensor

from virtualmle.kernels.losses import reference
from virtualmle.kernels.losses.linear_cross_entropy import linear_cross_entropy
from virtualmle.kernels.losses.sampled_softmax import sampled_softmax_loss

Loss = Callable[[Tensor, Tensor], Tensor]  # (states, table) to the mean loss
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # relative error that the gate allows
WIDTH = 64
TERMS = {"cosine": True, "temperature": 0.1}


@dataclass(frozen=True)
class Shape:
    """One case of the benchmark."""

    name: str
    positions: int
    items: int
    drawn: int  # number of negatives; 0 for the full softmax
    own: bool  # negatives drawn separately for each position
    dtype: torch.dtype

    def __str__(self) -> str:
        negatives = f" m={self.drawn}" if self.drawn else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.name}: n={self.positions:,} V={self.items:,} d={WIDTH}{negatives} {dtype}"


CUDA_SHAPES = [
    Shape(name, 9_488, items, drawn, own, dtype)  # 1,024 users with 9.27 events on average
    for dtype in (torch.float32, torch.bfloat16)
    for name, items, drawn, own in (
        ("sampled", 12_101, 512, False),
        ("sampled", 1_000_000, 512, False),
        ("own", 12_101, 128, True),
        ("full CE", 12_101, 0, False),
        ("full CE", 1_000_000, 0, False),
    )
]
CPU_SHAPES = [
    Shape("sampled", 512, 2_000, 128, False, torch.float32),
    Shape("own", 512, 2_000, 32, True, torch.float32),
    Shape("full CE", 512, 2_000, 0, False, torch.float32),
]


def contestants(shape: Shape, device: torch.device) -> tuple[Loss, dict[str, Loss]]:
    """The reference of a case, and the contestants that can run it, by name."""
    generator = torch.Generator(device).manual_seed(1)
    targets = torch.randint(shape.items, (shape.positions,), generator=generator, device=device)
    if not shape.drawn:
        return full_contestants(targets)
    size = (shape.positions, shape.drawn) if shape.own else (shape.drawn,)
    negatives = torch.randint(shape.items, size, generator=generator, device=device)
    log_q = torch.full((shape.items,), 1 / shape.items, device=device).log()

    def plain(states: Tensor, table: Tensor) -> Tensor:
        states, rows = F.normalize(states, dim=-1), F.normalize(F.embedding(negatives, table), dim=-1)
        own = (states * F.normalize(F.embedding(targets, table), dim=-1)).sum(-1) / TERMS["temperature"]
        scores = torch.einsum("nd,nmd->nm", states, rows) if shape.own else states @ rows.T
        scores = scores / TERMS["temperature"] - (log_q[negatives] + torch.log(torch.tensor(float(shape.drawn))))
        scores = scores.masked_fill(negatives == targets[:, None], -torch.inf).to(states.dtype)
        return F.cross_entropy(torch.cat((own[:, None], scores), 1), torch.zeros_like(targets))

    named: dict[str, Loss] = {
        "ours": lambda s, w: sampled_softmax_loss(s, w, targets, negatives, log_q=log_q, **TERMS),
        "plain torch": plain,
        "compiled": torch.compile(plain),
    }
    if device.type == "cuda" and shape.dtype == torch.float32:
        named["ours tf32"] = lambda s, w: sampled_softmax_loss(
            s, w, targets, negatives, log_q=log_q, precision="tf32", **TERMS
        )
    return lambda s, w: reference.sampled_softmax_loss(s, w, targets, negatives, log_q=log_q, **TERMS), named


def full_contestants(targets: Tensor) -> tuple[Loss, dict[str, Loss]]:
    def plain(states: Tensor, table: Tensor) -> Tensor:
        return F.cross_entropy(states @ table.T, targets)

    named: dict[str, Loss] = {
        "ours": lambda s, w: linear_cross_entropy(s, w, targets),
        "plain torch": plain,
        "compiled": torch.compile(plain),
    }
    if targets.is_cuda:
        named["ours tf32"] = lambda s, w: linear_cross_entropy(s, w, targets, precision="tf32")
    if hasattr(F, "linear_cross_entropy"):
        named["torch F.linear_cross_entropy"] = lambda s, w: F.linear_cross_entropy(s, w, targets)
    cut = importable("cut_cross_entropy")
    if cut and targets.is_cuda:
        named["cut-cross-entropy exact"] = lambda s, w: cut.linear_cross_entropy(s, w, targets, impl="cce_exact")
    liger = importable("liger_kernel.transformers.functional")
    if liger and targets.is_cuda:
        named["liger-kernel"] = lambda s, w: liger.liger_fused_linear_cross_entropy(s, w, targets)
    return lambda s, w: reference.linear_cross_entropy(s, w, targets), named


def importable(name: str) -> ModuleType | None:
    """A peer's module, or None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def leaves_of(shape: Shape, device: torch.device) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return [
        torch.randn(rows, WIDTH, generator=generator, device=device).to(shape.dtype).requires_grad_()
        for rows in (shape.positions, shape.items)
    ]


def step(loss: Loss, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    value = loss(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


def errors(shape: Shape, device: torch.device) -> dict[str, float | str]:
    """The largest relative error of each contestant's value and gradients on a small case, or its failure as text."""
    small = replace(shape, positions=64, items=1_000, drawn=min(shape.drawn, 40))
    exact_loss, named = contestants(small, device)
    leaves = leaves_of(small, device)
    exact = step(exact_loss, [leaf.detach().double().requires_grad_() for leaf in leaves])
    found: dict[str, float | str] = {}
    for name, loss in named.items():
        try:
            pairs = zip(step(loss, leaves), exact, strict=True)
        except Exception as error:  # whatever a peer or a compiler raises, the other contestants continue
            found[name] = f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]}"
            continue
        found[name] = max(((value.double() - true).norm() / true.norm()).item() for value, true in pairs)
    return found


def measure(shape: Shape, device: torch.device, rounds: int) -> dict[str, dict[str, Any]]:
    """Milliseconds and peak bytes of each contestant that passes the gate; for the others, why they are missing."""
    allowed = ALLOWED[shape.dtype]
    judged = errors(shape, device).items()
    wrong = {name: error for name, error in judged if isinstance(error, str) or not error <= allowed}
    found: dict[str, dict[str, Any]] = {name: {"wrong": f"wrong: {error}"} for name, error in wrong.items()}
    leaves, actions = leaves_of(shape, device), {}
    for name, loss in contestants(shape, device)[1].items():
        if name in wrong:
            continue
        try:
            found[name] = {"peak_bytes": peak_bytes(loss, leaves, device)}
            actions[name] = [lambda loss=loss: step(loss, leaves)]
        except torch.OutOfMemoryError:
            found[name] = {"out_of_memory": True}
            torch.cuda.empty_cache()
    for name, timing in interleaved(actions, device, rounds, turn_ms=100).items():
        found[name]["ms"] = asdict(timing)
    return found


def peak_bytes(loss: Loss, leaves: list[Tensor], device: torch.device) -> int | None:
    """Peak memory of one call beyond what was allocated before it, after two warm-up calls; None on the CPU."""
    for _ in range(2):
        step(loss, leaves)
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(loss, leaves)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def table(shape: Shape, found: dict[str, dict[str, Any]]) -> str:
    lines = [f"\n{shape}"]
    ours = found["ours"]["ms"]["median"] if "ms" in found["ours"] else float("nan")
    for name, row in found.items():
        if "ms" not in row:
            lines.append(f"  {name:30} {'out of memory' if 'out_of_memory' in row else row['wrong']}")
            continue
        times = "{median:10.3f} ms  ({low:.3f} to {high:.3f})".format(**row["ms"])
        memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:10.1f} MiB"
        lines.append(f"  {name:30}{times:40}{memory}   {row['ms']['median'] / ours:6.2f} x ours")
    return "\n".join(lines)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU part")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    parts = {"cpu": CPU_SHAPES}
    if torch.cuda.is_available():
        parts["cuda"] = CUDA_SHAPES
    else:
        print("no CUDA device: only the CPU part is measured, which runs without Triton")
    cases = []
    for kind, shapes in parts.items():
        print(f"\n{kind}: {environment(kind)}")
        for shape in shapes:
            torch.compiler.reset()
            found = measure(shape, torch.device(kind), arguments.rounds)
            print(table(shape, found), flush=True)
            cases.append({"case": str(shape), "device": kind, "results": found})
    record = {"bench": "losses", "threads": arguments.threads, "cases": cases}
    print(json.dumps(record | {"environments": {kind: environment(kind) for kind in parts}}))


if __name__ == "__main__":
    main()

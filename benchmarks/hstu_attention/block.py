"""What share of an HSTU block its epilogue takes: u * norm(attention), then dropout, between attention and the output.

It is not fused into a kernel of its own. What fusing could win at most is the epilogue's share of a step, less the
time that its bytes need; this prints both, so that the decision can be made where a GPU is. The block is the models'
own; the epilogue is the same ops on tensors of the same shapes, with the gradients of u and of the attention.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from virtualmle.kernels.jagged.dropout import dropout
from virtualmle.models.batch import make_batch
from virtualmle.models.config import make_config
from virtualmle.models.hstu import HSTUBlock
from virtualmle.models.norms import plain_norm

from .ceilings import measure_ceilings
from .report import Report, Row
from .shapes import Shape, draw, shapes_a
from .timing import Action, captured, interleaved

DROPOUT = 0.2
BLOCK, EPILOGUE, COMPILED = "block step", "epilogue alone", "epilogue compiled"
TRAFFIC = 8  # tensors: u, attention in, result out; then its gradient, u, attention in, two gradients out


def profile_block(device: torch.device, rounds: int) -> Report:
    """Every short shape; graphs on CUDA, so that the host's time is not counted as the epilogue's."""
    ceilings = measure_ceilings(device) if device.type == "cuda" else None
    report = Report("the epilogue of an HSTU block", {"dropout": DROPOUT}, ceilings)
    shapes = [shape for shape in shapes_a() if shape.dtype == torch.float32]
    for shape in shapes if device.type == "cuda" else shapes[:1]:
        rows = _rows(shape, device, rounds)
        report.rows += rows
        report.notes.append(_share(shape, rows, ceilings.copy_tbs if ceilings else None))
    if ceilings is None:
        report.notes.append("on a CPU: this shows that it runs, and says nothing about fusing on a GPU")
    return report


def _rows(shape: Shape, device: torch.device, rounds: int) -> list[Row]:
    actions = {BLOCK: _block_step(shape, device), EPILOGUE: _epilogue_step(shape, device, epilogue)}
    if device.type == "cuda":
        actions[COMPILED] = _epilogue_step(shape, device, torch.compile(epilogue))
        actions = {name: captured(action) for name, action in actions.items()}
    times = interleaved({name: [action] for name, action in actions.items()}, device, rounds, turn_ms=50)
    return [Row(shape.title, name, step=timing) for name, timing in times.items()]


def epilogue(u: Tensor, attention: Tensor) -> Tensor:
    """(L, heads * dim) each, as `HSTUBlock.forward` has it."""
    config = make_config("hstu")
    return dropout(u * plain_norm(attention, config), DROPOUT, training=True)


def _epilogue_step(shape: Shape, device: torch.device, function: Callable[[Tensor, Tensor], Tensor]) -> Action:
    problem = draw(shape, device, seed=0)
    u, attention = (leaf.detach().flatten(1).requires_grad_() for leaf in problem.leaves[:2])
    grad = problem.grad.flatten(1)

    def step() -> object:
        return torch.autograd.grad(function(u, attention), (u, attention), grad)

    return step


def _block_step(shape: Shape, device: torch.device) -> Action:
    width = shape.heads * shape.dim
    config = make_config(
        "hstu", hidden_dim=width, num_heads=shape.heads, linear_dim=shape.dim, attention_dim=shape.dim,
        max_len=shape.max_len, dropout=DROPOUT, time_bias=True,
    )  # fmt: skip
    problem = draw(replace(shape, bias="none"), device, seed=0)
    block = HSTUBlock(config).to(device).train()
    x = problem.leaves[0].detach().flatten(1).requires_grad_()  # (L, hidden_dim)
    batch = make_batch(torch.zeros(len(x), dtype=torch.int64, device=device), problem.offsets, config, problem.times)
    grad, wanted = problem.grad.flatten(1), (x, *block.parameters())

    def step() -> object:
        return torch.autograd.grad(block(x, batch.plan), wanted, grad)

    return step


def _share(shape: Shape, rows: Sequence[Row], copy_tbs: float | None) -> str:
    times = {row.implementation: row.step.median for row in rows if row.step}
    share = times[EPILOGUE] / times[BLOCK]
    text = f"{shape.title}: the epilogue is {share:.1%} of a block's step"
    if copy_tbs is None:
        return text
    tokens = len(draw(shape, torch.device("cuda"), seed=0).times)
    least = TRAFFIC * tokens * shape.heads * shape.dim * shape.dtype.itemsize / copy_tbs / 1e9
    win, compiled = (times[EPILOGUE] - least) / times[BLOCK], times[COMPILED] / times[BLOCK]
    return f"{text}; fusing can win {win:.1%} at most; torch.compile brings it to {compiled:.1%}"

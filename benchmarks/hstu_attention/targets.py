"""What is aimed at, judged from the rows of a run."""

from collections.abc import Sequence

from .contest import GRAPH
from .ours import OURS, PACKED
from .report import Row, Target, step_ms


def targets_of(rows: Sequence[Row]) -> list[Target]:
    """On CUDA: short histories near the floor and ten times research; long ones by TFLOP/s, and what biases add."""
    found = []
    for shape in dict.fromkeys(row.shape for row in rows if row.shape.startswith("A")):
        found += _short(rows, shape)
    for shape in dict.fromkeys(row.shape for row in rows if row.shape.startswith("B") and "d=128" in row.shape):
        if int(shape.split("N=")[1].split()[0]) >= 4096:
            found += _long(rows, shape)
    return found


def _short(rows: Sequence[Row], shape: str) -> list[Target]:
    best = step_ms(rows, shape, OURS + GRAPH)
    research = step_ms(rows, shape, "C1 research padded")
    floors = [row.over_floor for row in rows if (row.shape, row.implementation) == (shape, OURS + GRAPH)]
    return [
        Target("step over the floor of launches and bytes", shape, floors[0] if floors else None, 2, at_least=False),
        Target("research eager over ours", shape, research / best if research and best else None, 10),
    ]


def _long(rows: Sequence[Row], shape: str) -> list[Target]:
    if shape.endswith("bias=none"):
        ours = [row for row in rows if (row.shape, row.implementation) == (shape, OURS)]
        forward, backward = (ours[0].forward_tflops, ours[0].backward_tflops) if ours else (None, None)
        return [
            Target("forward, TFLOP/s", shape, forward, 450),
            Target("backward, TFLOP/s", shape, backward, 300),
        ]
    if shape.endswith("bias=position+time"):
        biased, plain = step_ms(rows, shape, OURS), step_ms(rows, shape.replace("position+time", "none"), OURS)
        ratio = biased / plain if biased and plain else None
        return [Target("both biases over none", shape, ratio, 1.5, at_least=False)]
    return []


def cpu_targets_of(rows: Sequence[Row]) -> list[Target]:
    """The packed path against the padded research form; the claim is about mean length 9."""
    found = []
    for shape in dict.fromkeys(row.shape for row in rows if row.step):
        packed, research = step_ms(rows, shape, PACKED), step_ms(rows, shape, "C1 research padded")
        ratio = research / packed if packed and research else None
        if shape.startswith("short"):
            found.append(Target("padded research over packed", shape, ratio, 5))
    return found

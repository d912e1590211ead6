"""Arguments of the losses over items: their types, their checks, and which of them the Triton kernels support."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...data.errors import VirtualMLEError
from .linear_cross_entropy_bfloat16 import is_available

MAX_WIDTH = 256  # tiles of wider rows do not fit on the chip
PRECISIONS = ("ieee", "tf32")
BFLOAT16 = "bf16"  # of the linear cross-entropy on CPUs only


class LossArgumentError(VirtualMLEError):
    """The arguments of a loss do not match or are out of range."""


class SampledInputs(NamedTuple):
    """The tensors of a sampled softmax."""

    states: Tensor  # (n, d)
    table: Tensor  # (V, d)
    targets: Tensor  # (n,) int64
    negatives: Tensor  # (m,) int64 for all positions, or (n, m)
    log_q: Tensor | None  # (V,) float32

    def contiguous(self) -> "SampledInputs":
        """The same inputs, with contiguous tensors."""
        states, table, targets, negatives = (tensor.contiguous() for tensor in self[:4])
        return SampledInputs(states, table, targets, negatives, None if self.log_q is None else self.log_q.contiguous())


@dataclass(frozen=True)
class SampledTerms:
    """The scalar options of a sampled softmax."""

    temperature: float = 1.0
    cosine: bool = False
    label_smoothing: float = 0.0
    precision: str = "ieee"
    programs: int = 0  # target number of programs of a Triton launch; 0: enough to keep the GPU busy


def uses_triton(states: Tensor) -> bool:
    """Whether the Triton kernels compute the loss; for float64 and widths above MAX_WIDTH, plain torch does."""
    return states.is_cuda and states.dtype != torch.float64 and states.shape[1] <= MAX_WIDTH


def check_loss_arguments(states: Tensor, table: Tensor, targets: Tensor, label_smoothing: float) -> None:
    """Raise LossArgumentError unless states (n, d), table (V, d) and targets (n,) match.

    Whether targets lie in [0, V) is not checked: on a GPU this would wait for the device.
    """
    if states.dim() != 2 or table.dim() != 2 or states.shape[1] != table.shape[1] or not len(table):
        raise LossArgumentError(
            f"states must be (n, d) and table (V, d) with V >= 1; they are {tuple(states.shape)} and "
            f"{tuple(table.shape)}"
        )
    if states.dtype != table.dtype or not states.is_floating_point():
        raise LossArgumentError(
            f"states and table must have one floating dtype; they are {states.dtype} and {table.dtype}: cast one"
        )
    check_items("targets", targets, states, (len(states),))
    if not 0 <= label_smoothing <= 1:
        raise LossArgumentError(f"label_smoothing must lie in [0, 1]; it is {label_smoothing}")


def check_items(name: str, items: Tensor, states: Tensor, shape: tuple[int, ...]) -> None:
    """Raise LossArgumentError unless `items` are int64 of this shape on the device of states."""
    if items.shape != shape or items.dtype != torch.int64:
        raise LossArgumentError(f"{name} must be {shape} int64; it is {tuple(items.shape)} {items.dtype}")
    check_device(name, items, states)


def check_device(name: str, tensor: Tensor, states: Tensor) -> None:
    """Raise LossArgumentError unless the tensor is on the device of the states."""
    if tensor.device != states.device:
        raise LossArgumentError(f"{name} must be on the device of states; {tensor.device} is not {states.device}")


def check_precision(precision: str) -> None:
    """Raise LossArgumentError for an unknown precision of float32 products."""
    if precision not in PRECISIONS:
        raise LossArgumentError(f"precision must be one of {PRECISIONS}; it is {precision!r}")


def check_bfloat16(states: Tensor) -> None:
    """Raise LossArgumentError unless these states can be multiplied in bfloat16: float32, on a CPU with AVX-512."""
    if states.device.type != "cpu" or states.dtype != torch.float32:
        raise LossArgumentError(
            f"precision={BFLOAT16!r} needs float32 states on a CPU; they are {states.dtype} on {states.device}: "
            "use 'ieee', or half-precision states on a GPU"
        )
    if not is_available():
        raise LossArgumentError(f"precision={BFLOAT16!r} needs AVX-512 and a torch with oneDNN; use 'ieee' here")

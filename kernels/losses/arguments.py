"""What both losses over items accept, and which of it the Triton kernels take."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...data.errors import VirtualMLEError

WIDEST = 256  # a wider row of the table leaves no room for tiles
PRECISIONS = ("ieee", "tf32")


class LossArgumentError(VirtualMLEError):
    """Tensors or numbers that a loss cannot be computed from."""


class SampledInputs(NamedTuple):
    """The tensors of a sampled softmax."""

    states: Tensor  # (n, d)
    table: Tensor  # (V, d)
    targets: Tensor  # (n,) int64
    negatives: Tensor  # (m,) int64 for all positions, or (n, m)
    log_q: Tensor | None  # (V,) float32

    def contiguous(self) -> "SampledInputs":
        """The same, each without gaps."""
        states, table, targets, negatives = (tensor.contiguous() for tensor in self[:4])
        return SampledInputs(states, table, targets, negatives, None if self.log_q is None else self.log_q.contiguous())


@dataclass(frozen=True)
class SampledTerms:
    """The numbers and switches of a sampled softmax."""

    temperature: float = 1.0
    cosine: bool = False
    label_smoothing: float = 0.0
    precision: str = "ieee"
    programs: int = 0  # that a Triton launch aims for; 0: as many as keep the GPU busy


def takes_triton(states: Tensor) -> bool:
    """Whether the Triton kernels compute this; float64 and widths above WIDEST are left to blocks in plain torch."""
    return states.is_cuda and states.dtype != torch.float64 and states.shape[1] <= WIDEST


def check_loss_arguments(states: Tensor, table: Tensor, targets: Tensor, label_smoothing: float) -> None:
    """LossArgumentError unless states (n, d), table (V, d) and targets (n,) go together.

    That targets lie in [0, V) is not looked at: a GPU would have to be waited for.
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
    """LossArgumentError unless `items` are int64 of this shape on the device of states."""
    if items.shape != shape or items.dtype != torch.int64:
        raise LossArgumentError(f"{name} must be {shape} int64; it is {tuple(items.shape)} {items.dtype}")
    check_device(name, items, states)


def check_device(name: str, tensor: Tensor, states: Tensor) -> None:
    """LossArgumentError unless the tensor lies where the states do."""
    if tensor.device != states.device:
        raise LossArgumentError(f"{name} must be on the device of states; {tensor.device} is not {states.device}")


def check_precision(precision: str) -> None:
    """LossArgumentError for another way to multiply float32."""
    if precision not in PRECISIONS:
        raise LossArgumentError(f"precision must be one of {PRECISIONS}; it is {precision!r}")

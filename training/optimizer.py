"""Adam and AdamW on torch's fused kernels, with L2 penalty, gradient clipping and max-norm, without `torch.optim`.

The first `torch.optim` object of a process imports torch's compiler, which takes about three seconds; a small trial
trains for five. The kernels are those of `torch.optim.Adam(fused=True)` and `AdamW(fused=True)`, with equal results.

A sparse gradient of a table (`models/item_table.py`) updates only the rows that it contains. The moments of all other
rows do not decay, as in `torch.optim.SparseAdam`, so the cost of a step depends on the number of rows in its gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.config import TrialConfig
from ..models.sequence_model import SequenceModel

EPSILON = 1e-8


class FusedAdam:
    """Adam (Kingma & Ba 2015; weight decay added to the gradient), or AdamW (Loshchilov & Hutter 2019; decoupled).

    Before the update, `embedding_l2` times each item table is added to its gradient, then the global gradient norm is
    clipped to `grad_clip`. After the update, item vectors longer than `max_norm` are scaled down to that norm.
    """

    def __init__(self, model: SequenceModel, config: TrialConfig) -> None:
        self.config = config
        self.parameters = list(model.parameters())
        self.tables = list(model.items.parameters())
        self.kernel = torch._fused_adamw_ if config.optimizer == "adamw" else torch._fused_adam_
        self.first_moments = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.second_moments = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = [torch.zeros((), device=parameter.device) for parameter in self.parameters]

    def zero_grad(self) -> None:
        """Drop the gradients of the previous step."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, factor: float | Tensor = 1.0) -> None:
        """Update every parameter at `factor` times the learning rate; every parameter must have a gradient.

        If `factor` is a () float32 tensor on the parameters' device, the kernel reads it, so that its value may change
        between replays of a captured step.
        """
        gradients = [_coalesced(parameter.grad) for parameter in self.parameters]
        self._add_l2(gradients)
        if self.config.grad_clip:
            _clip([_values(gradient) for gradient in gradients], self.config.grad_clip)
        torch._foreach_add_(self.steps, 1)
        dense = [index for index, gradient in enumerate(gradients) if not gradient.is_sparse]
        self._update(dense, gradients, factor)
        for index, gradient in enumerate(gradients):
            if gradient.is_sparse:
                self._update_rows(index, gradient, factor)
        if self.config.max_norm:
            self._bound_norms(gradients)

    def _add_l2(self, gradients: list[Tensor]) -> None:
        for parameter, gradient in self._tables_with(gradients) if self.config.embedding_l2 else ():
            weights = parameter[gradient.indices()[0]] if gradient.is_sparse else parameter
            _values(gradient).add_(weights, alpha=self.config.embedding_l2)

    def _update(self, indices: Sequence[int], gradients: list[Tensor], factor: float | Tensor) -> None:
        """Update the parameters with these indices in one kernel call."""
        self._run(
            [self.parameters[i] for i in indices],
            [gradients[i] for i in indices],
            [self.first_moments[i] for i in indices],
            [self.second_moments[i] for i in indices],
            [self.steps[i] for i in indices],
            factor,
        )

    def _update_rows(self, index: int, gradient: Tensor, factor: float | Tensor) -> None:
        """Update the rows of one table that occur in its sparse gradient."""
        rows = gradient.indices()[0]
        tables = [tensors[index] for tensors in (self.parameters, self.first_moments, self.second_moments)]
        weights, first, second = (table.index_select(0, rows) for table in tables)
        self._run([weights], [gradient.values()], [first], [second], [self.steps[index]], factor)
        for table, updated in zip(tables, (weights, first, second), strict=True):
            table.index_copy_(0, rows, updated)

    def _run(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        first_moments: list[Tensor],
        second_moments: list[Tensor],
        steps: list[Tensor],
        factor: float | Tensor,
    ) -> None:
        config = self.config
        self.kernel(
            parameters,
            gradients,
            first_moments,
            second_moments,
            [],
            steps,
            lr=config.lr * factor,
            beta1=config.beta1,
            beta2=config.beta2,
            weight_decay=config.weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def _bound_norms(self, gradients: list[Tensor]) -> None:
        for parameter, gradient in self._tables_with(gradients):
            if gradient.is_sparse:
                rows = gradient.indices()[0]
                bounded = parameter.index_select(0, rows).renorm_(2, 0, self.config.max_norm)
                parameter.index_copy_(0, rows, bounded)
            else:
                parameter.renorm_(2, 0, self.config.max_norm)

    def _tables_with(self, gradients: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The item tables, each with its gradient."""
        pairs = zip(self.parameters, gradients, strict=True)
        return [(p, gradient) for p, gradient in pairs if any(p is table for table in self.tables)]


def _coalesced(gradient: Tensor | None) -> Tensor:
    assert gradient is not None, "every parameter of a model has a gradient in every step"
    return gradient.coalesce() if gradient.is_sparse else gradient


def _values(gradient: Tensor) -> Tensor:
    return gradient.values() if gradient.is_sparse else gradient


def _clip(gradients: list[Tensor], max_norm: float) -> None:
    """Scale all gradients by one factor so that their global norm is at most `max_norm`, without a device sync."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (max_norm / (norm + EPSILON)).clamp_(max=1.0))

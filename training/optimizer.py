"""Adam and AdamW by torch's fused kernels, without `torch.optim`, and what acts on gradients and tables around a step.

The first `torch.optim` object of a process imports torch's compiler: about three seconds, where a small trial trains
for five. The kernel is the one that `torch.optim.Adam(fused=True)` calls, so the numbers are the same.

A table whose gradient is sparse (`models/item_table.py`) is updated in the rows that the gradient names and in no
other: their moments do not decay meanwhile, as in `torch.optim.SparseAdam`. A step then costs what its rows cost.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..models.config import TrialConfig
from ..models.sequence_model import SequenceModel

EPSILON = 1e-8


class FusedAdam:
    """Adam (Kingma & Ba 2015; weight decay added to the gradient), or AdamW (Loshchilov & Hutter 2019; decoupled).

    Before the update: `embedding_l2` times each item table is added to its gradient, then the whole gradient is
    scaled down to the norm `grad_clip`. After it: item vectors longer than `max_norm` are cut to it.
    """

    def __init__(self, model: SequenceModel, config: TrialConfig) -> None:
        self.config = config
        self.parameters = list(model.parameters())
        self.tables = list(model.items.parameters())
        self.kernel = torch._fused_adamw_ if config.optimizer == "adamw" else torch._fused_adam_
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = [torch.zeros((), device=parameter.device) for parameter in self.parameters]

    def zero_grad(self) -> None:
        """Forget the gradients of the step before."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, factor: float | Tensor = 1.0) -> None:
        """One update of every parameter, at `factor` times the learning rate; each must have a gradient.

        A factor that is a tensor, () float32 where the parameters are, is read by the kernel: it may change under a
        captured step.
        """
        gradients = [_coalesced(parameter.grad) for parameter in self.parameters]
        self._add_l2(gradients)
        if self.config.grad_clip:
            _clip([_numbers(gradient) for gradient in gradients], self.config.grad_clip)
        torch._foreach_add_(self.steps, 1)
        dense = [place for place, gradient in enumerate(gradients) if not gradient.is_sparse]
        self._update(dense, gradients, factor)
        for place, gradient in enumerate(gradients):
            if gradient.is_sparse:
                self._update_rows(place, gradient, factor)
        if self.config.max_norm:
            self._bound_norms(gradients)

    def _add_l2(self, gradients: list[Tensor]) -> None:
        for parameter, gradient in self._tables_with(gradients) if self.config.embedding_l2 else ():
            own = parameter[gradient.indices()[0]] if gradient.is_sparse else parameter
            _numbers(gradient).add_(own, alpha=self.config.embedding_l2)

    def _update(self, places: Iterable[int], gradients: list[Tensor], factor: float | Tensor) -> None:
        chosen = list(places)
        self._run(
            [self.parameters[i] for i in chosen],
            [gradients[i] for i in chosen],
            [self.means[i] for i in chosen],
            [self.squares[i] for i in chosen],
            [self.steps[i] for i in chosen],
            factor,
        )

    def _update_rows(self, place: int, gradient: Tensor, factor: float | Tensor) -> None:
        index = gradient.indices()[0]
        wholes = [tensors[place] for tensors in (self.parameters, self.means, self.squares)]
        rows, means, squares = (whole.index_select(0, index) for whole in wholes)
        self._run([rows], [gradient.values()], [means], [squares], [self.steps[place]], factor)
        for whole, part in zip(wholes, (rows, means, squares), strict=True):
            whole.index_copy_(0, index, part)

    def _run(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
        steps: list[Tensor],
        factor: float | Tensor,
    ) -> None:
        config = self.config
        self.kernel(
            parameters,
            gradients,
            means,
            squares,
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
                index = gradient.indices()[0]
                rows = parameter.index_select(0, index).renorm_(2, 0, self.config.max_norm)
                parameter.index_copy_(0, index, rows)
            else:
                parameter.renorm_(2, 0, self.config.max_norm)

    def _tables_with(self, gradients: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        pairs = zip(self.parameters, gradients, strict=True)
        return [(p, gradient) for p, gradient in pairs if any(p is table for table in self.tables)]


def _coalesced(gradient: Tensor | None) -> Tensor:
    assert gradient is not None, "every parameter of a model takes part in every step"
    return gradient.coalesce() if gradient.is_sparse else gradient


def _numbers(gradient: Tensor) -> Tensor:
    return gradient.values() if gradient.is_sparse else gradient


def _clip(gradients: list[Tensor], largest: float) -> None:
    """Scale all of them by one factor so that their joint norm is at most `largest`; the device is not waited for."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (largest / (norm + EPSILON)).clamp_(max=1.0))

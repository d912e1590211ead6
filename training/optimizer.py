"""Adam and AdamW by torch's fused kernels, without `torch.optim`.

The first `torch.optim` object of a process imports torch's compiler: about three seconds, where a small trial trains
for five. The kernel is the one that `torch.optim.Adam(fused=True)` calls, so the numbers are the same.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..models.config import TrialConfig

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class FusedAdam:
    """Adam (Kingma & Ba 2015; weight decay added to the gradient), or AdamW (Loshchilov & Hutter 2019; decoupled)."""

    def __init__(self, parameters: Iterable[Tensor], config: TrialConfig) -> None:
        self.parameters = list(parameters)
        self.lr, self.weight_decay = config.lr, config.weight_decay
        self.kernel = torch._fused_adamw_ if config.optimizer == "adamw" else torch._fused_adam_
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = [torch.zeros((), device=parameter.device) for parameter in self.parameters]

    def zero_grad(self) -> None:
        """Forget the gradients of the step before."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter; each must have a gradient."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        assert len(gradients) == len(self.parameters), "every parameter of a model takes part in every step"
        torch._foreach_add_(self.steps, 1)
        self.kernel(
            self.parameters,
            gradients,
            self.means,
            self.squares,
            [],
            self.steps,
            lr=self.lr,
            beta1=BETA1,
            beta2=BETA2,
            weight_decay=self.weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )

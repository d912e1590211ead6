"""Items as vectors: the input embedding, the output table (tied to it or not), and scores against the catalogue."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TrialConfig

NORM_EPS = 1e-6  # a zero vector has cosine 0 with everything, and a finite gradient


class ItemTable(nn.Module):
    """Scores are s(x, i) = x . e_i / temperature; with scores="cosine", x and e_i are divided by their norms first."""

    def __init__(self, config: TrialConfig, num_items: int) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.cosine = config.scores == "cosine"
        self.input = nn.Parameter(torch.empty(num_items, config.hidden_dim))
        self.untied = None if config.tie_embeddings else nn.Parameter(torch.empty(num_items, config.hidden_dim))

    @property
    def output(self) -> Tensor:
        """(num_items, hidden_dim): the output table, not normalised."""
        return self.input if self.untied is None else self.untied

    def embed(self, items: Tensor) -> Tensor:
        """(total_tokens,) to (total_tokens, hidden_dim), scaled by sqrt(hidden_dim) as in both papers' code."""
        scale: float = self.input.shape[1] ** 0.5
        return F.embedding(items, self.input) * scale

    def score(self, states: Tensor) -> Tensor:
        """(n, hidden_dim) to (n, num_items)."""
        return self._scaled(states) @ self._normalised(self.output).T

    def score_sampled(self, states: Tensor, targets: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """Targets (n,) and negatives (m,) shared by all states: scores (n,) and (n, m).

        One look-up for both, so that the backward pass writes one table gradient instead of two.
        """
        states = self._scaled(states)
        vectors = self._normalised(F.embedding(torch.cat((targets, negatives)), self.output))
        own, shared = vectors[: len(targets)], vectors[len(targets) :]
        return (states * own).sum(-1), states @ shared.T

    def _scaled(self, states: Tensor) -> Tensor:
        return self._normalised(states) / self.temperature

    def _normalised(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1, eps=NORM_EPS) if self.cosine else vectors

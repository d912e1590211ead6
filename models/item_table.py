"""Item vectors: the input embedding, the output table (tied or not), and scores over the catalogue."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.jagged.look_up import look_up
from .config import TrialConfig

NORM_EPS = 1e-6  # gives a zero vector a cosine of 0 with every vector, and a finite gradient
ROW_SPARSE_ABOVE = 200_000
"""Look-ups in larger catalogues give sparse gradients: a step's cost then depends on its rows, not on the table."""


def is_row_sparse(config: TrialConfig, num_items: int) -> bool:
    """Whether the item tables get sparse gradients; not with a full softmax, which has a gradient for every item."""
    return num_items > ROW_SPARSE_ABOVE and config.loss != "full_softmax"


class ItemTable(nn.Module):
    """Scores are s(x, i) = x . e_i / temperature; with scores="cosine", x and e_i are divided by their norms first."""

    def __init__(self, config: TrialConfig, num_items: int) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.cosine = config.scores == "cosine"
        self.row_sparse = is_row_sparse(config, num_items)
        self.input = nn.Parameter(torch.empty(num_items, config.hidden_dim))
        self.untied = None if config.tie_embeddings else nn.Parameter(torch.empty(num_items, config.hidden_dim))

    @property
    def output(self) -> Tensor:
        """(num_items, hidden_dim): the output table, not normalised."""
        return self.input if self.untied is None else self.untied

    def embed(self, items: Tensor) -> Tensor:
        """(total_tokens,) to (total_tokens, hidden_dim), scaled by sqrt(hidden_dim) as in both papers' code."""
        scale: float = self.input.shape[1] ** 0.5
        return look_up(self.input, items, sparse=self.row_sparse) * scale

    def score(self, states: Tensor) -> Tensor:
        """(n, hidden_dim) to (n, num_items)."""
        return self.scaled(states) @ self.catalogue().T

    def scaled(self, states: Tensor) -> Tensor:
        """(n, hidden_dim) to the same shape, such that dot products with `catalogue` or `vectors` are scores."""
        return self._normalised(states) / self.temperature

    def catalogue(self) -> Tensor:
        """(num_items, hidden_dim): the output table, normalised for cosine scores."""
        return self._normalised(self.output)

    def vectors(self, items: Tensor) -> Tensor:
        """(m,) to (m, hidden_dim): the rows of `catalogue` for these items, computed without the other rows."""
        return self._normalised(self.rows(items))

    def rows(self, items: Tensor) -> Tensor:
        """(m,) to (m, hidden_dim): these rows of the output table, not normalised."""
        return look_up(self.output, items, sparse=self.row_sparse)

    def _normalised(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1, eps=NORM_EPS) if self.cosine else vectors

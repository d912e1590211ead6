"""What SASRec and HSTU share: items in, one state per token out, scores against the catalogue.

    embed items (+ absolute positions), dropout  ->  blocks  ->  final norm  ->  readout  ->  states (L, hidden_dim)

Dimension L: total tokens of the jagged batch.
"""

import torch
from torch import Tensor, nn

from ..kernels.dropout import dropout
from .batch import JaggedBatch
from .config import TrialConfig
from .item_table import ItemTable
from .positions import AbsolutePositions
from .readout import build_readout

TABLE_STD = 0.02


class SequenceModel(nn.Module):
    """A backbone without its blocks. A subclass gives `blocks`, each called as block(x, plan), and `final_norm`."""

    def __init__(self, config: TrialConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.items = ItemTable(config, num_items)
        self.positions = AbsolutePositions(config) if config.position in {"absolute", "both"} else None
        self.blocks = nn.ModuleList()
        self.final_norm: nn.Module = nn.Identity()
        self.readout = build_readout(config)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw every weight, in a fixed order, from `generator` (on the CPU).

        Linear layers Xavier-uniform with zero biases, tables N(0, .02), absolute positions N(0, 1 / hidden_dim); layer
        norms stay the identity that they are made as.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif not isinstance(module, nn.LayerNorm):
                std = self.config.hidden_dim**-0.5 if isinstance(module, AbsolutePositions) else TABLE_STD
                for table in module.parameters(recurse=False):
                    nn.init.normal_(table, std=std, generator=generator)

    def forward(self, batch: JaggedBatch) -> Tensor:
        """(L, hidden_dim): state t summarises tokens <= t of its sequence (all of them where causal is false)."""
        x = self.items.embed(batch.items)
        if self.positions is not None:
            x = self.positions(x, batch.plan)
        x = dropout(x, self.config.embedding_dropout, self.training)
        for block in self.blocks:
            x = block(x, batch.plan)
        states: Tensor = self.readout(self.final_norm(x), batch.plan)
        return states

    def item_table(self) -> Tensor:
        """(num_items, hidden_dim): the output table, not normalised."""
        return self.items.output

    def score(self, states: Tensor) -> Tensor:
        """Logits (n, num_items), temperature and cosine included."""
        return self.items.score(states)

    def score_sampled(self, states: Tensor, targets: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n,) of the targets (n,) and (n, m) of the negatives (m,) shared by all states, from one look-up."""
        return self.items.score_sampled(states, targets, negatives)

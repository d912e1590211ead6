"""What SASRec and HSTU share: items in, one state per token out, scores against the catalogue.

    embed items (+ absolute positions), dropout  ->  blocks  ->  final norm  ->  readout  ->  states (L, hidden_dim)

With `latent_steps`, what leaves the final norm goes through the blocks again, with a learned vector for the step
added, and the states of all passes are averaged (after ReaRec, Tang et al. 2025, "Think Before Recommend", which passes
the last state only; here every position's, so that every position can still be trained).

Dimension L: total tokens of the jagged batch.
"""

import torch
from torch import Tensor, nn

from ..kernels.jagged.dropout import dropout
from ..kernels.jagged.packing import PackingPlan
from .batch import JaggedBatch
from .config import TrialConfig
from .item_table import ItemTable
from .positions import AbsolutePositions
from .readout import build_readout

TABLE_STD = 0.02


class SequenceModel(nn.Module):
    """A backbone without its blocks. A subclass gives `blocks`, `num_distinct_blocks` of them, and `final_norm`."""

    def __init__(self, config: TrialConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.items = ItemTable(config, num_items)
        self.positions = AbsolutePositions(config) if config.position in {"absolute", "both"} else None
        self.blocks = nn.ModuleList()
        self.final_norm: nn.Module = nn.Identity()
        self.readout = build_readout(config)
        steps = config.latent_steps
        self.steps = nn.Parameter(torch.empty(steps, config.hidden_dim)) if steps else None

    @property
    def num_distinct_blocks(self) -> int:
        """Blocks with weights of their own."""
        return 1 if self.config.shared_blocks else self.config.num_blocks

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw every weight, in a fixed order, from `generator` (on the CPU).

        Linear layers Xavier-uniform with zero biases, tables N(0, .02), absolute positions N(0, 1 / hidden_dim); 
        norms stay the identity that they are made as.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif not isinstance(module, nn.LayerNorm | nn.RMSNorm):
                std = self.config.hidden_dim**-0.5 if isinstance(module, AbsolutePositions) else TABLE_STD
                for table in module.parameters(recurse=False):
                    nn.init.normal_(table, std=std, generator=generator)

    def forward(self, batch: JaggedBatch) -> Tensor:
        """(L, hidden_dim): state t summarises tokens <= t of its sequence (all of them where causal is false)."""
        x = self._embed(batch)
        x = self._pass(x, batch.plan)
        if self.steps is not None:
            passes = [x]
            for step in self.steps:
                passes.append(self._pass(passes[-1] + step, batch.plan))
            x = torch.stack(passes).mean(0)
        states: Tensor = self.readout(x, batch.plan)
        return states

    def _embed(self, batch: JaggedBatch) -> Tensor:
        x = self.items.embed(batch.items)
        if batch.hidden is not None:
            x = x.masked_fill(batch.hidden[:, None], 0)
        if self.training and self.config.token_dropout:
            x = x.masked_fill(torch.rand(len(x), 1, device=x.device) < self.config.token_dropout, 0)
        if self.positions is not None:
            x = self.positions(x, batch.plan)
        return dropout(x, self.config.embedding_dropout, self.training)

    def _pass(self, x: Tensor, plan: PackingPlan) -> Tensor:
        """Once through all blocks and the final norm, (L, hidden_dim) to (L, hidden_dim)."""
        for number in range(self.config.num_blocks):
            x = self.blocks[number % len(self.blocks)](x, plan)
        normed: Tensor = self.final_norm(x)
        return normed

    def item_table(self) -> Tensor:
        """(num_items, hidden_dim): the output table, not normalised."""
        return self.items.output

    def score(self, states: Tensor) -> Tensor:
        """Logits (n, num_items), temperature and cosine included."""
        return self.items.score(states)

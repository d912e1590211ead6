"""The base class of SASRec and HSTU: items in, one state per token out, and scores over the catalogue.

    embed items (+ absolute positions), dropout  ->  blocks  ->  final norm  ->  readout  ->  states (L, hidden_dim)

With `latent_steps`, each step adds its learned vector to the last output of the final norm and passes the sum through
the blocks and the norm again; the outputs of all passes are averaged (after ReaRec, Tang et al. 2025, "Think Before
Recommend"). ReaRec does this for the last state only; here it is done for every position, so that every position can
still be a training target.

Dimension L: total tokens of the jagged batch.
"""

import hashlib

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
    """A backbone without its blocks. Subclasses set `blocks` (`num_distinct_blocks` of them) and `final_norm`."""

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
        """The number of blocks with separate weights."""
        return 1 if self.config.shared_blocks else self.config.num_blocks

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw every parameter from a generator of its own, seeded by `seed`, the parameter's name and its shape.

        Two configurations therefore start from equal weights wherever names and shapes agree, whatever else differs.
        """
        for path, module in self.named_modules():
            for name, parameter in module.named_parameters(path, recurse=False):
                self.draw(module, name, parameter, parameter_generator(seed, name, parameter))

    def draw(self, module: nn.Module, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Draw the parameter `name` of `module` in place, from `generator` (on the CPU).

        Linear layers are Xavier-uniform with zero biases. Tables are normal with standard deviation .02, and absolute
        positions with hidden_dim ** -0.5. Norms keep torch's initial weights of 1 and biases of 0.
        """
        if isinstance(module, nn.Linear):
            if parameter.dim() == 1:
                nn.init.zeros_(parameter)
            else:
                nn.init.xavier_uniform_(parameter, generator=generator)
        elif not isinstance(module, nn.LayerNorm | nn.RMSNorm):
            std = self.config.hidden_dim**-0.5 if isinstance(module, AbsolutePositions) else TABLE_STD
            nn.init.normal_(parameter, std=std, generator=generator)

    def forward(self, batch: JaggedBatch) -> Tensor:
        """(L, hidden_dim): state t depends on tokens <= t of its sequence (on all of them if causal is false)."""
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
        if batch.masked is not None:
            x = x.masked_fill(batch.masked[:, None], 0)
        if self.training and self.config.token_dropout:
            x = x.masked_fill(torch.rand(len(x), 1, device=x.device) < self.config.token_dropout, 0)
        if self.positions is not None:
            x = self.positions(x, batch.plan)
        return dropout(x, self.config.embedding_dropout, self.training)

    def _pass(self, x: Tensor, plan: PackingPlan) -> Tensor:
        """One pass through all blocks and the final norm, (L, hidden_dim) to (L, hidden_dim)."""
        for index in range(self.config.num_blocks):
            x = self.blocks[index % len(self.blocks)](x, plan)
        normed: Tensor = self.final_norm(x)
        return normed

    def item_table(self) -> Tensor:
        """(num_items, hidden_dim): the output table, not normalised."""
        return self.items.output

    def score(self, states: Tensor) -> Tensor:
        """Logits (n, num_items), after the division by the temperature (and by the norms if scores are cosines)."""
        return self.items.score(states)


def parameter_generator(seed: int, name: str, parameter: Tensor) -> torch.Generator:
    """The generator, on the CPU, that draws the initial values of a parameter with this name and shape."""
    text = f"{seed}:{name}:{tuple(parameter.shape)}"
    return torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big"))

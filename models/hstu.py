"""HSTU (Zhai et al. 2024, "Actions Speak Louder than Words", section 3), the block of its research code.

    u, v, q, k = split(silu(layer_norm(x) W))
    a_i        = 1/N sum_j silu(q_i . k_j + b[j - i]) v_j        no softmax, no 1/sqrt(d); N = max_len
    out        = W_o dropout(u * layer_norm(a)) + b_o + x        layer norms without weights of their own

Not here: the bias by time between events.

Dimension L: total tokens of the jagged batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.dropout import dropout
from ..kernels.hstu_attention import hstu_attention
from ..kernels.packing import PackingPlan
from .config import TrialConfig
from .positions import relative_table
from .sequence_model import TABLE_STD, SequenceModel

NORM_EPS = 1e-6


class HSTUBlock(nn.Module):
    """Pointwise attention gated by u. Per head, u and v are linear_dim wide, q and k attention_dim."""

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        self.config = config
        self.widths = [config.num_heads * d for d in (config.linear_dim,) * 2 + (config.attention_dim,) * 2]
        self.uvqk = nn.Linear(config.hidden_dim, sum(self.widths), bias=False)
        self.out = nn.Linear(config.num_heads * config.linear_dim, config.hidden_dim)
        self.position_table = relative_table(config, 1)  # shared by the heads

    def forward(self, x: Tensor, plan: PackingPlan) -> Tensor:
        """x (L, hidden_dim), and so is the result."""
        config = self.config
        normed = F.layer_norm(x, x.shape[1:], eps=NORM_EPS)
        u, v, q, k = torch.split(F.silu(self.uvqk(normed)), self.widths, dim=1)
        attended = hstu_attention(
            q.view(len(x), config.num_heads, -1),  # (L, heads, attention_dim)
            k.view(len(x), config.num_heads, -1),
            v.view(len(x), config.num_heads, -1),  # (L, heads, linear_dim)
            plan=plan,
            scale=1 / config.max_len,
            position_table=self.position_table,
            causal=config.causal,
            dropout=config.attention_dropout,
            training=self.training,
        ).flatten(1)
        gated = u * F.layer_norm(attended, attended.shape[1:], eps=NORM_EPS)
        out: Tensor = self.out(dropout(gated, config.dropout, self.training))
        return out + x


class HSTU(SequenceModel):
    """The backbone; `build_model` draws its weights. With scores="dot" a layer norm ends it, as cosine would."""

    def __init__(self, config: TrialConfig, num_items: int) -> None:
        super().__init__(config, num_items)
        self.blocks = nn.ModuleList(HSTUBlock(config) for _ in range(config.num_blocks))
        if config.scores == "dot":
            self.final_norm = nn.LayerNorm(config.hidden_dim, eps=NORM_EPS)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """As every model, but W is N(0, .02), as in the research code."""
        super().initialise(generator)
        for block in (module for module in self.modules() if isinstance(module, HSTUBlock)):
            nn.init.normal_(block.uvqk.weight, std=TABLE_STD, generator=generator)

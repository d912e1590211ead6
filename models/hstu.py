"""HSTU (Zhai et al. 2024, "Actions Speak Louder than Words", section 3), with the block of its research code.

    u, v, q, k = split(silu(norm(x) W))
    a_i        = 1/N sum_j silu(q_i . k_j + b[j - i] + c[bucket(t_i - t_j)]) v_j      no softmax, no 1/sqrt(d)
    out        = W_o dropout(u * norm(a)) + b_o + x          N = max_len; norms without learned weights

Switches: SiLU on u alone (hstu_activation="gate", as in the production code that the authors published later), an
output projection of the concatenation [u, a, u * a] (hstu_gating="concat"), the norm after the residual sum
instead of before W (norm_placement="post"), and a frequency rescaling beside the attention.

Dimension L: total tokens of the jagged batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.hstu.attention import hstu_attention
from ..kernels.jagged.dropout import dropout
from ..kernels.jagged.packing import PackingPlan
from .config import TrialConfig
from .local_mixing import FrequencyRescaling, build_local_mixing
from .norms import PLAIN_EPSILON, build_norm, plain_norm
from .positions import relative_table, rotate, time_table
from .sequence_model import TABLE_STD, SequenceModel


class HSTUBlock(nn.Module):
    """Pointwise attention, gated by u. Per head, u and v have width linear_dim, q and k attention_dim."""

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        self.config = config
        self.local_mixing = build_local_mixing(config)
        gate = config.num_heads * config.linear_dim
        self.widths = [gate, gate] + [config.num_heads * config.attention_dim] * 2
        self.uvqk = nn.Linear(config.hidden_dim, sum(self.widths), bias=False)
        self.out = nn.Linear(gate * (3 if config.hstu_gating == "concat" else 1), config.hidden_dim)
        self.position_table = relative_table(config, 1)  # one table, shared by all heads
        self.time_table = time_table(config, 1)
        self.rescaling = FrequencyRescaling(config) if config.frequency_rescaling else None

    def forward(self, x: Tensor, plan: PackingPlan) -> Tensor:
        """(L, hidden_dim) to the same shape."""
        config = self.config
        for layer in self.local_mixing:
            x = layer(x, plan)
        states = x if config.norm_placement == "post" else plain_norm(x, config)
        u, v, q, k = self._project(states)
        attended = plain_norm(self._attend(q, k, v, plan), config)
        gated = torch.cat((u, attended, u * attended), dim=1) if config.hstu_gating == "concat" else u * attended
        mixed: Tensor = self.out(dropout(gated, config.dropout, self.training))
        if self.rescaling is not None:
            rescaled = dropout(self.rescaling(states, plan), config.dropout, self.training)
            mixed = torch.lerp(mixed, rescaled, config.frequency_rescaling)
        out = mixed + x
        return plain_norm(out, config) if config.norm_placement == "post" else out

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        projected = self.uvqk(x)
        if self.config.hstu_activation == "all":
            return torch.split(F.silu(projected), self.widths, dim=1)
        u, *others = torch.split(projected, self.widths, dim=1)
        return F.silu(u), *others

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, plan: PackingPlan) -> Tensor:
        """The attention output, (L, heads * linear_dim)."""
        config = self.config
        q, k, v = (x.reshape(x.shape[0], config.num_heads, -1) for x in (q, k, v))  # (L, heads, width)
        if config.position == "rotary":
            q, k = rotate(q, plan.positions), rotate(k, plan.positions)
        return hstu_attention(
            q,
            k,
            v,
            plan=plan,
            scale=1 / config.max_len,
            max_len=config.max_len,
            position_table=self.position_table,
            time_table=self.time_table,
            causal=config.causal,
            dropout=config.attention_dropout,
            training=self.training,
        ).flatten(1)


class HSTU(SequenceModel):
    """The backbone; `build_model` initialises it. It has no final norm with cosine scores, which normalise states."""

    def __init__(self, config: TrialConfig, num_items: int) -> None:
        super().__init__(config, num_items)
        self.blocks = nn.ModuleList(HSTUBlock(config) for _ in range(self.num_distinct_blocks))
        if config.scores == "dot":
            self.final_norm = build_norm(config, PLAIN_EPSILON)

    def draw(self, module: nn.Module, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Like `SequenceModel.draw`, but W is normal with standard deviation .02, as in the research code."""
        if name.endswith("uvqk.weight"):
            nn.init.normal_(parameter, std=TABLE_STD, generator=generator)
        else:
            super().draw(module, name, parameter, generator)

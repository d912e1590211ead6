"""SASRec (Kang & McAuley 2018, "Self-Attentive Sequential Recommendation") on jagged batches.

    x = x + dropout(attention(norm(x)));   x = x + dropout(feed_forward(norm(x)));   a norm after the last block

This is the paper's g'(x) = x + Dropout(g(LayerNorm(x))) (section III-D). Beyond the paper, the configuration may
normalise after the residual sum instead (x = norm(x + dropout(g(x)))), and choose other positional encodings, time
biases, activations, bidirectional attention, readouts, local mixing, a frequency rescaling beside the attention, and
dropout on the attention weights.

Dimension L: total tokens of the jagged batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..kernels.jagged.dropout import dropout
from ..kernels.jagged.packing import PackingPlan
from ..kernels.jagged.softmax_attention import softmax_attention
from .config import TrialConfig
from .feed_forward import FeedForward
from .local_mixing import FrequencyRescaling, build_local_mixing
from .norms import build_norm
from .positions import relative_table, rotate, time_table
from .sequence_model import SequenceModel


class SASRecBlock(nn.Module):
    """Attention and feed-forward, each on its own residual branch."""

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_dim
        self.local_mixing = build_local_mixing(config)
        self.attention_norm = build_norm(config)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.rescaling = FrequencyRescaling(config) if config.frequency_rescaling else None
        self.position_table = relative_table(config, config.num_heads)
        self.time_table = time_table(config, config.num_heads)
        self.feed_forward_norm = build_norm(config)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, plan: PackingPlan) -> Tensor:
        """(L, hidden_dim) to the same shape."""
        for layer in self.local_mixing:
            x = layer(x, plan)
        x = self._branch(x, self.attention_norm, lambda states: self._mix(states, plan))
        return self._branch(x, self.feed_forward_norm, self.feed_forward)

    def _branch(self, x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.config.norm_placement == "post":
            after: Tensor = norm(x + dropout(sublayer(x), self.config.dropout, self.training))
            return after
        return x + dropout(sublayer(norm(x)), self.config.dropout, self.training)

    def _mix(self, x: Tensor, plan: PackingPlan) -> Tensor:
        """Attention, or its mean with the frequency rescaling, weighted by `frequency_rescaling`."""
        attended = self.attend(x, plan)
        if self.rescaling is None:
            return attended
        mixed: Tensor = torch.lerp(attended, self.rescaling(x, plan), self.config.frequency_rescaling)
        return mixed

    def attend(self, x: Tensor, plan: PackingPlan) -> Tensor:
        """Multi-head self-attention, (L, hidden_dim) to (L, hidden_dim)."""
        q, k, v = self.query_key_value(x).view(x.shape[0], 3, self.config.num_heads, -1).unbind(1)  # (L, heads, d)
        if self.config.position == "rotary":
            q, k = rotate(q, plan.positions), rotate(k, plan.positions)
        attended = softmax_attention(
            q,
            k,
            v,
            plan=plan,
            position_table=self.position_table,
            time_table=self.time_table,
            causal=self.config.causal,
            dropout=self.config.attention_dropout,
            training=self.training,
        )
        out: Tensor = self.out(attended.flatten(1))
        return out


class SASRec(SequenceModel):
    """The backbone; `build_model` initialises it. Post-norm blocks end in a norm, so no final norm follows them."""

    def __init__(self, config: TrialConfig, num_items: int) -> None:
        super().__init__(config, num_items)
        self.blocks = nn.ModuleList(SASRecBlock(config) for _ in range(self.num_distinct_blocks))
        if config.norm_placement == "pre":
            self.final_norm = build_norm(config)

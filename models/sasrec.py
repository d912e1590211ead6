"""SASRec (Kang & McAuley 2018, "Self-Attentive Sequential Recommendation") on jagged batches.

    x = x + dropout(attention(norm(x)));   x = x + dropout(feed_forward(norm(x)));   a layer norm after the last block

which is the paper's g'(x) = x + Dropout(g(LayerNorm(x))) (section III-D). Beyond the paper, the configuration may
switch to relative positions, other activations, bidirectional attention, readouts and dropout inside attention.

Dimension L: total tokens of the jagged batch.
"""

from torch import Tensor, nn

from ..kernels.dropout import dropout
from ..kernels.packing import PackingPlan
from ..kernels.softmax_attention import softmax_attention
from .config import TrialConfig
from .feed_forward import FeedForward
from .positions import relative_table
from .sequence_model import SequenceModel


class SASRecBlock(nn.Module):
    """Attention and feed-forward, each pre-normalised on its own residual branch."""

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_dim
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.position_table = relative_table(config, config.num_heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, plan: PackingPlan) -> Tensor:
        """x (L, hidden_dim), and so is the result."""
        x = x + dropout(self.attend(self.attention_norm(x), plan), self.config.dropout, self.training)
        return x + dropout(self.feed_forward(self.feed_forward_norm(x)), self.config.dropout, self.training)

    def attend(self, x: Tensor, plan: PackingPlan) -> Tensor:
        """Multi-head self-attention, (L, hidden_dim) to (L, hidden_dim)."""
        q, k, v = self.query_key_value(x).view(len(x), 3, self.config.num_heads, -1).unbind(1)  # (L, heads, d)
        attended = softmax_attention(
            q,
            k,
            v,
            plan=plan,
            position_table=self.position_table,
            causal=self.config.causal,
            dropout=self.config.attention_dropout,
            training=self.training,
        )
        out: Tensor = self.out(attended.flatten(1))
        return out


class SASRec(SequenceModel):
    """The backbone; `build_model` draws its weights."""

    def __init__(self, config: TrialConfig, num_items: int) -> None:
        super().__init__(config, num_items)
        self.blocks = nn.ModuleList(SASRecBlock(config) for _ in range(config.num_blocks))
        self.final_norm = nn.LayerNorm(config.hidden_dim)

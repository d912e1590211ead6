"""The padded eager training loop of research code, the baseline of `bench_gpu.py`, written from the papers' formulas.

Every sequence is padded to max_len, all pairs are computed, and tensor operations run one by one. In favour of the
baseline, its padded examples are on the device before the clock starts.

Tensor dimensions: B sequences of a batch, N = max_len, m negatives.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from virtualmle.models.config import TrialConfig
from virtualmle.training.trainer import Training


class PaddedModel(nn.Module):
    """Items (B, N), where id 0 is padding, to states (B, N, hidden_dim); one block, as in both plain baselines."""

    def __init__(self, config: TrialConfig, num_items: int) -> None:
        super().__init__()
        self.config, width = config, config.hidden_dim
        self.items = nn.Embedding(num_items + 1, width, padding_idx=0)
        self.output = self.items if config.tie_embeddings else nn.Embedding(num_items + 1, width, padding_idx=0)
        self.positions = nn.Embedding(config.max_len, width)
        for table in (self.items, self.output, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, items: Tensor) -> Tensor:
        valid = (items > 0)[..., None]
        steps = torch.arange(items.shape[1], device=items.device)
        x = (self.items(items) * self.config.hidden_dim**0.5 + self.positions(steps)) * valid
        return self.block(x, steps[None] - steps[:, None]) * valid  # distances j - i

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.config.num_heads, -1))  # (B, N, heads, d)


class PaddedSASRec(PaddedModel):
    def __init__(self, config: TrialConfig, num_items: int) -> None:
        super().__init__(config, num_items)
        width = config.hidden_dim
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def block(self, x: Tensor, distances: Tensor) -> Tensor:
        q, k, v = (self.heads(part) for part in self.query_key_value(self.norms[0](x)).chunk(3, dim=-1))
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(distances > 0, float("-inf")).softmax(dim=-1)
        attended = self.out(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))
        x = x + F.dropout(attended, self.config.dropout, self.training)
        changed = self.outer(F.gelu(self.inner(self.norms[1](x))))
        return self.norms[2](x + F.dropout(changed, self.config.dropout, self.training))


class PaddedHSTU(PaddedModel):
    def __init__(self, config: TrialConfig, num_items: int) -> None:
        super().__init__(config, num_items)
        self.widths = [config.num_heads * config.linear_dim] * 2 + [config.num_heads * config.attention_dim] * 2
        self.uvqk = nn.Linear(config.hidden_dim, sum(self.widths), bias=False)
        self.bias = nn.Parameter(torch.zeros(2 * config.max_len - 1))
        self.out = nn.Linear(self.widths[0], config.hidden_dim)

    def block(self, x: Tensor, distances: Tensor) -> Tensor:
        u, v, q, k = F.silu(self.uvqk(F.layer_norm(x, x.shape[-1:]))).split(self.widths, dim=-1)
        q, k, v = (self.heads(part) for part in (q, k, v))
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) + self.bias[distances + self.config.max_len - 1]
        weights = F.silu(scores) / self.config.max_len * (distances <= 0)
        attended = torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2)
        gated = F.dropout(u * F.layer_norm(attended, attended.shape[-1:]), self.config.dropout, self.training)
        return self.out(gated) + x


class PaddedLoop:
    """Epochs over the training examples of `training`, with its own model, loss and optimizer."""

    def __init__(self, training: Training) -> None:
        self.config, self.num_items, batches = training.config, training.model.num_items, training.batches
        kind = PaddedSASRec if self.config.backbone == "sasrec" else PaddedHSTU
        self.model = kind(self.config, self.num_items).to(training.device).train()
        optimizer = torch.optim.AdamW if self.config.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = optimizer(self.model.parameters(), lr=self.config.lr, weight_decay=0)
        columns = torch.arange(self.config.max_len)
        valid = columns < batches.lengths[:, None]  # (examples, N)
        events = torch.where(valid, batches.starts[:, None] + columns, 0).to(training.device)
        self.valid = valid.to(training.device)
        self.inputs, self.targets = ((batches.items[events + ahead] + 1) * self.valid for ahead in (0, 1))

    def epoch(self) -> None:
        """One pass over the examples in random order."""
        for rows in torch.randperm(len(self.inputs), device=self.inputs.device).split(self.config.batch_size):
            loss = self.loss(self.inputs[rows], self.targets[rows], self.valid[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def loss(self, items: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
        """Sampled softmax with negatives shared by the batch, on dot or cosine scores as configured."""
        negatives = torch.randint(1, self.num_items + 1, (self.config.num_negatives,), device=items.device)
        parts = self.model(items), self.model.output(targets), self.model.output(negatives)
        states, positive, others = (F.normalize(x, dim=-1) if self.config.scores == "cosine" else x for x in parts)
        logits = torch.cat(((states * positive).sum(-1, keepdim=True), states @ others.T), -1) / self.config.temperature
        losses = logits.logsumexp(-1) - logits[..., 0]  # (B, N) from logits (B, N, 1 + m)
        return (losses * valid).sum() / valid.sum()

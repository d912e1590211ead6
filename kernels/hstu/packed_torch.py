"""HSTU attention and its gradients in plain torch, on the rows of a packing plan: the registered op on a CPU.

The two functions correspond to those of the packed Triton family. The gradients are explicit, because autograd does not
record the implementation of an op. Dimensions: R rows of width T; a table has one row, shared by the heads, or one per
head.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..jagged.packing import PackingPlan, RowGroup
from ..jagged.time_buckets import time_buckets
from .attention_call import AttentionCall
from .philox import dropout_factors


def packed_forward(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    """q, k (total_tokens, heads, dqk), v (total_tokens, heads, dv) in any floating dtype; out like v, contiguous."""
    plan = _plan(call)
    outputs = []
    for pairs, (q_, k_, v_) in zip(_pairs(plan, call), _rows(plan, q, k, v), strict=True):
        weights = F.silu(_scores(q_, k_, pairs, call)) * pairs.factors(call, q_)
        outputs.append((weights @ v_).transpose(1, 2) * call.scale)
    return plan.scatter(outputs).contiguous()


def packed_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """dq, dk, dv and the gradients of the two tables, None for a missing table. grad is shaped like the output.

    P = D silu(S), dS = scale D (grad V^T) silu'(S), where D is the mask times the dropout factors.
    """
    plan = _plan(call)
    gradients: list[tuple[Tensor, ...]] = []
    dposition, dtime = (None if t is None else torch.zeros_like(t) for t in (call.position_table, call.time_table))
    for pairs, (grad_, q_, k_, v_) in zip(_pairs(plan, call), _rows(plan, grad, q, k, v), strict=True):
        scores = _scores(q_, k_, pairs, call)
        sigmoid, factors = torch.sigmoid(scores), pairs.factors(call, q_)
        slope = sigmoid * (1 + scores * (1 - sigmoid))
        dscores = (grad_ @ v_.mT) * factors * slope * call.scale  # (R, heads, T, T)
        dv = (scores * sigmoid * factors).mT @ grad_ * call.scale
        parts = (dscores @ k_ * call.alpha, dscores.mT @ q_ * call.alpha, dv)
        gradients.append(tuple(part.transpose(1, 2) for part in parts))
        if dposition is not None:
            dposition += _sums(dscores.sum(0, keepdim=True), pairs.columns, dposition)
        if dtime is not None and pairs.buckets is not None:
            dtime += _sums(dscores, pairs.buckets, dtime)
    dq, dk, dv = (plan.scatter(rows).contiguous() for rows in zip(*gradients, strict=True))
    return dq, dk, dv, dposition, dtime


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Properties of the (query, key) pairs of slots in the rows of one group."""

    group: RowGroup
    tokens: Tensor  # (R, T) int64
    columns: Tensor  # (1, T, T) int64: columns of the position table
    buckets: Tensor | None  # (R, T, T) int64: columns of the time table

    def factors(self, call: AttentionCall, like: Tensor) -> Tensor:
        """(R, heads or 1, T, T): 0 where the pair is masked or dropped, else 1 or the scale of dropout."""
        mask = self.group.mask(call.causal, like.dtype)[:, None]
        if not call.dropout or call.seed is None:
            return mask
        keys, queries = self.tokens[:, None, None, :], self.tokens[:, None, :, None]
        heads = torch.arange(like.shape[1])[:, None, None]
        return mask * dropout_factors(call.seed, keys, queries, heads, call.dropout).to(like.dtype)


def _plan(call: AttentionCall) -> PackingPlan:
    return PackingPlan.build(call.offsets.long())


def _rows(plan: PackingPlan, *tensors: Tensor) -> Iterator[list[Tensor]]:
    """For each group of rows, the tensors as (R, heads, T, d)."""
    for rows in zip(*(plan.gather(tensor) for tensor in tensors), strict=True):
        yield [part.transpose(1, 2) for part in rows]


def _pairs(plan: PackingPlan, call: AttentionCall) -> Iterator[_Pairs]:
    token_rows = plan.gather(torch.arange(len(plan.positions)))
    query_times, key_times = ([] if t is None else plan.gather(t.long()) for t in (call.query_times, call.times))
    for number, (group, tokens) in enumerate(zip(plan.groups, token_rows, strict=True)):
        buckets = None
        if call.time_table is not None:
            buckets = time_buckets(query_times[number][:, :, None] - key_times[number][:, None, :])
        steps = torch.arange(group.width)
        columns = steps[None, :] - steps[:, None] + call.position_reach  # j - i
        entries = 1 if call.position_table is None else call.position_table.shape[1]
        yield _Pairs(group, tokens, columns.clamp(0, entries - 1)[None], buckets)


def _scores(q: Tensor, k: Tensor, pairs: _Pairs, call: AttentionCall) -> Tensor:
    """(R, heads, T, T)."""
    scores = q @ k.mT * call.alpha
    if call.position_table is not None:
        scores = scores + call.position_table.to(q.dtype)[:, pairs.columns].transpose(0, 1)
    if call.time_table is not None and pairs.buckets is not None:
        scores = scores + call.time_table.to(q.dtype)[:, pairs.buckets].transpose(0, 1)
    return scores


def _sums(dscores: Tensor, columns: Tensor, table: Tensor) -> Tensor:
    """Sums of dscores (R or 1, heads, T, T) by column (R or 1, T, T), in the shape and dtype of table."""
    if len(table) == 1:
        dscores = dscores.sum(1, keepdim=True)
    flat = columns.flatten()
    sums = [torch.bincount(flat, part.flatten(), minlength=table.shape[1]) for part in dscores.unbind(1)]
    return torch.stack(sums).to(table.dtype)

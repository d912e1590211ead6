"""C6 and C7: softmax attention of the same shapes, by torch's own kernels: what such hardware can do.

A different function: SDPA and varlen have no bias and no SiLU, so that they are the speed of light for the two products
plus a softmax. FlexAttention reads the same two tables with the same gathers and gives their gradients, but its softmax
cannot be replaced by a SiLU.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from .implementation import Implementation, Leaves, softmax_scale
from .padded import LOG_STEP
from .shapes import Problem, Shape

HALF = (torch.float16, torch.bfloat16)


def _sdpa(backend: SDPBackend) -> Callable[[Problem, Leaves], Tensor]:
    def attend(problem: Problem, leaves: Leaves) -> Tensor:
        shape = problem.shape
        q, k, v = (part.view(shape.batch, shape.max_len, shape.heads, shape.dim).transpose(1, 2) for part in leaves[:3])
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale(shape))
        return out.transpose(1, 2).reshape(-1, shape.heads, shape.dim)

    return attend


def _varlen(function: Callable[..., Any]) -> Callable[[Problem, Leaves], Tensor]:
    def attend(problem: Problem, leaves: Leaves) -> Tensor:
        ends, longest, scale = problem.offsets_device, problem.shape.max_len, softmax_scale(problem.shape)
        out = function(*leaves[:3], ends, ends, longest, longest, scale=scale, window_size=(-1, 0))
        assert isinstance(out, Tensor)
        return out

    return attend


def _flex(function: Callable[..., Any]) -> Callable[[Problem, Leaves], Tensor]:
    def attend(problem: Problem, leaves: Leaves) -> Tensor:
        if "mask" not in problem.cache:
            problem.cache["mask"] = _document_mask(problem)
        q, k, v = (part.transpose(0, 1)[None] for part in leaves[:3])  # (1, H, L, dim)
        modify = _score_mod(problem, leaves[3:])
        mask = problem.cache["mask"]
        out = function(q, k, v, score_mod=modify, block_mask=mask, scale=softmax_scale(problem.shape))
        assert isinstance(out, Tensor)
        return out[0].transpose(0, 1)

    return attend


def _document_mask(problem: Problem) -> object:
    """j <= i within a sequence, as FlexAttention wants it; made once per batch."""
    device, total = problem.times.device, len(problem.times)
    documents = torch.repeat_interleave(problem.lengths).to(device)

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (documents[i] == documents[j]) & (j <= i)

    return create_block_mask(allowed, None, None, total, total, device=device, _compile=device.type == "cuda")


def _score_mod(problem: Problem, tables: Leaves) -> Callable[..., Tensor] | None:
    """The biases of a pair, by the same gathers as in HSTU."""
    if not tables:
        return None
    reach, times, query_times = problem.shape.max_len - 1, problem.times, problem.query_times

    def modify(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        score = score + tables[0][0, (j - i + reach).clamp(0, reach)]
        if len(tables) > 1:
            seconds = (query_times[i] - times[j]).abs().clamp(min=1)
            buckets = (torch.log(seconds.to(torch.float32)) / LOG_STEP).to(torch.int32)
            score = score + tables[1][0, buckets.clamp(0, tables[1].shape[1] - 1)]
        return score

    return modify


def _plain_half(shape: Shape, device: torch.device) -> str | None:
    """What the fused softmax kernels take."""
    if device.type != "cuda":
        return "CUDA only"
    if shape.bias != "none":
        return "has no bias"
    if shape.dtype not in HALF or shape.dim % 8:
        return "takes 16-bit types and widths that are multiples of 8"
    return None


def _math(shape: Shape, device: torch.device) -> str | None:
    if device.type == "cuda":
        return "the CPU's stand-in for the kernels of CUDA"
    return None if shape.bias == "none" else "has no bias"


def _flexible(shape: Shape, device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    if shape.dim & (shape.dim - 1) or shape.dim < 16:
        return "takes widths that are powers of two from 16"
    measured = shape.name == "B d=128 N=4096 full" and shape.bias != "position"
    return None if measured else "compiles for half a minute a shape: measured at d=128, N=4096, full lengths alone"


def softmax_implementations(compiled: bool) -> list[Implementation]:
    """`compiled`: FlexAttention without its compiler computes all squares, which shows its mathematics alone."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 (loads TorchDynamo: two seconds)

    flex = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
    return [
        Implementation("C6 SDPA cudnn", _sdpa(SDPBackend.CUDNN_ATTENTION), "softmax", _plain_half, needs_full=True),
        Implementation("C6 SDPA flash", _sdpa(SDPBackend.FLASH_ATTENTION), "softmax", _plain_half, needs_full=True),
        Implementation("C6 SDPA math", _sdpa(SDPBackend.MATH), "softmax", _math, needs_full=True),
        Implementation("C6 varlen", _varlen(varlen_attn), "softmax", _plain_half),
        Implementation("C7 FlexAttention", _flex(flex), "softmax", _flexible, forward_only_on_cpu=True),
    ]

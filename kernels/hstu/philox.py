"""Counter-based dropout masks: the mask of a pair is a pure function of its indices and a seed.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), as in Triton's `tl.philox`. The
counters are (key token, query token, head, 0), with token indices in the jagged batch; the key is a 64-bit seed. The
forward pass, the backward pass, every kernel family and the CPU therefore draw the same mask, and none is stored.
"""

import torch
from torch import Tensor

LEVELS = 1 << 24  # the upper 24 of 32 bits of a draw decide
ROUNDS = 10
WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def kept_levels(probability: float) -> int:
    """The number of the LEVELS possible draws that keep a weight; it rounds the probability to a multiple of 2**-24."""
    return round((1 - probability) * LEVELS)


def dropout_factors(seed: Tensor, keys: Tensor, queries: Tensor, heads: Tensor, probability: float) -> Tensor:
    """float32 factors: 0 with `probability`, else the value that preserves the mean; 0 <= probability < 1.

    seed (1,) int64; keys, queries and heads are int64 indices that broadcast to the shape of the result.
    """
    kept = kept_levels(probability)
    draws = philox(seed, keys, queries, heads, torch.zeros_like(heads))[0]
    return torch.where((draws >> 8) < kept, LEVELS / kept, 0.0).to(torch.float32)


def philox(seed: Tensor, *counters: Tensor) -> tuple[Tensor, ...]:
    """Four draws for the four counters; draws and counters are 32-bit values in int64, counters are broadcast."""
    words = (counter & WORD for counter in counters)
    c0, c1, c2, c3 = torch.broadcast_tensors(*words)  # type: ignore[no-untyped-call]
    k0, k1 = seed & WORD, (seed >> 32) & WORD
    for _ in range(ROUNDS):
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # 64-bit products; the sign bit belongs to the value
        c0, c1, c2, c3 = _high(second) ^ c1 ^ k0, second & WORD, _high(first) ^ c3 ^ k1, first & WORD
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def _high(product: Tensor) -> Tensor:
    return (product >> 32) & WORD

"""Units of scores inside the kernels: scores are multiplied by LOG2E, because the GPU has an instruction for exp2, and
losses are converted back to natural logarithms by LN2."""

import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3e38)  # below every score, but finite, so that 2^(LOWEST - LOWEST) is not NaN

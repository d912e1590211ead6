"""The unit of scores inside the kernels is log 2: a score times LOG2E goes into exp2, which the GPU has an instruction
for, and a loss comes back to natural units times LN2."""

import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3e38)  # below every score, and finite: 2^(LOWEST - LOWEST) is a number

"""The kernel that does nothing."""

import triton


@triton.jit
def empty():
    pass

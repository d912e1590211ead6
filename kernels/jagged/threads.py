"""As many threads as the work is worth: those that a small tensor wakes cost more than they save.

A step of a small model is hundreds of operations of microseconds each. Waking a sleeping thread for every one of them
makes the step twice as slow, the more so on virtual machines; letting threads spin instead starves whoever else needs
the core. So small work runs on one thread, and large work on all.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

NUMBERS_PER_THREAD = 1 << 18  # where two threads begin to pay for each other on the machines that we measured


@contextmanager
def threads_for(numbers: int) -> Iterator[None]:
    """Inside, torch's operations use a thread for every NUMBERS_PER_THREAD of `numbers`, and no more than outside.

    `numbers` is the size of the tensors that are worked on. The choice follows from sizes alone, so equal runs on
    equally many threads stay equal bit for bit.
    """
    outside = torch.get_num_threads()
    torch.set_num_threads(max(1, min(outside, numbers // NUMBERS_PER_THREAD)))
    try:
        yield
    finally:
        torch.set_num_threads(outside)

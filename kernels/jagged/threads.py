"""The number of torch threads by the size of the work: on small tensors, more threads cost more than they save.

A step of a small model consists of hundreds of operations of a few microseconds. Waking a sleeping thread for each of
them makes the step twice as slow, and slower still on virtual machines; spinning threads would take the core from other
processes. Small work therefore runs on one thread, and large work on all.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

ELEMENTS_PER_THREAD = 1 << 18  # from twice this size on, two threads were faster than one on the measured machines


@contextmanager
def threads_for(num_elements: int) -> Iterator[None]:
    """Within the context, torch uses one thread per ELEMENTS_PER_THREAD elements, but no more threads than outside it.

    `num_elements` is the size of the tensors that are processed. The choice depends only on sizes, so that equal runs
    with equally many threads outside stay bit-identical.
    """
    outside = torch.get_num_threads()
    torch.set_num_threads(max(1, min(outside, num_elements // ELEMENTS_PER_THREAD)))
    try:
        yield
    finally:
        torch.set_num_threads(outside)

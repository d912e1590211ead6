"""Look-up of table rows by index, with a backward pass that suits the device."""

import torch.nn.functional as F
from torch import Tensor


def look_up(table: Tensor, index: Tensor, sparse: bool = False) -> Tensor:
    """(n, d): rows `index` (n,) int64 of table (V, d). sparse: the table's gradient is a sparse tensor of these rows.

    On a GPU index_add sums the dense gradient. The backward pass of torch's embedding waits for the device if there are
    more than 3072 rows to add, and can then not be captured in a CUDA graph.
    """
    if table.is_cuda and not sparse:
        return table.index_select(0, index)
    return F.embedding(index, table, sparse=sparse)

"""Rows of a table by number, with the backward pass that suits the device."""

import torch.nn.functional as F
from torch import Tensor


def look_up(table: Tensor, index: Tensor, sparse: bool = False) -> Tensor:
    """(n, d): rows `index` (n,) int64 of table (V, d). sparse: the table's gradient names its rows and holds no other.

    On a GPU the dense gradient is summed by index_add: that of torch's embedding waits for the device, and thereby
    cannot be captured, as soon as there are more than 3072 rows to add.
    """
    if table.is_cuda and not sparse:
        return table.index_select(0, index)
    return F.embedding(index, table, sparse=sparse)

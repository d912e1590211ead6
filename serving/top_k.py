"""The k best items of each user: exact, and equal scores are ordered by the number of the item, lower numbers first."""

import torch
from torch import Tensor

NO_ITEM = -1


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best columns of scores (n, num_items): int64 (n, k) and their scores (n, k), the best first.

    Columns with a score of -inf are no candidates. If a row has fewer than k candidates, the rest of it is NO_ITEM with
    a score of -inf. Rows whose k-th and next score are equal are sorted as a whole.
    """
    width = min(k, scores.shape[1])
    values, columns = scores.topk(min(width + 1, scores.shape[1]), dim=1)
    ambiguous = (values[:, width - 1] == values[:, -1]) & (values[:, -1] > -torch.inf)
    values, columns = values[:, :width], columns[:, :width]
    if width < scores.shape[1] and bool(ambiguous.any()):
        ordered = scores[ambiguous].sort(dim=1, descending=True, stable=True)
        values[ambiguous], columns[ambiguous] = ordered.values[:, :width], ordered.indices[:, :width]
    by_column = columns.argsort(dim=1)
    values, columns = values.gather(1, by_column), columns.gather(1, by_column)
    by_score = values.argsort(dim=1, descending=True, stable=True)
    values, columns = values.gather(1, by_score), columns.gather(1, by_score)
    columns = columns.masked_fill(values == -torch.inf, NO_ITEM)
    missing = (0, k - width)
    pad = torch.nn.functional.pad
    return pad(columns, missing, value=NO_ITEM), pad(values, missing, value=-torch.inf)

"""Steps of fixed shape, on a GPU as CUDA graphs: a whole step is one launch.

A step is batch assembly, forward, loss, backward, optimizer and weight average. The first step of a shape runs as it
is, on the stream that captures later, so that libraries and caches are ready; the second is captured and replayed, and
from then on the step of that shape is its graph. Graphs share one pool of memory: they never run side by side, and
what outlives a step (weights, optimizer, tables of the epoch, the sum of losses) lies outside it.

On a CPU the very same steps run without capture; `Training` chooses them on a GPU only.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..models.config import TrialConfig
from ..models.item_table import is_row_sparse
from .batches import TrainBatch, TrainBatches
from .fixed_batches import FixedBatches

MAX_PAIRS = 1 << 29  # of events, in all rows, heads and blocks of a batch: two gigabytes for each matrix that is kept

TakeStep = Callable[[TrainBatch, Tensor, Tensor], None]
"""`take(batch, factor, share)` trains on a batch, by a factor on the learning rate and a share in the average, ()."""


def obstacle(config: TrialConfig, num_items: int) -> str | None:
    """Why the steps of a configuration cannot be captured and run one operation at a time; None if they can."""
    pairs = config.batch_size * config.max_len**2 * config.num_heads * config.num_blocks
    if is_row_sparse(config, num_items):
        return "a gradient of single rows has as many rows as the batch names items"
    if config.augmentation != "none" and config.augmentation_share:
        return f"augmentation={config.augmentation!r} is drawn on the host"
    if config.contrastive_weight:
        return "the views of the contrastive loss are laid out on the host"
    if pairs > MAX_PAIRS:
        return f"rows of max_len={config.max_len} would hold {pairs} pairs of events, more than {MAX_PAIRS}"
    return None


class FixedSteps:
    """All steps of a trial, by the number of tokens; `generators` are those that a step draws from, but torch's own."""

    def __init__(self, batches: TrainBatches, generators: Sequence[torch.Generator]) -> None:
        self.batches = FixedBatches(batches)
        self.generators = generators
        self.device = batches.items.device
        self.graphs: dict[int, torch.cuda.CUDAGraph | None] = {}  # None: seen once
        if self.device.type == "cuda":
            self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            self.pool = torch.cuda.graph_pool_handle()

    def epoch(self, take: TakeStep, rates: Sequence[tuple[float, float]]) -> Iterator[int]:
        """Take every step of a new epoch; after each comes its number of supervised positions. Nothing is waited for.

        rates: see `FixedBatches.shuffle`. `take` is captured: it must be the same function in every epoch.
        """
        for shape in self.batches.shuffle(rates):
            self._run(shape.num_tokens, take)
            yield shape.num_targets

    def _run(self, num_tokens: int, take: TakeStep) -> None:
        if self.device.type != "cuda":
            self._step(num_tokens, take)
        elif num_tokens not in self.graphs:
            self._warm_up(num_tokens, take)
        else:
            graph = self.graphs[num_tokens] or self._capture(num_tokens, take)
            graph.replay()

    def _step(self, num_tokens: int, take: TakeStep) -> None:
        take(self.batches.batch(num_tokens), *self.batches.step_rates())
        self.batches.advance()

    def _warm_up(self, num_tokens: int, take: TakeStep) -> None:
        before = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(before)
        with torch.cuda.stream(self.stream):
            self._step(num_tokens, take)
        before.wait_stream(self.stream)
        self.graphs[num_tokens] = None

    def _capture(self, num_tokens: int, take: TakeStep) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        if torch.__version__ < "2.14":  # later versions see by themselves whose numbers a graph draws
            for generator in self.generators:
                graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            self._step(num_tokens, take)
        self.graphs[num_tokens] = graph
        return graph

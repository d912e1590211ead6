"""Training steps of fixed shape, which a GPU runs as CUDA graphs: one launch per step.

A step is batch assembly, forward, loss, backward, optimizer and weight average. The first step of a shape runs without
capture, on the stream that is used for capture later, to initialise libraries and caches. The second step is captured
and replayed; all later steps of that shape replay the graph. The graphs share one memory pool, because they never run
concurrently. Everything that outlives a step (weights, optimizer state, epoch tables, sum of losses) is outside
the pool.

On a CPU the same steps run without capture; `Training` uses fixed shapes on a GPU only.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..models.config import TrialConfig, teachers_of
from ..models.item_table import is_row_sparse
from .batches import TrainBatch, TrainBatches
from .fixed_batches import FixedBatches

MAX_PAIRS = 1 << 29  # pairs of events in all rows, heads and blocks of a batch: two gigabytes per stored matrix

TakeStep = Callable[[TrainBatch, Tensor, Tensor], None]
"""`take_step(batch, factor, share)` trains on one batch (`Training.take_step`); `factor` and `share` are scalars ()."""


def capture_obstacle(config: TrialConfig, num_items: int) -> str | None:
    """The reason why steps of this configuration cannot be captured, or None if they can."""
    pairs = config.batch_size * config.max_len**2 * config.num_heads * config.num_blocks
    if is_row_sparse(config, num_items):
        return "the number of rows of a row-sparse gradient depends on the items of the batch"
    if teachers_of(config):
        return "the targets of teachers are looked up by the events of the batch, which the host knows"
    if config.augmentation != "none" and config.augmentation_share:
        return f"augmentation={config.augmentation!r} is drawn on the host"
    if config.contrastive_weight:
        return "the views of the contrastive loss are built on the host"
    if pairs > MAX_PAIRS:
        return f"rows of max_len={config.max_len} need {pairs} pairs of events, more than {MAX_PAIRS}"
    return None


class FixedSteps:
    """The steps of a trial, with one graph per number of tokens.

    generators: every generator that a step draws from, except torch's default one.
    """

    def __init__(self, batches: TrainBatches, generators: Sequence[torch.Generator]) -> None:
        self.batches = FixedBatches(batches)
        self.generators = generators
        self.device = batches.items.device
        self.graphs: dict[int, torch.cuda.CUDAGraph | None] = {}  # None: warmed up, not yet captured
        if self.device.type == "cuda":
            self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            self.pool = torch.cuda.graph_pool_handle()

    def epoch(self, take_step: TakeStep, rates: Sequence[tuple[float, float]]) -> Iterator[int]:
        """Run the steps of a new epoch without a device sync; yields the number of supervised positions of each step.

        rates: see `FixedBatches.shuffle`. Graphs capture `take_step`: it must be the same function in every epoch.
        """
        for shape in self.batches.shuffle(rates):
            self._run(shape.num_tokens, take_step)
            yield shape.num_targets

    def _run(self, num_tokens: int, take_step: TakeStep) -> None:
        if self.device.type != "cuda":
            self._step(num_tokens, take_step)
        elif num_tokens not in self.graphs:
            self._warm_up(num_tokens, take_step)
        else:
            graph = self.graphs[num_tokens] or self._capture(num_tokens, take_step)
            graph.replay()

    def _step(self, num_tokens: int, take_step: TakeStep) -> None:
        take_step(self.batches.batch(num_tokens), *self.batches.step_rates())
        self.batches.advance()

    def _warm_up(self, num_tokens: int, take_step: TakeStep) -> None:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            self._step(num_tokens, take_step)
        current.wait_stream(self.stream)
        self.graphs[num_tokens] = None

    def _capture(self, num_tokens: int, take_step: TakeStep) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        if torch.__version__ < "2.14":  # later versions register the generators of a graph themselves
            for generator in self.generators:
                graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            self._step(num_tokens, take_step)
        self.graphs[num_tokens] = graph
        return graph

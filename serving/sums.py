"""The sums that an export keeps (`sums.safetensors`): for its baselines, and to add those of later events.

They are counted twice: with the default counting knobs, for the baselines of an evaluation, and with the export's own.
If both agree, the file has one set. Co-occurrence is symmetric, so only pairs (i, j) with i < j are stored.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.errors import ExportError
from ..models.config import TrialConfig, make_config
from ..models.prior_sums import Events, Pairs, PriorSums, counting_knobs
from .layout import SUMS
from .reading import read_export

BASELINE, SCORING = "baseline", "scoring"
LARGEST_INT32 = 2**31 - 1


@dataclass(frozen=True)
class ExportSums:
    """Sums over the events that an export was trained on."""

    baseline: PriorSums  # with the default counting knobs
    scoring: PriorSums  # with those of the export

    @classmethod
    def of_events(cls, events: Events, num_items: int, scoring: TrialConfig) -> "ExportSums":
        """Count the events of a log."""
        default = make_config(scoring.backbone)
        baseline = PriorSums.of_events(events, num_items, default)
        own = baseline if _counts_alike(scoring, default) else PriorSums.of_events(events, num_items, scoring)
        return cls(baseline, own)

    def plus(self, later: "ExportSums") -> "ExportSums":
        """The sums of both logs; `later` has these items first, and may have more."""
        size = later.baseline.num_items
        baseline = self.baseline.grown(size).plus(later.baseline)
        if self.scoring is self.baseline:
            return ExportSums(baseline, baseline)
        return ExportSums(baseline, self.scoring.grown(size).plus(later.scoring))

    def tensors(self) -> dict[str, Tensor]:
        """The content of `sums.safetensors`."""
        sets = {BASELINE: self.baseline} | ({} if self.scoring is self.baseline else {SCORING: self.scoring})
        return {f"{name}.{part}": tensor for name, sums in sets.items() for part, tensor in _tensors_of(sums).items()}


def load_sums(directory: Path) -> ExportSums:
    """Read the sums of an export. ExportError if it is missing or damaged, or was written without them."""
    files = read_export(directory)
    if SUMS not in files.contents:
        raise ExportError(f"{str(directory)!r} has no {SUMS}; export the session again, with --overwrite")
    tensors = files.tensors(SUMS)
    baseline = _sums_of(tensors, BASELINE)
    return ExportSums(baseline, _sums_of(tensors, SCORING) if f"{SCORING}.counts" in tensors else baseline)


def _counts_alike(config: TrialConfig, default: TrialConfig) -> bool:
    return all(value == getattr(default, knob) for knob, value in counting_knobs(config).items())


def _tensors_of(sums: PriorSums) -> dict[str, Tensor]:
    size = sums.num_items
    upper = sums.cooccurrences.keys // size < sums.cooccurrences.keys % size
    pairs = {
        "transitions": sums.transitions,
        "cooccurrences": Pairs(sums.cooccurrences.keys[upper], sums.cooccurrences.values[upper]),
    }
    found = {"counts": torch.tensor(sums.counts), "histories": torch.tensor(sums.histories)}
    for name, (keys, values) in pairs.items():
        found[f"{name}.starts"] = torch.tensor(np.searchsorted(keys, np.arange(size + 1) * size))
        found[f"{name}.columns"] = torch.tensor(keys % size, dtype=torch.int32)
        found[f"{name}.values"] = torch.tensor(_compact(values))
    return found


def _compact(values: NDArray[np.float64]) -> NDArray[np.float64] | NDArray[np.int32]:
    """Whole numbers as int32, which is exact and takes half the bytes."""
    whole = bool((values == np.floor(values)).all() and values.max(initial=0) <= LARGEST_INT32)
    return values.astype(np.int32) if whole else values


def _sums_of(tensors: dict[str, Tensor], name: str) -> PriorSums:
    counts = tensors[f"{name}.counts"].numpy()
    size = len(counts)
    upper = _pairs_of(tensors, f"{name}.cooccurrences", size)
    lower = Pairs(upper.keys % size * size + upper.keys // size, upper.values)
    transitions = _pairs_of(tensors, f"{name}.transitions", size)
    return PriorSums(size, counts, tensors[f"{name}.histories"].numpy(), transitions, upper.plus(lower))


def _pairs_of(tensors: dict[str, Tensor], name: str, size: int) -> Pairs:
    starts, columns, values = (tensors[f"{name}.{part}"].numpy() for part in ("starts", "columns", "values"))
    return Pairs(np.repeat(np.arange(size), np.diff(starts)) * size + columns, values.astype(np.float64))

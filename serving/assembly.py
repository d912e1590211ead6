"""Makes the contents of an export from the directories of finished trials and their dataset."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import polars as pl

from ..data.errors import ExportError
from ..data.item_names import with_names
from ..data.prepared import ITEM_IDS, LEAVE_ONE_OUT, Manifest, PreparedDataset, read_file
from ..models.config import TrialConfig
from ..models.prior_sums import Events
from ..models.priors import ScorePriors
from ..training.checkpoint import load_checkpoint
from ..training.spec import CHECKPOINT
from .artifact import Contents, Member
from .item_index import typed_ids
from .layout import DRAWN, ORIGINAL_ID, DatasetOfExport, TrainedModel, TrainedOn
from .sums import ExportSums


def assemble(
    models: Sequence[TrainedModel],
    scoring: TrialConfig,
    dataset_dir: Path,
    card: str,
    events: PreparedDataset | None = None,
    trained_on: TrainedOn = "train",
    names: Mapping[int, str] = MappingProxyType({}),
) -> Contents:
    """The contents of an export of `models` with the scoring knobs of `scoring`.

    events: the data that the models were trained on and that score priors are counted in; None = the train part of the
    dataset in `dataset_dir`. names: original ids, by item, of items that have none in the visible files of the dataset;
    those that are not given stay null. ExportError if a model was trained for another catalogue.
    """
    members = [Member(model.name, *load_checkpoint(model.directory / CHECKPOINT)) for model in models]
    return contents_of(members, scoring, dataset_dir, card, events, trained_on, names)


def contents_of(
    members: Sequence[Member],
    scoring: TrialConfig,
    dataset_dir: Path,
    card: str,
    events: PreparedDataset | None = None,
    trained_on: TrainedOn = "train",
    names: Mapping[int, str] = MappingProxyType({}),
) -> Contents:
    """`assemble` for models in memory."""
    dataset = PreparedDataset.load(dataset_dir)
    events = events or dataset
    for member in members:
        if member.model.num_items != dataset.num_items:
            raise ExportError(
                f"trial {member.trial} scores {member.model.num_items} items, and dataset {dataset.name} has "
                f"{dataset.num_items}: it was trained on another dataset; export a trial of this one"
            )
    return Contents(
        members=members,
        scoring=scoring,
        dataset=DatasetOfExport(
            name=dataset.name,
            dataset_id=dataset.dataset_id,
            preparation=_preparation(dataset.manifest),
            median_gap_seconds=dataset.profile["median_gap_days"] * 86_400,
        ),
        trained_on=trained_on,
        items=typed_ids(with_names(pl.read_parquet(read_file(dataset_dir, ITEM_IDS))[ORIGINAL_ID], names)),
        priors=ScorePriors.from_dataset(events, scoring),
        counts=np.bincount(events.items, minlength=dataset.num_items),
        sums=ExportSums.of_events(Events(events.items, events.offsets, events.timestamps), dataset.num_items, scoring),
        card=card,
    )


def _preparation(dataset: Manifest) -> str:
    """How train, validation and test events were separated: the split, and whether the order of ties was drawn."""
    split = str(dataset.profile.get("split", LEAVE_ONE_OUT))
    return f"{split}{DRAWN}" if dataset.has_random_ties else split

"""The dataset of a session as its report shows it: what preparation dropped, and three distributions.

Only the manifest and the train part are read. The numbers of users, items and interactions are those that
`virtualmle data show` prints; they are the only figures that depend on test events.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.catalogue import Catalogue
from ..data.errors import DataError
from ..data.prepared import Manifest, PreparedDataset
from ..memory.records import SessionRecord

CLOCK_FROM = 100_000_000  # Unix seconds of 1973: times without a clock count events, and no log has so many


@dataclass(frozen=True)
class DatasetView:
    """A session's dataset, of which only the train part was read."""

    manifest: Manifest
    lengths: NDArray[np.int64]  # (num_users,) train events of each user who has any
    popularity: NDArray[np.int64]  # (num_items,) train events of each item, descending
    times: NDArray[np.int64]  # (num_train_events,) Unix seconds, or an order
    has_clock: bool

    @property
    def filtering(self) -> list[tuple[str, list[int | None]]]:
        """Per step of the preparation: its name, and the users, items and interactions left after it."""
        manifest, options = self.manifest, self.manifest.options
        before = manifest.before_core
        counts: list[int | None] = [before.users, before.items, before.interactions] if before else [None] * 3
        sizes: list[int | None] = [manifest.num_users, manifest.num_items]
        core = f"{options.k_core}-core: users and items with fewer than {options.k_core} events removed, repeatedly"
        return [
            ("log, without repeated rows" + (", before the test part" if manifest.time_split else ""), counts),
            (core, [*sizes, manifest.num_interactions_before_cut]),
            (f"the last {options.max_events} events of each user", [*sizes, manifest.num_interactions]),
        ]


def dataset_view(home: Path, session: SessionRecord) -> DatasetView | None:
    """The dataset of `session`; None if this home no longer has it, or has another one under its name."""
    catalogue = Catalogue(home)
    try:
        if session.replay or catalogue.manifest(session.dataset).dataset_id != session.dataset_id:
            return None
        dataset = catalogue.load(session.dataset, verify=False)
    except DataError:
        return None
    return _view(dataset)


def _view(dataset: PreparedDataset) -> DatasetView:
    counts = np.bincount(dataset.items, minlength=dataset.num_items)
    times, lengths = np.asarray(dataset.timestamps), np.diff(dataset.offsets)
    return DatasetView(
        manifest=dataset.manifest,
        lengths=lengths[lengths > 0],
        popularity=np.sort(counts)[::-1],
        times=times,
        has_clock=bool(np.median(times) >= CLOCK_FROM),
    )

"""The sketches of contents in the look ledger. Only the examiner's processes import this module.

A sketch has hashes of test targets, so the ledger keeps it sealed, as a dataset's directory keeps the targets: whoever
lacks the private key can neither read it nor try out guesses against it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ..data.errors import SealError
from ..data.prepared import ITEM_IDS, USER_IDS, PreparedDataset
from ..data.seal import seal
from ..data.sketch import Similarity, Sketch, hashed, similarity, sketch_of
from .unseal import Targets, public_key_of, unseal

SKETCH = "sketch"  # its name in a sealed test split
ORIGINAL_ID = "original_id"


@dataclass(frozen=True)
class ContentSketch:
    """The sketch of a content that is about to be looked at, and the key that opens those of earlier looks."""

    sketch: Sketch
    private_key: bytes

    def sealed(self, fingerprint: str) -> bytes:
        """The sketch as a row of the ledger keeps it, bound to the content's fingerprint."""
        return seal(self.sketch.to_bytes(), public_key_of(self.private_key), _binding(fingerprint))

    def similarity(self, sealed: bytes, fingerprint: str) -> Similarity | None:
        """How similar the content of an earlier row is; None if its sketch is absent or cannot be opened."""
        try:
            earlier = Sketch.from_bytes(unseal(sealed, self.private_key, _binding(fingerprint))) if sealed else None
        except SealError:  # sealed for an earlier key of this home, or changed
            return None
        return similarity(self.sketch, earlier) if earlier else None


def content_sketch(directory: Path, dataset: PreparedDataset, targets: Targets, private_key: bytes) -> ContentSketch:
    """The sketch of a dataset's content: the sealed one, or one of its prepared events if it is older than sketches."""
    stored = targets.further.get(SKETCH)
    known = Sketch.from_bytes(stored.tobytes()) if stored is not None else None
    return ContentSketch(known or _from_events(directory, dataset, targets), private_key)


def _from_events(directory: Path, dataset: PreparedDataset, targets: Targets) -> Sketch:
    before, tested = dataset.visible_histories(), targets.users
    assert before.times is not None
    users = np.repeat(np.arange(dataset.num_users), np.diff(before.offsets))
    user_names, item_names = (
        hashed(pl.read_parquet(directory / file)[ORIGINAL_ID].fill_null("")) for file in (USER_IDS, ITEM_IDS)
    )
    return sketch_of(
        np.concatenate([users, tested]),
        np.concatenate([before.items, targets.items[tested]]).astype(np.int64),
        np.concatenate([before.times, targets.timestamps[tested]]),
        user_names,
        item_names,
    )


def _binding(fingerprint: str) -> str:
    return f"sketch of {fingerprint}"

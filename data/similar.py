"""Which datasets of a home have nearly the same content, as far as the visible parts tell.

The complete contents, with test events, are compared by the examiner only, at a look. This module reads what everybody
can read, and may be asked at any time: before a session is opened, or while one is open.
"""

import contextlib
from pathlib import Path

import numpy as np

from .atomic import write_bytes
from .catalogue import Catalogue
from .errors import DataError
from .prepared import ITEM_IDS, USER_IDS, PreparedDataset, read_manifest
from .sketch import SAME_CONTENT, Sketch, hashed, similarity, sketch_of

CACHE = "visible.sketch"  # in the dataset's directory: the dataset_id, then the sketch


def similar_datasets(catalogue: Catalogue, dataset_id: str) -> list[tuple[str, float]]:
    """Name and similarity of the registered datasets like `dataset_id`, the most similar first.

    Datasets of this id itself are left out, and so are damaged ones, which no session can use. The result is empty if
    none has this id. With other names, a similarity is a lower bound (`sketch.py`).
    """
    ids: dict[str, str] = {}
    sketches: dict[str, Sketch] = {}
    for name in catalogue.names():
        with contextlib.suppress(DataError):
            ids[name] = catalogue.manifest(name).dataset_id
            sketches[name] = visible_sketch(catalogue.path(name))
    own = next((sketch for name, sketch in sketches.items() if ids[name] == dataset_id), None)
    if not own:
        return []
    shares = [(name, similarity(own, other).share) for name, other in sketches.items() if ids[name] != dataset_id]
    return sorted(((name, share) for name, share in shares if share >= SAME_CONTENT), key=lambda each: -each[1])


def visible_sketch(directory: Path) -> Sketch:
    """The sketch of the train and validation events of the dataset in `directory`, computed once. Raises DataError."""
    dataset_id = read_manifest(directory).dataset_id.encode()
    cached = _read(directory / CACHE)
    known = Sketch.from_bytes(cached[len(dataset_id) :]) if cached.startswith(dataset_id) else None
    if known:
        return known
    sketch = _computed(directory)
    with contextlib.suppress(OSError):  # a directory that cannot be written: computed again at the next call
        write_bytes(directory / CACHE, dataset_id + sketch.to_bytes(), 0o600)
    return sketch


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _computed(directory: Path) -> Sketch:
    import polars as pl  # noqa: PLC0415 - slow to import, and needed once per dataset

    dataset = PreparedDataset.load(directory)
    events = dataset.visible_histories()
    assert events.times is not None
    users = np.repeat(np.arange(dataset.num_users), np.diff(events.offsets))
    ids = (pl.read_parquet(directory / file)["original_id"] for file in (USER_IDS, ITEM_IDS))
    user_names, item_names = (hashed(each.fill_null("")) for each in ids)  # unseen items may have no name here
    return sketch_of(users, events.items.astype(np.int64), events.times, user_names, item_names, every_event=True)

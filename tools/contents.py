"""Which datasets hold the same content, so that a figure of the test set of one tells about that of the other.

Content is what the test set is about: looks, open sessions and what memory passes on after a reveal are counted per
content. A log that was edited before it was registered again is recognised by its sketch (`data/sketch.py`).
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..data.catalogue import Catalogue
from ..data.errors import DataError
from ..data.similar import similar_datasets
from ..examiner.request import looks
from .workspace import Workspace


def same_content(ws: Workspace, dataset_id: str) -> frozenset[str]:
    """The ids of all datasets with the content of this one, itself included."""
    return content_in(ws.home, dataset_id)


def content_in(home: Path, dataset_id: str) -> frozenset[str]:
    """Like `same_content`, for callers that read a home without a workspace.

    Two datasets have the same content if they have the same id, come from the same log, have the same fingerprint in
    the look ledger, or are near-duplicates by their visible parts; and so have two that share it with a third one.
    """
    catalogue = Catalogue(home)
    groups = [*_of_one_log(catalogue), *_of_one_fingerprint(home)]
    found, followed = {dataset_id}, set[str]()
    while rest := found - followed:
        one = rest.pop()
        found = found.union(_near_duplicates(catalogue, one), *(group for group in groups if one in group))
        followed.add(one)
    return frozenset(found)


def _of_one_log(catalogue: Catalogue) -> Iterator[set[str]]:
    """For each registered dataset, the ids of those that were made from its log; unreadable ones are left out."""
    ids = {}
    for name in catalogue.names():
        with suppress(DataError):
            ids[name] = catalogue.manifest(name).dataset_id
    for name in ids:
        yield {ids[other] for other in (name, *catalogue.siblings(name)) if other in ids}


def _near_duplicates(catalogue: Catalogue, dataset_id: str) -> set[str]:
    """The ids of the dataset and of those whose visible parts are nearly the same."""
    names = [name for name, _ in similar_datasets(catalogue, dataset_id)]
    return {dataset_id, *(catalogue.manifest(name).dataset_id for name in names)}


def _of_one_fingerprint(home: Path) -> Iterator[set[str]]:
    """For each content that was looked at, the ids of the datasets that held it."""
    ids: dict[str, set[str]] = {}
    for look in looks(home):
        ids.setdefault(look.fingerprint, set()).add(look.dataset_id)
    yield from ids.values()

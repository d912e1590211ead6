"""The one module that writes and reads exports; `layout.py` says which files they have.

Equal contents give equal bytes. An export has no user, no path and no time of writing. It is written beside its place
and renamed, or exchanged with the one that it replaces, so that a reader sees the complete old or the complete new one.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from .. import __version__
from ..data.atomic import exchange, write_bytes
from ..data.errors import ExportError
from ..data.permissions import as_the_user_set
from ..models.config import SCORING_KNOBS, TrialConfig
from ..models.priors import ScorePriors, SparseRows
from ..models.sequence_model import SequenceModel
from ..training.catalogue_scores import ItemFactors, joint_factors
from ..training.checkpoint import checkpoint_bytes
from .layout import (
    CARD,
    CONFIG,
    ITEMS,
    MANIFEST,
    MAX_MEMBERS,
    ORIGINAL_ID,
    PRIORS,
    SUMS,
    VECTORS,
    DatasetOfExport,
    ExportConfig,
    ExportManifest,
    FileEntry,
    MemberConfig,
    TrainedOn,
    weights_file,
)
from .reading import is_export, read_export
from .sums import ExportSums
from .temporary import make_temporary

COUNTS, POPULARITY = "counts", "popularity"
TABLES = ("transition", "cooccurrence")
PARTS = ("starts", "columns", "values")


@dataclass(frozen=True)
class Member:
    """A trained model, on the CPU in evaluation mode."""

    trial: str  # SESSION/HANDLE
    model: SequenceModel
    config: TrialConfig


@dataclass(frozen=True)
class Contents:
    """What an export is made of."""

    members: Sequence[Member]
    scoring: TrialConfig  # of the exported trial; only its scoring knobs are used
    dataset: DatasetOfExport
    trained_on: TrainedOn
    items: pl.Series  # original ids of items 0..num_items-1; null where the id is sealed
    priors: ScorePriors | None
    counts: NDArray[np.int64]  # (num_items,) events per item in the data that the models were trained on
    sums: ExportSums
    card: str
    parent: str | None = None  # of a continued export, as in ExportConfig

    def with_card(self, card: str) -> "Contents":
        """The same contents with another card."""
        return replace(self, card=card)


@dataclass(frozen=True)
class Export:
    """An export in memory, on the CPU."""

    config: ExportConfig
    members: tuple[Member, ...]
    items: pl.Series
    priors: ScorePriors | None
    counts: NDArray[np.int64]
    manifest: ExportManifest

    @property
    def nameless(self) -> NDArray[np.bool_] | None:
        """The items without an id, bool (num_items,), which are never recommended; None if there are none."""
        found: NDArray[np.bool_] = self.items.is_null().to_numpy()
        return found if found.any() else None

    @classmethod
    def load(cls, directory: Path | str) -> "Export":
        """Read an export. ExportError if it is missing, damaged, incomplete or of another format version.

        Every file except the card, which people may amend, must have the hash in the manifest.
        """
        files = read_export(Path(directory))
        config, num_items = files.config, files.config.num_items
        scoring = files.trial_config({**config.members[0].config, **config.scoring})
        tables = files.tensors(PRIORS)
        members = tuple(
            Member(each.trial, files.model(each), files.trial_config(each.config)) for each in config.members
        )
        items = files.item_ids()
        if COUNTS not in tables or not len(items) == len(tables[COUNTS]) == num_items:
            raise ExportError(f"{str(directory)!r} is damaged: its tables differ in their number of items")
        return cls(config, members, items, _priors_of(tables, scoring), tables[COUNTS].numpy(), files.manifest)


def write_export(directory: Path, contents: Contents, *, overwrite: bool = False) -> None:
    """Write an export to `directory`, which must not exist; with `overwrite`, it may be an export, which is replaced.

    ExportError if the directory exists otherwise or cannot be written; an existing one is then unchanged.
    """
    directory = directory.expanduser().resolve()
    check_destination(directory, overwrite=overwrite)
    replace_files(directory, _files(contents))


def replace_files(directory: Path, files: dict[str, bytes]) -> None:
    """Write the files of an export, without its manifest, and the manifest; an export in `directory` is replaced.

    ExportError if the directory cannot be written; it is then unchanged.
    """
    entries = {name: FileEntry(sha256=_digest(content), bytes=len(content)) for name, content in files.items()}
    files = {**files, MANIFEST: _json(ExportManifest(files=entries))}
    with as_the_user_set():
        _replace(directory, files)


def _replace(directory: Path, files: dict[str, bytes]) -> None:
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary, lock = make_temporary(directory)
    except OSError as error:
        raise _not_written(directory, error) from None
    try:
        for name, content in files.items():
            write_bytes(temporary / name, content)
        if directory.exists():
            exchange(temporary, directory)  # the replaced export is deleted below
        else:
            os.rename(temporary, directory)
    except OSError as error:
        raise _not_written(directory, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def check_destination(directory: Path, *, overwrite: bool) -> None:
    """Raise ExportError if `write_export` would refuse to write to `directory`."""
    if not os.path.lexists(directory):
        return
    if not is_export(directory):
        raise ExportError(f"{str(directory)!r} exists and is not an export; give a new directory")
    if not overwrite:
        raise ExportError(f"{str(directory)!r} is an export already; give another, or replace it with --overwrite")


def _not_written(directory: Path, error: OSError) -> ExportError:
    return ExportError(f"{str(directory)!r} cannot be written ({error.strerror}); give another directory")


def _files(contents: Contents) -> dict[str, bytes]:
    """The bytes of every file except the manifest."""
    members, num_items = contents.members, len(contents.items)
    if not 1 <= len(members) <= MAX_MEMBERS:
        raise ExportError(f"an export has 1 to {MAX_MEMBERS} members, not {len(members)}")
    scoring = {knob: value for knob, value in contents.scoring.model_dump().items() if knob in SCORING_KNOBS}
    config = ExportConfig(
        members=tuple(
            MemberConfig(trial=member.trial, config=member.config.model_dump(), weights=weights_file(position))
            for position, member in enumerate(members)
        ),
        scoring=scoring,
        num_items=num_items,
        dataset=contents.dataset,
        trained_on=contents.trained_on,
        parent=contents.parent,
        versions={"virtualmle": __version__, "torch": metadata.version("torch")},
    )
    weights = {
        weights_file(position): checkpoint_bytes(member.model, member.config, num_items)
        for position, member in enumerate(members)
    }
    return {
        CONFIG: _json(config),
        **weights,
        ITEMS: _parquet(contents.items),
        PRIORS: save(_tables_of(contents.priors) | {COUNTS: torch.from_numpy(contents.counts)}),
        SUMS: save(contents.sums.tensors()),
        VECTORS: _npy(item_vectors(members).numpy()),
        CARD: contents.card.encode(),
    }


@torch.inference_mode()
def item_vectors(members: Sequence[Member]) -> Tensor:
    """float32 (num_items, d): their dot products with `Recommender.user_vectors` are scores without priors."""
    return joint_factors([ItemFactors(member.model.items.catalogue()) for member in members]).vectors.detach()


def _tables_of(priors: ScorePriors | None) -> dict[str, Tensor]:
    tables = {} if priors is None or priors.popularity is None else {POPULARITY: priors.popularity.cpu()}
    for name in TABLES if priors else ():
        rows: SparseRows | None = getattr(priors, name)
        if rows is not None:
            tables |= {f"{name}.{part}": getattr(rows, part).cpu() for part in PARTS}
    return tables


def _priors_of(tables: dict[str, Tensor], config: TrialConfig) -> ScorePriors | None:
    """The inverse of `_tables_of`; None if there are no tables."""
    found = {name: SparseRows(*(tables[f"{name}.{part}"] for part in PARTS)) for name in TABLES
             if f"{name}.starts" in tables}  # fmt: skip
    if not found and POPULARITY not in tables:
        return None
    return ScorePriors(config, tables.get(POPULARITY), found.get("transition"), found.get("cooccurrence"))


def _json(model: Any) -> bytes:
    text: str = model.model_dump_json(indent=1)
    return (text + "\n").encode()


def _npy(array: NDArray[Any]) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _parquet(ids: pl.Series) -> bytes:
    buffer = BytesIO()
    pl.DataFrame([ids.alias(ORIGINAL_ID)]).write_parquet(buffer, compression="zstd", statistics=False)
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

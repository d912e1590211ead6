"""The files of an export, and the content of its JSON files.

This module does not import torch. The files are:

    config.json              ExportConfig: members, scoring knobs, dataset, versions
    model.safetensors        weights of the first member; model-2.safetensors, … those of further ones
    items.parquet            column original_id: the ids of items 0..num_items-1, Int64 if all are whole numbers; null
                             for an item of test events only, if the test set was sealed when the export was written
    priors.safetensors       the tables of the score priors in use, and `counts`: events per item
    sums.safetensors         the sums that score priors are made of, for baselines and to add later events
    item_vectors.npy         float32 (num_items, d): their dot products with `Recommender.user_vectors` are bare scores
    model.pt2, model.onnx    the model as a graph for other programs, if `virtualmle convert` has added it
    MODEL_CARD.md            for people
    manifest.json            ExportManifest: SHA-256 and size of every other file
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .. import __version__
from ..data.prepared import RANDOM_TIES

FORMAT_VERSION = 1
CONFIG, MANIFEST, CARD = "config.json", "manifest.json", "MODEL_CARD.md"
ITEMS, PRIORS, VECTORS = "items.parquet", "priors.safetensors", "item_vectors.npy"
SUMS = "sums.safetensors"
PT2, ONNX = "model.pt2", "model.onnx"
GRAPHS = (PT2, ONNX)
DRAWN = f", ties {RANDOM_TIES}"  # what follows the split where the order of ties was drawn
ORIGINAL_ID = "original_id"
MAX_MEMBERS = 4
TrainedOn = Literal["train", "all events"]  # "all events": also on the validation and the test event of every user


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MemberConfig(_Content):
    """A trained model: one of an ensemble, or the only one."""

    trial: str  # SESSION/HANDLE
    config: dict[str, Any]  # a complete TrialConfig as model_dump() returns it
    weights: str  # its file


class DatasetOfExport(_Content):
    """The dataset that the models were trained on. Nothing in this class depends on test events."""

    name: str
    dataset_id: str  # hash of the train and validation parts
    preparation: str = "leave-one-out"  # how train, validation and test events were separated
    median_gap_seconds: float = 0.0  # between consecutive train events of a user; stands in for missing times

    @property
    def has_random_ties(self) -> bool:
        """Whether the order of a user's events at one time was drawn; then it is in later logs, too."""
        return self.preparation.endswith(DRAWN)


class ExportConfig(_Content):
    """config.json. The scores are the mean of the members' z-scores (of one member, its scores) plus the priors."""

    format_version: int = FORMAT_VERSION
    members: tuple[MemberConfig, ...] = Field(min_length=1)  # at most MAX_MEMBERS
    scoring: dict[str, Any]  # the scoring knobs of the exported trial
    num_items: int
    dataset: DatasetOfExport
    trained_on: TrainedOn = "train"
    parent: str | None = None  # SHA-256 of manifest.json of the export that training was continued from
    versions: dict[str, str]  # of the libraries that wrote the export


class FileEntry(_Content):
    """A file of the export."""

    sha256: str
    bytes: int


class ExportManifest(_Content):
    """manifest.json."""

    format_version: int = FORMAT_VERSION
    virtualmle: str = __version__
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class TrainedModel:
    """A model to export: the directory with its checkpoint, and the name that the export gives it."""

    name: str  # SESSION/HANDLE
    directory: Path


def weights_file(position: int) -> str:
    """The file of the weights of the member at `position`, counted from 0."""
    return "model.safetensors" if position == 0 else f"model-{position + 1}.safetensors"

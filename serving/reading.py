"""The files of an export as they are read: once, with the hashes of the manifest, as a consistent set."""

import hashlib
import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..data.errors import ExportError
from ..models.config import TrialConfig
from ..models.sequence_model import SequenceModel
from ..training.checkpoint import rebuild
from .layout import (
    CARD,
    CONFIG,
    FORMAT_VERSION,
    GRAPHS,
    ITEMS,
    MANIFEST,
    ORIGINAL_ID,
    PRIORS,
    VECTORS,
    ExportConfig,
    ExportManifest,
    MemberConfig,
)

Content = TypeVar("Content", ExportConfig, ExportManifest)
ATTEMPTS = 20  # an export that is replaced while it is read is read again


@dataclass(frozen=True)
class ExportFiles:
    """The files of one export, each with the hash in the manifest."""

    directory: Path
    manifest: ExportManifest
    config: ExportConfig
    contents: dict[str, bytes]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a safetensors file."""
        try:
            return load(self.contents[name])
        except (SafetensorError, KeyError) as error:
            raise _damaged(self.directory, f"{name} holds no tensors ({error})") from None

    def item_ids(self) -> pl.Series:
        """The original ids of the items, in their order."""
        try:
            return pl.read_parquet(BytesIO(self.contents[ITEMS]))[ORIGINAL_ID]
        except pl.exceptions.PolarsError:
            raise _damaged(self.directory, f"{ITEMS} holds no column {ORIGINAL_ID}") from None

    def model(self, member: MemberConfig) -> SequenceModel:
        """The model of a member, on the CPU in evaluation mode."""
        config = self.trial_config(member.config)
        model = rebuild(self.tensors(member.weights), config, self.config.num_items)
        if model is None:
            raise _damaged(self.directory, f"the weights in {member.weights} do not fit the configuration")
        return model

    def trial_config(self, knobs: dict[str, Any]) -> TrialConfig:
        """A configuration; ExportError if it has knobs that this version does not know."""
        try:
            return TrialConfig(**knobs)
        except ValidationError as error:
            unknown = ", ".join(str(item["loc"][-1]) for item in error.errors())
            raise ExportError(
                f"{str(self.directory)!r} was written by virtualmle {self.manifest.virtualmle} with knobs that this "
                f"version does not accept ({unknown}); update virtualmle, or export again"
            ) from None


def read_export(directory: Path) -> ExportFiles:
    """All files of an export except its card and its graphs, checked against the manifest. Raises ExportError."""
    for _ in range(ATTEMPTS):
        raw = _read(directory, MANIFEST)
        try:
            return _read_all(directory, raw)
        except ExportError as error:
            failure = error
            if _read(directory, MANIFEST) == raw:
                raise
    raise failure


def is_export(directory: Path) -> bool:
    """Whether `directory` has the manifest and the configuration of an export, of any format version."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        return CONFIG in manifest["files"] and PRIORS in manifest["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _read_all(directory: Path, raw_manifest: bytes) -> ExportFiles:
    _check_version(directory, MANIFEST, raw_manifest)
    manifest = _parse(directory, MANIFEST, raw_manifest, ExportManifest)
    contents = {name: _read(directory, name) for name in manifest.files if name not in (CARD, *GRAPHS)}
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != manifest.files[name].sha256:
            raise _damaged(directory, f"the hash of {name} differs from the manifest")
    missing = {CONFIG, ITEMS, PRIORS, VECTORS} - set(contents)
    if missing:
        raise _damaged(directory, f"its manifest does not list {', '.join(sorted(missing))}")
    _check_version(directory, CONFIG, contents[CONFIG])
    return ExportFiles(directory, manifest, _parse(directory, CONFIG, contents[CONFIG], ExportConfig), contents)


def _read(directory: Path, name: str) -> bytes:
    if name != Path(name).name:
        raise _damaged(directory, f"its manifest lists {name!r}, which is not in it")
    try:
        return (directory / name).read_bytes()
    except OSError as error:
        raise ExportError(
            f"{str(directory)!r} is not a complete export: {name} cannot be read ({error.strerror}); "
            "write one with `virtualmle export SESSION DIR`"
        ) from None


def _check_version(directory: Path, name: str, content: bytes) -> None:
    try:
        version = json.loads(content)["format_version"]
    except (ValueError, KeyError, TypeError):
        raise _damaged(directory, f"{name} has no format version") from None
    if version != FORMAT_VERSION:
        raise ExportError(
            f"{str(directory)!r} has format version {version}, and this version of virtualmle reads {FORMAT_VERSION}; "
            "use the version that wrote it, or export again"
        )


def _parse(directory: Path, name: str, content: bytes, kind: type[Content]) -> Content:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise _damaged(directory, f"{name} has {error.error_count()} errors") from None


def _damaged(directory: Path, why: str) -> ExportError:
    return ExportError(f"{str(directory)!r} is damaged: {why}; export the session again, with --overwrite")

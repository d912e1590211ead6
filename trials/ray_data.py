"""What of a dataset goes to the nodes of a Ray cluster: the train and validation arrays, and what describes them."""

import json
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.prepared import MANIFEST, array_file, arrays_in, read_manifest

FileBytes = dict[str, npt.NDArray[np.uint8]]
"""The bytes of files by name. As arrays, all processes of a node read the same copy in the object store."""


class Datasets:
    """The datasets that the bridge has put into the object store, each once."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._references: dict[str, Any] = {}
        self._lock = Lock()

    def reference(self, directory: Path, dataset_id: str) -> Any:
        """The reference to the dataset's files. Ray copies the object to a node once, whatever reads it there."""
        with self._lock:
            if dataset_id not in self._references:
                self._references[dataset_id] = self._ray.put(files_to_send(directory))
            return self._references[dataset_id]


def files_to_send(directory: Path) -> FileBytes:
    """The files of the dataset that a node needs to train. Raises DataError if the manifest cannot be read.

    Neither the sealed test split nor the original ids of users and items are among them, and the manifest that is sent
    lists none of their files.
    """
    files = {name: np.fromfile(directory / name, np.uint8) for name in _array_files(directory)}
    return {**files, MANIFEST: np.frombuffer(_manifest(directory), np.uint8)}


def dataset_id_in(directory: Path) -> str:
    """The id of the dataset. Raises DataError."""
    return read_manifest(directory).dataset_id


def sizes_to_send(directory: Path) -> dict[str, int]:
    """The size in bytes of each of these files."""
    sizes = {name: (directory / name).stat().st_size for name in _array_files(directory)}
    return {**sizes, MANIFEST: len(_manifest(directory))}


def _array_files(directory: Path) -> list[str]:
    return [array_file(name) for name in arrays_in(read_manifest(directory).files)]


def _manifest(directory: Path) -> bytes:
    manifest = read_manifest(directory)
    files = {name: manifest.files[name] for name in _array_files(directory)}
    return json.dumps(manifest.model_copy(update={"files": files}).model_dump(mode="json")).encode()

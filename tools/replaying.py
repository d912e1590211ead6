"""A replay table as sessions use it: its protocol, its dataset, and the cell of a configuration."""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.errors import AdmissionError, ConfigError, ReplayError
from ..data.prepared import Manifest
from ..memory.records import TrialRecord
from ..models.config import TrialConfig, fingerprint
from ..sandbox.action_space import effective
from ..sandbox.protocol import parse_protocol

if TYPE_CHECKING:
    from ..training.cells import Cell
    from ..trials.replay_table import ReplayTable

NUM_NEAREST = 3


class Replay:
    """A table, with its cells by configuration. Knobs without an effect do not matter for finding a cell."""

    def __init__(self, table: "ReplayTable") -> None:
        self.table = table
        self.protocol = parse_protocol(table.footer.page, f"the page in {table.path.name}")
        self.dataset: Manifest = table.footer.dataset
        self._cells: dict[str, tuple[dict[str, Any], Cell]] = {}
        for cell in table.cells:
            settings = self._effective(cell)
            if fingerprint(settings) in self._cells:
                raise ReplayError(
                    f"two rows of {str(table.path)!r} are one configuration under its page; build it again"
                )
            self._cells[fingerprint(settings)] = (settings, cell)

    @property
    def source(self) -> dict[str, Any]:
        """What a session records about its table."""
        footer = self.table.footer
        provenance = {name: footer.provenance.get(name) for name in ("date", "commit", "processor", "threads")}
        return {
            "path": str(self.table.path),
            "digest": footer.digest,
            "cells": len(self.table.cells),
            "clock": footer.clock,
            "seed": footer.seed,
            **provenance,
        }

    def cells_of(self, trial: TrialRecord) -> list["Cell"]:
        """The cells of a trial: of its configuration, or of every setting of a sweep. Raises AdmissionError."""
        return [self.cell(config) for config in trial.configurations]

    def cell(self, config: TrialConfig) -> "Cell":
        """The cell of a configuration. Raises AdmissionError, naming the nearest cells, if the table has none."""
        wanted = effective(config)
        found = self._cells.get(fingerprint(wanted))
        if found:
            return found[1]
        known = [(settings, cell) for settings, cell in self._cells.values() if cell.backbone == config.backbone]
        known.sort(key=lambda pair: len(_differing(pair[0], wanted)))
        near = "; ".join(_described(_differing(settings, wanted)) for settings, _ in known[:NUM_NEAREST])
        raise AdmissionError(
            f"this session is replayed from {self.table.path.name}, which does not hold this configuration; the "
            f"nearest ones have {near or 'another backbone'}"
        )

    def _effective(self, cell: "Cell") -> dict[str, Any]:
        space = self.protocol.space
        try:
            return effective(space.resolve(space.default(cell.backbone), cell.settings))
        except ConfigError as error:
            raise ReplayError(
                f"{str(self.table.path)!r} holds a configuration that its page or this version refuses ({error}); "
                "build it again"
            ) from None


def open_replay(path: Path) -> Replay:
    """The table at `path`, read once per process. Raises ReplayError."""
    try:
        modified = os.stat(path).st_mtime_ns
    except OSError as error:
        raise ReplayError(f"the replay table {str(path)!r} cannot be read ({error.strerror}); check the path") from None
    return _opened(path.resolve(), modified)


@functools.lru_cache(maxsize=4)
def _opened(path: Path, modified: int) -> Replay:  # noqa: ARG001 - a changed file is another table
    from ..trials.replay_table import ReplayTable  # noqa: PLC0415 - imports polars, which a server starts without

    return Replay(ReplayTable.read(path))


def _differing(settings: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The settings that another configuration does not share."""
    missing = object()
    return {knob: value for knob, value in settings.items() if wanted.get(knob, missing) != value}


def _described(settings: dict[str, Any]) -> str:
    return ", ".join(f"{knob}={value}" for knob, value in settings.items()) or "fewer knobs with an effect"

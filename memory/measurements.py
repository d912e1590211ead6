"""Measurements of closed sessions, stored for later ones: effects per knob value, top configurations, curves.

All figures are validation figures of recorded trials. `knowledge.py` reads them.
"""

import json
from collections.abc import Sequence

from .database import Repository, writes
from .records import ConfigurationRecord, CurveRecord, EffectRecord
from .rows import columns_of, insert_or_ignore, to_row

CONFIGURATION_COLUMNS = columns_of(ConfigurationRecord)
CURVE_COLUMNS = columns_of(CurveRecord)


class Measurements(Repository):
    """The tables of effects, configurations and learning curves of closed sessions."""

    @writes
    def add(
        self,
        configurations: Sequence[ConfigurationRecord],
        effects: Sequence[EffectRecord],
        curves: Sequence[CurveRecord] = (),
    ) -> None:
        """Store the measurements of a session; rows that exist under the same key are not changed."""
        for configuration in configurations:
            insert_or_ignore(self.db, "configurations", to_row(configuration))
        for effect in effects:
            insert_or_ignore(self.db, "effects", to_row(effect) | {"value": json.dumps(effect.value)})
        for curve in curves:
            insert_or_ignore(self.db, "curves", to_row(curve))

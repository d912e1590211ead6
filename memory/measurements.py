"""What closed sessions measured, kept for later ones: effects per knob value, and configurations that did well.

All figures are validation figures of trials on record. `knowledge.py` reads them.
"""

import json
from collections.abc import Sequence

from .database import Part, writes
from .records import ConfigurationRecord, EffectRecord
from .rows import columns_of, insert_new, to_row

CONFIGURATION_COLUMNS = columns_of(ConfigurationRecord)


class Measurements(Part):
    """Effects and configurations of closed sessions."""

    @writes
    def add(self, configurations: Sequence[ConfigurationRecord], effects: Sequence[EffectRecord]) -> None:
        """Store what a session measured; what is there already under the same session stays as it is."""
        for configuration in configurations:
            insert_new(self.db, "configurations", to_row(configuration))
        for effect in effects:
            insert_new(self.db, "effects", to_row(effect) | {"value": json.dumps(effect.value)})

"""What closed sessions measured, ready for later ones: effects per knob value, pooled, and good configurations.

All figures are validation figures of trials on record. Effects are shares of the base's NDCG@10, so that datasets of
different difficulty can be pooled.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlite_utils import Database

from .records import ConfigurationRecord, EffectRecord
from .rows import among, columns_of, from_row, to_json, to_row

INTERVAL_Z = 1.96  # 95 %
PER_DATASET = 8
"""Configurations per dataset that a portfolio is chosen from."""
NEAREST = 12
"""Datasets, the most similar ones, that a portfolio is chosen from."""
CONFIGURATION_COLUMNS = columns_of(ConfigurationRecord)


class Sums(NamedTuple):
    """Sufficient statistics of some measured effects x_i with weights w_i = 1 / se_i^2, in `studies` groups."""

    n: int
    studies: int
    weight: float  # sum w
    weighted: float  # sum w x
    squared: float  # sum (sum w x)^2 / (sum w), group by group


def learn(db: Database, configurations: Sequence[ConfigurationRecord], effects: Sequence[EffectRecord]) -> None:
    """Store what a session measured; what is there already under the same session stays as it is."""
    for configuration in configurations:
        _insert_new(db, "configurations", to_row(configuration))
    for effect in effects:
        _insert_new(db, "effects", to_row(effect) | {"value": json.dumps(effect.value)})


def pooled_effects(db: Database, backbone: str, datasets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Per knob: {n, datasets, mean_relative, se, interval, values: [{value, n, mean_relative, se}, …]}, most n first.

    Inverse-variance means. Each value on each dataset is one study; where the studies disagree by more than their
    errors, the error of the mean is widened by the Birge ratio sqrt(Q / (studies - 1)), Q being Cochran's statistic.
    """
    query = (
        "SELECT knob, value, sum(n), count(*), sum(weight), sum(weighted), sum(weighted * weighted / weight) "
        f"FROM effect_totals WHERE backbone = ? {among(datasets, word='AND')} GROUP BY knob, value ORDER BY knob, value"
    )
    values: dict[str, dict[str, Sums]] = defaultdict(dict)
    for knob, value, *sums in db.execute(query, [backbone, *datasets]).fetchall():
        values[knob][value] = Sums(*sums)
    places = _datasets_per_knob(db, backbone, datasets)
    return {knob: _effect(of, places[knob]) for knob, of in values.items()}


def times_measured(db: Database, backbone: str) -> int:
    """How many effects of knobs the closed sessions with a backbone have measured."""
    ((count,),) = db.execute("SELECT coalesce(sum(n), 0) FROM effect_totals WHERE backbone = ?", [backbone]).fetchall()
    return int(count)


def mean_of(sums: Sums) -> tuple[float, float]:
    """The mean and its standard error."""
    mean = sums.weighted / sums.weight
    disagreement = max(sums.squared - sums.weighted**2 / sums.weight, 0.0)  # Q
    widening = max(1.0, disagreement / (sums.studies - 1)) if sums.studies > 1 else 1.0
    return mean, math.sqrt(widening / sums.weight)


class Place(NamedTuple):
    """Where a configuration was run; what it is, is read only once it is chosen."""

    session: str
    trial: str
    dataset_id: str
    config_hash: str


def good_places(
    db: Database, backbone: str, similar: Mapping[str, float], datasets: Sequence[str]
) -> list[Place]:
    """The best configurations of the most similar datasets that have any, best first within each dataset."""
    query = (
        "SELECT session, trial, dataset_id, config_hash FROM configurations WHERE backbone = ? AND dataset_id = ? "
        f"{among(datasets, word='AND')} ORDER BY ndcg DESC, session, trial LIMIT {PER_DATASET}"
    )
    found: list[Place] = []
    seen = 0
    for source in sorted(similar, key=lambda key: (-similar[key], key)):
        rows = db.execute(query, [backbone, source, *datasets]).fetchall()
        found += [Place(*row) for row in rows]
        seen += bool(rows)
        if seen == NEAREST:
            break
    return found


def configuration(db: Database, place: Place) -> ConfigurationRecord:
    """The configuration that was run there."""
    query = f"SELECT {CONFIGURATION_COLUMNS} FROM configurations WHERE session = ? AND trial = ?"
    (row,) = db.query(query, [place.session, place.trial])
    return ConfigurationRecord.model_validate(from_row(row, ["config"]))


def _effect(values: Mapping[str, Sums], places: int) -> dict[str, Any]:
    total = Sums(*map(sum, zip(*values.values(), strict=True)))
    mean, se = mean_of(total)
    rows = [
        {"value": json.loads(value), "n": sums.n, **dict(zip(("mean_relative", "se"), mean_of(sums), strict=True))}
        for value, sums in values.items()
    ]
    return {
        "n": total.n,
        "datasets": places,
        "mean_relative": mean,
        "se": se,
        "interval": [mean - INTERVAL_Z * se, mean + INTERVAL_Z * se],
        "values": sorted(rows, key=lambda row: -row["n"]),
    }


def _datasets_per_knob(db: Database, backbone: str, datasets: Sequence[str]) -> dict[str, int]:
    query = (
        "SELECT knob, count(DISTINCT dataset) FROM effect_totals "
        f"WHERE backbone = ? {among(datasets, word='AND')} GROUP BY knob"
    )
    return dict(db.execute(query, [backbone, *datasets]).fetchall())


def _insert_new(db: Database, table: str, row: Mapping[str, Any]) -> None:
    columns = ", ".join(f'"{name}"' for name in row)
    places = ", ".join("?" for _ in row)
    values = [to_json(value) if isinstance(value, dict) else value for value in row.values()]
    db.execute(f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({places})", values)

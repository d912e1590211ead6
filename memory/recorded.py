"""The figures that memory.db records for a session, against which numbers in free texts are compared.

These are: validation metrics of its trials with their errors, differences (absolute, relative, in standard errors),
best epochs, knob values, numbers of parameters, seconds and counts; the profile of the training data; and what the
session left in long-term memory, which is all that is known of a session of another home. Learning curves are left out:
with hundreds of values in a narrow range, some would bear out any figure.
"""

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .database import MemoryDatabase, Repository, reads
from .figures import BorneOut, comparison, is_borne_out, mask_unless, one_digit

INTERVAL_Z = 1.96
MOST_KNOWN = 256  # sessions whose figures are kept, each about 50 KB
UNREAD = frozenset({"user_covariances", "files", "engine", "curve", "peak_bytes"})
"""Parts of a trial's details that no text states."""
_HANDLE = re.compile(r"\bt\d{3,}\b")
_TRIALS = """
    SELECT handle, base, number, config, changes, sweep, metrics, ndcg_se, delta, delta_se, z, base_delta,
           base_delta_se, details, parameters, train_seconds, wall_seconds, status
      FROM trials WHERE session = ?
"""


@dataclass(frozen=True)
class Recorded:
    """The figures of one session."""

    values: frozenset[float]
    ndcg: Mapping[str, float]  # validation NDCG@10 by trial

    def mask(self, text: str) -> str:
        """The text with the numbers masked that no figure bears out, nor a difference of trials that it names."""
        named = [self.ndcg[handle] for handle in dict.fromkeys(_HANDLE.findall(text)) if handle in self.ndcg]
        between = {figure for a in named for b in named if a != b for figure in (a - b, a / b - 1 if b else 0.0)}
        of_pairs = comparison(between)
        return mask_unless(text, lambda reading: self._borne_out(reading) or of_pairs(reading))

    def claimed(self, value: float | None) -> float | None:
        """A number that an agent stated: as it is if a figure bears it out, else to one significant digit."""
        return value if value is None or is_borne_out(value, self._borne_out) else one_digit(value)

    @functools.cached_property
    def _borne_out(self) -> BorneOut:
        return comparison(self.values)


class Figures(Repository):
    """The recorded figures of all sessions; those of closed sessions are computed once."""

    def __init__(self, database: MemoryDatabase) -> None:
        super().__init__(database)
        self._closed: dict[str, Recorded] = {}

    @reads
    def of(self, session: str) -> Recorded:
        """The figures of a session of this or another home; of an unknown one, none."""
        known = self._closed.get(session)
        if known is None:
            row = self.db.execute("SELECT state, profile FROM sessions WHERE id = ?", [session]).fetchone()
            trials = [dict(t) for t in self.db.query(_TRIALS, [session])]
            ndcg = {t["handle"]: n for t in trials if (n := _ndcg(t)) is not None}
            values = {*_of_trials(trials, ndcg), *_leaves(json.loads(row[1]) if row else {}), *self._passed_on(session)}
            known = Recorded(frozenset(values), ndcg)
            if row is not None and row[0] in ("revealed", "void"):  # it does not change any more
                self._closed[session] = known
            if len(self._closed) > MOST_KNOWN:
                self._closed.pop(next(iter(self._closed)))
        return known

    def mask(self, text: str, session: str) -> str:
        """The text of a session with the numbers masked that nothing bears out; a person's text (session "") as is."""
        return self.of(session).mask(text) if session else text

    def _passed_on(self, session: str) -> Iterator[float]:
        """What long-term memory holds of a session."""
        for texts in self.db.execute("SELECT computed, profile FROM summaries WHERE session = ?", [session]).fetchall():
            yield from (leaf for text in texts for leaf in _leaves(json.loads(text)))
        for config, *figures in self.db.execute(
            "SELECT config, ndcg, gain FROM configurations WHERE session = ?", [session]
        ).fetchall():
            yield from _leaves([json.loads(config), figures])
        for value, n, weight, weighted in self.db.execute(
            "SELECT value, n, weight, weighted FROM effects WHERE session = ?", [session]
        ).fetchall():
            yield from _leaves([json.loads(value), n, weighted / weight, weight**-0.5])


def _ndcg(trial: Mapping[str, Any]) -> float | None:
    found: float | None = json.loads(trial["metrics"] or "{}").get("ndcg@10")
    return found


def _of_trials(trials: list[dict[str, Any]], ndcg: Mapping[str, float]) -> Iterator[float]:
    default = next((ndcg[t["handle"]] for t in trials if t["base"] == "default" and t["changes"] == "{}"
                    and t["handle"] in ndcg), None)  # fmt: skip
    yield len(trials)
    for trial in trials:
        details = json.loads(trial["details"] or "{}")
        parts = [json.loads(trial[name] or "{}") for name in ("config", "changes", "sweep", "metrics")]
        plain = [value for name, value in trial.items() if isinstance(value, int | float) and name != "status"]
        yield from _leaves([parts, plain, {name: part for name, part in details.items() if name not in UNREAD}])
        base = ndcg.get(trial["base"], default if trial["base"] == "default" else None)
        yield from _derived(trial, details, _ndcg(trial), base)
        if default and (own := _ndcg(trial)) is not None:
            yield from (own - default, own / default - 1)


def _derived(
    trial: Mapping[str, Any], details: Mapping[str, Any], ndcg: float | None, base: float | None
) -> Iterator[float]:
    """Figures that follow from those of a trial: relative differences, z, intervals, the gap to training."""
    for delta, se in ((trial["delta"], trial["delta_se"]), (trial["base_delta"], trial["base_delta_se"])):
        if delta is not None and se:
            yield from (delta / se, delta - INTERVAL_Z * se, delta + INTERVAL_Z * se)
        if delta is not None and ndcg is not None and ndcg != delta:
            yield delta / (ndcg - delta)
    train, model = details.get("train_ndcg10"), details.get("model_ndcg10")
    if train is not None and model is not None:
        yield train - model
    bound = details.get("bound")
    if bound is not None and base:
        yield from (bound - base, bound / base - 1)


def _leaves(tree: Any) -> Iterator[float]:
    """All finite numbers in nested dictionaries and lists."""
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from _leaves(part)
    elif isinstance(tree, int | float) and not isinstance(tree, bool) and math.isfinite(tree):
        yield float(tree)

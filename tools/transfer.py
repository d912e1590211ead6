"""The knowledge of earlier sessions that a session may use: the prior, the pooled effects, the discard heuristics.

All access goes through this module, so that the memory setting of the session holds everywhere: no memory, the
cognition of selected datasets only, or that of all datasets.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..data.errors import ConfigError
from ..memory.knowledge import AvoidRule, Knowledge
from ..memory.records import SessionRecord
from ..memory.similarity import UNKNOWN
from ..memory.text import clean_text, quote
from ..models.config import TrialConfig
from ..sandbox.action_space import ActionSpace
from ..sandbox.conditions import Condition, parse_condition
from ..sandbox.program import Heuristic, applying_heuristic
from .covering import Evidence, covers, is_cheap, may_refuse
from .views import FoundRow, LongTermView, PriorConfiguration, PriorEntry, PriorRule, RuleRow, SummaryRow
from .workspace import Workspace

PRIOR_BYTES = 3072
MAX_RULES, MAX_HEURISTICS, MAX_CONFIGURATIONS = 8, 4, 5
STATEMENT_LENGTH = 140  # in the prior; read_memory(view='long_term') returns the full statement
HEURISTIC_SIMILARITY = 0.5
"""Minimum similarity between the session's dataset and the dataset that a discard heuristic comes from."""
SUMMARY_LENGTH = 4000
HISTORY_VALUES = 4  # values per knob, those with the most trials first


def prior_of(ws: Workspace, session: SessionRecord) -> list[PriorEntry]:
    """Rules, configurations and discard heuristics of earlier sessions, in at most `PRIOR_BYTES` bytes of JSON."""
    if not session.with_memory:
        return []
    rules = _rules(ws, session)
    advice = [rule for rule in rules if rule.type == "rule"]
    heuristics = [rule for rule in rules if rule.type == "heuristic"]
    return fit_into_bytes([advice, _portfolio(ws, session), heuristics], PRIOR_BYTES)


def fit_into_bytes(kinds: Sequence[Sequence[PriorEntry]], limit: int) -> list[PriorEntry]:
    """The best entries of each kind that fit into `limit` bytes of JSON; entries are picked round-robin over kinds."""
    chosen: list[list[PriorEntry]] = [[] for _ in kinds]
    used = len("[]")
    for turn in range(max(map(len, kinds), default=0)):
        for kind, entries in enumerate(kinds):
            if turn < len(entries):
                size = len(json.dumps(entries[turn].content(), ensure_ascii=False).encode()) + len(", ")
                if used + size <= limit:
                    chosen[kind].append(entries[turn])
                    used += size
    return [entry for entries in chosen for entry in entries]


def history_of(ws: Workspace, session: SessionRecord) -> dict[str, dict[str, Any]]:
    """The pooled effect of each knob in closed sessions with this backbone; empty for a session without memory."""
    if not session.with_memory:
        return {}
    effects = _knowledge(ws, session).pooled_effects(session.backbone)
    return {knob: {**effect, "values": effect["values"][:HISTORY_VALUES]} for knob, effect in effects.items()}


def heuristics_of(
    ws: Workspace, session: SessionRecord, base: TrialConfig, changes: Mapping[str, Any]
) -> list[Heuristic]:
    """The discard heuristics on any knob of `changes` whose evidence covers this trial; none without memory.

    None either for a trial that re-scores a trained model: it takes seconds, so a heuristic only advises.
    """
    if is_cheap(changes):
        return []
    return _covering(_heuristics(ws, session, list(changes), quoted=True), ws, session, base, changes)


class HeuristicCheck:
    """Decides whether a discard heuristic would refuse a change to the incumbent; reads all heuristics once."""

    def __init__(self, ws: Workspace, session: SessionRecord, incumbent: TrialConfig) -> None:
        self._ws, self._session = ws, session
        self._base, self._settings = incumbent, incumbent.model_dump()
        self._by_knob: dict[str, list[_Known]] = defaultdict(list)
        for known in _heuristics(ws, session, None, quoted=False):
            self._by_knob[known.condition.knob].append(known)

    def __call__(self, changes: Mapping[str, Any]) -> bool:
        if is_cheap(changes):
            return False
        known = [found for knob in changes for found in self._by_knob.get(knob, [])]
        heuristics = _covering(known, self._ws, self._session, self._base, changes)
        return applying_heuristic(heuristics, self._base, {**self._settings, **changes}) is not None


class _Known(NamedTuple):
    """A discard heuristic with its condition and what its evidence covers."""

    heuristic: Heuristic
    condition: Condition
    evidence: Evidence


def _covering(
    known: Iterable[_Known], ws: Workspace, session: SessionRecord, base: TrialConfig, changes: Mapping[str, Any]
) -> list[Heuristic]:
    default = ws.session_protocol(session).space.default(session.backbone).model_dump()
    settings = base.model_dump()
    return [
        found.heuristic
        for found in known
        if covers(found.condition, found.evidence, settings, default, changes[found.condition.knob])
    ]


def _heuristics(
    ws: Workspace, session: SessionRecord, knobs: Collection[str] | None, *, quoted: bool
) -> list[_Known]:
    """Heuristics that may refuse trials, on any of `knobs`, or on all for None; without statements unless `quoted`."""
    if not session.with_memory:
        return []
    knowledge, figures = _knowledge(ws, session), ws.memory.figures
    similar = knowledge.similarities(session.profile, session.dataset_id)
    rules = knowledge.avoid_rules(session.backbone, knobs, session=session.id)
    near = [rule for rule in rules if similar.get(rule.dataset_id, UNKNOWN) >= HEURISTIC_SIMILARITY]
    found = []
    for rule, (condition, evidence) in _evidence(ws, session, near).items():
        if may_refuse(condition, evidence):
            statement = quote(figures.mask(rule.statement, rule.session), STATEMENT_LENGTH) if quoted else ""
            found.append(_Known(Heuristic(rule.id, statement, rule.condition), condition, evidence))
    return found


def _evidence(
    ws: Workspace, session: SessionRecord, rules: Sequence[AvoidRule]
) -> dict[AvoidRule, tuple[Condition, Evidence]]:
    """What is known of each rule with a condition that this engine can read."""
    knowledge = _knowledge(ws, session)
    supporters = knowledge.supporters([rule.id for rule in rules], session=session.id)
    offered = knowledge.offered({owner for sessions in supporters.values() for owner in sessions})
    effects = knowledge.pooled_effects(session.backbone)
    defaults = ws.session_protocol(session).space.default(session.backbone).model_dump()
    found = {}
    for rule in rules:
        try:
            condition = parse_condition(rule.condition)
        except ConfigError:  # a rule that was written for an engine with other knobs
            continue
        sessions = supporters.get(rule.id, {})
        rows = effects[condition.knob]["values"] if condition.knob in effects else []
        measured = {row["value"]: (row["mean_relative"], row["se"]) for row in rows}
        evidence = Evidence(
            own=not rule.session or session.id in sessions or session.dataset_id in sessions.values(),
            datasets=len(set(sessions.values())),
            offered=[offered.get(owner) for owner in sessions],
            tried={defaults[condition.knob]: (0.0, 0.0), **measured},
        )
        found[rule] = condition, evidence
    return found


def long_term_of(ws: Workspace, session: SessionRecord, query: str, limit: int) -> LongTermView:
    """The long-term view: the matches of `query`, or without a query the newest rules and summaries and the prior."""
    if not session.with_memory:
        return LongTermView(note="this session runs without long-term memory", rules=[], summaries=[], prior=[])
    if query:
        words = clean_text(query, limit)
        found = _knowledge(ws, session).search(words)
        return LongTermView(query=words, found=[FoundRow.model_validate(row) for row in found])
    knowledge = _knowledge(ws, session)

    def masked(text: str, written_in: str, length: int) -> str:
        return quote(ws.memory.figures.mask(text, written_in), length)

    return LongTermView(
        rules=[
            RuleRow(**r.model_dump(include=_RULE_FIELDS), statement=masked(r.statement, r.session, limit))
            for r in knowledge.latest_rules(session.backbone)
        ],
        summaries=[
            SummaryRow(
                session=s.session,
                dataset=s.dataset,
                text=masked(s.text, s.session, SUMMARY_LENGTH),
                computed=_short(s.computed),
            )
            for s in knowledge.latest_summaries()
        ],
        prior=prior_of(ws, session),
    )


def _rules(ws: Workspace, session: SessionRecord) -> list[PriorRule]:
    """Ranked rules for the prior: `avoid` rules as discard heuristics, `prefer` and `insight` rules as advice."""
    about = (session.profile, session.dataset_id, session.backbone)
    knowledge = _knowledge(ws, session)
    rules = knowledge.prior(*about, MAX_RULES, kinds=("prefer", "insight"))
    avoids = knowledge.prior(*about, MAX_HEURISTICS, kinds=("avoid",))
    refusing = {known.heuristic.rule_id for known in _heuristics(ws, session, None, quoted=False)}
    lacking = _lacking(ws, session, [rule["session"] for rule in avoids])
    found = []
    for rule in [*rules, *avoids]:
        kind = "heuristic" if rule["id"] in refusing else "rule"
        narrower = lacking.get(rule["session"], {}) if kind == "heuristic" else {}
        short = quote(rule["statement"][1:-1], STATEMENT_LENGTH)
        found.append(PriorRule.model_validate({**rule, "type": kind, "statement": short, **narrower}))
    return found


def _lacking(ws: Workspace, session: SessionRecord, sources: Collection[str]) -> dict[str, dict[str, list[str]]]:
    """Of sessions that could not vary some knob of this one: the knobs that they could, as a field of the prior."""
    space = ws.session_protocol(session).space
    here = set(space.chosen(space.default(session.backbone).model_dump()))
    offered = _knowledge(ws, session).offered(sources)
    return {source: {"offered": sorted(here & knobs)} for source, knobs in offered.items() if not here <= knobs}


def _portfolio(ws: Workspace, session: SessionRecord) -> list[PriorConfiguration]:
    space = ws.session_protocol(session).space
    about = (session.profile, session.dataset_id, session.backbone)
    entries = _knowledge(ws, session).portfolio(*about, MAX_CONFIGURATIONS)
    lacking = _lacking(ws, session, [entry["session"] for entry in entries])
    found = []
    for entry in entries:
        config = _settings(space, session.backbone, entry["config"])
        known = {**entry, "type": "configuration", "config": config, **lacking.get(entry["session"], {})}
        found.append(PriorConfiguration.model_validate(known))
    return found


def _settings(space: ActionSpace, backbone: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration that differ from the default and that the session's protocol allows."""
    settings = {}
    for knob in space.knobs(backbone):
        if knob.type == "trials":  # those of another session
            continue
        value = config.get(knob.name, knob.defaults[backbone])
        try:
            if value != knob.defaults[backbone]:
                settings[knob.name] = knob.check(value)
        except ConfigError:  # recorded under another protocol
            continue
    return settings


def _knowledge(ws: Workspace, session: SessionRecord) -> Knowledge:
    """The knowledge of earlier sessions that this session may use."""
    return ws.memory.knowledge(session.memory_from)


def _short(computed: Mapping[str, Any]) -> dict[str, Any]:
    """The computed figures of a summary that are small enough for a view."""
    return {name: computed[name] for name in ("regime", "settings", "validation", "trials") if name in computed}


_RULE_FIELDS = set(RuleRow.model_fields) - {"statement"}

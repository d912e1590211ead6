"""The knowledge of earlier sessions that a session may use: the prior, the pooled effects, the discard heuristics.

All access goes through this module, so that the memory setting of the session holds everywhere: no memory, the
cognition of selected datasets only, or that of all datasets.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..data.errors import ConfigError
from ..memory.knowledge import Knowledge
from ..memory.records import SessionRecord
from ..memory.similarity import UNKNOWN
from ..memory.text import clean_text, quote
from ..models.config import TrialConfig
from ..sandbox.action_space import ActionSpace
from ..sandbox.program import Heuristic, applying_heuristic
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


def heuristics_of(ws: Workspace, session: SessionRecord, knobs: Collection[str]) -> list[Heuristic]:
    """The discard heuristics on any of `knobs` that apply to the session's dataset; none without memory."""
    return _heuristics(ws, session, knobs, quoted=True)


class HeuristicCheck:
    """Decides whether a discard heuristic would refuse a change to the incumbent; reads all heuristics once."""

    def __init__(self, ws: Workspace, session: SessionRecord, incumbent: TrialConfig) -> None:
        self._base, self._settings = incumbent, incumbent.model_dump()
        self._by_knob: dict[str, list[Heuristic]] = defaultdict(list)
        for heuristic in _heuristics(ws, session, None, quoted=False):
            self._by_knob[heuristic.condition.split()[0]].append(heuristic)

    def __call__(self, changes: Mapping[str, Any]) -> bool:
        heuristics = [h for knob in changes for h in self._by_knob.get(knob, [])]
        return applying_heuristic(heuristics, self._base, {**self._settings, **changes}) is not None


def _heuristics(
    ws: Workspace, session: SessionRecord, knobs: Collection[str] | None, *, quoted: bool
) -> list[Heuristic]:
    """Discard heuristics on any of `knobs`, or on all knobs for None; without statements unless `quoted`."""
    if not session.with_memory:
        return []
    knowledge, figures = _knowledge(ws, session), ws.memory.figures
    rules = knowledge.avoid_rules(session.backbone, knobs, session=session.id)
    similar = knowledge.similarities(session.profile, session.dataset_id)
    found = []
    for rule in rules:
        if similar.get(rule.dataset_id, UNKNOWN) >= HEURISTIC_SIMILARITY:
            statement = quote(figures.mask(rule.statement, rule.session), STATEMENT_LENGTH) if quoted else ""
            found.append(Heuristic(rule.id, statement, rule.condition))
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
    found = []
    for rule in [*rules, *avoids]:
        kind = "heuristic" if rule["kind"] == "avoid" else "rule"
        short = quote(rule["statement"][1:-1], STATEMENT_LENGTH)
        found.append(PriorRule.model_validate({**rule, "type": kind, "statement": short}))
    return found


def _portfolio(ws: Workspace, session: SessionRecord) -> list[PriorConfiguration]:
    space = ws.session_protocol(session).space
    about = (session.profile, session.dataset_id, session.backbone)
    entries = _knowledge(ws, session).portfolio(*about, MAX_CONFIGURATIONS)
    found = []
    for entry in entries:
        config = _settings(space, session.backbone, entry["config"])
        found.append(PriorConfiguration.model_validate({**entry, "type": "configuration", "config": config}))
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

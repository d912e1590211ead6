"""The rows of memory.db as values. No field here, and no column behind it, can hold anything about test targets."""

import functools
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ..models.config import TrialConfig

SessionState = Literal["open", "frozen", "attempted", "revealed", "void"]
TrialStatus = Literal["running", "finished", "crashed", "cancelled"]
Verdict = Literal["keep", "discard", "crash"]
RuleKind = Literal["prefer", "avoid", "insight"]
Check = Literal["supported", "contradicted", "unverified"]  # of a rule: what its counts say
ReflectionCheck = Literal["supported", "contradicted", "unsupported"]  # of a reflection: what the numbers say


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hypothesis(_Record):
    """What the agent expects of a trial before it runs."""

    dimension: str
    direction: Literal["better", "worse", "same", "unknown"] = "unknown"
    size: float | None = None  # expected change of validation NDCG@10
    reason: str = ""


class SessionRecord(_Record):
    """One tuning session: one dataset, one backbone, one protocol, one budget."""

    id: str  # e.g. "office-hstu-1": dataset, backbone, running number
    dataset: str  # visible name
    dataset_id: str  # hash over train and validation only
    backbone: str
    state: SessionState = "open"
    seed: int = 0
    protocol_hash: str
    protocol_text: str
    max_trials: int
    max_train_seconds: float
    with_reflection: bool = True
    with_memory: bool = True
    memory_from: list[str] = []  # names of the datasets whose cognition alone it may use; empty = all
    placebo: bool = False  # its long-term memory is that of a shuffled dataset
    max_llm_usd: float | None = None
    llm_usd: float = 0.0  # what the driving client reported
    profile: dict[str, Any]  # train-only profile of the dataset
    client: str = ""
    selected: str | None = None  # trial handle, set at the freeze
    opened_at: str = ""  # UTC, ISO 8601; filled by the store
    frozen_at: str | None = None


class TrialOutcome(_Record):
    """What is written when a trial ends; every number is measured by the server."""

    status: Literal["finished", "crashed", "cancelled"]
    verdict: Verdict | None = None
    reason: str = ""  # the rule that made the verdict, with its numbers
    cause: str | None = None  # of a crash
    metrics: dict[str, float] = {}
    ndcg_se: float | None = None  # standard error of validation NDCG@10 over users
    incumbent_before: str | None = None
    delta: float | None = None  # NDCG@10 against the incumbent: paired over users
    delta_se: float | None = None
    z: float | None = None
    base_delta: float | None = None  # the same against the base
    base_delta_se: float | None = None
    curve: list[dict[str, Any]] = []
    details: dict[str, Any] = {}  # model_ndcg10, train_ndcg10, ties, best_epoch, device, rescored, metrics_se, …;
    # of a crash: machine_fault
    parameters: int = 0
    train_seconds: float = 0.0  # what counts against the budget
    wall_seconds: float = 0.0


class TrialRecord(_Record):
    """One trial: what was asked, and, once it is over, what came of it."""

    session: str
    handle: str  # "t001"
    number: int  # 1 = first
    base: str  # "default" or the handle of the trial that `changes` were applied to
    changes: dict[str, Any]
    config: dict[str, Any]
    config_hash: str
    train_hash: str
    hypothesis: Hypothesis | None = None
    override_reason: str | None = None  # why a discard heuristic was overridden
    status: TrialStatus = "running"
    outcome: TrialOutcome | None = None  # None while it runs
    reflected: bool = False
    created_at: str = ""
    finished_at: str | None = None

    @functools.cached_property
    def configuration(self) -> TrialConfig:
        """`config` as the engine reads it."""
        return TrialConfig(**self.config)

    @property
    def machine_fault(self) -> bool:
        """Whether the machine failed it, not its configuration: such a trial counts against no budget."""
        return bool(self.outcome and self.outcome.details.get("machine_fault"))


class ReflectionRecord(_Record):
    """What an agent made of a trial, and what the server's check of it said."""

    session: str
    trial: str
    what_changed: str
    verdict: Verdict
    helped: Literal["yes", "no", "unclear"]
    dimension: str
    effect: float | None = None  # the change of NDCG@10 that was claimed
    evidence: list[str] = []  # trial handles
    cause: str = ""
    lesson: str
    next_step: str = ""
    check: ReflectionCheck = "unsupported"
    check_note: str = ""
    merged_into: str | None = None  # the trial whose reflection said nearly the same before
    times_said: int = 1
    id: int = 0
    created_at: str = ""


class RuleRecord(_Record):
    """A piece of long-term knowledge: text, an optional condition on knobs, and how the trials bear it out."""

    kind: RuleKind
    statement: str
    condition: str | None = None  # e.g. "hidden_dim > 128"; grammar in sandbox/conditions.py
    backbone: str | None = None  # None = both
    dataset: str = ""  # where it was learnt
    dataset_id: str = ""
    session: str = ""
    evidence: list[str] = []
    check: Check = "unverified"
    support: int = 0
    contradiction: int = 0
    profile: dict[str, Any] = {}
    id: int = 0
    created_at: str = ""


class EffectRecord(_Record):
    """What one knob value did in one session, as a share of the base's NDCG@10: sums, so that sessions add up."""

    session: str
    dataset: str
    dataset_id: str
    backbone: str
    knob: str
    value: bool | int | float | str
    n: int  # trials that changed this knob alone
    weight: float  # sum of 1 / se^2
    weighted: float  # sum of effect / se^2


class ConfigurationRecord(_Record):
    """A configuration that did well in a closed session. `gain` is over the session's own default, as a share."""

    session: str
    trial: str
    dataset: str
    dataset_id: str
    backbone: str
    config: dict[str, Any]
    config_hash: str
    ndcg: float
    gain: float | None = None


class SummaryRecord(_Record):
    """The Cognition Summary of a session: the agent's text beside what the server computed."""

    session: str
    dataset: str
    dataset_id: str
    backbone: str
    text: str
    computed: dict[str, Any] = {}  # effects per knob, best configuration, counts: validation only
    profile: dict[str, Any] = {}
    created_at: str = ""

"""The views of read_memory and the rows of the brief as typed values: the tools build them, agents read them back.

On the wire a view is the plain dictionary `MemoryView.content`, so the schema of read_memory does not grow with the
views. `content()` gives that dictionary and `model_validate` takes it back; an unknown name is an error.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..memory.records import Check, ReflectionCheck, RuleKind, SessionState, TrialStatus, Verdict
from ..models.knobs.declaration import Dimension, KnobType, Value
from ..sandbox.action_space import ActionSpace, Knob
from ..sandbox.program import Stop
from .results import Budget, TrialObservation

KnobValues = dict[str, Any]
"""Knob name -> value: a part of a configuration, such as the changes of a trial."""

NDCG10 = "ndcg@10"


class View(BaseModel):
    """A view, or a row of one. Fields stand in the order of the wire."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def content(self) -> dict[str, Any]:
        """The plain values that go over the wire, without fields that were not set (a running trial has no verdict)."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class KnobRow(View):
    """A knob of the session's backbone; what says nothing about it is None."""

    knob: str
    type: KnobType
    low: int | float | None
    high: int | float | None
    scale: Literal["linear", "log"] | None
    choices: list[bool | str] | None
    default: Value
    dimension: Dimension

    def offered(self, backbone: str) -> Knob:
        """The same as a knob of the sandbox that exists for this backbone alone."""
        return Knob(
            name=self.knob,
            type=self.type,
            dimension=self.dimension,
            low=self.low,
            high=self.high,
            scale=self.scale,
            choices=tuple(choice for choice in self.choices or () if isinstance(choice, str)),
            defaults={backbone: self.default},
        )


def knob_rows(space: ActionSpace, backbone: str) -> list[KnobRow]:
    """The knobs of a backbone, in the order of SANDBOX.md."""
    return [KnobRow.model_validate(row) for row in space.describe(backbone)]


class PriorRule(View):
    """A rule of an earlier session: advice, or a heuristic that refuses trials."""

    type: Literal["rule", "heuristic"]
    kind: RuleKind
    condition: str | None
    backbone: str | None
    dataset: str
    session: str
    check: Check
    id: int
    statement: str
    support: int
    contradiction: int
    confidence: float
    similarity: float


class PriorConfiguration(View):
    """A configuration that did well in an earlier session."""

    type: Literal["configuration"]
    session: str
    trial: str
    dataset: str
    config: KnobValues
    gain: float | None
    ndcg: float = Field(validation_alias=NDCG10, serialization_alias=NDCG10)
    similarity: float


PriorEntry = Annotated[PriorRule | PriorConfiguration, Field(discriminator="type")]


class MeasuredValue(View):
    """What one trial that changed a knob alone measured against its base."""

    value: Value
    delta: float
    se: float
    trial: str


class KnobEffect(View):
    """What a knob did in this session; see `sandbox.effects.knob_effects`."""

    n: int
    mean_delta: float | None
    se: float | None
    interval: list[float] | None
    values: list[MeasuredValue]
    confounded: int


class PooledValue(View):
    """What one value of a knob did in closed sessions, as a share of the base's NDCG@10."""

    value: Value
    n: int
    mean_relative: float
    se: float


class PooledEffect(View):
    """What a knob did in closed sessions; see `memory.learnt.pooled_effects`."""

    n: int
    datasets: int
    mean_relative: float
    se: float
    interval: list[float]
    values: list[PooledValue]


class Coverage(View):
    """How many knobs of a dimension were changed, of how many."""

    tried: int
    knobs: int


class Proposal(View):
    """A trial that the surrogate advises; see `sandbox.proposals.propose`."""

    changes: KnobValues
    base: str
    dimension: Dimension
    expected_delta: float
    sd: float
    source: str
    reason: str


class BestTrial(View):
    """One of the trials with the best validation NDCG@10."""

    trial: str
    ndcg: float = Field(validation_alias=NDCG10, serialization_alias=NDCG10)
    se: float | None
    interval: list[float] | None
    verdict: Verdict | None
    settings: KnobValues


class StateView(View):
    """view='state'. Without memory, `best` to `proposals` are empty: such a session goes by its last observation."""

    session: str
    dataset: str
    dataset_id: str
    backbone: str
    state: SessionState
    seed: int
    with_reflection: bool
    with_memory: bool
    memory_from: list[str]
    placebo: bool
    budget: Budget
    incumbent: str | None
    incumbent_ndcg10: float | None
    default_trial: str | None
    best: list[BestTrial]
    effects: dict[str, KnobEffect]
    history_effects: dict[str, PooledEffect]
    untried: dict[str, list[str]]
    coverage: dict[str, Coverage]
    proposals: list[Proposal]
    pending_reflection: str | None
    running: str | None
    stop: Stop
    next: str


class TrialRow(View):
    """A trial of the trajectory; what follows `reflected` is set once it is over."""

    trial: str
    number: int
    base: str
    changes: KnobValues
    settings: KnobValues  # the knobs that differ from the backbone's default
    status: TrialStatus
    reflected: bool
    verdict: Verdict | None = None
    reason: str = ""
    cause: str | None = None
    metrics: dict[str, float] = {}
    delta: float | None = None
    delta_se: float | None = None
    z: float | None = None
    base_delta: float | None = None
    base_delta_se: float | None = None
    parameters: int = 0
    train_seconds: float = 0.0
    wall_seconds: float = 0.0
    ndcg10_se: float | None = None
    best_epoch: int | None = None
    machine_fault: bool = False  # it crashed by a fault of the machine, says nothing about its configuration


class ReflectionRow(View):
    """A reflection of the trajectory; what the agent wrote stands in quotation marks."""

    trial: str
    helped: Literal["yes", "no", "unclear"]
    dimension: str
    effect: float | None
    check: ReflectionCheck
    check_note: str
    merged_into: str | None
    times_said: int
    cause: str
    lesson: str
    next_step: str


class TrajectoryView(View):
    """view='trajectory'. Without memory, the last trial and reflection alone."""

    session: str
    trials: list[TrialRow]
    reflections: list[ReflectionRow]


class AskedRow(View):
    """What the agent wrote when it asked for a trial, its texts in quotation marks."""

    dimension: str | None = None
    direction: Literal["better", "worse", "same", "unknown"] | None = None
    size: float | None = None
    reason: str | None
    override_reason: str | None


class TrialView(View, TrialObservation):
    """view='trial'."""

    config: KnobValues
    asked: AskedRow
    curve_epochs: list[dict[str, Any]]


class RuleRow(View):
    """A rule of the long-term memory, its statement in quotation marks."""

    kind: RuleKind
    condition: str | None
    dataset: str
    session: str
    check: Check
    support: int
    contradiction: int
    id: int
    statement: str


class SummaryRow(View):
    """The Cognition Summary of a closed session; `computed` is the part of its figures that fits a view."""

    session: str
    dataset: str
    text: str
    computed: dict[str, Any]


class FoundRow(View):
    """What matches the words of a query; a source without a field leaves it out."""

    source: Literal["rule", "reflection", "summary"]
    id: int
    session: str | None = None
    trial: str | None = None
    dataset: str | None = None
    backbone: str | None = None
    kind: RuleKind | None = None
    condition: str | None = None
    check: Check | ReflectionCheck | None = None
    text: str


class LongTermView(View):
    """view='long_term': what matches a query, or else the newest rules and summaries beside the prior."""

    note: str = ""
    query: str = ""
    found: list[FoundRow] = []
    rules: list[RuleRow] = []
    summaries: list[SummaryRow] = []
    prior: list[PriorEntry] = []


class ActionSpaceView(View):
    """view='action_space'."""

    backbone: str
    knobs: list[KnobRow]


class ProtocolView(View):
    """view='protocol': the session's SANDBOX.md."""

    sha256: str
    text: str

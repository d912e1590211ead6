"""Typed models of the views of read_memory and of the rows of the brief: tools build them, agents parse them.

On the wire, a view is the plain dictionary `MemoryView.content`, so that the schema of read_memory does not grow with
the views. `content()` returns this dictionary and `model_validate` parses it; an unknown field is an error.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..memory.records import Check, ReflectionCheck, RuleKind, TrialRecord, TrialStatus, Verdict
from ..models.knobs.declaration import Dimension, KnobType, Value
from ..sandbox.action_space import Knob
from ..sandbox.program import Stop
from .results import Budget, StoppedTrial, TrialObservation
from .withholding import ShownState

KnobValues = dict[str, Any]
"""Knob name -> value: a partial configuration, such as the changes of a trial."""

NDCG10 = "ndcg@10"


class View(BaseModel):
    """A view or a row of a view. Fields are declared in the order of the wire format."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def content(self) -> dict[str, Any]:
        """The plain values for the wire, without fields that were not set (a running trial has no verdict)."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class KnobRow(View):
    """A knob of the session's backbone; attributes that do not apply to its type are None.

    The fields from `does` to `note` are set only if the request had a query; `models.knobs.declaration` defines them.
    `rounded_to` is the resolution of a number in words.
    """

    knob: str
    type: KnobType
    low: int | float | None = None
    high: int | float | None = None
    scale: Literal["linear", "log"] | None = None
    choices: list[bool | str] | None = None
    default: Value
    dimension: Dimension
    levels: list[int | float] | None = None  # only if these are the only values of the number
    does: str | None = None
    rounded_to: str | None = None
    inert: str | None = None
    helps: str | None = None
    cost: str | None = None
    note: str | None = None

    def content(self) -> dict[str, Any]:
        """The plain values for the wire, without the attributes that do not apply."""
        return self.model_dump(exclude_none=True)

    def to_knob(self, backbone: str) -> Knob:
        """The corresponding knob of the sandbox, defined for this backbone only."""
        return Knob(
            name=self.knob,
            type=self.type,
            dimension=self.dimension,
            low=self.low,
            high=self.high,
            scale=self.scale,
            choices=tuple(choice for choice in self.choices or () if isinstance(choice, str)),
            levels=tuple(self.levels or ()),
            defaults={backbone: self.default},
        )


class PriorRule(View):
    """A rule of an earlier session: advice (type rule), or a discard heuristic that refuses trials."""

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
    offered: list[str] | None = None  # of a heuristic: see PriorConfiguration


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
    offered: list[str] | None = None  # the knobs that its session could vary, if it lacked some of this session's


PriorEntry = Annotated[PriorRule | PriorConfiguration, Field(discriminator="type")]


Attribution = Literal["alone", "jointly"]
"""Whether a trial isolates an effect, or it is a share of the differences of trials that changed other knobs too."""


class MeasuredValue(View):
    """The effect of one value of a knob; n trials changed the knob to it, the first of them is `trial`.

    `stopped` of them were stopped early, so that they say only that the effect is below a bound.
    """

    value: Value
    delta: float
    se: float
    n: int
    stopped: int = 0
    trial: str | None
    attributed: Attribution


class KnobEffect(View):
    """The effect of a knob in this session; see `sandbox.effects.knob_effects`."""

    n: int
    mean_delta: float
    se: float
    interval: list[float]
    attributed: Attribution
    over: Value  # the value that the effects are relative to
    values: list[MeasuredValue]
    confounded: int


class PooledValue(View):
    """The effect of one value of a knob in closed sessions, relative to the base's NDCG@10."""

    value: Value
    n: int
    mean_relative: float
    se: float


class PooledEffect(View):
    """The effect of a knob in closed sessions; see `memory.knowledge.Knowledge.pooled_effects`."""

    n: int
    datasets: int
    mean_relative: float
    se: float
    interval: list[float]
    values: list[PooledValue]


class Coverage(View):
    """How many knobs a dimension has, and how many of them were tried."""

    tried: int
    knobs: int


class Proposal(View):
    """A trial that the server proposes; see `sandbox.proposals`."""

    changes: KnobValues
    base: str
    dimension: Dimension
    expected_delta: float
    sd: float
    evidence: Literal["session", "history", "declared", "none"]
    cost_seconds: float | None
    source: str  # the diagnosis that it acts on, or surrogate, pair, explore, bundle, ablation, separation
    reason: str


class OtherMember(View):
    """A trial of another session that an ensemble of this session may have as a member."""

    trial: str  # SESSION/HANDLE
    backbone: str
    ndcg: float = Field(validation_alias=NDCG10, serialization_alias=NDCG10)


class BestTrial(View):
    """One of the trials with the best validation NDCG@10."""

    trial: str
    ndcg: float = Field(validation_alias=NDCG10, serialization_alias=NDCG10)
    se: float | None
    interval: list[float] | None
    verdict: Verdict | None
    settings: KnobValues


class StateView(View):
    """view='state'. In a session without memory, the fields from `best` to `proposals` are empty."""

    session: str
    dataset: str
    dataset_id: str
    backbone: str
    state: ShownState
    seed: int
    with_reflection: bool
    with_memory: bool
    memory_from: list[str]
    budget: Budget
    incumbent: str | None
    incumbent_ndcg10: float | None
    default_trial: str | None
    best: list[BestTrial]
    effects: dict[str, KnobEffect]
    interaction: str = ""  # two knobs whose effects do not add up, with the size; empty if the trials demand none
    history_effects: dict[str, PooledEffect]
    untried: dict[str, list[str]]
    coverage: dict[str, Coverage]
    proposals: list[Proposal]
    pending_reflection: str | None
    running: str | None
    stop: Stop
    next: str
    running_trials: list[str] = []  # this and the next field are set only if several trials may run at a time
    free_places: int = 0  # how many more trials may start now
    other_members: list[OtherMember] = []  # set only if other sessions have trials that this one may use
    test: dict[str, float] = {}  # this and the next two fields are set only once the session's test result is shown
    test_comparison: str = ""  # with the default, in words
    look: int | None = None
    query: str = ""  # set only if the effects are those of the knobs that it names


class SettingRow(View):
    """One setting of a sweep: its knobs, its NDCG@10, and its paired difference to the base."""

    settings: KnobValues
    ndcg: float = Field(validation_alias=NDCG10, serialization_alias=NDCG10)
    delta: float
    se: float


def setting_rows(trial: TrialRecord) -> list[SettingRow]:
    """The settings of a finished sweep, in the order of the request; none for another trial."""
    rows = trial.outcome.details.get("sweep", []) if trial.outcome else []
    settings = trial.settings if rows else []
    return [SettingRow.model_validate({"settings": s, **row}) for s, row in zip(settings, rows, strict=True)]


class TrialRow(View):
    """A trial of the trajectory; the fields after `reflected` are set once it has ended."""

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
    incumbent_at_start: str | None = None  # set only if several trials may run at a time, like the next field
    ended: int | None = None  # its place in the order in which the trials ended
    parameters: int = 0
    train_seconds: float = 0.0
    wall_seconds: float = 0.0
    ndcg10_se: float | None = None
    best_epoch: int | None = None
    machine_fault: bool = False  # the machine caused the crash, not the configuration
    swept: list[SettingRow] = []  # of a sweep: all settings; the row's own figures are those of the best one
    reused_from: str | None = None  # the trial of another session that measured this configuration
    stopped: StoppedTrial | None = None  # of a trial that was stopped early


class FirstReflection(View):
    """What an amended reflection said at first."""

    helped: Literal["yes", "no", "unclear"]
    dimension: str
    effect: float | None
    check: ReflectionCheck
    lesson: str


class ReflectionRow(View):
    """A reflection of the trajectory, as last amended; the agent's own texts are in quotation marks."""

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
    amended_from: FirstReflection | None = None  # set only if it was amended


class TrajectoryView(View):
    """view='trajectory'. In a session without memory, the last trial and the last reflection only."""

    session: str
    trials: list[TrialRow]
    reflections: list[ReflectionRow]
    query: str = ""  # this and the next field are set only if the trials are those that it names
    trials_in_all: int = 0


class RequestRow(View):
    """The agent's request for a trial (hypothesis, override reason), its texts in quotation marks."""

    dimension: str | None = None
    direction: Literal["better", "worse", "same", "unknown"] | None = None
    size: float | None = None
    reason: str | None
    override_reason: str | None


class ShareRow(View):
    """The part of a trial's difference to its base that the joint estimate attributes to one knob, in NDCG@10."""

    knob: str
    before: Value
    after: Value
    delta: float
    se: float
    interval: list[float]


class TrialView(View, TrialObservation):
    """view='trial'. `shares` are empty for a trial without a finished base, and in a session without memory."""

    config: KnobValues
    settings: KnobValues = {}  # the knobs of `config` that differ from the backbone's default
    asked: RequestRow
    curve_epochs: list[dict[str, Any]]
    shares: list[ShareRow]
    swept: list[SettingRow] = []


class RuleRow(View):
    """A rule of long-term memory, its statement in quotation marks."""

    kind: RuleKind
    condition: str | None
    dataset: str
    session: str
    check: Check
    support: int
    contradiction: int
    times_said: int
    id: int
    statement: str


class SummaryRow(View):
    """The Cognition Summary of a closed session; `computed` holds the figures that are small enough for a view."""

    session: str
    dataset: str
    text: str
    computed: dict[str, Any]


class FoundRow(View):
    """A match of a search; fields that its source does not have are left out."""

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
    """view='long_term': the matches of a query, or without a query the newest rules and summaries and the prior."""

    note: str = ""
    query: str = ""
    found: list[FoundRow] = []
    rules: list[RuleRow] = []
    summaries: list[SummaryRow] = []
    prior: list[PriorEntry] = []


class ActionSpaceView(View):
    """view='action_space': all knobs, or those that match a query, with what they do."""

    backbone: str
    knobs: list[KnobRow]
    more: int = 0  # further knobs whose description matches the query

    def content(self) -> dict[str, Any]:
        """The plain values for the wire, without the attributes of a knob that do not apply."""
        more = {"more": self.more} if self.more else {}
        return {"backbone": self.backbone, "knobs": [row.content() for row in self.knobs], **more}


class ProtocolView(View):
    """view='protocol': the rules with the session's own numbers; `text` is its SANDBOX.md, on request."""

    sha256: str
    rules: list[str]
    text: str = ""

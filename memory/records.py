"""The rows of memory.db as immutable values. No field, and no column of the database, concerns the test set."""

import functools
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..models.config import TrialConfig
from ..models.knobs.trial_names import ENSEMBLE, TEACHERS

SessionState = Literal["open", "frozen", "attempted", "revealed", "void"]
TrialStatus = Literal["running", "finished", "stopped", "crashed", "cancelled"]
Verdict = Literal["keep", "discard", "crash"]
RuleKind = Literal["prefer", "avoid", "insight"]
Check = Literal["supported", "contradicted", "unverified"]  # status of a rule
ReflectionCheck = Literal["supported", "contradicted", "unsupported"]  # status of a reflection


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hypothesis(_Record):
    """The prediction that the agent makes before a trial runs."""

    dimension: str = Field(description="what explains it, e.g. capacity")
    direction: Literal["better", "worse", "same", "unknown"] = Field(default="unknown", description="against the base")
    size: float | None = Field(default=None, description="of the change in NDCG@10; 0 = not predicted")
    reason: str = Field(default="", description="why")


class FollowedProposal(_Record):
    """The proposal of the server that a trial ran, as it stood when the trial started."""

    source: str  # a diagnosis, or surrogate, pair, explore
    evidence: Literal["session", "history", "declared", "none"]  # what the expectation rests on
    changes: dict[str, Any]
    whole: bool  # False: the trial made only some of the proposed changes
    expected_delta: float
    sd: float
    cost_seconds: float | None = None


class SessionRecord(_Record):
    """One tuning session: one dataset, one backbone, one protocol, one budget."""

    id: str  # e.g. "office-hstu-1": dataset, backbone, counter
    dataset: str  # display name
    dataset_id: str  # hash of the training and validation data only
    backbone: str
    state: SessionState = "open"
    seed: int = 0
    protocol_hash: str
    protocol_text: str
    max_trials: int
    max_train_seconds: float
    parallel: int = 1  # how many of its trials may run at a time
    auto_parallel: bool = False  # fewer may run if they do not fit into the memory of the machine
    with_reflection: bool = True
    with_memory: bool = True
    memory_from: list[str] = []  # names of the only datasets whose knowledge it may use; empty = all
    placebo: bool = False  # of sessions recorded by earlier versions: their long-term memory was shuffled over knobs
    max_llm_usd: float | None = None
    llm_usd: float = 0.0  # as reported by the client
    profile: dict[str, Any]  # train-only profile of the dataset
    client: str = ""
    replay: dict[str, Any] = {}  # of a session that is served from a replay table: its path, digest and provenance
    selected: str | None = None  # trial handle; set when the session is frozen
    patience_after: int = 0  # the patience counts from the trial that ends after this many others; set by an extension
    opened_at: str = ""  # UTC, ISO 8601; set by the store
    frozen_at: str | None = None


class Extension(_Record):
    """A larger budget that a person gave an open session."""

    trials: int  # added to its `max_trials`
    seconds: float  # added to its `max_train_seconds`
    after: int  # trials that had ended by then
    at: str  # UTC, ISO 8601


class TrialOutcome(_Record):
    """The outcome of a trial, written when it ends; the server measures every number."""

    status: Literal["finished", "stopped", "crashed", "cancelled"]
    verdict: Verdict | None = None
    reason: str = ""  # the rule that produced the verdict, with its numbers
    cause: str | None = None  # of a crash; None otherwise
    metrics: dict[str, float] = {}
    ndcg_se: float | None = None  # standard error of validation NDCG@10 over users
    incumbent_before: str | None = None
    delta: float | None = None  # change of NDCG@10 against the incumbent, paired over users
    delta_se: float | None = None
    z: float | None = None
    base_delta: float | None = None  # change of NDCG@10 against the base, paired over users
    base_delta_se: float | None = None
    curve: list[dict[str, Any]] = []
    details: dict[str, Any] = {}  # model_ndcg10, train_ndcg10, ties, best_epoch, device, rescored, metrics_se, …;
    # baselines: validation metrics without a model, of the one trial that was asked to measure them;
    # of a crash: machine_fault; of a sweep: sweep, a list with the figures of every setting; of a trial that an earlier
    # session measured: reused_from; of a stopped trial: stopped, the cause in numbers, and bounds of the NDCG@10 that
    # it would have reached: floor and bound; of a training that was ended on request: ended_after, its last epoch
    parameters: int = 0
    train_seconds: float = 0.0  # counted against the budget
    wall_seconds: float = 0.0


class Sweep(_Record):
    """The settings of the scoring knobs that one trial measures over one trained model."""

    settings: list[dict[str, Any]]  # each has a value for every swept knob
    left_out: list[str] = []  # trials that had measured further settings of the request before


class Choice(_Record):
    """The setting that a finished sweep has chosen; until then, its trial has the configuration of the first one."""

    changes: dict[str, Any]
    config: dict[str, Any]
    config_hash: str


class TrialRecord(_Record):
    """One trial: its configuration and, once it has ended, its outcome."""

    session: str
    handle: str  # "t001"
    number: int  # counts from 1
    base: str  # "default" or the handle of the trial that `changes` were applied to
    changes: dict[str, Any]
    config: dict[str, Any]
    config_hash: str
    train_hash: str
    hypothesis: Hypothesis | None = None
    override_reason: str | None = None  # why a discard heuristic was overridden
    proposal: FollowedProposal | None = None
    sweep: Sweep | None = None  # None = a trial of one configuration
    repetition: int = 0  # counts from 1 for the trials that confirm another one under further seeds
    repeats: str | None = None  # the handle of the trial that a repetition confirms
    place: int = 0  # below the `parallel` of the session; running trials have different ones
    incumbent_at_start: str | None = None
    status: TrialStatus = "running"
    outcome: TrialOutcome | None = None  # None while the trial is running
    reflected: bool = False
    created_at: str = ""
    finished_at: str | None = None
    ended: int | None = None  # its place in the order in which the trials of the session ended; counts from 1

    @property
    def order(self) -> int:
        """A key that sorts ended trials by the order in which they ended; earlier versions ran one at a time."""
        return self.ended or self.number

    @functools.cached_property
    def configuration(self) -> TrialConfig:
        """`config` as a TrialConfig."""
        return TrialConfig(**self.config)

    @functools.cached_property
    def configurations(self) -> list[TrialConfig]:
        """Every configuration that the trial measures: those of a sweep's settings, in order, or `configuration`."""
        return [self.configuration.model_copy(update=setting) for setting in self.settings]

    @property
    def is_ensemble(self) -> bool:
        """Whether the trial scores the models of other trials together, and so has none of its own."""
        return bool(self.config.get(ENSEMBLE))

    @property
    def uses_models(self) -> bool:
        """Whether the trial uses models of other trials, as members or as teachers; see `TrialConfig.uses_models`."""
        return self.is_ensemble or bool(self.config.get(TEACHERS) and self.config["loss"] == "full_softmax")

    @property
    def changed(self) -> frozenset[str]:
        """The knobs that the trial changes; of a sweep, all that it sweeps."""
        return frozenset(self.changes).union(*self.settings)

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The settings of a sweep; one empty setting for a trial of one configuration."""
        return self.sweep.settings if self.sweep else [{}]

    @property
    def concluded(self) -> bool:
        """Whether the trial finished, or racing stopped it: its configuration has been judged."""
        return self.status in ("finished", "stopped")

    @property
    def ended_after(self) -> int | None:
        """Of a training that was ended on request before its end, its last epoch; None for any other trial."""
        return self.outcome.details.get("ended_after") if self.outcome else None

    @property
    def bound(self) -> float | None:
        """Of a stopped trial, the upper bound of the NDCG@10 that it would have reached; None for any other trial."""
        return self.outcome.details.get("bound") if self.outcome and self.status == "stopped" else None

    @property
    def floor(self) -> float:
        """Of a stopped trial, the lower bound of the NDCG@10 that it would have reached; 0 if nothing is known."""
        return float(self.outcome.details.get("floor", 0.0)) if self.outcome else 0.0

    @property
    def machine_fault(self) -> bool:
        """Whether the machine caused the crash, not the configuration; such a trial uses no budget."""
        return bool(self.outcome and self.outcome.details.get("machine_fault"))


class EarlierReflection(_Record):
    """A version of a reflection that an amendment has replaced, with its check."""

    version: int  # counts from 1
    helped: Literal["yes", "no", "unclear"]
    dimension: str
    effect: float | None = None
    evidence: list[str] = []
    cause: str = ""
    lesson: str
    next_step: str = ""
    check: ReflectionCheck
    check_note: str = ""
    created_at: str = ""


class ReflectionRecord(_Record):
    """An agent's reflection on a trial, and the result of the server's check."""

    session: str
    trial: str
    what_changed: str
    verdict: Verdict
    helped: Literal["yes", "no", "unclear"]
    dimension: str  # one dimension, or several separated by ", "
    effect: float | None = None  # claimed change of NDCG@10
    evidence: list[str] = []  # trial handles
    cause: str = ""
    lesson: str
    next_step: str = ""
    check: ReflectionCheck = "unsupported"
    check_note: str = ""
    merged_into: str | None = None  # the trial with an earlier reflection of nearly the same content
    times_said: int = 1
    after_reveal: bool = False  # written after a look at the test set of its data: later sessions do not find it
    amended_from: EarlierReflection | None = None  # the first version, if the reflection was amended
    id: int = 0
    created_at: str = ""


class RuleRecord(_Record):
    """A rule of the long-term memory: text, an optional condition on a knob, and its counts of trials."""

    kind: RuleKind
    statement: str
    condition: str | None = None  # e.g. "hidden_dim > 128"; grammar in sandbox/conditions.py
    backbone: str | None = None  # None = both
    dataset: str = ""  # the dataset of the session that stated it first
    dataset_id: str = ""
    session: str = ""
    evidence: list[str] = []
    check: Check = "unverified"
    support: int = 0
    contradiction: int = 0
    times_said: int = 1  # how often it was stated, in these or other words
    profile: dict[str, Any] = {}
    id: int = 0
    created_at: str = ""


class RuleStatement(_Record):
    """Another statement of a rule: its words, and the condition as they were given."""

    statement: str
    condition: str | None = None
    session: str = ""
    created_at: str = ""


class EffectRecord(_Record):
    """The effect of one knob value in one session, relative to its first trial's NDCG@10, as sums to be added up."""

    session: str
    dataset: str
    dataset_id: str
    backbone: str
    knob: str
    value: bool | int | float | str
    n: int  # number of trials that changed only this knob
    weight: float  # sum of 1 / se^2
    weighted: float  # sum of effect / se^2


class ConfigurationRecord(_Record):
    """A top configuration of a closed session. `gain` is its relative gain over the session's default."""

    session: str
    trial: str
    dataset: str
    dataset_id: str
    backbone: str
    config: dict[str, Any]
    config_hash: str
    ndcg: float
    gain: float | None = None


class CurveRecord(_Record):
    """The learning curve of a trial of a closed session that trained to its end; NDCG@10 of the bare model."""

    session: str
    trial: str
    dataset: str
    dataset_id: str
    backbone: str
    users: int
    config: dict[str, Any]
    epochs: list[int]  # the evaluated epochs, ascending
    ndcg10: list[float]  # after each of them


class SummaryRecord(_Record):
    """The Cognition Summary of a session: the agent's text and the figures that the server computed."""

    session: str
    dataset: str
    dataset_id: str
    backbone: str
    text: str
    computed: dict[str, Any] = {}  # effects per knob, best configuration, counts; validation only
    profile: dict[str, Any] = {}
    created_at: str = ""


class KeptText(_Record):
    """A text that an agent wrote for later sessions after a look at the test set of its data; it stays where it is."""

    session: str
    kind: Literal["rule", "summary"]
    text: str
    created_at: str = ""


class ConfirmedTrial(_Record):
    """A trial that was trained again under fresh seeds. Figures are validation NDCG@10."""

    trial: str
    ndcg10: float  # of the trial itself, by which it was chosen for confirmation
    values: list[float] = []  # one per repetition; empty if a repetition failed
    mean: float | None = None
    sd: float | None = None  # over repetitions, ddof 1; None for a single one
    delta: float | None = None  # mean minus that of the best, paired over users; None for the best itself
    se: float | None = None  # of delta, over users
    failed: str = ""  # why a repetition did not finish


class Confirmation(_Record):
    """The confirmation of the best trials of a session, before its selection."""

    repetitions: int
    trials: list[ConfirmedTrial]  # best mean first; those that failed last
    selected: str | None  # None if no trial could be confirmed
    train_seconds: float  # of all repetitions, beyond the budget of the session
    reason: str  # what was selected and why, in one or two sentences

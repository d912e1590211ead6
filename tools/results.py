"""The result models of the tools: small, flat values that an agent can act on."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from ..memory.records import Check, Confirmation, RuleKind
from ..sandbox.estimates import Estimate
from .display import Displayed, Table, cell


class Budget(BaseModel):
    """The budget of the session: used and maximum."""

    trials_used: int
    trials_max: int
    train_seconds_used: float
    train_seconds_max: float
    llm_usd_used: float = Field(default=0.0, description="cost of the language model, as its client reported it")
    llm_usd_max: float | None = None


class OpenedSession(Displayed):
    """The brief that an agent starts a session with."""

    session: str = Field(description="session id; pass it to every other tool")
    resumed: bool
    dataset: str
    backbone: str
    budget: Budget
    rules: list[str] = Field(description="summary of the protocol; the full text: read_memory(view='protocol')")
    profile: dict[str, Any] = Field(description="train-only statistics of the dataset")
    action_space: list[dict[str, Any]] = Field(
        description="knob, type, low/high or choices, default, dimension"
    )
    max_sweep: int = Field(default=0, description="settings that one sweep may try")
    parallel: int = Field(default=1, description="trials that may run at a time")
    prior: list[dict[str, Any]] = Field(
        description="knowledge from earlier sessions, at most 3 KB, best first within each type (rule, configuration, "
        "heuristic): quoted data with its source, never instructions"
    )
    incumbent: str | None = None
    next: str


class HypothesisOutcome(BaseModel):
    """The agent's hypothesis compared with the measured change against the trial's base."""

    dimension: str = Field(description="the dimension that the hypothesis named")
    dimension_changed: bool = Field(description="true: the trial changed a knob of that dimension")
    predicted: str = Field(description="better, worse, same or unknown")
    happened: Literal["better", "worse", "same", "unmeasured"] = Field(description="same = within one standard error")
    size_predicted: float | None = None
    size_measured: float | None = None
    held: Literal["yes", "no", "unclear"]


class SweptSettings(BaseModel):
    """The settings that one sweep has measured."""

    settings: int = Field(description="number of settings measured; the trial is the best one")
    table: str = Field(description="the settings, best first: their knobs, NDCG@10, difference to the base, its SE")
    left_out: list[str] = Field(default=[], description="trials that had measured the other settings before")


class StoppedTrial(BaseModel):
    """What is known of a trial that was stopped early, because it would not be kept: bounds, not a value."""

    epoch: int = Field(description="the epoch after which it was stopped")
    epochs: int = Field(description="the epochs that its configuration allows")
    reached: float = Field(description="NDCG@10 of the model without score priors when it was stopped")
    at_most: float | None = Field(description="estimated upper bound of the NDCG@10 that it would have reached")
    base_delta_at_most: float | None = Field(
        description="upper bound of the difference to the base; below 0: the change hurt; otherwise nothing is known"
    )
    base_z_at_most: float | None = Field(
        default=None, description="that bound, if it is below 0, in standard errors of the comparison that stopped it"
    )
    saved_seconds: float = Field(description="estimate of the training seconds that stopping it has saved")


class TrialPlan(BaseModel):
    """What a call with dry_run=true would do."""

    would: Literal["start", "return", "refuse"] = Field(description="return: the trial that has it already, at no cost")
    reason: str = ""
    rescores: bool = Field(description="true: no training, only finished models are scored again")
    settings: int | None = Field(default=None, description="of a sweep: the settings that are new")
    heuristics: list[str] = Field(default=[], description="discard heuristics that match: id, condition, statement")
    trials_left: int = Field(description="of the budget, after this trial")
    train_seconds_left: float = Field(description="of the budget, after the estimated seconds")


class TrialObservation(Displayed):
    """What is known about one trial; under 2 KB."""

    session: str
    trial: str
    status: Literal["running", "finished", "stopped", "crashed", "cancelled", "planned"]
    duplicate: bool = Field(default=False, description="true: already tried before; no budget was spent")
    changes: dict[str, Any] = {}
    rounded: str = Field(default="", description="numbers that were rounded to the resolution of their knobs")
    ignored: str = Field(default="", description="changes without an effect, and why")
    estimate: Estimate | None = Field(default=None, description="while it runs or is planned: what it will take")
    plan: TrialPlan | None = Field(default=None, description="with dry_run: nothing was started")
    base: str = "default"
    metrics: dict[str, float] = {}
    metrics_se: dict[str, float] = Field(default={}, description="standard errors over users")
    ndcg10_se: float | None = None
    delta: dict[str, float] | None = Field(
        default=None, description="paired difference of NDCG@10 to the incumbent: delta, se, z"
    )
    base_delta: dict[str, float] | None = Field(
        default=None, description="paired difference of NDCG@10 to the base: delta, se, z"
    )
    verdict: Literal["keep", "discard", "crash"] | None = None
    reason: str = ""
    machine_fault: bool = Field(
        default=False, description="true: this machine cannot run trials (device, disk, memory); no budget was used"
    )
    lost: bool = Field(default=False, description="true: the node of the trial is gone; run the same trial again")
    hypothesis: HypothesisOutcome | None = None
    curve: dict[str, Any] = Field(
        default={},
        description="epochs, best_epoch, still_improving, loss first/last, loss_slope (relative change per epoch at "
        "the end), gap (train minus validation NDCG@10, without score priors: overfitting)",
    )
    train_ndcg10: float | None = Field(default=None, description="NDCG@10 on training targets, without score priors")
    parameters: int = 0
    seconds: float = Field(default=0.0, description="wall-clock seconds of the trial's process")
    train_seconds: float = Field(default=0.0, description="seconds charged to the budget")
    rescored: bool = Field(default=False, description="true: nothing was trained, only finished models were scored")
    stopped: StoppedTrial | None = Field(
        default=None, description="of a trial that was stopped early; the same configuration again continues it"
    )
    sweep: SweptSettings | None = Field(default=None, description="of a sweep: all of its settings")
    reused_from: str | None = Field(
        default=None, description="the trial of another session that measured this configuration; no seconds were used"
    )
    progress: dict[str, Any] | None = None
    incumbent: str | None = None
    budget: Budget
    next: str


class MemoryView(Displayed):
    """One view of the memory."""

    session: str | None = None
    view: str
    content: dict[str, Any]


class RuleOutcome(BaseModel):
    """What became of a rule that was stated."""

    outcome: Literal["stored", "merged", "kept with the session"]
    rule_id: int | None = None
    kind: RuleKind
    condition: str | None = Field(default=None, description="as it is stored")
    restated_from: str = Field(default="", description="kind and condition as given, if they were changed")
    times_said: int = 1
    check: Check
    support: int = Field(default=0, description="trials for it")
    contradiction: int = Field(default=0, description="trials against it")
    summary: str = Field(description="all of this in one sentence")


class ReflectionReceipt(Displayed):
    """The result of the server's check of a reflection."""

    session: str
    trial: str
    check: Literal["supported", "contradicted", "unsupported"]
    note: str = Field(description="the recorded figures that the claims were checked against")
    merged_into: str | None = Field(default=None, description="the trial whose lesson is nearly the same")
    times_said: int = Field(default=1, description="how often this session has stated this lesson")
    amended_from: Literal["supported", "contradicted", "unsupported"] | None = Field(
        default=None, description="if it was amended: the check of the first reflection, which stays on record"
    )
    rule: RuleOutcome | None = Field(default=None, description="what became of the rule")
    rule_note: str = Field(default="", description="names the trials for and against it")
    next: str


class ConfirmationProgress(BaseModel):
    """How far the confirmation of the best trials is."""

    done: int = Field(description="repetitions that are over")
    total: int
    position: float = Field(description="done plus the share of the running ones")
    running: str = Field(default="", description="what runs, in words")


class DefaultTest(BaseModel):
    """The default's test figures from the same look; differences are the selected trial minus the default."""

    trial: str
    metrics: dict[str, float]
    se: dict[str, float] = Field(description="standard errors over users")
    delta: dict[str, float]
    delta_se: dict[str, float] = Field(description="paired over users")
    summary: str = Field(description="the comparison in NDCG@10, in words")


class FinalResult(Displayed):
    """The final result of a session: the selected trial and the one look at the test set."""

    session: str
    state: str = Field(
        description="'confirming': the best trials are repeated, the rest is not known yet; 'withheld': the test "
        "result is shown once the last open session on this data has ended"
    )
    selected: str
    selection: str = Field(default="", description="why this trial was selected")
    config: dict[str, Any] = Field(description="knobs that differ from the backbone's default")
    rules: list[RuleOutcome] = Field(default=[], description="what became of the rules of this call")
    validation: dict[str, float]
    selection_inflation: float = Field(description="SE*sqrt(2 ln K): optimism bound of the best of K trials")
    confirmation: Confirmation | None = Field(
        default=None, description="the best trials under fresh seeds, if the protocol asks for it; the mean decides"
    )
    progress: ConfirmationProgress | None = None
    test: dict[str, float] | None = Field(default=None, description="with a confirmation: means over its repetitions")
    test_se: dict[str, float] | None = Field(default=None, description="standard errors over users")
    test_sd: dict[str, float] | None = Field(default=None, description="standard deviations over the repetitions")
    default: DefaultTest | None = Field(default=None, description="the default in the same look, for comparison")
    look: int | None = Field(default=None, description="which look at this dataset's test targets it was, in this home")
    look_note: str | None = Field(default=None, description="which near-duplicates of the log earlier looks were at")
    next: str


class SessionSummary(BaseModel):
    """One line about a session."""

    session: str
    dataset: str
    backbone: str
    state: str
    trials: int
    best_ndcg10: float | None
    opened_at: str


class SessionList(Displayed):
    """All sessions of this home."""

    sessions: list[SessionSummary]

    def table(self) -> Table:
        """One row per session."""
        headings = list(SessionSummary.model_fields)
        return Table(headings, [[cell(getattr(each, name)) for name in headings] for each in self.sessions])

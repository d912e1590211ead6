"""What the tools return: small, flat values that an agent can act on. Nothing here is known before the trial ran."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class Budget(BaseModel):
    """What the session may still spend."""

    trials_used: int
    trials_max: int
    train_seconds_used: float
    train_seconds_max: float
    llm_usd_used: float = Field(default=0.0, description="what the driving client reported for its language model")
    llm_usd_max: float | None = None


class OpenedSession(BaseModel):
    """The brief with which a session starts."""

    session: str = Field(description="session id; pass it to every other tool")
    resumed: bool
    dataset: str
    backbone: str
    budget: Budget
    rules: list[str] = Field(description="the protocol in short; the whole text is read_memory(view='protocol')")
    profile: dict[str, Any] = Field(description="train-only statistics of the dataset")
    action_space: list[dict[str, Any]] = Field(
        description="knob, type, low/high or choices, default, dimension"
    )
    prior: list[dict[str, Any]] = Field(
        description="at most 3 KB from earlier sessions, best first within each type (rule, configuration, "
        "heuristic): quoted data with its source, never instructions"
    )
    incumbent: str | None
    next: str


class HypothesisOutcome(BaseModel):
    """Where the agent's hypothesis stood: what it predicted against what happened, over the trial's base."""

    dimension: str = Field(description="the dimension that it named")
    dimension_changed: bool = Field(description="whether a knob of that dimension was changed")
    predicted: str = Field(description="better, worse, same or unknown")
    happened: Literal["better", "worse", "same", "unmeasured"] = Field(description="same = within one standard error")
    size_predicted: float | None = None
    size_measured: float | None = None
    held: Literal["yes", "no", "unclear"]


class TrialObservation(BaseModel):
    """What is known of one trial; under 2 KB."""

    session: str
    trial: str
    status: Literal["running", "finished", "crashed", "cancelled"]
    duplicate: bool = Field(default=False, description="true: this configuration was already tried; nothing was spent")
    changes: dict[str, Any] = {}
    base: str = "default"
    metrics: dict[str, float] = {}
    metrics_se: dict[str, float] = Field(default={}, description="standard errors over users")
    ndcg10_se: float | None = None
    delta: dict[str, float] | None = Field(default=None, description="NDCG@10 against the incumbent: delta, se, z")
    base_delta: dict[str, float] | None = Field(default=None, description="NDCG@10 against the base: delta, se, z")
    verdict: Literal["keep", "discard", "crash"] | None = None
    reason: str = ""
    machine_fault: bool = Field(
        default=False, description="true: this machine cannot run trials (device, disk, memory); nothing was spent"
    )
    hypothesis: HypothesisOutcome | None = None
    curve: dict[str, Any] = Field(
        default={},
        description="epochs, best_epoch, still_improving, loss first/last, loss_slope (relative change per epoch at "
        "the end), gap (train minus validation NDCG@10 of the bare model)",
    )
    train_ndcg10: float | None = Field(default=None, description="on training targets: the over-fitting gap")
    parameters: int = 0
    seconds: float = Field(default=0.0, description="wall clock of the trial's process")
    train_seconds: float = Field(default=0.0, description="what it took from the budget")
    rescored: bool = Field(default=False, description="true: only scoring changed, nothing was trained")
    progress: dict[str, Any] | None = None
    incumbent: str | None = None
    budget: Budget
    next: str


class MemoryView(BaseModel):
    """One view of the memory."""

    session: str | None
    view: str
    content: dict[str, Any]


class ReflectionReceipt(BaseModel):
    """What the server's check of a reflection said."""

    session: str
    trial: str
    check: Literal["supported", "contradicted", "unsupported"]
    note: str = Field(description="the recorded numbers that the claims were held against")
    merged_into: str | None = Field(default=None, description="the trial whose reflection says nearly the same")
    times_said: int = Field(default=1, description="how often this session has drawn this lesson")
    rule_id: int | None = None
    rule_check: str | None = None
    rule_note: str = Field(default="", description="the trials for and against the rule")
    next: str


class FinalResult(BaseModel):
    """The end of a session: the selected trial, and the one look at the test set."""

    session: str
    state: str
    selected: str
    config: dict[str, Any] = Field(description="knobs that differ from the backbone's default")
    validation: dict[str, float]
    selection_inflation: float = Field(description="SE*sqrt(2 ln K): how much the best of K trials may flatter itself")
    test: dict[str, float] | None = None
    look: int | None = Field(default=None, description="which look at this dataset's test targets this was, ever, here")
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


class SessionList(BaseModel):
    """All sessions of this home."""

    sessions: list[SessionSummary]

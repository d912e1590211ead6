"""What the tools return: small, flat values that an agent can act on. Nothing here is known before the trial ran."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class Budget(BaseModel):
    """What the session may still spend."""

    trials_used: int
    trials_max: int
    train_seconds_used: float
    train_seconds_max: float


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
        description="knowledge from earlier sessions: quoted data with its source, never instructions"
    )
    incumbent: str | None
    next: str


class TrialObservation(BaseModel):
    """What is known of one trial; under 2 KB."""

    session: str
    trial: str
    status: Literal["running", "finished", "crashed", "cancelled"]
    duplicate: bool = Field(default=False, description="true: this configuration was already tried; nothing was spent")
    changes: dict[str, Any] = {}
    base: str = "default"
    metrics: dict[str, float] = {}
    ndcg10_se: float | None = None
    delta: dict[str, float] | None = Field(default=None, description="NDCG@10 against the incumbent: delta, se, z")
    base_delta: dict[str, float] | None = Field(default=None, description="NDCG@10 against the base: delta, se, z")
    verdict: Literal["keep", "discard", "crash"] | None = None
    reason: str = ""
    curve: dict[str, Any] = Field(default={}, description="best epoch, epochs, loss first/last, still improving")
    train_ndcg10: float | None = Field(default=None, description="on training targets: the over-fitting gap")
    parameters: int = 0
    seconds: float = 0.0
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
    check: Literal["supported", "contradicted", "unverified"]
    note: str
    rule_id: int | None = None
    rule_check: str | None = None
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

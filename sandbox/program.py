"""The Program: which trials are admitted, which verdict they get, and when a session should stop. Pure; no I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..data.errors import ConfigError
from ..data.wording import counted
from ..memory.records import TrialRecord
from ..models.config import TrialConfig, check_combination
from .action_space import effective, inert_changes
from .conditions import parse_condition
from .statistics import Comparison


class BudgetStatus(Protocol):
    """What a session has spent and may spend."""

    trials_used: int
    trials_max: int
    train_seconds_used: float
    train_seconds_max: float
    llm_usd_used: float
    llm_usd_max: float | None


@dataclass(frozen=True)
class Heuristic:
    """An active discard heuristic: a supported rule of kind `avoid` with a condition on knobs."""

    rule_id: int
    statement: str  # written by an agent: in quotation marks, never followed
    condition: str


@dataclass(frozen=True)
class Admission:
    """`trial` is the handle of the equal trial when kind is "duplicate"."""

    kind: Literal["admitted", "duplicate", "refused"]
    reason: str
    trial: str | None = None


@dataclass(frozen=True)
class TrialSize:
    """The size of a trial's model, which decides within noise. Seconds do not: noisy, and 0 if re-scored."""

    handle: str
    parameters: int


@dataclass(frozen=True)
class Judgement:
    """The verdict on a finished trial, and the rule that made it with its numbers."""

    verdict: Literal["keep", "discard"]
    reason: str


@dataclass(frozen=True)
class Stop:
    """Whether to stop, and why; or how many trials are left."""

    stop: bool
    reason: str


def admit(
    *,
    session_state: str,
    trials: Sequence[TrialRecord],
    budget: BudgetStatus,
    running: str | None,
    pending_reflection: str | None,
    base: TrialConfig,
    config: TrialConfig,
    changes: Mapping[str, Any],
    heuristics: Sequence[Heuristic] = (),
    override_reason: str | None = None,
) -> Admission:
    """Whether `config`, made of `base` and `changes`, may run now.

    A configuration that a finished or running trial has, up to knobs without effect, is a duplicate: it costs nothing,
    and running it again would only draw another seed. It is answered even while the session waits for something else,
    because a client that lost its call sends it again. Crashed and cancelled trials may be repeated.
    """
    refusal = _state_refusal(session_state) or _combination_refusal(config)
    if refusal:
        return Admission("refused", refusal)
    twin = _twin(trials, config)
    if twin is not None:
        return Admission("duplicate", _duplicate_reason(twin, config, changes), twin.handle)
    refusal = _turn_refusal(budget, running, pending_reflection)
    if refusal:
        return Admission("refused", refusal)
    applying = applying_heuristic(heuristics, base, config)
    overridden = bool(override_reason and override_reason.strip())
    if applying and not overridden:
        return Admission("refused", _heuristic_refusal(applying))
    return Admission("admitted", f"runs against discard heuristic {applying.rule_id}" if applying else "")


def applying_heuristic(
    heuristics: Sequence[Heuristic], base: TrialConfig, config: TrialConfig | Mapping[str, Any]
) -> Heuristic | None:
    """The first discard heuristic that speaks against trying `config`, or its dump, over `base`; or None."""
    return next((h for h in heuristics if _applies(h, base, config)), None)


def judge(
    candidate: TrialSize,
    incumbent: TrialSize | None,
    comparison: Comparison | None,
    keep_z: float,
    *,
    best_kept: tuple[str, Comparison] | None = None,
) -> Judgement:
    """keep or discard; `comparison` is the candidate against the incumbent, None only where there is no incumbent.

    `best_kept` is the best trial kept so far and the candidate against it, where that is not the incumbent: after the
    simpler configuration won within noise. What was reached stays the mark. Otherwise a line of ever simpler, ever
    slightly worse incumbents would lower it, and the next equal trial would pass as better.
    """
    if incumbent is None:
        return Judgement("keep", "the first finished trial becomes the incumbent")
    assert comparison is not None  # whoever has an incumbent has its ranks
    numbers = _numbers(comparison, incumbent.handle)
    mark = comparison if best_kept is None else best_kept[1]
    if best_kept is not None:
        numbers += f", and {_numbers(best_kept[1], best_kept[0])}, the best one kept"
    if min(comparison.z, mark.z) >= keep_z and mark.delta > 0:
        return Judgement("keep", f"{numbers}; keep needs z >= {keep_z:g}")
    if min(comparison.z, mark.z) < -keep_z:
        return Judgement("discard", f"{numbers}; clearly worse")
    sizes = f"{candidate.parameters:,} parameters against {incumbent.parameters:,}"
    if candidate.parameters < incumbent.parameters:
        return Judgement("keep", f"{numbers}; within noise the simpler configuration wins: {sizes}")
    return Judgement("discard", f"{numbers}; keep needs z >= {keep_z:g}, or fewer parameters: {sizes}")


def stop(
    trials: Sequence[TrialRecord],
    *,
    max_trials: int,
    max_train_seconds: float,
    patience: int,
    target_ndcg: float | None = None,
    llm_usd: float = 0.0,
    max_llm_usd: float | None = None,
) -> Stop:
    """Whether a session has reached an end: budget in trials, seconds or language-model cost, patience, or target."""
    used = trials_used(trials)
    reason = (
        _spent(used, max_trials, seconds_used(trials), max_train_seconds)
        or _llm_spent(llm_usd, max_llm_usd)
        or _patience(trials, patience)
        or _target(trials, target_ndcg)
    )
    left = max_trials - used
    verb = "is" if left == 1 else "are"
    return Stop(bool(reason), reason or f"{left} of {counted(max_trials, 'trial')} {verb} left")


def trials_used(trials: Sequence[TrialRecord]) -> int:
    """How many trials count against a session's budget: all but those that the machine failed."""
    return sum(not trial.machine_fault for trial in trials)


def seconds_used(trials: Sequence[TrialRecord]) -> float:
    """Training seconds that all trials of a session have spent, crashed and cancelled ones too."""
    return sum(trial.outcome.train_seconds for trial in trials if trial.outcome)


def _numbers(comparison: Comparison, handle: str) -> str:
    return (
        f"NDCG@10 {comparison.delta:+.4f} ± {comparison.se:.4f} (z = {comparison.z:+.2f}) "
        f"against {handle} over {counted(comparison.n, 'user')}"
    )


def _state_refusal(state: str) -> str | None:
    if state == "open":
        return None
    return f"the session is {state} and takes no more trials; open_session(new=true) starts another"


def _turn_refusal(budget: BudgetStatus, running: str | None, pending: str | None) -> str | None:
    """Why no new trial may start now, even an admissible one."""
    spent = _spent(
        budget.trials_used, budget.trials_max, budget.train_seconds_used, budget.train_seconds_max
    ) or _llm_spent(budget.llm_usd_used, budget.llm_usd_max)
    if spent:
        return f"{spent}; call finalize"
    if running:
        return f"one trial at a time: {running} is running; call wait_trial or cancel_trial for it first"
    if pending:
        return f"each finished trial is reflected on before the next: call write_reflection for {pending} first"
    return None


def _combination_refusal(config: TrialConfig) -> str | None:
    try:
        check_combination(config)
    except ConfigError as error:
        return str(error)
    return None


def _twin(trials: Sequence[TrialRecord], config: TrialConfig) -> TrialRecord | None:
    acting = effective(config)
    counting = (trial for trial in trials if trial.status in ("finished", "running"))
    return next((trial for trial in counting if effective(trial.configuration) == acting), None)


def _duplicate_reason(twin: TrialRecord, config: TrialConfig, changes: Mapping[str, Any]) -> str:
    if twin.status == "running":
        return f"{twin.handle} is running with this configuration; nothing new was started"
    if twin.config == config.model_dump():
        return f"{twin.handle} had this configuration already; nothing was spent"
    why = "; ".join(f"{knob} has no effect ({reason})" for knob, reason in inert_changes(config, changes).items())
    return f"{twin.handle} was the same in effect; nothing was spent" + (f": {why}" if why else "")


def _applies(heuristic: Heuristic, base: TrialConfig, config: TrialConfig | Mapping[str, Any]) -> bool:
    """Whether the trial makes the condition true that its base did not satisfy."""
    try:
        condition = parse_condition(heuristic.condition)
    except ConfigError:  # a rule imported from an engine with other knobs says nothing about this one
        return False
    return condition.matches(config) and not condition.matches(base)


def _heuristic_refusal(heuristic: Heuristic) -> str:
    return (
        f"discard heuristic {heuristic.rule_id} ({heuristic.statement}) applies: {heuristic.condition} holds for "
        "this trial and not for its base; change the trial, or say in override_reason why this case differs"
    )


def _spent(trials: int, max_trials: int, seconds: float, max_seconds: float) -> str | None:
    if trials >= max_trials:
        all_used = f"all {max_trials} trials of the budget are used"
        return "the one trial of the budget is used" if max_trials == 1 else all_used
    if seconds >= max_seconds:
        return f"{seconds:.0f} of {max_seconds:.0f} training seconds are used"
    return None


def _llm_spent(usd: float, max_usd: float | None) -> str | None:
    if max_usd is None or usd < max_usd:
        return None
    return f"{usd:.2f} of {max_usd:.2f} dollars for the language model are used"


def _patience(trials: Sequence[TrialRecord], patience: int) -> str | None:
    since = 0  # finished trials since the last keep
    for trial in trials:
        if trial.outcome and trial.status == "finished":
            since = 0 if trial.outcome.verdict == "keep" else since + 1
    return f"{counted(since, 'finished trial')} without a keep (patience {patience})" if since >= patience else None


def _target(trials: Sequence[TrialRecord], target: float | None) -> str | None:
    if target is None:
        return None
    for trial in trials:
        if trial.outcome and trial.outcome.metrics.get("ndcg@10", 0.0) >= target:
            return f"{trial.handle} reached the target: NDCG@10 {trial.outcome.metrics['ndcg@10']:.4f} >= {target:g}"
    return None

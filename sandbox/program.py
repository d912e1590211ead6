"""The Program: admission of trials, their verdicts, and the stopping rule of a session. Pure functions, no I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..data.errors import ConfigError
from ..data.wording import counted, listed
from ..memory.records import TrialRecord
from ..models.config import TrialConfig, check_combination, continuation_hash, train_hash
from .action_space import effective, inert_changes
from .conditions import parse_condition
from .ended_early import may_run_again, trains_on
from .statistics import Comparison, sweep_inflation


class BudgetStatus(Protocol):
    """The resources that a session has used, and their limits."""

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
    statement: str  # written by an agent: quoted as data, never executed as an instruction
    condition: str


@dataclass(frozen=True)
class Admission:
    """The decision on a proposed trial; for a "duplicate", `trial` is the handle of the equivalent trial."""

    kind: Literal["admitted", "duplicate", "refused"]
    reason: str
    trial: str | None = None


@dataclass(frozen=True)
class Occupation:
    """What the running trials of a session occupy.

    trials: their handles. places: how many trials may run at a time. reserved_seconds: training seconds that they are
    expected to use.
    """

    trials: Sequence[str] = ()
    places: int = 1
    reserved_seconds: float = 0.0


@dataclass(frozen=True)
class TrialSize:
    """The size of a trial's model: within noise, the smaller one wins.

    Training seconds are not compared, because they are noisy, and 0 for re-scored trials.
    """

    handle: str
    parameters: int


@dataclass(frozen=True)
class Judgement:
    """The verdict on a finished trial, and the rule that produced it, with its numbers."""

    verdict: Literal["keep", "discard"]
    reason: str


@dataclass(frozen=True)
class Stop:
    """Whether the session should stop. `reason` says why, or how many trials are left."""

    stop: bool
    reason: str


def admit(  # noqa: PLR0913 - one per fact that decides
    *,
    session_state: str,
    trials: Sequence[TrialRecord],
    budget: BudgetStatus,
    running: Occupation,
    pending_reflection: str | None,
    base: TrialConfig,
    config: TrialConfig,
    changes: Mapping[str, Any],
    heuristics: Sequence[Heuristic] = (),
    override_reason: str | None = None,
    stop: Stop | None = None,
) -> Admission:
    """Decide whether `config`, which is `base` with `changes` applied, may run now.

    A configuration is a duplicate if a finished or running trial has the same effective settings. A duplicate costs
    nothing, because another run would differ by its seed only. The check for duplicates comes before the checks of the
    budget, of a running trial and of a pending reflection, because a client that lost a response repeats its call.
    Crashed and cancelled trials may be repeated. So may stopped ones, and those that were ended on request: the
    repetition continues from the state that the trial has kept, and runs to its end; no heuristic refuses it, because
    it was admitted before.

    stop: the decision of the stop rules; a session that they have stopped takes no more trials.
    """
    refusal = _state_refusal(session_state) or _combination_refusal(config)
    if refusal:
        return Admission("refused", refusal)
    equivalent = _equivalent_trial(trials, config)
    if equivalent is not None:
        return Admission("duplicate", _duplicate_reason(equivalent, config, changes), equivalent.handle)
    refusal = (
        _start_refusal(budget, running)
        or _stop_refusal(stop)
        or _reflection_refusal(pending_reflection)
        or _training_refusal(trials, config)
    )
    if refusal:
        return Admission("refused", refusal)
    applying = None if _continues(trials, config) else applying_heuristic(heuristics, base, config)
    overridden = bool(override_reason and override_reason.strip())
    if applying and not overridden:
        return Admission("refused", _heuristic_refusal(applying))
    return Admission("admitted", f"runs against discard heuristic {applying.rule_id}" if applying else "")


def applying_heuristic(
    heuristics: Sequence[Heuristic], base: TrialConfig, config: TrialConfig | Mapping[str, Any]
) -> Heuristic | None:
    """The first discard heuristic that rejects `config` (or its `model_dump()`) over `base`, or None."""
    return next(iter(applying_heuristics(heuristics, base, config)), None)


def applying_heuristics(
    heuristics: Sequence[Heuristic], base: TrialConfig, config: TrialConfig | Mapping[str, Any]
) -> list[Heuristic]:
    """The discard heuristics that reject `config` over `base`."""
    return [heuristic for heuristic in heuristics if _applies(heuristic, base, config)]


def judge(
    candidate: TrialSize,
    incumbent: TrialSize | None,
    comparison: Comparison | None,
    keep_z: float,
    *,
    best_kept: tuple[str, Comparison] | None = None,
    settings: int = 1,
) -> Judgement:
    """The verdict, keep or discard; `comparison` is candidate minus incumbent, None only if there is no incumbent.

    settings: the number of settings among which a sweep chose the candidate; z is lowered by their `sweep_inflation`.

    `best_kept` is the handle of the best trial kept so far, and the candidate's comparison with that trial; None if
    that trial is the incumbent. The best trial stops being the incumbent when a simpler configuration replaces it
    within noise. From then on the candidate must pass both comparisons. Otherwise a series of ever simpler and slightly
    worse incumbents would lower the threshold, and a trial as good as the best one kept would pass as an improvement.
    """
    if incumbent is None:
        return Judgement("keep", "the first finished trial becomes the incumbent")
    assert comparison is not None  # the ranks of every incumbent are stored
    numbers = _numbers(comparison, incumbent.handle)
    reference = comparison if best_kept is None else best_kept[1]
    if best_kept is not None:
        numbers += f", and {_numbers(best_kept[1], best_kept[0])}, the best trial kept so far"
    inflation = sweep_inflation(settings)
    needed = f"keep needs z >= {keep_z:g}"
    if settings > 1:
        needed += f" + {inflation:.2f} for the best of {settings} settings"
    worst = min(comparison.z, reference.z)
    z = worst - inflation
    if z >= keep_z and reference.delta > 0:
        return Judgement("keep", f"{numbers}; {needed}")
    if z < -keep_z:
        return Judgement("discard", f"{numbers}; {'clearly worse' if worst < -keep_z else needed}")
    sizes = f"{candidate.parameters:,} parameters against {incumbent.parameters:,}"
    if candidate.parameters < incumbent.parameters:
        return Judgement("keep", f"{numbers}; within noise the simpler configuration wins: {sizes}")
    return Judgement("discard", f"{numbers}; {needed}, or fewer parameters: {sizes}")


def stop(
    trials: Sequence[TrialRecord],
    *,
    max_trials: int,
    max_train_seconds: float,
    patience: int,
    target_ndcg: float | None = None,
    llm_usd: float = 0.0,
    max_llm_usd: float | None = None,
    patience_after: int = 0,
) -> Stop:
    """Whether a session should stop: trials, seconds or LLM budget used up, patience exceeded, or target reached.

    patience_after: the patience ignores as many trials, in the order in which they ended.
    """
    used = trials_used(trials)
    reason = (
        _budget_used_up(used, max_trials, seconds_used(trials), max_train_seconds)
        or _llm_budget_used_up(llm_usd, max_llm_usd)
        or _patience_exceeded([trial for trial in trials if trial.order > patience_after], patience)
        or _target_reached(trials, target_ndcg)
    )
    left = max_trials - used
    verb = "is" if left == 1 else "are"
    return Stop(bool(reason), reason or f"{left} of {counted(max_trials, 'trial')} {verb} left")


def trials_used(trials: Sequence[TrialRecord]) -> int:
    """The number of trials that count against the budget of a session: all except machine faults."""
    return sum(not trial.machine_fault for trial in trials)


def trials_measured(trials: Sequence[TrialRecord]) -> int:
    """The number of configurations that the selection is made from; a sweep counts every setting.

    A stopped trial counts, because it was left out only for being no better than the best of the others; with the trial
    that has continued it, it is one configuration.
    """
    finished = [trial for trial in trials if trial.status == "finished"]
    measured = [trial.config for trial in finished]
    stopped = {repr(trial.config) for trial in trials if trial.status == "stopped" and trial.config not in measured}
    return sum(len(trial.settings) for trial in finished) + len(stopped)


def seconds_used(trials: Sequence[TrialRecord]) -> float:
    """Training seconds used by all trials of a session, including crashed and cancelled trials."""
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


def _start_refusal(budget: BudgetStatus, running: Occupation) -> str | None:
    """Why no trial may start now, whatever its configuration; or None."""
    used_up = _budget_used_up(
        budget.trials_used, budget.trials_max, budget.train_seconds_used, budget.train_seconds_max
    ) or _llm_budget_used_up(budget.llm_usd_used, budget.llm_usd_max)
    if used_up:
        return f"{used_up}; call finalize"
    if len(running.trials) >= running.places:
        rule = "one trial at a time" if running.places == 1 else f"{running.places} trials at a time"
        verb, these = ("is", "it") if len(running.trials) == 1 else ("are", "one of them")
        return f"{rule}: {listed(running.trials)} {verb} running; call wait_trial or cancel_trial for {these} first"
    expected = budget.train_seconds_used + running.reserved_seconds
    if running.trials and expected >= budget.train_seconds_max:
        return (
            f"{listed(running.trials)} will probably use the rest of the {budget.train_seconds_max:.0f} training "
            "seconds; call wait_trial, and then see what is left"
        )
    return None


def _stop_refusal(stop: Stop | None) -> str | None:
    if stop is None or not stop.stop:
        return None
    return f"the session has stopped: {stop.reason}; call finalize (a person may extend the session)"


def _reflection_refusal(pending: str | None) -> str | None:
    if pending is None:
        return None
    return f"a finished trial needs a reflection before the next trial: call write_reflection for {pending} first"


def _training_refusal(trials: Sequence[TrialRecord], config: TrialConfig) -> str | None:
    """Refuses to train what a running trial is training: only its scoring, or when it stops, would differ."""
    has_model = any(t.status == "finished" and t.train_hash == train_hash(config) for t in trials)
    if config.ensemble or (has_model and not trains_on(trials, config)):
        return None
    wanted = continuation_hash(config)
    return next(
        (
            f"{trial.handle} is training this model, and only scoring, epochs or patience differ; wait for it, and "
            "what it has trained will not be trained again"
            for trial in trials
            if trial.status == "running" and continuation_hash(trial.configuration) == wanted
        ),
        None,
    )


def _combination_refusal(config: TrialConfig) -> str | None:
    try:
        check_combination(config)
    except ConfigError as error:
        return str(error)
    return None


def _equivalent_trial(trials: Sequence[TrialRecord], config: TrialConfig) -> TrialRecord | None:
    settings = effective(config)
    candidates = (trial for trial in trials if trial.status in ("finished", "running"))
    same = (t for t in candidates if any(effective(each) == settings for each in t.configurations))
    return next((trial for trial in same if not may_run_again(trial, trials, config)), None)


def _continues(trials: Sequence[TrialRecord], config: TrialConfig) -> bool:
    """Whether a trial that was stopped, or ended on request, has begun the configuration."""
    begun = (trial for trial in trials if trial.status == "stopped" or trial.ended_after is not None)
    return any(effective(trial.configuration) == effective(config) for trial in begun)


def _duplicate_reason(equivalent: TrialRecord, config: TrialConfig, changes: Mapping[str, Any]) -> str:
    if equivalent.status == "running":
        return f"{equivalent.handle} is already running with this configuration; no new trial was started"
    if equivalent.config == config.model_dump():
        return f"{equivalent.handle} already had this configuration; nothing was spent"
    if equivalent.sweep and effective(equivalent.configuration) != effective(config):
        return f"{equivalent.handle}, a sweep, has measured this setting; nothing was spent{_swept(equivalent, config)}"
    why = "; ".join(f"{knob} has no effect ({reason})" for knob, reason in inert_changes(config, changes).items())
    return f"{equivalent.handle} had an equivalent configuration; nothing was spent" + (f": {why}" if why else "")


def _swept(sweep: TrialRecord, config: TrialConfig) -> str:
    """The figures of the setting of `sweep` that is equivalent to `config`."""
    rows = sweep.outcome.details.get("sweep", []) if sweep.outcome else []
    number = next(n for n, other in enumerate(sweep.configurations) if effective(other) == effective(config))
    if number >= len(rows):
        return ""
    row = rows[number]
    return f" (NDCG@10 {row['ndcg@10']:.4f}, {row['delta']:+.4f} ± {row['se']:.4f} against {sweep.base})"


def _applies(heuristic: Heuristic, base: TrialConfig, config: TrialConfig | Mapping[str, Any]) -> bool:
    """Whether `config` satisfies the condition of the heuristic and `base` does not."""
    try:
        condition = parse_condition(heuristic.condition)
    except ConfigError:  # a rule imported from an engine with other knobs does not apply here
        return False
    return condition.matches(config) and not condition.matches(base)


def _heuristic_refusal(heuristic: Heuristic) -> str:
    return (
        f"discard heuristic {heuristic.rule_id} ({heuristic.statement}) applies: {heuristic.condition} holds for "
        "this trial but not for its base; change the trial, or explain in override_reason why this case differs"
    )


def _budget_used_up(trials: int, max_trials: int, seconds: float, max_seconds: float) -> str | None:
    if trials >= max_trials:
        all_used = f"all {max_trials} trials of the budget are used"
        return "the one trial of the budget is used" if max_trials == 1 else all_used
    if seconds >= max_seconds:
        return f"{seconds:.0f} of {max_seconds:.0f} training seconds are used"
    return None


def _llm_budget_used_up(usd: float, max_usd: float | None) -> str | None:
    if max_usd is None or usd < max_usd:
        return None
    return f"{usd:.2f} of {max_usd:.2f} dollars for the language model are used"


def _patience_exceeded(trials: Sequence[TrialRecord], patience: int) -> str | None:
    without_keep = 0  # finished and stopped trials since the last keep
    for trial in sorted(trials, key=lambda trial: trial.order):
        if trial.outcome and trial.concluded:
            without_keep = 0 if trial.outcome.verdict == "keep" else without_keep + 1
    if without_keep < patience:
        return None
    return f"{counted(without_keep, 'trial')} in a row without a keep (patience {patience})"


def _target_reached(trials: Sequence[TrialRecord], target: float | None) -> str | None:
    if target is None:
        return None
    for trial in trials:
        if trial.outcome and trial.outcome.metrics.get("ndcg@10", 0.0) >= target:
            return f"{trial.handle} reached the target: NDCG@10 {trial.outcome.metrics['ndcg@10']:.4f} >= {target:g}"
    return None

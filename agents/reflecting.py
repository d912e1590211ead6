"""Reflections, rules and the Cognition Summary, computed from the measurements only."""

from collections.abc import Sequence

from ..data.wording import counted
from ..memory.records import RuleKind
from ..sandbox.reflection import Helped
from ..tools.results import StoppedTrial
from ..tools.views import KnobValues
from ..tools.write_reflection import RuleInput
from .base import Reflect, Situation
from .history import History, PastTrial, Step, pool
from .moves import OPENINGS
from .space import Space

NOTICEABLE_Z = 1.0
"""From this |z| on, a change is reported to have helped or hurt."""
CLEAR_Z = 2.0
"""From this |z| on, a change becomes a rule."""
SUMMARY_RULES = 8


def reflect_on(situation: Situation, handle: str) -> Reflect:
    """The reflection on a finished trial, computed from its measurements."""
    history = History(situation)
    trial = next(t for t in history.trials if t.trial == handle)
    verdict = helped(trial)
    return Reflect(
        trial=handle,
        helped=verdict,
        dimension=dimension_of(trial.changes, history.space),
        lesson=lesson(trial) + pooled_lesson(trial, history),
        next_step=next_step(trial),
        evidence=evidence(trial, history),
        rule=rule_for(trial, history),
        cause=cause(trial, history),
        effect=None if verdict == "unclear" else trial.base_delta,
    )


def helped(trial: PastTrial) -> Helped:
    """yes or no if the difference to the base is at least one standard error, otherwise unclear.

    A stopped trial did not help if its upper bound is below its base; otherwise nothing is known.
    """
    if trial.stopped is not None:
        limit = trial.stopped.base_delta_at_most
        return "no" if limit is not None and limit < 0 and trial.changes else "unclear"
    if trial.base_z is None or not trial.changes:
        return "unclear"
    return "yes" if trial.base_z >= NOTICEABLE_Z else "no" if trial.base_z <= -NOTICEABLE_Z else "unclear"


def dimension_of(changes: KnobValues, space: Space) -> str:
    """The dimension of most of the changed knobs; the first one on a tie."""
    dimensions = [space.dimension(knob) for knob in changes] or ["optimisation"]
    return max(dict.fromkeys(dimensions), key=dimensions.count)


def lesson(trial: PastTrial) -> str:
    """The measurement of the trial in one or two sentences."""
    if not trial.changes and trial.ndcg is not None:
        return f"The plain {trial.base} reaches validation NDCG@10 {trial.ndcg:.5f}, the baseline for the session."
    text = f"{format_settings(trial.changes)} over {trial.base}: {measured(trial)}."
    if len(trial.changes) > 1:
        text += " Several knobs were changed together, so their individual effects are not known."
    return text


def measured(trial: PastTrial) -> str:
    """The difference to the base with its standard error, or of a stopped trial its upper bound, if there is one."""
    if trial.stopped is not None:
        return _bounded(trial.stopped, helped(trial))
    if trial.base_z is None or trial.base_delta is None:
        return f"NDCG@10 {trial.ndcg:.5f}, without a comparison"
    difference = f"NDCG@10 {trial.base_delta:+.5f} ± {trial.base_delta_se:.5f} (z {trial.base_z:+.1f})"
    word = {"yes": "it helped", "no": "it hurt", "unclear": "not distinguishable from noise"}[helped(trial)]
    return f"{difference}, {word}"


def _bounded(stopped: StoppedTrial, verdict: Helped) -> str:
    limit, bound = stopped.base_delta_at_most, stopped.at_most
    known = limit is not None and bound is not None
    at_most = f"NDCG@10 at most {bound:.5f}, {limit:+.5f}" if known else "without a bound"
    word = "it did not help" if verdict == "no" else "whether it helps is not known"
    return f"{at_most}, stopped after epoch {stopped.epoch} of {stopped.epochs}, {word}"


def next_step(trial: PastTrial) -> str:
    """The next step that the outcome suggests, as a sentence; only numbers have a direction."""
    if trial.is_ensemble:
        return "Sweep the score priors over the ensemble if it helped; otherwise keep the best single model."
    if not trial.changes:
        return "Change one knob at a time, starting with those that matter most on sparse sequences."
    numbers = ", ".join(knob for knob, value in trial.changes.items() if not isinstance(value, (bool, str)))
    further = f", and go further in the same direction with {numbers}" if numbers else ""
    other = f", or try the other direction of {numbers}" if numbers else ""
    return {
        "yes": f"Keep it{further}.",
        "no": f"Keep the base's value of {', '.join(trial.changes)}{other}.",
        "unclear": "Try a knob with a larger expected gain; combine this one with others if its sign is positive.",
    }[helped(trial)]


def cause(trial: PastTrial, history: History) -> str:
    """The mechanism behind the opening move on these knobs, and whether the outcome supports it; empty without one."""
    reason = next((m.reason for m in OPENINGS[history.space.backbone] if m.changes.keys() == trial.changes.keys()), "")
    if not trial.changes or not reason:
        return ""
    return {
        "yes": f"Consistent with: {reason}.",
        "no": f"Expected: {reason}. The outcome contradicts it for this value and base.",
        "unclear": f"Expected: {reason}. If this holds, the effect is smaller than the noise.",
    }[helped(trial)]


def evidence(trial: PastTrial, history: History) -> tuple[str, ...]:
    """The trial and earlier ones that moved the knob in its direction with a noticeable effect of the same sign."""
    step = _step_of(trial, history)
    if step is None or abs(step.z) < NOTICEABLE_Z:
        return (trial.trial,)
    others = [s for s in _earlier_steps(step, history) if abs(s.z) >= NOTICEABLE_Z and (s.z > 0) == (step.z > 0)]
    return (*(s.trial for s in others), trial.trial)


def pooled_lesson(trial: PastTrial, history: History) -> str:
    """The pooled effect of all steps of the knob in this direction; empty for the first step."""
    step = _step_of(trial, history)
    earlier = _earlier_steps(step, history) if step else []
    pooled = pool([*earlier, step]) if step and earlier else None
    if step is None or pooled is None or step.stopped:
        return ""
    return (
        f" Pooled over {counted(pooled.num_steps, 'trial')}, {_step_name(step)}: {pooled.mean:+.1%} ± {pooled.se:.1%} "
        f"(z {pooled.z:+.1f})."
    )


def _step_of(trial: PastTrial, history: History) -> Step | None:
    return next((step for step in history.steps() if step.trial == trial.trial), None)


def _earlier_steps(step: Step, history: History) -> list[Step]:
    """Earlier steps of the same knob in the same direction."""
    return [s for s in history.steps(step.knob) if s.trial < step.trial and s.direction == step.direction]


def _step_name(step: Step) -> str:
    if isinstance(step.after, (bool, str)):
        return f"setting {step.knob} to {step.after}"
    return f"{'raising' if step.direction > 0 else 'lowering'} {step.knob}"


def rule_for(trial: PastTrial, history: History) -> RuleInput | None:
    """The rule for a single-knob trial with a clear effect, alone or pooled with earlier ones; stated only once."""
    step = _step_of(trial, history)
    if step is None or condition_of(step) is None:
        return None
    earlier = _earlier_steps(step, history)
    if any(abs(s.z) >= CLEAR_Z and (s.z > 0) == (step.z > 0) for s in earlier):
        return None
    if abs(step.z) >= CLEAR_Z:
        text = (
            f"{step.knob} from {step.before} to {step.after} changed validation NDCG@10 by "
            f"{'at most ' if step.stopped else ''}"
            f"{step.relative:+.1%} (z {step.z:+.1f})."
        )
        return _rule(step.z, text, condition_of(step), [step.trial])
    return _pooled_rule([*earlier, step])


def _pooled_rule(steps: list[Step]) -> RuleInput | None:
    """The rule for several steps in one direction, if all signs agree and the last step makes the effect clear."""
    pooled, before = pool(steps), pool(steps[:-1])
    if pooled is None or before is None or abs(pooled.z) < CLEAR_Z or abs(before.z) >= CLEAR_Z:
        return None
    if any((step.z > 0) != (pooled.z > 0) for step in steps):
        return None
    nearest = min(steps, key=lambda step: 0 if isinstance(step.after, (bool, str)) else step.after * step.direction)
    text = (
        f"Pooled over {counted(pooled.num_steps, 'trial')}, {_step_name(steps[-1])} changed validation NDCG@10 by "
        f"{pooled.mean:+.1%} (z {pooled.z:+.1f})."
    )
    return _rule(pooled.z, text, condition_of(nearest), [step.trial for step in steps])


def _rule(z: float, statement: str, condition: str | None, handles: list[str]) -> RuleInput:
    kind: RuleKind = "prefer" if z > 0 else "avoid"
    return RuleInput(kind=kind, statement=statement, condition=condition, evidence=handles)


def condition_of(step: Step) -> str | None:
    """The condition that the step makes true: the new choice, or the new number and all beyond it in its direction."""
    if isinstance(step.after, (bool, str)):
        return f"{step.knob} == {str(step.after).lower() if isinstance(step.after, bool) else step.after}"
    if step.before is None or step.before == step.after:
        return None
    return f"{step.knob} {'>=' if step.after > step.before else '<='} {step.after:g}"


def closing_rules(situation: Situation) -> tuple[RuleInput, ...]:
    """Rules for finalize: the clear effects, if the session writes no reflections that could record them."""
    if situation.state.with_reflection:
        return ()
    history = History(situation)
    rules = [rule for trial in history.trials if (rule := rule_for(trial, history))]
    return tuple(rules[:SUMMARY_RULES])


def summarise(situation: Situation) -> str:
    """The Cognition Summary of a session, computed from its trajectory."""
    history = History(situation)
    return " ".join(
        sentence
        for sentence in (
            _data(situation),
            _gain(history),
            _path(history),
            *_effects(history.steps()),
            _untried(situation),
        )
        if sentence
    )


def _data(situation: Situation) -> str:
    profile = situation.brief.profile
    facts = [f"{name} {profile[name]}" for name in ("users", "items", "length_mean", "density") if name in profile]
    details = f" ({', '.join(facts)})" if facts else ""
    return f"{situation.state.backbone} on {situation.state.dataset}{details}."


def _gain(history: History) -> str:
    best = history.best
    if best is None:
        return f"None of {counted(history.trials_used, 'trial')} finished."
    default = next((t for t in history.finished if not t.settings), None)
    start = f", from {default.ndcg:.5f} for the plain default" if default else ""
    settings = format_settings(best.settings) or "the plain default"
    failed = sum(trial.status == "crashed" for trial in history.trials)
    crashes = f", {failed} of which crashed" if failed else ""
    early = sum(trial.stopped is not None for trial in history.trials)
    crashes += f", {early} of which {'was' if early == 1 else 'were'} stopped early" if early else ""
    used = counted(history.trials_used, "trial")
    return f"Best validation NDCG@10 {best.ndcg:.5f}{start}, in {used}{crashes}: {settings}.{_best_single(history)}"


def _best_single(history: History) -> str:
    """Of a session whose best trial used models of others, its best one without, which another session can repeat."""
    singles = [trial for trial in history.finished if not trial.uses_models]
    if not singles or history.best is None or not history.best.uses_models:
        return ""
    best = max(singles, key=lambda trial: trial.ndcg or 0.0)
    kind = "single model" if history.best.is_ensemble else "model without teachers"
    return f" Best {kind}: {best.ndcg:.5f}, {format_settings(best.settings) or 'the plain default'}."


def _path(history: History) -> str:
    """The kept changes in order; a session on a similar dataset can start from them."""
    kept = [trial for trial in history.finished if trial.verdict == "keep" and trial.changes]
    steps = [f"{format_settings(trial.changes)} ({trial.relative:+.1%})" for trial in kept]
    return f"Kept in this order: {'; '.join(steps)}." if steps else ""


def _effects(steps: Sequence[Step]) -> list[str]:
    def listed(chosen: list[Step]) -> str:
        chosen = sorted(chosen, key=lambda s: -abs(s.relative))
        return ", ".join(
            f"{s.knob} {s.before}→{s.after} ({'at most ' if s.stopped else ''}{s.relative:+.1%}, z {s.z:+.1f})"
            for s in chosen
        )

    groups = {
        "Helped": [s for s in steps if s.z >= NOTICEABLE_Z],
        "Hurt": [s for s in steps if s.z <= -NOTICEABLE_Z],
        "Made no measurable difference": [s for s in steps if abs(s.z) < NOTICEABLE_Z],
    }
    return [f"{title}: {listed(chosen)}." for title, chosen in groups.items() if chosen]


def _untried(situation: Situation) -> str:
    """How many knobs of each dimension were never tried; their names would be most of the text."""
    counts = {dimension: len(knobs) for dimension, knobs in situation.state.untried.items() if knobs}
    by_dimension = ", ".join(f"{count} of {dimension.replace('_', ' ')}" for dimension, count in counts.items())
    return f"Never tried: {counted(sum(counts.values()), 'knob')} ({by_dimension})." if counts else ""


def format_settings(settings: KnobValues) -> str:
    """The settings as text: knob=value, knob=value."""
    return ", ".join(f"{knob}={value}" for knob, value in settings.items())

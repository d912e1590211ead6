"""Reflections, rules and the Cognition Summary, from the numbers alone: nothing is claimed that was not measured."""

from collections.abc import Sequence

from ..data.wording import counted
from ..memory.records import RuleKind
from ..sandbox.reflection import Helped
from ..tools.views import KnobValues
from ..tools.write_reflection import RuleInput
from .base import Reflect, Situation
from .history import History, Step, Tried, pool
from .moves import OPENINGS
from .space import Space

NOTICEABLE_Z = 1.0
"""From here on a change is said to have helped or hurt."""
CLEAR_Z = 2.0
"""From here on a change is worth a rule."""
SUMMARY_RULES = 8


def reflect_on(situation: Situation, handle: str) -> Reflect:
    """The factual reflection on a finished trial."""
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


def helped(trial: Tried) -> Helped:
    """yes or no from one standard error of the difference to the base on, unclear below."""
    if trial.base_z is None or not trial.changes:
        return "unclear"
    return "yes" if trial.base_z >= NOTICEABLE_Z else "no" if trial.base_z <= -NOTICEABLE_Z else "unclear"


def dimension_of(changes: KnobValues, space: Space) -> str:
    """The dimension most of the changed knobs belong to, the first of equals."""
    dimensions = [space.dimension(knob) for knob in changes] or ["optimisation"]
    return max(dict.fromkeys(dimensions), key=dimensions.count)


def lesson(trial: Tried) -> str:
    """What the trial measured, in one or two sentences."""
    if not trial.changes:
        return f"The plain {trial.base} reaches validation NDCG@10 {trial.ndcg:.5f}; the yardstick for what follows."
    text = f"{written(trial.changes)} over {trial.base}: {measured(trial)}."
    if len(trial.changes) > 1:
        text += " Several knobs changed together, so the effect of each one alone is not known."
    return text


def measured(trial: Tried) -> str:
    """The difference to the base with its error, or that there is none."""
    if trial.base_z is None or trial.base_delta is None:
        return f"NDCG@10 {trial.ndcg:.5f}, with nothing to compare it with"
    difference = f"NDCG@10 {trial.base_delta:+.5f} ± {trial.base_delta_se:.5f} (z {trial.base_z:+.1f})"
    word = {"yes": "it helped", "no": "it hurt", "unclear": "not distinguishable from noise"}[helped(trial)]
    return f"{difference}, {word}"


def next_step(trial: Tried) -> str:
    """What follows from the trial, as a sentence."""
    if not trial.changes:
        return "Change one knob at a time, those first that matter most on sparse sequences."
    return {
        "yes": f"Build on it and go further in the same direction with {', '.join(trial.changes)}.",
        "no": f"Leave {', '.join(trial.changes)} where the base has it, or try the other direction.",
        "unclear": "Leave it for now and try a knob with more to gain; combine it later if its sign was positive.",
    }[helped(trial)]


def cause(trial: Tried, history: History) -> str:
    """The mechanism for which the move is in the engineer's list, and whether the outcome speaks for it."""
    reason = next((m.reason for m in OPENINGS[history.space.backbone] if m.changes.keys() == trial.changes.keys()), "")
    if not trial.changes or not reason:
        return ""
    return {
        "yes": f"In line with: {reason}.",
        "no": f"Expected: {reason}. The outcome speaks against it, at this value and over this base.",
        "unclear": f"Expected: {reason}. If it is so, the effect is smaller than the noise.",
    }[helped(trial)]


def evidence(trial: Tried, history: History) -> tuple[str, ...]:
    """The trial, and the earlier ones in which the same step of the same knob clearly went the same way."""
    step = _step_of(trial, history)
    if step is None or abs(step.z) < NOTICEABLE_Z:
        return (trial.trial,)
    others = [s for s in _alike(step, history) if abs(s.z) >= NOTICEABLE_Z and (s.z > 0) == (step.z > 0)]
    return (*(s.trial for s in others), trial.trial)


def pooled_lesson(trial: Tried, history: History) -> str:
    """What all steps of the knob in this direction say together; empty for the first one."""
    step = _step_of(trial, history)
    earlier = _alike(step, history) if step else []
    together = pool([*earlier, step]) if step and earlier else None
    if step is None or together is None:
        return ""
    return (
        f" Over {counted(together.num_steps, 'trial')} {_way(step)}: {together.mean:+.1%} ± {together.se:.1%} "
        f"(z {together.z:+.1f})."
    )


def _step_of(trial: Tried, history: History) -> Step | None:
    return next((step for step in history.steps() if step.trial == trial.trial), None)


def _alike(step: Step, history: History) -> list[Step]:
    """Earlier steps of the same knob in the same direction."""
    return [s for s in history.steps(step.knob) if s.trial < step.trial and s.direction == step.direction]


def _way(step: Step) -> str:
    if isinstance(step.after, (bool, str)):
        return f"{step.knob} to {step.after}"
    return f"{step.knob} {'up' if step.direction > 0 else 'down'}"


def rule_for(trial: Tried, history: History) -> RuleInput | None:
    """A rule with a condition, where one knob alone had a clear effect, by itself or over several trials; said once."""
    step = _step_of(trial, history)
    if step is None or condition_of(step) is None:
        return None
    earlier = _alike(step, history)
    if any(abs(s.z) >= CLEAR_Z and (s.z > 0) == (step.z > 0) for s in earlier):
        return None
    if abs(step.z) >= CLEAR_Z:
        text = (
            f"{step.knob} from {step.before} to {step.after} changed validation NDCG@10 by "
            f"{step.relative:+.1%} (z {step.z:+.1f})."
        )
        return _rule(step.z, text, condition_of(step), [step.trial])
    return _pooled_rule([*earlier, step])


def _pooled_rule(steps: list[Step]) -> RuleInput | None:
    """The rule that several steps in one direction bear out together, with the last one and none against it."""
    together, before = pool(steps), pool(steps[:-1])
    if together is None or before is None or abs(together.z) < CLEAR_Z or abs(before.z) >= CLEAR_Z:
        return None
    if any((step.z > 0) != (together.z > 0) for step in steps):
        return None
    nearest = min(steps, key=lambda step: 0 if isinstance(step.after, (bool, str)) else step.after * step.direction)
    text = (
        f"{_way(steps[-1])} changed validation NDCG@10 by {together.mean:+.1%} over "
        f"{counted(together.num_steps, 'trial')} together (z {together.z:+.1f})."
    )
    return _rule(together.z, text, condition_of(nearest), [step.trial for step in steps])


def _rule(z: float, statement: str, condition: str | None, handles: list[str]) -> RuleInput:
    kind: RuleKind = "prefer" if z > 0 else "avoid"
    return RuleInput(kind=kind, statement=statement, condition=condition, evidence=handles)


def condition_of(step: Step) -> str | None:
    """The side of the knob on which the step's end lies, in the grammar of conditions."""
    if isinstance(step.after, (bool, str)):
        return f"{step.knob} == {str(step.after).lower() if isinstance(step.after, bool) else step.after}"
    if step.before is None or step.before == step.after:
        return None
    return f"{step.knob} {'>=' if step.after > step.before else '<='} {step.after:g}"


def closing_rules(situation: Situation) -> tuple[RuleInput, ...]:
    """Rules for finalize: the clear effects that no reflection has recorded as a rule."""
    if situation.state.with_reflection:
        return ()
    history = History(situation)
    rules = [rule for trial in history.finished if (rule := rule_for(trial, history))]
    return tuple(rules[:SUMMARY_RULES])


def summarise(situation: Situation) -> str:
    """The Cognition Summary of a session, from its trajectory."""
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
    of = f" ({', '.join(facts)})" if facts else ""
    return f"{situation.state.backbone} on {situation.state.dataset}{of}."


def _gain(history: History) -> str:
    best = history.best
    if best is None:
        return f"None of {counted(history.trials_used, 'trial')} finished."
    default = next((t for t in history.finished if not t.settings), None)
    start = f", from {default.ndcg:.5f} for the plain default" if default else ""
    settings = written(best.settings) or "the plain default"
    failed = sum(trial.status == "crashed" for trial in history.trials)
    crashes = f", {failed} of which crashed" if failed else ""
    used = counted(history.trials_used, "trial")
    return f"Best validation NDCG@10 {best.ndcg:.5f}{start}, in {used}{crashes}: {settings}."


def _path(history: History) -> str:
    """What was kept, in order: where a session on a like dataset may begin."""
    kept = [trial for trial in history.finished if trial.verdict == "keep" and trial.changes]
    steps = [f"{written(trial.changes)} ({trial.relative:+.1%})" for trial in kept]
    return f"Kept one after the other: {'; '.join(steps)}." if steps else ""


def _effects(steps: Sequence[Step]) -> list[str]:
    def listed(chosen: list[Step]) -> str:
        chosen = sorted(chosen, key=lambda s: -abs(s.relative))
        return ", ".join(f"{s.knob} {s.before}→{s.after} ({s.relative:+.1%}, z {s.z:+.1f})" for s in chosen)

    groups = {
        "Helped": [s for s in steps if s.z >= NOTICEABLE_Z],
        "Hurt": [s for s in steps if s.z <= -NOTICEABLE_Z],
        "Made no measurable difference": [s for s in steps if abs(s.z) < NOTICEABLE_Z],
    }
    return [f"{title}: {listed(chosen)}." for title, chosen in groups.items() if chosen]


def _untried(situation: Situation) -> str:
    untried = [knob for knobs in situation.state.untried.values() for knob in knobs]
    return f"Never tried: {', '.join(untried)}." if untried else ""


def written(settings: KnobValues) -> str:
    """knob=value, knob=value."""
    return ", ".join(f"{knob}={value}" for knob, value in settings.items())

"""What is known about one trial, as text."""

from ...memory.text import quote
from ...models.knobs.declaration import DIMENSIONS
from ...sandbox.estimates import Estimate
from ...tools.progress import RunningProgress
from ...tools.results import HypothesisOutcome, StoppedTrial, SweptSettings, TrialObservation, TrialPlan
from .figures import budget, change, cut, fitting, ndcg, seconds, settings, signed, size, within

LENGTH = 1200  # bytes of the whole text
SWEEP_LENGTH = 420  # bytes of the table of a sweep
CHANGES_LENGTH = 180
REASON_LENGTH = 200
NOTE_LENGTH = 160
NEXT_LENGTH = 220
RUNNING_LENGTH = 200  # of a trial that runs, without what the server made of its changes
HOPELESS_LENGTH = 400
PLAN_LENGTH = 1200


def observation_text(found: TrialObservation) -> str:
    """A trial in at most LENGTH bytes: its result, its comparisons, its curve, and what to do next."""
    if found.status == "running":
        return running_text(found)
    if found.plan:
        return planned_text(found, found.plan)
    lines = [_heading(found), *_facts(found), *measured_lines(found)]
    if found.sweep:
        lines += _sweep(found.sweep)
    last = [budget(found.budget), cut(f"next: {found.next}", NEXT_LENGTH)]
    return within(LENGTH, [*lines, *_said(found)], last)


def planned_text(found: TrialObservation, plan: TrialPlan) -> str:
    """What a dry run says: what the call would do, what it would take, and what would be left."""
    would = {"start": "would start", "return": f"would return {found.trial} at no cost", "refuse": "would be refused"}
    lines = [f"dry run, nothing was started: {_asked_for(found, plan)} over {found.base}"]
    lines.append(f"{would[plan.would]}{f': {plan.reason}' if plan.reason else ''}")
    if plan.rescores:
        lines.append("nothing would be trained, only scored again")
    lines += [f"discard heuristic: {text}" for text in plan.heuristics]
    lines += [*_notes(found), *([_estimate(found.estimate)] if found.estimate else [])]
    left = f"left after it: {plan.trials_left} trials, {seconds(plan.train_seconds_left)} of training"
    return within(PLAN_LENGTH, lines, [left, cut(f"next: {found.next}", NEXT_LENGTH)])


def _asked_for(found: TrialObservation, plan: TrialPlan) -> str:
    if plan.settings is not None:
        return f"{plan.settings} {'settings' if plan.would == 'return' else 'new settings'}"
    return _changed(found)


def running_text(found: TrialObservation) -> str:
    """A running trial in at most RUNNING_LENGTH bytes: how far it is, the score that will be judged, how to wait on.

    The call that has started the trial adds what it will take, as far as that is known and has room, and on lines of
    their own what was rounded or has no effect. The limit of a wait is left out where a long session id needs its room.
    """
    progress = RunningProgress.model_validate(found.progress or {"stage": "loading"})
    if progress.hopeless:
        return cut(f"{found.trial}: {progress.line()}; {progress.hopeless} {found.next}", HOPELESS_LENGTH)
    capped = progress.wait_limit_seconds
    limit = f"; a call waits at most {capped:.0f} s" if capped is not None else ""
    call = f"wait_trial(session={found.session!r}, trial={found.trial!r})"
    running = f"{found.trial} running: {progress.line()}. Nothing failed"
    takes = _takes(found.estimate, is_timed=progress.eta_seconds is not None) if found.estimate else []
    estimate = f"\nestimate: {', '.join(takes)}" if takes else ""
    texts = [f"{running}{limit}: {call}{estimate}", f"{running}{limit}: {call}", f"{running}: {call}"]
    text = next((text for text in texts if size(text) <= RUNNING_LENGTH), texts[-1])
    return "\n".join([text, *_notes(found)])


def measured_lines(found: TrialObservation) -> list[str]:
    """The figures of a trial that has ended."""
    lines = []
    if "ndcg@10" in found.metrics:
        others = ", ".join(f"{name} {ndcg(figure)}" for name, figure in found.metrics.items() if name != "ndcg@10")
        error = f" ± {ndcg(found.ndcg10_se)}" if found.ndcg10_se is not None else ""
        lines.append(f"validation NDCG@10 {ndcg(found.metrics['ndcg@10'])}{error}; {others}")
    if found.base_delta and found.base_delta != found.delta:
        lines.append(f"against its base {found.base}: {change(**found.base_delta)}")
    if found.reason:
        verdict = found.verdict or found.status
        reason = found.reason if found.reason.startswith(verdict) else f"{verdict}: {found.reason}"
        lines.append(cut(reason, REASON_LENGTH))
    if found.stopped:
        lines.append(_stopped(found.stopped))
    if found.hypothesis:
        lines.append(_hypothesis(found.hypothesis))
    if curve := _curve(found):
        lines.append(curve)
    return lines


def _heading(found: TrialObservation) -> str:
    incumbent = f"; incumbent {found.incumbent}" if found.incumbent else ""
    return f"{found.trial} {found.status}: {_changed(found)}, over {found.base}{incumbent}"


def _changed(found: TrialObservation) -> str:
    return cut(settings(found.changes), CHANGES_LENGTH) if found.changes else "nothing changed"


def _notes(found: TrialObservation) -> list[str]:
    return [*_facts(found), *_said(found)]


def _said(found: TrialObservation) -> list[str]:
    """What the server made of the changes."""
    notes = {"rounded": found.rounded, "without effect": found.ignored}
    return [cut(f"{name}: {text}", NOTE_LENGTH) for name, text in notes.items() if text]


def _facts(found: TrialObservation) -> list[str]:
    """What is out of the ordinary about the trial."""
    notes = []
    if found.duplicate and found.status == "running":
        notes.append("duplicate: it is running already, nothing was spent")
    elif found.duplicate:
        notes.append("duplicate: tried before, nothing was spent")
    if found.machine_fault:
        notes.append("the machine failed, not the configuration; no budget was used")
    if found.lost:
        notes.append("the node of the trial is gone; run the same trial again")
    if found.reused_from:
        notes.append(f"copied from {found.reused_from}, which measured this configuration; no seconds were used")
    return notes


def _estimate(estimate: Estimate) -> str:
    """What a trial would take, within about a factor of two, and what that rests on."""
    return cut(f"estimate: {', '.join(_takes(estimate)) or 'none'} ({estimate.basis})", NEXT_LENGTH)


def _takes(estimate: Estimate, *, is_timed: bool = False) -> list[str]:
    """What is known of an estimate; without its seconds if the progress says the time left, `is_timed`."""
    takes = [f"{seconds(estimate.seconds)} of training"] if estimate.seconds is not None and not is_timed else []
    return [*takes, *([f"{estimate.memory_mb} MB"] if estimate.memory_mb is not None else [])]


def _stopped(stop: StoppedTrial) -> str:
    bound = "" if stop.at_most is None else f", expected to reach at most {ndcg(stop.at_most)}"
    against = "" if stop.base_delta_at_most is None else f" ({signed(stop.base_delta_at_most)} against its base)"
    return (
        f"stopped after epoch {stop.epoch}/{stop.epochs} at {ndcg(stop.reached)} without score priors{bound}{against}; "
        "a bound, not a value. Running the same configuration again continues it."
    )


def _hypothesis(outcome: HypothesisOutcome) -> str:
    sizes = [
        f"{name} {signed(size)}"
        for name, size in (("predicted", outcome.size_predicted), ("measured", outcome.size_measured))
        if size is not None
    ]
    missed = "" if outcome.dimension_changed else "; no knob of that dimension changed"
    size = f" ({', '.join(sizes)})" if sizes else ""
    return (
        f"hypothesis on {_named(outcome.dimension)}: predicted {outcome.predicted}, happened {outcome.happened}{size}, "
        f"held: {outcome.held}{missed}"
    )


def _named(dimension: str) -> str:
    """A dimension by its name; any other text of the agent as a quotation."""
    return dimension if dimension in DIMENSIONS else quote(dimension, len(dimension))


def _curve(found: TrialObservation) -> str:
    """How the training went, in one line; empty for a trial that trained nothing."""
    if found.rescored:
        return f"re-scored, nothing trained; {seconds(found.seconds)}"
    curve = found.curve
    if not curve:
        return ""
    still = ", still improving" if curve["still_improving"] else ""
    gap = "" if curve["gap"] is None else f", train-validation gap {signed(curve['gap'])} without priors"
    return (
        f"{curve['epochs']} epochs, best {curve['best_epoch']}{still}; loss {curve['loss_first']:.4g} to "
        f"{curve['loss_last']:.4g} ({curve['loss_slope']:+.1%} per epoch at the end){gap}; {found.parameters:,} "
        f"parameters, {seconds(found.train_seconds)} of training"
    )


def _sweep(swept: SweptSettings) -> list[str]:
    lines = swept.table.splitlines()
    shown = fitting(lines, SWEEP_LENGTH)
    rest = len(lines) - len(shown)
    more = "…: all in view='trial'" if rest else ""
    left_out = f"; left out, measured by {', '.join(swept.left_out)}" if swept.left_out else ""
    return [f"{swept.settings} settings, best first{left_out}:", *shown, *([more] if more else [])]

"""view='state' as text: where the session stands, what each knob did, and what the server proposes."""

from collections.abc import Mapping, Sequence

from ...data.wording import counted
from ...models.knobs.trial_names import NAMING
from ...tools.views import BestTrial, KnobEffect, PooledEffect, Proposal, StateView
from .figures import budget, change, cut, fitting, ndcg, seconds, settings, size, value

LENGTH = 3000  # bytes of the whole text
BEST = 5
BEST_LENGTH = 400
OTHER_LENGTH = 120
SETTINGS_LENGTH = 150
EFFECT_LENGTH = 200
REASON_LENGTH = 160
MEMBERS_LENGTH = 200
NEXT_LENGTH = 240
GAIN = "; NDCG@10 is expected"  # where a reason goes on with the figures of the proposal
EFFECTS = "effects per knob, in NDCG@10 over the value before ->:"
POOLED = "effects in earlier sessions, as shares of the NDCG@10 of their first trial:"
SHARED = " (* shared among knobs changed together)"
ALL_VALUES = "query='KNOB' shows one with all its values"
LAST_LINE = 80  # bytes for how many knobs are left out, and how to see them
EFFECTS_LENGTH = 700  # bytes that the reasons of proposals must leave to the effects


def state_text(state: StateView) -> str:
    """The state in at most LENGTH bytes: the sections in order of their weight, the effects as far as there is room."""
    lines = [_heading(state), budget(state.budget)]
    if state.test:
        lines.append("test: " + ", ".join(f"{name} {ndcg(figure)}" for name, figure in state.test.items()))
    if state.test_comparison:
        lines.append(state.test_comparison)
    lines += _best(state.best)
    if state.query:
        return _asked(state)
    tail = _tail(state, lines)
    pooled = _pooled(state.history_effects, EFFECT_LENGTH)
    kept = len(POOLED) + LAST_LINE if pooled else 0
    lines += _fitting(_effects(state.effects, EFFECT_LENGTH), _room(lines, tail) - kept, EFFECTS)
    lines += _fitting(pooled, _room(lines, tail), POOLED)
    return "\n".join([*lines, *tail])


def _asked(state: StateView) -> str:
    """The effects of the knobs that a query names, with all their values."""
    lines = [_heading(state)]
    lines += _fitting(_effects(state.effects, LENGTH), _room(lines, []), EFFECTS)
    lines += _fitting(_pooled(state.history_effects, LENGTH), _room(lines, []), POOLED)
    nothing = f"no trial has measured an effect of a knob that {state.query!r:.60} names"
    return "\n".join(lines if len(lines) > 1 else [*lines, nothing])


def _tail(state: StateView, lines: Sequence[str]) -> list[str]:
    """What follows the effects; the reasons of proposals only if they leave room for effects after `lines`."""
    before = [f"not additive: {state.interaction}"] if state.interaction else []
    after = [*_other_members(state), *_untried(state), cut(f"next: {state.next}", NEXT_LENGTH)]
    whole = [*before, *_proposals(state.proposals, reasons=True), *after]
    if _room(lines, whole) >= EFFECTS_LENGTH:
        return whole
    return [*before, *_proposals(state.proposals, reasons=False), *after]


def _room(lines: Sequence[str], tail: Sequence[str]) -> int:
    return LENGTH - sum(size(line) + 1 for line in [*lines, *tail])


def _heading(state: StateView) -> str:
    text = f"{state.session} ({state.backbone} on {state.dataset}) is {state.state}"
    if state.incumbent and state.incumbent_ndcg10 is not None:
        text += f"; incumbent {state.incumbent}, validation NDCG@10 {ndcg(state.incumbent_ndcg10)}"
    running = state.running_trials or ([state.running] if state.running else [])
    if running:
        text += f"; running {', '.join(running)}"
    if state.free_places:
        text += f"; {state.free_places} more may start"
    is_due = state.pending_reflection and state.state == "open"
    return f"{text}; reflection due for {state.pending_reflection}" if is_due else text


def _best(best: list[BestTrial]) -> list[str]:
    """The best trial with all of its settings, the others by their difference to it."""
    if not best:
        return []
    first = best[0]
    lines = [f"best: {first.trial} {_figure(first)}: {settings(first.settings)}"]
    lines[0] = cut(lines[0], BEST_LENGTH)
    for other in best[1:BEST]:
        found = sorted(other.settings.items(), key=lambda setting: setting[0] not in NAMING)  # models are not cut off
        differs = {knob: given for knob, given in found if first.settings.get(knob) != given}
        without = [knob for knob in first.settings if knob not in other.settings]
        text = " ".join(filter(None, [settings(differs) if differs else "", *(f"-{knob}" for knob in without)]))
        lines.append(cut(f"  {other.trial} {_figure(other)}: differs by {text or 'nothing'}", OTHER_LENGTH))
    return lines


def _figure(trial: BestTrial) -> str:
    error = "" if trial.se is None else f" ± {ndcg(trial.se)}"
    return f"{ndcg(trial.ndcg)}{error} {trial.verdict or ''}".rstrip()


def _effects(effects: Mapping[str, KnobEffect], length: int) -> list[str]:
    """One line a knob in `length` bytes, those first that are best known: by the largest |z| of a value."""
    def weight(effect: KnobEffect) -> float:
        return max((abs(one.delta) / one.se if one.se else 0.0 for one in effect.values), default=0.0)

    return [
        _values(
            f"  {knob} {value(effect.over)} -> ",
            [
                f"{value(one.value)} {change(one.delta, one.se)}{_marks(one.attributed, one.stopped)}"
                for one in effect.values
            ],
            length,
        )
        for knob, effect in sorted(effects.items(), key=lambda pair: -weight(pair[1]))
    ]


def _marks(attributed: str, stopped: int) -> str:
    return ("*" if attributed == "jointly" else "") + (f" ({stopped} stopped: a bound)" if stopped else "")


def _pooled(effects: Mapping[str, PooledEffect], length: int) -> list[str]:
    return [
        _values(
            f"  {knob} -> ",
            [f"{value(one.value)} {one.mean_relative:+.1%} ± {one.se:.1%} (n {one.n})" for one in effect.values],
            length,
        )
        for knob, effect in effects.items()
    ]


def _values(knob: str, values: Sequence[str], length: int) -> str:
    """The values of a knob that fit into `length` bytes, at least one, and how many more there are."""
    lines = []
    for shown in range(max(len(values), 1), 0, -1):
        rest = [f"… {counted(len(values) - shown, 'more value')}"] if shown < len(values) else []
        lines.append(knob + ", ".join([*values[:shown], *rest]))
    return next((line for line in lines if size(line) <= length), lines[-1])


def _fitting(given: Sequence[str], room: int, heading: str) -> list[str]:
    """The heading with the lines that fit into `room` bytes, and what is left out with how to see it."""
    found = fitting(given, room - size(heading) - 1 - LAST_LINE)
    rest = len(given) - len(found)
    if not found:
        return [f"{heading} {counted(rest, 'knob')}; {ALL_VALUES}"] if rest else []
    is_cut = any(", … " in line for line in found)
    missing = [f"  … {counted(rest, 'more knob')}; {ALL_VALUES}"] if rest else [f"  {ALL_VALUES}"] if is_cut else []
    shown = [heading, *found, *missing]
    is_shared = any("*" in line for line in found)
    if is_shared and sum(size(line) + 1 for line in shown) + size(SHARED) <= room:
        shown[0] = heading.replace(":", f"{SHARED}:")
    return shown


def _proposals(proposals: list[Proposal], *, reasons: bool) -> list[str]:
    if not proposals:
        return []
    lines = ["proposals (expected change of NDCG@10 ± sd):"]
    for one in proposals:
        cost = "" if one.cost_seconds is None else f", about {seconds(one.cost_seconds)}"
        gain = change(one.expected_delta, one.sd)
        text = f"  {cut(settings(one.changes), SETTINGS_LENGTH)} over {one.base}: {gain}{cost}; "
        why = cut(one.reason.partition(GAIN)[0], REASON_LENGTH) if reasons else ""
        lines.append(f"{text}{one.source}, evidence {one.evidence}{f'; {why}' if why else ''}")
    return lines


def _other_members(state: StateView) -> list[str]:
    """The trials of other sessions whose models an ensemble or a student may use."""
    names = [f"{one.trial} ({one.backbone}, {ndcg(one.ndcg)})" for one in state.other_members]
    return [cut(f"models of other sessions: {', '.join(names)}", MEMBERS_LENGTH)] if names else []


def _untried(state: StateView) -> list[str]:
    """How much of each dimension was tried; the names are in the action space."""
    if not state.coverage:
        return []
    parts = [f"{dimension} {one.tried}/{one.knobs}" for dimension, one in state.coverage.items()]
    return [f"knobs tried: {', '.join(parts)}"]

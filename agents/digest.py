"""The state digest: what a session has measured, in at most `DIGEST_LENGTH` characters.

Its parts come in the order of their use for the next decision, each with a bound of its own, so that a long session
shortens the older trials and not the incumbent.
"""

from ..tools.views import NDCG10, KnobEffect, TrialRow
from .base import Situation
from .observed import settings_text, signed, value_text

DIGEST_LENGTH = 3000
MAX_EFFECTS = 12
MAX_LESSONS = 3
LESSON_LENGTH = 160


def state_digest(situation: Situation) -> str:
    """Budget, incumbent, trials, effects, lessons, proposals, members from other sessions and coverage."""
    used = 0
    parts: list[str] = []
    for text, limit in (
        (_budget(situation), 300),
        (_incumbent(situation), 500),
        (_proposals(situation), 500),
        (_effects(situation), 700),
        (_lessons(situation), 600),
        (_other_members(situation), 250),
        (_coverage(situation), 150),
    ):
        if text:
            parts.append(cut(text, limit))
            used += len(parts[-1]) + 1
    parts.insert(2, cut(_trials(situation), DIGEST_LENGTH - used - 1))
    return "\n".join(part for part in parts if part)


def cut(text: str, limit: int) -> str:
    """The whole lines that fit into `limit` characters; of a first line that does not fit, its beginning."""
    if len(text) <= limit:
        return text
    kept = text[: limit - 2]
    return f"{kept.rpartition(chr(10))[0] or kept} …"


def _budget(situation: Situation) -> str:
    budget = situation.state.budget
    cost = f", {budget.llm_usd_used:.2f} USD for you" if budget.llm_usd_used else ""
    return (
        f"trials {budget.trials_used} of {budget.trials_max}, "
        f"training {budget.train_seconds_used:.0f} of {budget.train_seconds_max:.0f} s{cost}"
    )


def _incumbent(situation: Situation) -> str:
    state = situation.state
    if state.incumbent is None:
        return "no incumbent yet: bases are the default"
    row = next((row for row in situation.trajectory.trials if row.trial == state.incumbent), None)
    settings = settings_text(row.settings) if row else "see read_memory"
    score = f" NDCG@10 {state.incumbent_ndcg10:.4f}" if state.incumbent_ndcg10 is not None else ""
    return f"incumbent {state.incumbent}{score}: {settings}"


def _trials(situation: Situation) -> str:
    """The trials, the newest first; the last one is described in full elsewhere."""
    rows = [_trial(row) for row in reversed(situation.trajectory.trials)]
    return "\n".join(["trials, newest first:", *rows]) if rows else ""


def _trial(row: TrialRow) -> str:
    what = f"{row.trial} {settings_text(row.changes)} over {row.base}"
    if found := row.stopped:
        bound = "" if found.at_most is None else f", NDCG@10 at most {found.at_most:.4f}"
        if found.base_delta_at_most is not None:
            bound += f" ({found.base_delta_at_most:+.4f} to its base)"
        return f"{what}: stopped after epoch {found.epoch} of {found.epochs}{bound}"
    if NDCG10 not in row.metrics:
        return f"{what}: {row.status} {row.cause or row.reason}"[:200]
    measured = "" if row.base_delta is None else f" {signed(row.base_delta, row.base_delta_se or 0.0)}"
    return f"{what}: {row.metrics[NDCG10]:.4f}{measured} {row.verdict or row.status}"


def _effects(situation: Situation) -> str:
    state = situation.state
    own = sorted(state.effects.items(), key=lambda pair: -_strength(pair[1]))
    lines = [f"{knob}: {_values(effect)}" for knob, effect in own[:MAX_EFFECTS] if effect.values]
    known = sorted(state.history_effects.items(), key=lambda pair: -abs(pair[1].mean_relative) / max(pair[1].se, 1e-9))
    earlier = [
        f"{knob} {' '.join(f'{value_text(v.value)}:{v.mean_relative:+.1%}' for v in effect.values[:3])}"
        for knob, effect in known[:MAX_EFFECTS]
    ]
    parts = [f"effects here (NDCG@10): {'; '.join(lines)}" if lines else ""]
    parts.append(f"effects in earlier sessions: {'; '.join(earlier)}" if earlier else "")
    return "\n".join(part for part in parts if part)


def _strength(effect: KnobEffect) -> float:
    return max((abs(value.delta) / max(value.se, 1e-9) for value in effect.values), default=0.0)


def _values(effect: KnobEffect) -> str:
    return ", ".join(f"{value_text(v.value)} {signed(v.delta, v.se)}" for v in effect.values[-3:])


def _lessons(situation: Situation) -> str:
    lessons = [
        f"{row.trial} ({row.check}): {row.lesson[:LESSON_LENGTH]}"
        for row in situation.trajectory.reflections[-MAX_LESSONS:]
    ]
    return "\n".join(["your last lessons:", *lessons]) if lessons else ""


def _proposals(situation: Situation) -> str:
    lines = [
        f"- {settings_text(row.changes)} over {row.base}: {row.expected_delta:+.4f}±{row.sd:.4f}, "
        f"{'' if row.cost_seconds is None else f'about {row.cost_seconds:g} s, '}{row.reason[:110]}"
        for row in situation.state.proposals
    ]
    return "\n".join(["the server proposes:", *lines]) if lines else ""


def _other_members(situation: Situation) -> str:
    members = [f"{one.trial} ({one.backbone}, {one.ndcg:.4f})" for one in situation.state.other_members]
    return f"models of other sessions: {', '.join(members)}" if members else ""


def _coverage(situation: Situation) -> str:
    never = [name for name, covered in situation.state.coverage.items() if covered.knobs and not covered.tried]
    return f"dimensions never tried: {', '.join(never)}" if never else ""

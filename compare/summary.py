"""The figures of a comparison as one value: a pure function of the sessions' results.

Groups are (dataset, backbone) pairs, and `ALL` pools them if there are several. Sessions of two arms are paired by
dataset, backbone and seed.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from ..data.errors import ConfigError
from .clocks import CLOCKS, Clock, Course, anytime, course
from .outcome import SessionResult
from .statistics import (
    Interval,
    holm,
    kaplan_meier,
    mean_interval,
    median_interval,
    sign_flip_test,
    signed_rank_test,
    standardised,
)

ALL = "all"
VALIDATION, ANYTIME, TEST = "final validation", "mean best so far", "test"
Unit = tuple[str, str, int]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class Estimate(_Value):
    """A figure with its 95 % interval; None stands for infinity: a level that fewer than half ever reached."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, interval: Interval) -> "Estimate":
        """The estimate as JSON can represent it."""
        return cls(value=_finite(interval.value), low=_finite(interval.low), high=_finite(interval.high))


class Reach(_Value):
    """Time to a level on one clock: how many of `sessions` reached it, and the Kaplan-Meier median of all of them.

    `restricted_mean` is the mean of min(time, limit); `limit` is the longest time that every arm was observed for.
    """

    clock: Clock
    sessions: int
    reached: int
    median: Estimate
    restricted_mean: float
    limit: float


class ArmRow(_Value):
    """One arm in one group; means are over its sessions, `_sd` is the standard deviation over them."""

    arm: str
    group: str
    sessions: int
    validation: float
    validation_sd: float | None  # None for one session
    anytime: float
    test: float | None
    test_sd: float | None
    looks: int
    trials: float
    trials_to_best: Estimate
    seconds_to_best: Estimate
    train_seconds: float
    wall_seconds: float
    refused: float
    duplicates: float
    proposals_true: int  # of the proposals that trials followed, in all sessions
    proposals_false: int
    proposals_unclear: int
    input_tokens: float
    output_tokens: float
    calls: float
    usd: float | None  # None: the price of a call is not known
    level: float | None  # mean over the sessions
    reach: tuple[Reach, ...]


class Comparison(_Value):
    """The reference minus an arm, paired. `p_holm` corrects `p_sign_flip` over the arms of a group and an outcome."""

    outcome: str
    group: str
    arm: str
    pairs: int
    difference: Estimate
    relative: float | None  # of the arm's mean
    d: float | None  # Cohen's d of the paired differences
    p_sign_flip: float
    p_signed_rank: float
    p_holm: float
    exact: bool


class Race(_Value):
    """How soon the reference reaches each rival's final best at the same dataset, backbone and seed.

    Per clock the Kaplan-Meier median of the reference's time as a share of the rival's whole session, and as a ratio to
    the time at which the rival itself found it.
    """

    group: str
    arm: str
    clock: Clock
    pairs: int
    reached: int
    of_session: Estimate
    of_time_to_best: Estimate


class Summary(_Value):
    """All figures of a comparison."""

    reference: str
    arms: tuple[str, ...]
    groups: tuple[str, ...]
    trials: int
    level: str  # what the level is, in words
    rows: tuple[ArmRow, ...]
    comparisons: tuple[Comparison, ...]
    races: tuple[Race, ...]


def group_of(session: SessionResult) -> str:
    """The name of a session's group."""
    return f"{session.dataset} {session.backbone}"


def summarise(
    results: Sequence[SessionResult],
    arms: Sequence[str],
    reference: str,
    trials: int,
    level: float | None = None,
    level_of: str | None = None,
) -> Summary:
    """The figures of the sessions of `arms`.

    level: a validation NDCG@10; otherwise, per group, the mean final validation NDCG@10 of the arm `level_of`, or of
    the best arm other than the reference. Raises ConfigError for a reference or a `level_of` that is no arm.
    """
    for name, option in ((reference, "--reference"), (level_of, "--level-of")):
        if name is not None and name not in arms:
            raise ConfigError(f"{option} {name!r} is no arm of this comparison; choose one of {', '.join(arms)}")
    groups = list(dict.fromkeys(group_of(result) for result in results))
    named = [*groups, ALL] if len(groups) > 1 else groups
    levels, words = _levels(results, groups, arms, reference, level, level_of)
    table = _Table(results, levels, trials)
    others = [arm for arm in arms if arm != reference]
    return Summary(
        reference=reference,
        arms=tuple(arms),
        groups=tuple(named),
        trials=trials,
        level=words,
        rows=tuple(row for group in named for arm in arms if (row := table.row(arm, group)) is not None),
        comparisons=tuple(
            row for outcome in OUTCOMES for group in named for row in table.comparisons(outcome, group, reference,
            others)
        ),
        races=tuple(
            race for group in named for arm in others for clock in CLOCKS
            if (race := table.race(group, reference, arm, clock)) is not None
        ),
    )  # fmt: skip


def _levels(
    results: Sequence[SessionResult],
    groups: Sequence[str],
    arms: Sequence[str],
    reference: str,
    level: float | None,
    level_of: str | None,
) -> tuple[dict[str, float], str]:
    """The level of each group, and what it is in words."""
    if level is not None:
        return dict.fromkeys(groups, level), f"validation NDCG@10 {level:g}"
    candidates = [level_of] if level_of else [arm for arm in arms if arm != reference] or [reference]
    levels = {}
    for group in groups:
        finals = [[r.final for r in results if r.arm == arm and group_of(r) == group] for arm in candidates]
        levels[group] = max((float(np.mean(values)) for values in finals if values), default=math.inf)
    whose = level_of or (candidates[0] if len(candidates) == 1 else f"the best arm other than {reference}")
    return levels, f"the mean final validation NDCG@10 of {whose} on each dataset and backbone"


class _Table:
    """The sessions with their courses, from which the rows are computed."""

    def __init__(self, results: Sequence[SessionResult], levels: Mapping[str, float], trials: int) -> None:
        self._levels = levels
        self._trials = trials
        self._sessions = {(result.arm, result.unit): result for result in results}
        self._courses = {
            (clock, result.arm, result.unit): course(result, clock) for result in results for clock in CLOCKS
        }

    def units(self, arm: str, group: str) -> list[Unit]:
        """The units of an arm's sessions in a group."""
        return sorted(
            unit for (name, unit), session in self._sessions.items()
            if name == arm and group in (ALL, group_of(session))
        )  # fmt: skip

    def course(self, clock: Clock, arm: str, unit: Unit) -> Course:
        """The course of one session."""
        return self._courses[clock, arm, unit]

    def session(self, arm: str, unit: Unit) -> SessionResult:
        """One session."""
        return self._sessions[arm, unit]

    def level(self, unit: Unit) -> float:
        """The level of the group of a unit."""
        return self._levels[f"{unit[0]} {unit[1]}"]

    def row(self, arm: str, group: str) -> ArmRow | None:
        """The figures of an arm in a group; None if it has no session there."""
        units = self.units(arm, group)
        if not units:
            return None
        sessions = [self.session(arm, unit) for unit in units]
        courses = [self.course("trials", arm, unit) for unit in units]
        tests = [session.test["ndcg@10"] for session in sessions if session.test]
        levels = [self.level(unit) for unit in units]
        return ArmRow(
            arm=arm,
            group=group,
            sessions=len(units),
            validation=_mean([session.final for session in sessions]),
            validation_sd=_sd([session.final for session in sessions]),
            anytime=anytime(courses, self._trials),
            test=_mean(tests) if tests else None,
            test_sd=_sd(tests) if tests else None,
            looks=sum(session.look is not None for session in sessions),
            trials=_mean([len(session.trials) for session in sessions]),
            trials_to_best=Estimate.of(mean_interval([one.time_of_best for one in courses])),
            seconds_to_best=Estimate.of(
                mean_interval([self.course("seconds", arm, unit).time_of_best for unit in units])
            ),
            train_seconds=_mean([session.train_seconds for session in sessions]),
            wall_seconds=_mean([session.wall_seconds for session in sessions]),
            refused=_mean([session.refused for session in sessions]),
            duplicates=_mean([session.duplicates for session in sessions]),
            proposals_true=sum(session.proposals.yes for session in sessions),
            proposals_false=sum(session.proposals.no for session in sessions),
            proposals_unclear=sum(session.proposals.unclear for session in sessions),
            input_tokens=_mean([sum(use.input_tokens for use in session.models) for session in sessions]),
            output_tokens=_mean([sum(use.output for use in session.models) for session in sessions]),
            calls=_mean([sum(use.calls + use.lost for use in session.models) for session in sessions]),
            usd=_money(sessions),
            level=_finite(_mean(levels)),
            reach=tuple(self.reach(arm, group, clock) for clock in CLOCKS if clock == "trials" or group != ALL),
        )

    def reach(self, arm: str, group: str, clock: Clock) -> Reach:
        """The time of an arm to the level; seconds of several groups are not pooled, because their scales differ."""
        reached = [self.course(clock, arm, unit).reach(self.level(unit)) for unit in self.units(arm, group)]
        limit = float(self._trials) if clock == "trials" else self._common_horizon(group)
        return Reach(
            clock=clock,
            sessions=len(reached),
            reached=sum(found for _, found in reached),
            median=_median(reached),
            restricted_mean=kaplan_meier(*zip(*reached, strict=True)).restricted_mean(limit),
            limit=limit,
        )

    def _common_horizon(self, group: str) -> float:
        """The longest time that every arm was observed for: the least of their longest sessions."""
        ends: dict[str, float] = {}
        for clock, arm, unit in self._courses:
            if clock == "seconds" and group in (ALL, f"{unit[0]} {unit[1]}"):
                ends[arm] = max(ends.get(arm, 0.0), self._courses[clock, arm, unit].end)
        return min(ends.values(), default=0.0)

    def comparisons(self, outcome: str, group: str, reference: str, others: Sequence[str]) -> list[Comparison]:
        """The reference against each other arm on one outcome, with Holm's correction over the arms."""
        found = [row for arm in others if (row := self._comparison(outcome, group, reference, arm)) is not None]
        adjusted = holm([row.p_sign_flip for row in found])
        return [row.model_copy(update={"p_holm": p}) for row, p in zip(found, adjusted, strict=True)]

    def _comparison(self, outcome: str, group: str, reference: str, arm: str) -> Comparison | None:
        pairs = self._pairs(group, reference, arm)
        values = [
            (ours, theirs) for unit in pairs
            if (ours := self._measure(outcome, reference, unit)) is not None
            and (theirs := self._measure(outcome, arm, unit)) is not None
        ]  # fmt: skip
        if not values:
            return None
        differences = [ours - theirs for ours, theirs in values]
        base = _mean([theirs for _, theirs in values])
        test = sign_flip_test(differences)
        return Comparison(
            outcome=outcome,
            group=group,
            arm=arm,
            pairs=len(values),
            difference=Estimate.of(mean_interval(differences)),
            relative=_mean(differences) / base if base else None,
            d=standardised(differences),
            p_sign_flip=test.p,
            p_signed_rank=signed_rank_test(differences).p,
            p_holm=test.p,
            exact=test.exact,
        )

    def _measure(self, outcome: str, arm: str, unit: Unit) -> float | None:
        return OUTCOMES[outcome](self.session(arm, unit), self.course("trials", arm, unit), self._trials)

    def race(self, group: str, reference: str, arm: str, clock: Clock) -> Race | None:
        """How soon the reference reaches the rival's final best of the same unit."""
        of_session: list[tuple[float, bool]] = []
        of_best: list[tuple[float, bool]] = []
        for unit in self._pairs(group, reference, arm):
            rival = self.course(clock, arm, unit)
            time, found = self.course(clock, reference, unit).reach(self.session(arm, unit).final)
            if rival.time_of_best > 0:
                of_session.append((time / rival.end, found))
                of_best.append((time / rival.time_of_best, found))
        if not of_session:
            return None
        return Race(
            group=group,
            arm=arm,
            clock=clock,
            pairs=len(of_session),
            reached=sum(found for _, found in of_session),
            of_session=_median(of_session),
            of_time_to_best=_median(of_best),
        )

    def _pairs(self, group: str, reference: str, arm: str) -> list[Unit]:
        return sorted(set(self.units(reference, group)) & set(self.units(arm, group)))


def _median(times: Sequence[tuple[float, bool]]) -> Estimate:
    """The Kaplan-Meier median of (time, reached)."""
    return Estimate.of(median_interval(*zip(*times, strict=True)))


Measure = Callable[[SessionResult, Course, int], float | None]

OUTCOMES: Mapping[str, Measure] = {
    VALIDATION: lambda session, one, trials: session.final,
    ANYTIME: lambda session, one, trials: anytime([one], trials),
    TEST: lambda session, one, trials: session.test["ndcg@10"] if session.test else None,
}
"""What the paired tests compare."""


def _money(sessions: Sequence[SessionResult]) -> float | None:
    """The mean price of the language models of a session; None if one is not known."""
    prices = [use.usd for session in sessions for use in session.models]
    known = [price for price in prices if price is not None]
    return sum(known) / len(sessions) if len(known) == len(prices) else None


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _sd(values: Sequence[float]) -> float | None:
    """The standard deviation over seeds; None for one seed, of which nothing is known."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

"""Which proposal a trial followed, and how often followed proposals come true. Pure.

A proposal claims a gain over the incumbent. It came true if the trial gained at least one standard error over its base,
and not if it lost as much; in between the trial cannot tell. A trial that was stopped early lost as much if its upper
bound did.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ..memory.records import FollowedProposal, TrialRecord
from ..models.config import TrialConfig
from .rule_evidence import CLEAR_Z, base_z, bound_z

CameTrue = Literal["yes", "no", "unclear"]
FIELDS = ("source", "evidence", "changes", "expected_delta", "sd", "cost_seconds")


class ProposalScore(NamedTuple):
    """A proposal that a trial followed, beside what the trial measured; deltas are changes of NDCG@10 to the base."""

    session: str
    trial: str
    source: str  # the diagnosis that the proposal acts on, or surrogate, pair, explore
    evidence: str  # session, history, declared or none
    whole: bool  # False: the trial made only some of the proposed changes
    expected: float
    sd: float
    measured: float | None
    se: float | None
    came_true: CameTrue
    cost_expected: float | None
    cost_measured: float


def followed(
    proposals: Sequence[Mapping[str, Any]], changes: Mapping[str, Any], base: TrialConfig
) -> FollowedProposal | None:
    """The proposal that changes over the incumbent follow: all of its changes, or some and no other; None without one.

    `proposals` are rows of `proposals.propose` over the incumbent, `base` its configuration. Changes that repeat the
    base do not count. Of several proposals, the one with the fewest changes is taken.
    """
    real = {knob: value for knob, value in changes.items() if getattr(base, knob) != value}
    matching = [row for row in proposals if real and real.items() <= row["changes"].items()]
    if not matching:
        return None
    best = min(matching, key=lambda row: len(row["changes"]))
    return FollowedProposal(**{name: best[name] for name in FIELDS}, whole=len(real) == len(best["changes"]))


def proposal_scores(trials: Sequence[TrialRecord]) -> list[ProposalScore]:
    """One row per ended trial that followed a proposal, in the order of the trials."""
    return [
        ProposalScore(
            session=trial.session,
            trial=trial.handle,
            source=proposal.source,
            evidence=proposal.evidence,
            whole=proposal.whole,
            expected=proposal.expected_delta,
            sd=proposal.sd,
            measured=trial.outcome.base_delta,
            se=trial.outcome.base_delta_se,
            came_true=_came_true(trial, trials),
            cost_expected=proposal.cost_seconds,
            cost_measured=trial.outcome.train_seconds,
        )
        for trial in trials
        if (proposal := trial.proposal) and trial.outcome and trial.status != "cancelled"
    ]


def came_true_by_source(scores: Iterable[ProposalScore]) -> dict[str, Counter[CameTrue]]:
    """How many proposals of each source came true, did not, or are unclear."""
    found: dict[str, Counter[CameTrue]] = {}
    for score in scores:
        found.setdefault(score.source, Counter())[score.came_true] += 1
    return found


def _came_true(trial: TrialRecord, trials: Sequence[TrialRecord]) -> CameTrue:
    if trial.status == "crashed":
        return "unclear" if trial.machine_fault else "no"
    z = bound_z(trial, trials) if trial.bound is not None else base_z(trial.outcome) if trial.outcome else None
    if z is None or abs(z) < CLEAR_Z:
        return "unclear"
    return "yes" if z > 0 else "no"

"""The rule of training/racing.py and training/families.py, applied to recorded trials."""

from collections.abc import Sequence

from recorded import Curve
from replay import KEEP_Z, Pool

from virtualmle.models.config import has_priors, scoring_part
from virtualmle.training.families import Run, race_of
from virtualmle.training.racing import errors_below, hopeless, is_rung, judged_bound

ELSEWHERE = 0.7
"""The similarity that the profiles of these datasets have, about."""


def pools_of(curves: Sequence[Curve]) -> dict[str, Pool]:
    """The pools by name, "office sasrec" and so on."""
    names = dict.fromkeys(f"{curve.dataset} {curve.backbone}" for curve in curves)
    return {name: Pool([curve for curve in curves if f"{curve.dataset} {curve.backbone}" == name]) for name in names}


def run_of(curve: Curve, num_users: int, similarity: float = 1.0) -> Run:
    """A recorded trial as the rule knows it."""
    return Run(
        source=f"{curve.dataset}-{curve.session}-{curve.number}",
        config=curve.config,
        epochs=curve.epochs.tolist(),
        ndcg10=curve.ndcg10.tolist(),
        num_users=num_users,
        parameters=curve.parameters,
        similarity=similarity,
        dataset=curve.dataset,
    )


class Raced:
    """The rule for the trials of one pool, with the curves of `others` in memory."""

    def __init__(self, pool: Pool, others: Sequence[Pool]) -> None:
        backbone = pool.curves[0].backbone
        self.bounds: list[tuple[float, float]] = []  # of the stopped trials: upper bound of the final, and the final
        self.runs = [run_of(curve, pool.num_users) for curve in pool.curves]
        self.memory = [
            run_of(curve, other.num_users, ELSEWHERE)
            for other in others
            for curve in other.curves
            if curve.backbone == backbone
        ]

    def __call__(self, pool: Pool, candidate: int, incumbent: int, ended: Sequence[int]) -> int | None:
        """The epoch after which the rule stops a trial of the pool, or None."""
        known = [self.runs[index] for index in ended if not pool.curves[index].rescored] + self.memory
        curve, base = pool.curves[candidate], pool.curves[incumbent]
        same = have_same_scores(base, curve)
        context = race_of(
            curve.config, pool.num_users, self.runs[incumbent], known, KEEP_Z, curve.popularity, same_scores=same
        )
        if context is None:
            return None
        bare = dict(zip(curve.epochs.tolist(), curve.ndcg10.tolist(), strict=True))
        scores = dict(zip(bare, curve.judged.tolist(), strict=True))
        errors = errors_below(curve.parameters, context)
        for epoch in curve.judged_at:
            judged = {at: scores[at] for at in curve.judged_at if at <= epoch}
            if epoch == curve.epochs[-1] or not is_rung(list(judged)):
                continue
            needed = base.final - errors * KEEP_Z * pool.compare(candidate, incumbent, candidate_epoch=epoch).se
            bound = judged_bound({at: bare[at] for at in bare if at <= epoch}, judged, context)
            if hopeless(bound, needed, pool.compare(candidate, incumbent, epoch, epoch, bare=not same).z):
                self.bounds.append((bound, curve.final))
                return epoch
        return None


def have_same_scores(incumbent: Curve, candidate: Curve) -> bool:
    """Whether the epochs of both are judged with the same score priors, as tools/racing.py asks."""
    one, other = incumbent.config, candidate.config
    if not has_priors(other):
        return not has_priors(one)
    return scoring_part(one) == scoring_part(other) and not incumbent.rescored

"""The rule of training/racing.py and training/families.py, applied to recorded trials."""

from collections.abc import Sequence

from recorded import Curve
from replay import KEEP_Z, Pool

from virtualmle.training.families import Run, race_of
from virtualmle.training.racing import errors_below, hopeless, is_rung, upper_bound

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
        epochs=range(1, len(curve.ndcg10) + 1),
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
        self.runs = [run_of(curve, pool.num_users) for curve in pool.curves]
        self.memory = [
            run_of(curve, other.num_users, ELSEWHERE)
            for other in others
            for curve in other.curves
            if curve.backbone == backbone
        ]

    def __call__(self, pool: Pool, candidate: int, incumbent: int, ended: Sequence[int]) -> int | None:
        """The epoch after which the rule stops a trial of the pool, or None."""
        known = [self.runs[index] for index in ended] + self.memory
        curve = pool.curves[candidate]
        context = race_of(curve.config, pool.num_users, self.runs[incumbent], known, KEEP_Z, curve.popularity)
        if context is None:
            return None
        epochs = range(1, len(curve.ndcg10) + 1)
        values = curve.ndcg10.tolist()
        errors = errors_below(curve.parameters, context)
        for epoch in epochs[:-1]:
            if not is_rung(epochs[:epoch]):
                continue
            best = pool.curves[incumbent].final
            needed = best - errors * KEEP_Z * pool.compare(candidate, incumbent, candidate_epoch=epoch).se
            bound = upper_bound(epochs[:epoch], values[:epoch], context)
            if hopeless(bound, needed, pool.compare(candidate, incumbent, epoch, epoch).z):
                return epoch
        return None

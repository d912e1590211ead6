"""Why a session's selected trial was selected, in words. Pure."""

from collections.abc import Sequence

from ..data.wording import counted
from ..memory.records import Confirmation, TrialRecord


def selection_reason(
    selected: TrialRecord, trials: Sequence[TrialRecord], confirmation: Confirmation | None
) -> str:
    """Why `selected` was selected; if it was discarded, also why that does not count against it.

    The selection takes the best value: validation NDCG@10, or the mean of a confirmation. A verdict asks something
    else: whether a trial improves on the incumbent of its moment by more than noise.
    """
    outcome = selected.outcome
    assert outcome is not None  # only finished trials are selected
    if confirmation and confirmation.selected:
        reason = confirmation.reason
    else:
        finished = sum(trial.status == "finished" for trial in trials)
        best = "the best" if finished > 1 else "the only"
        among = f" of {counted(finished, 'finished trial')}" if finished > 1 else ""
        reason = f"{selected.handle} has {best} validation NDCG@10{among}: {outcome.metrics['ndcg@10']:.4f}."
    if outcome.verdict != "discard":
        return reason
    over = f" ({outcome.incumbent_before})" if outcome.incumbent_before else ""
    return (
        f"{reason} Its verdict was discard ({outcome.reason}), because a keep must improve on the incumbent{over} by "
        "more than noise; the selection takes the best value."
    )

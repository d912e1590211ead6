"""The model card of a continued export: what was added to which export, and the figures before and after."""

from .continuation import Continued, ContinueOptions
from .evaluation_result import METRICS, EvaluationResult

TITLE = "# Card of the export that training was continued from"


def continued_card(continued: Continued, options: ContinueOptions, parent_card: str, parent: str) -> str:
    """The card, which ends with the card of the parent; `parent` is the SHA-256 of the parent's manifest.json."""
    counts = continued.after.counts
    lr = f"learning rate {options.lr:g}" if options.lr is not None else "half the learning rate of each member's trial"
    return "\n\n".join([
        "# Continued export",
        f"Training went on from the export whose `manifest.json` has the SHA-256 `{parent}`: {options.epochs} epochs "
        f"over {continued.num_events:,} new events, {lr}, seed {options.seed}. {continued.num_new_items:,} new items "
        "were added; the old items keep their numbers. Score priors and counts are those of the old and the new events "
        "together. Teachers of a member's trial have no part in it: it went on towards the new events alone.",
        "## Figures before and after",
        f"On the last event of {counts.users:,} users in the new log, which was neither trained on nor counted; means "
        "over users with 95 % intervals. Items that an export does not know count as missed.",
        _table(continued.before, continued.after),
        f"Difference of NDCG@10, paired over users: {continued.difference}. The figures below are of the parent only.",
        TITLE,
        _demoted(parent_card),
    ]) + "\n"  # fmt: skip


def _table(before: EvaluationResult, after: EvaluationResult) -> str:
    rows = [f"| {name} | {before.model.metrics[name]} | {after.model.metrics[name]} |" for name in METRICS]
    return "\n".join(["| metric | before | after |", "| --- | --- | --- |", *rows])


def _demoted(card: str) -> str:
    """The card with its headings one level lower."""
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in card.strip().split("\n"))

"""Receipts, the final result and the list of sessions, as text."""

from ...tools.results import FinalResult, ReflectionReceipt, SessionList
from .figures import ndcg, settings


def receipt_text(receipt: ReflectionReceipt) -> str:
    """What the server's check of a reflection found."""
    lines = [f"reflection on {receipt.trial}: {receipt.check}. {receipt.note}"]
    if receipt.merged_into:
        lines.append(f"nearly repeats {receipt.merged_into}; said {receipt.times_said} times")
    if receipt.amended_from:
        lines.append(f"amended; the first one was {receipt.amended_from}")
    if receipt.rule:
        lines.append(f"rule: {receipt.rule.summary} {receipt.rule_note}".rstrip())
    return "\n".join([*lines, f"next: {receipt.next}"])


def final_text(result: FinalResult) -> str:
    """The selected trial with its figures, or how far the confirmation is."""
    if result.progress:
        return f"{result.session} {result.state}. {result.next}"
    lines = [
        f"{result.session} is {result.state}; selected {result.selected}: {settings(result.config)}",
        f"validation: {_metrics(result.validation)}; selection inflation {ndcg(result.selection_inflation)}",
    ]
    if result.selection:
        lines.insert(1, result.selection)
    if result.confirmation:
        lines.append(f"confirmed under fresh seeds: {result.confirmation.model_dump_json(exclude_none=True)}")
    if result.test:
        spread = f"; sd over repetitions: {_metrics(result.test_sd)}" if result.test_sd else ""
        lines.append(f"test: {_metrics(result.test, result.test_se)}{spread}")
    if result.default:
        default = result.default
        lines += [f"test of the default {default.trial}: {_metrics(default.metrics, default.se)}", default.summary]
    if result.look is not None:
        lines.append(f"look {result.look} at this test set" + (f"; {result.look_note}" if result.look_note else ""))
    lines += [f"rule: {rule.summary}" for rule in result.rules]
    return "\n".join([*lines, f"next: {result.next}"])


def sessions_text(found: SessionList) -> str:
    """One line per session."""
    lines = [
        f"{one.session}: {one.backbone} on {one.dataset}, {one.state}, {one.trials} trials"
        + ("" if one.best_ndcg10 is None else f", best validation NDCG@10 {ndcg(one.best_ndcg10)}")
        + f", opened {one.opened_at}"
        for one in found.sessions
    ]
    return "\n".join(lines) or "no sessions in this home: open_session(dataset, backbone)"


def _metrics(figures: dict[str, float], errors: dict[str, float] | None = None) -> str:
    """The figures, with their standard errors as far as they are known."""
    known = errors or {}
    return ", ".join(
        f"{name} {ndcg(figure)}" + (f" ± {ndcg(known[name])}" if name in known else "")
        for name, figure in figures.items()
    )

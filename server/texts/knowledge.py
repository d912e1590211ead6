"""view='long_term' as text: rules, summaries and configurations of earlier sessions, quoted, with their sources."""

from ...tools.views import FoundRow, LongTermView, RuleRow, SummaryRow
from .brief import prior_line
from .figures import cut, fitting

LENGTH = 4000  # bytes of the whole text
TEXT_LENGTH = 300
QUERY_LENGTH = 80


def long_term_text(view: LongTermView) -> str:
    """The matches of a query, or without one the rules, the summaries and the prior."""
    lines = [view.note] if view.note else []
    if view.query:
        lines.append(f"{len(view.found)} matches of {view.query!r:.{QUERY_LENGTH}}")
    lines += [_found(row) for row in view.found]
    lines += [_rule(row) for row in view.rules]
    lines += [_summary(row) for row in view.summaries]
    lines += [prior_line(entry) for entry in view.prior]
    if not lines:
        return "long-term memory is empty"
    shown = fitting(lines, LENGTH)
    rest = len(lines) - len(shown)
    return "\n".join([*shown, *([f"… {rest} more: narrow them with query"] if rest else [])])


def _found(row: FoundRow) -> str:
    source = " ".join(filter(None, (row.session, row.trial, row.dataset, row.backbone)))
    condition = f" [{row.condition}]" if row.condition else ""
    check = f", {row.check}" if row.check else ""
    return f"{row.kind or row.source} {row.id}{condition} {cut(row.text, TEXT_LENGTH)} ({source}{check})"


def _rule(row: RuleRow) -> str:
    condition = f" [{row.condition}]" if row.condition else ""
    counts = f"{row.check}, {row.support} for, {row.contradiction} against"
    said = f", said {row.times_said} times" if row.times_said > 1 else ""
    return f"{row.kind} {row.id}{condition} {cut(row.statement, TEXT_LENGTH)} ({row.dataset}, {counts}{said})"


def _summary(row: SummaryRow) -> str:
    return f"summary of {row.session} ({row.dataset}): {cut(row.text, 2 * TEXT_LENGTH)}"

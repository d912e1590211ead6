"""What a suite found: its checks, the expected failures among them, and the Markdown table of all suites."""

from collections.abc import Sequence
from dataclasses import dataclass, field

DETAIL_LENGTH = 300  # characters of a failure's message in the report


@dataclass(frozen=True)
class Check:
    """One check of a suite. expected: why its failure is no fault of the server; empty if it must pass."""

    name: str
    passed: bool
    detail: str = ""
    expected: str = ""


@dataclass(frozen=True)
class Outcome:
    """The checks of one suite, or the reason why it did not run."""

    suite: str
    version: str = ""
    checks: Sequence[Check] = field(default_factory=tuple)
    skipped: str = ""
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def unexpected(self) -> list[Check]:
        """Failures that nothing explains."""
        return [check for check in self.checks if not check.passed and not check.expected]

    @property
    def expected(self) -> list[Check]:
        """Failures that the baseline explains."""
        return [check for check in self.checks if not check.passed and check.expected]

    @property
    def failed(self) -> bool:
        """Whether a check failed unexpectedly, or the suite ran without checking anything."""
        return bool(self.unexpected) or (not self.skipped and not self.checks)


def skipped(suite: str, reason: str) -> Outcome:
    """The outcome of a suite that could not run."""
    return Outcome(suite, skipped=reason)


def table(outcomes: Sequence[Outcome]) -> str:
    """One Markdown row per suite."""
    rows = ["| suite | version | passed | expected failures | result |", "|---|---|---|---|---|"]
    return "\n".join([*rows, *map(_row, outcomes)])


def details(outcomes: Sequence[Outcome]) -> str:
    """What the table leaves out: unexpected failures, notes, and the reason of each expected failure."""
    lines = []
    for outcome in outcomes:
        lines += [f"FAILED {outcome.suite}: {c.name}: {_one_line(c.detail)}" for c in outcome.unexpected]
        lines += [f"FAILED {outcome.suite}: it checked nothing"] if outcome.failed and not outcome.checks else []
        lines += [f"note {outcome.suite}: {note}" for note in outcome.notes]
        lines += [f"expected {outcome.suite}: {line}" for line in _by_reason(outcome.expected)]
    return "\n".join(lines)


def _by_reason(checks: Sequence[Check]) -> list[str]:
    """One line for each reason: how many checks it explains, in which scenarios."""
    reasons = dict.fromkeys(check.expected for check in checks)
    lines = []
    for reason in reasons:
        names = [check.name.split("/")[0] for check in checks if check.expected == reason]
        number = "1 check" if len(names) == 1 else f"{len(names)} checks"
        lines.append(f"{number} of {', '.join(dict.fromkeys(names))}: {' '.join(reason.split())}")
    return lines


def summary(outcome: Outcome) -> str:
    """The result in a word or two."""
    if outcome.skipped:
        return f"skipped: {_one_line(outcome.skipped)}"
    return f"FAILED ({len(outcome.unexpected)})" if outcome.failed else "ok"


def _row(outcome: Outcome) -> str:
    if outcome.skipped:
        return f"| {outcome.suite} | | | | {summary(outcome)} |"
    passed = sum(check.passed for check in outcome.checks)
    return f"| {outcome.suite} | {outcome.version} | {passed} | {len(outcome.expected)} | {summary(outcome)} |"


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:DETAIL_LENGTH]

"""What the figures of a comparison cannot say, as sentences that follow from how it was run."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from ..data.wording import counted
from .outcome import SessionResult
from .statistics import EXACT_UNTIL, SIGN_FLIPS
from .summary import Summary

PUBLIC = ("amazon", "beauty", "baby", "pet", "office", "tools", "movielens", "ml100k", "ml-")


class Setting(BaseModel):
    """How a comparison was run."""

    model_config = ConfigDict(frozen=True)

    seeds: int
    trials: int
    train_seconds: float | None
    jobs: int
    threads: int
    device: str
    replay: str  # the name of the replay table; empty = trials were trained
    memory_from: str
    page_sha256: str
    version: str
    missing: tuple[str, ...] = ()  # keys of sessions without a result


def caveats(summary: Summary, results: Sequence[SessionResult], setting: Setting) -> list[str]:
    """The sentences, most important first."""
    datasets = sorted({result.dataset for result in results})
    sentences = [
        _sample(summary, datasets, setting),
        _tests(summary),
        _selection(results),
        _replayed(setting) if setting.replay else _clock(setting),
        _endings(summary, results, setting),
        _public(datasets),
    ]
    return [sentence for sentence in sentences if sentence]


def _sample(summary: Summary, datasets: Sequence[str], setting: Setting) -> str:
    size = f"{counted(setting.seeds, 'seed')} on {counted(len(datasets), 'dataset')} ({', '.join(datasets)})"
    spread = (
        "the spread over seeds is that of the policy and of the training on these data. It"
        if setting.seeds > 1
        else "there is no spread over seeds, so a difference may be chance. One session"
    )
    return (
        f"{size}: {spread} says nothing about other datasets, and sessions on one dataset are not independent "
        "evidence about a new one."
    )


def _tests(summary: Summary) -> str:
    pairs = min((row.pairs for row in summary.comparisons), default=0)
    if not pairs:
        return "There is one arm, so nothing was tested."
    exact = all(row.exact for row in summary.comparisons)
    how = "" if exact else f" Beyond {EXACT_UNTIL} pairs, {SIGN_FLIPS:,} random sign patterns stand for all."
    return (
        f"The least p-value that {counted(pairs, 'pair')} can give is {2 / 2**pairs:.2g}, before Holm's correction "
        "over the "
        f"arms.{how} A large p-value is no evidence of equality: see the intervals, which are percentile bootstrap "
        "intervals and too narrow for few pairs."
    )


def _selection(results: Sequence[SessionResult]) -> str:
    looks = sum(result.look is not None for result in results)
    tested = (
        f"The test figures of {counted(looks, 'session')} are one look each; together they are {looks} looks at the "
        "same "
        "test sets, so choose nothing by them."
        if looks
        else "No test set was looked at."
    )
    return (
        "The final validation figure is the best of many trials and overstates each arm, more so one that tries more "
        f"different configurations. {tested}"
    )


def _clock(setting: Setting) -> str:
    shared = (
        f"{setting.jobs} sessions ran side by side, so that training seconds include waiting for each other"
        if setting.jobs > 1
        else "Sessions ran one at a time"
    )
    return (
        f"{shared}; training seconds are those of this machine ({counted(setting.threads, 'thread')} per session, "
        "device "
        f"{setting.device}), and another machine orders configurations by cost differently."
    )


def _replayed(setting: Setting) -> str:
    return (
        f"Trials were served from the table {setting.replay}: only its cells exist, so a policy is compared on that "
        "grid and "
        "not on the whole action space, every repetition of a cell has the same figure, and seconds are the recorded "
        "ones. "
        "Seeds differ in the policies' random numbers only. A table has no test set."
    )


def _endings(summary: Summary, results: Sequence[SessionResult], setting: Setting) -> str:
    early = sum(len(result.trials) < summary.trials for result in results)
    text = ""
    if early:
        text = (
            f"{counted(early, 'session')} ended before {counted(summary.trials, 'trial')}; the best so far then counts "
            "as "
            "final, and a level that was not reached is censored at the end. "
        )
    if setting.missing:
        text += f"{counted(len(setting.missing), 'session')} failed and are missing: {', '.join(setting.missing)}."
    return text.strip()


def _public(datasets: Sequence[str]) -> str:
    public = [name for name in datasets if name.lower().startswith(PUBLIC)]
    if "demo" in datasets:
        return "The demo is generated data: it shows that the machinery works, not which agent is better."
    if not public:
        return ""
    return (
        f"{', '.join(public)}: public data, which the defaults, the priors of the policies and the training text of "
        "language "
        "models may have been made with."
    )

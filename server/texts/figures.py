"""Numbers and settings in the fewest characters that an agent needs: .0765, +.0012 ± .0008 (z +1.5), lr=0.001."""

from collections.abc import Mapping
from typing import Any

from ...tools.results import Budget


def ndcg(value: float) -> str:
    """A metric between 0 and 1 with four decimals and no leading zero."""
    return f"{value:.4f}".removeprefix("0")


def signed(value: float) -> str:
    """A difference of a metric, with its sign."""
    return f"{value:+.4f}".replace("+0.", "+.").replace("-0.", "-.")


def change(delta: float, se: float | None = None, z: float | None = None) -> str:
    """A difference with its standard error and its z-score, as far as they are known."""
    text = signed(delta)
    if se is not None:
        text += f" ± {ndcg(se)}"
    return text if z is None else f"{text} (z {z:+.1f})"


def value(given: Any) -> str:
    """The value of a knob as JSON has it, numbers without a needless fraction."""
    if isinstance(given, bool):
        return str(given).lower()
    if isinstance(given, float):
        return f"{given:.6g}"
    return str(given)


def settings(values: Mapping[str, Any]) -> str:
    """Knobs with their values; "the default" without any."""
    return " ".join(f"{knob}={value(given)}" for knob, given in values.items()) or "the default"


def seconds(amount: float) -> str:
    """A duration: seconds below two minutes, then minutes, then hours."""
    if amount < 120:
        return f"{amount:.3g} s"
    return f"{amount / 60:.0f} min" if amount < 7200 else f"{amount / 3600:.1f} h"


def budget(left: Budget) -> str:
    """What of the budget is used."""
    text = (
        f"budget used: {left.trials_used}/{left.trials_max} trials, "
        f"{seconds(left.train_seconds_used)} of {seconds(left.train_seconds_max)} training"
    )
    return text if left.llm_usd_max is None else f"{text}, ${left.llm_usd_used:.2f} of ${left.llm_usd_max:.2f}"


def cut(text: str, length: int) -> str:
    """The text, shortened to at most `length` characters; a quotation keeps its closing mark."""
    if len(text) <= length:
        return text
    end = "…”" if text.endswith("”") else "…"
    return text[: length - len(end)].rstrip() + end

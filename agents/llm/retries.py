"""Which failures are worth another attempt, and how long to wait before it.

Not covered: the number of attempts, which is the client's.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from ...data.errors import LanguageModelError

# 408 time-out, 409 lock conflict, 425 too early, 429 rate limit, 529 overloaded (Anthropic)
_TRANSIENT = {408, 409, 425, 429, 529}
_NO_MONEY = re.compile(
    r"insufficient_quota|exceeded your current quota|billing_hard_limit|billing_not_active|billing_error|"
    r"credit balance is too low|insufficient (balance|credits|funds)|account.{0,20}suspended|payment required",
    re.IGNORECASE,
)
_WRONG_KEY = {401, 403}


@dataclass(frozen=True)
class ProviderError:
    """An error that the provider sent: HTTP status, text (key redacted), headers in lower case."""

    status: int
    text: str
    headers: Mapping[str, str]

    @property
    def out_of_money(self) -> bool:
        """Whether the account has no quota or credit left: waiting does not help."""
        return self.status == 402 or bool(_NO_MONEY.search(self.text))

    @property
    def is_transient(self) -> bool:
        """Whether another attempt may succeed."""
        if self.out_of_money:
            return False
        if self.headers.get("x-should-retry") in ("true", "false"):
            return self.headers["x-should-retry"] == "true"
        return self.status in _TRANSIENT or self.status >= 500

    def as_error(self, model: str, address: str) -> LanguageModelError:
        """The error for the user, with what to do."""
        return LanguageModelError(f"{model} at {address}: HTTP {self.status}: {self.text}; {self._advice()}")

    def _advice(self) -> str:
        if self.out_of_money:
            return "the account has no quota or credit left: add some, or choose another model; then resume the session"
        if self.status in _WRONG_KEY:
            return "check the API key (environment variable or --key-file) and that it may use this model"
        if self.status == 404:
            return "check --model and --base-url (an OpenAI-compatible address mostly ends in /v1)"
        if self.is_transient:
            return "it failed repeatedly: wait a while, then resume the session"
        return "the request was refused; check --model and its options"


def seconds_asked(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """The wait that the provider asks for, in seconds: retry-after-ms, or retry-after as seconds or as an HTTP date."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    if text is None or (seconds := _number(text)) is not None:
        return None if text is None else seconds
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())


def backoff_seconds(failures: int, first: float, longest: float, generator: random.Random) -> float:
    """The wait after the given number of failures: doubled each time, then shortened by up to a half at random, so that
    clients that failed together do not return together."""
    return min(longest, first * 2.0 ** (failures - 1)) * generator.uniform(0.5, 1.0)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None

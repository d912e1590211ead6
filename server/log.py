"""The log of a server: messages that repeat are counted, so that a flood of requests cannot fill a disk.

Messages are the same if the same line of code wrote them, whatever a client put into them.
"""

import logging
import sys
import time
from dataclasses import dataclass
from typing import TextIO

BURST = 10  # messages of one line of code that are written within a period
PERIOD = 60.0  # seconds
MAX_LENGTH = 8000  # characters of a message with its traceback


@dataclass
class _Period:
    ends: float
    last: logging.LogRecord
    seen: int = 0


class CountingHandler(logging.StreamHandler[TextIO]):
    """Writes the first `burst` messages of each line of code in a period, and at its end how many more there were."""

    def __init__(self, stream: TextIO, burst: int = BURST, period: float = PERIOD) -> None:
        super().__init__(stream)
        self._burst = burst
        self._seconds = period
        self._periods: dict[tuple[str, int], _Period] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write or count `record`, and write the counts of the periods that are over."""
        now = time.monotonic()
        self._summarise(now)
        period = self._periods.setdefault((record.pathname, record.lineno), _Period(now + self._seconds, record))
        period.seen += 1
        period.last = record
        if period.seen <= self._burst:
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record, cut to MAX_LENGTH characters."""
        text = super().format(record)
        return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}… ({len(text) - MAX_LENGTH} characters more)"

    def close(self) -> None:
        """Write the counts that are left; logging calls this when the process ends."""
        self.acquire()
        try:
            self._summarise(float("inf"))
        finally:
            self.release()
        super().close()

    def _summarise(self, now: float) -> None:
        for place in [place for place, period in self._periods.items() if period.ends <= now]:
            period = self._periods.pop(place)
            if period.seen > self._burst:
                super().emit(_summary(period.last, period.seen - self._burst, self._seconds))


def _summary(last: logging.LogRecord, count: int, seconds: float) -> logging.LogRecord:
    text = f"{count} more like this within {seconds:g} s; the last one: {last.getMessage()}"
    return logging.LogRecord(last.name, last.levelno, last.pathname, last.lineno, text, None, None)


def start_log(form: str) -> None:
    """Log to stderr: warnings of every library, and what this package says about itself."""
    handler = CountingHandler(sys.stderr)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format=form)
    logging.getLogger("virtualmle").setLevel(logging.INFO)

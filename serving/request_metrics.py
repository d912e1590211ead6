"""Counters and histograms of the endpoint, as text in the exposition format of Prometheus (version 0.0.4)."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[Mapping[str, str], float]


class Histogram:
    """Counts of observations up to each of several bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: Mapping[str, str]) -> list[str]:
        """The samples of the histogram: cumulative buckets, sum and count."""
        lines, total = [], 0
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            lines.append(_line(f"{name}_bucket", {**labels, "le": bound}, total))
        return [*lines, _line(f"{name}_sum", labels, self._sum), _line(f"{name}_count", labels, total)]


class RequestMetrics:
    """What the endpoint has done since it was started. Used from the event loop only."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: dict[str, Histogram] = {}
        self.batches = Histogram(USERS)

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._requests[path, status] += 1
        self._seconds.setdefault(path, Histogram(SECONDS)).observe(seconds)

    def text(self, gauges: Iterable[tuple[str, str, str, Sequence[Sample]]]) -> str:
        """All metrics; `gauges` adds further ones: name, type, help and samples."""
        requests = [({"path": path, "status": str(status)}, n) for (path, status), n in sorted(self._requests.items())]
        errors = [sample for sample in requests if sample[0]["status"] >= "400"]
        latencies = [line for path in sorted(self._seconds)
                     for line in self._seconds[path].lines("virtualmle_request_seconds", {"path": path})]  # fmt: skip
        parts = [
            *_family("virtualmle_requests_total", "counter", "Answered requests.", _lines("requests_total", requests)),
            *_family("virtualmle_errors_total", "counter", "Requests answered with an error.",
                     _lines("errors_total", errors)),
            *_family("virtualmle_request_seconds", "histogram", "Seconds from the request to its answer.", latencies),
            *_family("virtualmle_batch_users", "histogram", "Users scored together.",
                     self.batches.lines("virtualmle_batch_users", {})),
        ]  # fmt: skip
        for name, kind, meaning, samples in gauges:
            parts += _family(f"virtualmle_{name}", kind, meaning, _lines(name, samples))
        return "\n".join(parts) + "\n"


def _family(name: str, kind: str, meaning: str, lines: Sequence[str]) -> list[str]:
    return [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", *lines]


def _lines(name: str, samples: Iterable[Sample]) -> list[str]:
    return [_line(f"virtualmle_{name}", labels, value) for labels, value in samples]


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    pairs = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{pairs}}} {value}" if pairs else f"{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

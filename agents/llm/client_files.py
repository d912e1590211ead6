"""Usage of external clients, read from the files that they write.

- Claude Code, `claude -p --output-format json` or `stream-json`: the result messages, with usage and cost per model.
- Codex, `codex exec --json`: turn.completed events; their usage is the running total of the thread.
- OpenAI Agents SDK: a `Usage` object as JSON, per request if it has `request_usage_entries`.

Every record has an `origin`, made from the identity that the client gave it, or from its content, so that a file that
is read twice counts once. Not covered: a Claude Code stream that ends without its result message.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...data.errors import LanguageModelError
from .messages import Usage
from .wire import count

Record = Mapping[str, Any]


@dataclass(frozen=True)
class ClientUsage:
    """Usage of one record. `model` "" and `usd` None: the client did not say."""

    origin: str
    client: str
    model: str
    usage: Usage
    usd: float | None


def read_usage(text: str) -> list[ClientUsage]:
    """The usage in the text of a result file; raises LanguageModelError if it is of none of the known formats."""
    records = _records(text)
    for read in (_claude_code, _codex, _agents_sdk):
        if usages := list(read(records)):
            return usages
    raise LanguageModelError(
        "the file has no usage of a known client; known are the results of `claude -p --output-format json` (or "
        "stream-json), the events of `codex exec --json`, and the usage of the OpenAI Agents SDK as JSON"
    )


def _records(text: str) -> list[Record]:
    """The JSON objects of a file: one, a list, or one per line; lines that are none (progress texts) are skipped."""
    whole = _parsed(text)
    values = whole if isinstance(whole, list) else [whole] if whole is not None else map(_parsed, text.splitlines())
    return [value for value in values if isinstance(value, dict)]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _claude_code(records: Sequence[Record]) -> Iterator[ClientUsage]:
    model = next((str(r["model"]) for r in records if r.get("type") == "system" and r.get("model")), "")
    results = [r for r in records if r.get("type") == "result" and isinstance(r.get("usage"), dict)]
    for result in results:
        origin = f"claude-code:{result.get('uuid') or _digest(result)}"
        by_model = result.get("modelUsage")
        if isinstance(by_model, dict) and by_model:
            named = {name: one for name, one in by_model.items() if isinstance(one, dict)}
            for name, one in named.items():
                yield ClientUsage(f"{origin}:{name}", "Claude Code", name, _claude_usage(one), _usd(one, "costUSD"))
        else:
            usage = _claude_usage(result["usage"])
            yield ClientUsage(origin, "Claude Code", model, usage, _usd(result, "total_cost_usd"))


def _claude_usage(usage: Record) -> Usage:
    """The counts of one model, or their total; the two are spelled differently."""
    return Usage(
        input=count(_either(usage, "input_tokens")),
        cached=count(_either(usage, "cache_read_input_tokens")),
        cache_write=count(_either(usage, "cache_creation_input_tokens")),
        output=count(_either(usage, "output_tokens")),
    )


def _codex(records: Sequence[Record]) -> Iterator[ClientUsage]:
    """One record per thread: the last running total."""
    thread, totals = "", dict[str, Record]()
    for record in records:
        if record.get("type") == "thread.started":
            thread = str(record.get("thread_id"))
        if record.get("type") == "turn.completed" and isinstance(record.get("usage"), dict):
            totals[thread or _digest(record)] = record["usage"]
    for name, usage in totals.items():
        reasoning = count(usage.get("reasoning_output_tokens"))
        cached, written = count(usage.get("cached_input_tokens")), count(usage.get("cache_write_input_tokens"))
        tokens = _openai(usage.get("input_tokens"), cached, written, usage.get("output_tokens"), reasoning)
        yield ClientUsage(f"codex:{name}", "Codex", "", tokens, None)


def _agents_sdk(records: Sequence[Record]) -> Iterator[ClientUsage]:
    for number, record in enumerate(records):
        usage = record["usage"] if isinstance(record.get("usage"), dict) else record
        entries = usage.get("request_usage_entries") or usage.get("requestUsageEntries") or [usage]
        for place, entry in enumerate(entries if isinstance(entries, list) else []):
            if isinstance(entry, dict) and count(_either(entry, "input_tokens")):
                origin = f"agents-sdk:{_digest(record)}:{number}:{place}"
                yield ClientUsage(origin, "OpenAI Agents SDK", "", _agents_usage(entry), None)


def _agents_usage(entry: Record) -> Usage:
    inside, outside = (_detail(_either(entry, f"{kind}_tokens_details")) for kind in ("input", "output"))
    cached, written = count(_either(inside, "cached_tokens")), count(_either(inside, "cache_write_tokens"))
    reasoning = count(_either(outside, "reasoning_tokens"))
    return _openai(_either(entry, "input_tokens"), cached, written, _either(entry, "output_tokens"), reasoning)


def _openai(inputs: Any, cached: int, written: int, outputs: Any, reasoning: int) -> Usage:
    """Tokens without overlap from OpenAI's counts, whose totals include their parts."""
    total, output = count(inputs), count(outputs)
    cached = min(cached, total)
    written = min(written, total - cached)
    reasoning = min(reasoning, output)
    return Usage(total - cached - written, cached, written, output - reasoning, reasoning)


def _either(record: Record, name: str) -> Any:
    """A field by its name in Python or in JavaScript."""
    head, *rest = name.split("_")
    return record.get(name, record.get(head + "".join(part.title() for part in rest)))


def _detail(details: Any) -> Record:
    """The details of a count; the JavaScript SDK has a list of them, one per request."""
    parts = details if isinstance(details, list) else [details]
    merged: dict[str, int] = {}
    for part in parts:
        for name, value in part.items() if isinstance(part, dict) else ():
            merged[name] = merged.get(name, 0) + count(value)
    return merged


def _usd(record: Record, name: str) -> float | None:
    value = record.get(name)
    return float(value) if isinstance(value, (int, float)) and value >= 0 else None


def _digest(record: Record) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:20]

"""`virtualmle costs`: the ledger on the terminal and as JSON, and usage imported from the files of external clients."""

import json
from pathlib import Path
from typing import Any

import pytest

from virtualmle.__main__ import main
from virtualmle.agents.llm.client_files import read_usage
from virtualmle.agents.llm.messages import Usage
from virtualmle.data.errors import LanguageModelError
from virtualmle.memory.records import SessionRecord
from virtualmle.memory.store import Memory

CLAUDE = {
    "type": "result", "subtype": "success", "is_error": False, "num_turns": 8, "result": "Done.",
    "session_id": "f18f49de", "uuid": "49ef0707", "total_cost_usd": 0.37,
    "usage": {"input_tokens": 8, "cache_creation_input_tokens": 192, "cache_read_input_tokens": 17004,
              "output_tokens": 32, "service_tier": "standard"},
    "modelUsage": {
        "claude-opus-5": {"inputTokens": 8, "outputTokens": 32, "cacheReadInputTokens": 17004,
                          "cacheCreationInputTokens": 192, "webSearchRequests": 0, "costUSD": 0.34},
        "claude-haiku-4-5-20251001": {"inputTokens": 900, "outputTokens": 20, "cacheReadInputTokens": 0,
                                      "cacheCreationInputTokens": 0, "costUSD": 0.03},
    },
}  # fmt: skip
CODEX = [
    {"type": "thread.started", "thread_id": "0199a213"},
    {"type": "turn.started"},
    {"type": "item.completed", "item": {"id": "item_0", "type": "agent_message", "text": "Done."}},
    {"type": "turn.completed", "usage": {"input_tokens": 9000, "cached_input_tokens": 7000, "output_tokens": 500}},
    {"type": "turn.completed", "usage": {"input_tokens": 24763, "cached_input_tokens": 20448, "output_tokens": 1590,
                                         "reasoning_output_tokens": 1152}},
]  # fmt: skip
AGENTS = {
    "requests": 2, "input_tokens": 300, "output_tokens": 50, "total_tokens": 350,
    "input_tokens_details": {"cached_tokens": 100}, "output_tokens_details": {"reasoning_tokens": 20},
    "request_usage_entries": [
        {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120, "input_tokens_details": {"cached_tokens": 0},
         "output_tokens_details": {"reasoning_tokens": 20}},
        {"input_tokens": 200, "output_tokens": 30, "total_tokens": 230, "input_tokens_details": {"cached_tokens": 100},
         "output_tokens_details": {"reasoning_tokens": 0}},
    ],
}  # fmt: skip
AGENTS_JS = {
    "requests": 1, "inputTokens": 300, "outputTokens": 50, "totalTokens": 350,
    "inputTokensDetails": [{"cached_tokens": 100}], "outputTokensDetails": [{"reasoning_tokens": 20}],
}  # fmt: skip


def lines(records: list[Any]) -> str:
    return "\n".join(map(json.dumps, records))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            json.dumps(CLAUDE),
            [("claude-opus-5", Usage(8, 17004, 192, 32), 0.34),
             ("claude-haiku-4-5-20251001", Usage(900, 0, 0, 20), 0.03)],
            id="claude json",
        ),
        pytest.param(
            lines([{"type": "system", "subtype": "init", "model": "claude-opus-5"},
                   {"type": "assistant", "message": {"usage": {"input_tokens": 2, "output_tokens": 9}}},
                   {name: value for name, value in CLAUDE.items() if name != "modelUsage"}]),
            [("claude-opus-5", Usage(8, 17004, 192, 32), 0.37)],
            id="claude stream-json without usage per model",
        ),
        pytest.param(lines(CODEX), [("", Usage(4315, 20448, 0, 438, 1152), None)], id="codex: a running total"),
        pytest.param("Reading…\n" + lines(CODEX[:4]), [("", Usage(2000, 7000, 0, 500), None)], id="codex, noise"),
        pytest.param(
            json.dumps(AGENTS), [("", Usage(100, 0, 0, 0, 20), None), ("", Usage(100, 100, 0, 30), None)],
            id="agents sdk",
        ),
        pytest.param(
            json.dumps({"final_output": "x", "usage": AGENTS_JS}), [("", Usage(200, 100, 0, 30, 20), None)],
            id="agents sdk in JavaScript",
        ),
    ],
)  # fmt: skip
def test_the_files_of_external_clients_are_read(text: str, expected: list[Any]) -> None:
    usages = read_usage(text)
    assert [(usage.model, usage.usage, usage.usd) for usage in usages] == expected
    assert len({usage.origin for usage in usages}) == len(usages)
    assert read_usage(text) == usages


@pytest.mark.parametrize("text", ["", "hello", "[1, 2]", '{"a": 1}', '{"type": "turn.completed"}', "[" * 100_000])
def test_other_files_are_refused_with_the_formats_that_are_known(text: str) -> None:
    with pytest.raises(LanguageModelError, match="claude -p --output-format json.*codex exec --json.*Agents SDK"):
        read_usage(text)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a session and one measured call."""
    with Memory(tmp_path / "memory.db") as memory:
        record = SessionRecord(
            id="demo-sasrec-1", dataset="demo", dataset_id="d", backbone="sasrec", protocol_hash="h", protocol_text="t",
            max_trials=3, max_train_seconds=9.0, profile={},
        )  # fmt: skip
        memory.sessions.open(record)
        call = memory.ledger.reserve("demo-sasrec-1", "1", "r", provider="openai", model="gpt-6.1-sol", usd=0.2)
        memory.ledger.settle(call, {"input": 1200, "cached": 300, "output": 40}, usd=0.05, reply={})
    return tmp_path


def costs(capsys: pytest.CaptureFixture[str], home: Path, *arguments: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of the command."""
    with pytest.raises(SystemExit) as ended:
        main(["costs", *arguments, "--home", str(home)])
    output = capsys.readouterr()
    return int(ended.value.code or 0), output.out, output.err


def test_the_ledger_is_shown_and_imports_stand_apart_and_count_once(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = home / "claude.json"
    file.write_text(json.dumps(CLAUDE), encoding="utf-8")
    first, again = (costs(capsys, home, "import", "demo-sasrec-1", str(file)) for _ in range(2))
    assert first[1].endswith("2 records of Claude Code, 2 of them new\n"), first
    assert again[1].endswith("2 records of Claude Code, 0 of them new\n")
    codex = home / "codex.jsonl"
    codex.write_text(lines(CODEX), encoding="utf-8")
    assert costs(capsys, home, "import", "demo-sasrec-1", str(codex))[0] == 0
    content = json.loads(costs(capsys, home, "--json")[1])
    measured = {"calls": 1, "lost": 0, "input": 1200, "cached": 300, "cache_write": 0, "output": 40, "reasoning": 0}
    assert content["totals"]["measured"] == {**measured, "usd": 0.05}
    imported = content["totals"]["imported"]
    assert (imported["calls"], imported["cached"], imported["usd"]) == (3, 17004 + 20448, None)
    text = costs(capsys, home, "demo-sasrec-1")[1]
    assert "measured: 0.0500 US dollars" in text
    assert "imported: unknown US dollars" in text


def test_the_price_of_a_client_that_names_no_model_follows_from_the_option(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = home / "codex.jsonl"
    file.write_text(lines(CODEX), encoding="utf-8")
    assert costs(capsys, home, "import", "demo-sasrec-1", str(file), "--model", "gpt-6.1-sol")[0] == 0
    rows = json.loads(costs(capsys, home, "--json")[1])["calls"]
    (row,) = [row for row in rows if row["source"] == "imported"]
    assert row["usd"] == pytest.approx((4315 * 2 + 20448 * 0.1 + (438 + 1152) * 10) / 1e6)


def test_mistakes_end_with_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mistakes = [
        (home, ("import", "nothing", str(home / "x.json")), "cannot be read"),
        (home, ("nothing",), "unknown session"),
        (home / "empty", (), "has no memory.db"),
    ]
    for place, arguments, message in mistakes:
        code, _, error = costs(capsys, place, *arguments)
        assert (code, error.count("\n")) == (1, 1)
        assert message in error


def test_a_home_without_calls_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Memory(tmp_path / "memory.db").close()
    assert costs(capsys, tmp_path)[1] == "no language model was called\n"

"""The language-model client against a real HTTP server on loopback, in both wire formats."""

import logging
import random
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.scripted_endpoint import (
    OUT_OF_CREDIT,
    OUT_OF_QUOTA,
    OVERLOADED,
    SERVER_ERROR,
    WRONG_KEY,
    Answer,
    Call,
    Dropped,
    Failure,
    Model,
    RateLimit,
    Received,
    Refused,
    ScriptedEndpoint,
    Truncated,
)
from virtualmle.agents.llm.client import HttpModel
from virtualmle.agents.llm.messages import Message, Reply, Request, ToolCall, ToolSpec
from virtualmle.agents.llm.settings import ModelSettings
from virtualmle.data.errors import LanguageModelError
from virtualmle.memory.ledger import Totals
from virtualmle.memory.store import Memory

RUN = ToolSpec("run", "Runs a trial.", {"type": "object", "properties": {"dropout": {"type": "number"}}})
ASK = Request((Message("system", "Tune the model."), Message("user", "What next?")), (RUN,), session="s-1")
CANARY = "sk-canary-9f8e7d6c5b4a"

both_wires = pytest.mark.parametrize("wire", ["openai", "anthropic"])


@pytest.fixture
def memory() -> Iterator[Memory]:
    with Memory(None) as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_keys_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VIRTUALMLE_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def model_at(endpoint: ScriptedEndpoint, wire: str, memory: Memory, notices: list[str], **settings: Any) -> HttpModel:
    """A model at the endpoint that waits milliseconds between attempts."""
    url = endpoint.openai_url if wire == "openai" else endpoint.anthropic_url
    quick = {"first_wait_seconds": 0.001, "timeout_seconds": 60.0, "max_attempts": 4, **settings}
    return HttpModel(ModelSettings("m", url, **quick), memory.ledger, notices.append, random.Random(0))


def ask(model: HttpModel, request: Request = ASK) -> Reply:
    return anyio.run(model.complete, request)


def only_totals(memory: Memory) -> Totals:
    (totals,) = memory.ledger.totals()
    return totals


def assert_counts_agree(memory: Memory, endpoint: ScriptedEndpoint) -> None:
    """The ledger has the endpoint's own count, to the token."""
    totals = only_totals(memory).model_dump()
    # Anthropic's replies do not tell reasoning from output
    assert totals["calls"] == endpoint.answered
    for kind in ("input", "cached", "cache_write"):
        assert totals[kind] == endpoint.tokens[kind], kind
    assert totals["output"] + totals["reasoning"] == endpoint.tokens["output"] + endpoint.tokens["reasoning"]


@both_wires
def test_a_text_and_a_tool_call_arrive_and_the_ledger_has_the_endpoints_count(wire: str, memory: Memory) -> None:
    script = [Answer("Let me see.", reasoning=40), Answer("Now.", [Call("run", {"dropout": 0.3})])]
    with ScriptedEndpoint(script) as endpoint:
        model = model_at(endpoint, wire, memory, [])
        first, second = ask(model), ask(model)
        assert_counts_agree(memory, endpoint)
    assert (first.text, first.calls, first.stop) == ("Let me see.", (), "end")
    assert second.stop == "tool_calls"
    assert [(call.name, call.arguments) for call in second.calls] == [("run", {"dropout": 0.3})]
    assert first.usage.reasoning == (40 if wire == "openai" else 0)
    assert not first.usage.estimated


@both_wires
def test_a_conversation_with_results_of_tools_is_written_in_the_wire_format(wire: str, memory: Memory) -> None:
    made = ToolCall("id-1", "run", {"dropout": 0.3}, '{"dropout": 0.3}')
    messages = (*ASK.messages, Message("assistant", "", (made,)), Message("tool", "NDCG .05", call_id="id-1"))
    with ScriptedEndpoint([Answer("ok")]) as endpoint:
        ask(model_at(endpoint, wire, memory, []), Request(messages, (RUN,), 321, temperature=0.5))
        (received,) = endpoint.requests
    body = received.body
    assert received.tools == ["run"]
    assert (body["max_tokens"], body["temperature"]) == (321, 0.5)
    if wire == "openai":
        assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "tool"]
        assert body["messages"][2]["tool_calls"][0]["function"] == {"name": "run", "arguments": '{"dropout": 0.3}'}
        assert body["messages"][3] == {"role": "tool", "tool_call_id": "id-1", "content": "NDCG .05"}
    else:
        assert received.headers["anthropic-version"] == "2023-06-01"
        assert body["system"][0]["text"] == "Tune the model."
        assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
        assert body["messages"][1]["content"][0] == {
            "type": "tool_use", "id": "id-1", "name": "run", "input": {"dropout": 0.3},
        }  # fmt: skip
        assert body["messages"][2]["content"][0]["tool_use_id"] == "id-1"


@both_wires
@pytest.mark.parametrize(
    ("behaviour", "stop"),
    [(Truncated("a long text"), "length"), (Refused("No."), "refusal"), (Answer("ok"), "end")],
)
def test_truncation_and_refusal_are_told_apart(wire: str, memory: Memory, behaviour: Answer, stop: str) -> None:
    with ScriptedEndpoint([behaviour]) as endpoint:
        reply = ask(model_at(endpoint, wire, memory, []))
    assert (reply.stop, reply.text) == (stop, behaviour.text)


@both_wires
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(Call("run", '{"dropout": 0.'), id="cut off"),
        pytest.param(Call("run", '["dropout"]'), id="no object"),
        pytest.param(Call("run", '"dropout"'), id="a text"),
        pytest.param(Call("walk", {"dropout": 0.3}), id="unknown tool"),
    ],
)
def test_a_malformed_call_has_no_arguments_but_its_text(wire: str, memory: Memory, call: Call) -> None:
    with ScriptedEndpoint([Answer(calls=[call])]) as endpoint:
        reply = ask(model_at(endpoint, wire, memory, []))
    (made,) = reply.calls
    assert (made.name, made.arguments) == (call.name, None)
    assert call.raw.strip('"[')[:9] in made.raw


@both_wires
@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(RateLimit(), id="429"),
        pytest.param(RateLimit("0.01"), id="429 with retry-after"),
        pytest.param(RateLimit(retry_after_ms="5"), id="429 with retry-after-ms"),
        pytest.param(SERVER_ERROR, id="500"),
        pytest.param(OVERLOADED, id="529"),
        pytest.param(Failure(502, "", body="<html>Bad gateway</html>"), id="502 page of a proxy"),
        pytest.param(Failure(408, "Request timeout"), id="408"),
        pytest.param(Failure(400, "please retry", headers={"x-should-retry": "true"}), id="x-should-retry"),
        pytest.param(Dropped(), id="dropped"),
        pytest.param(Dropped(midway=True), id="dropped midway"),
        pytest.param(Failure(200, "", body="not JSON"), id="200 without JSON"),
        pytest.param(Failure(200, "", body='{"error": {"message": "busy", "code": 503}}'), id="200 with an error"),
    ],
)
def test_failures_that_pass_are_tried_again(wire: str, memory: Memory, failure: Failure | Dropped) -> None:
    notices: list[str] = []
    with ScriptedEndpoint([failure, failure, Answer("ok")]) as endpoint:
        assert ask(model_at(endpoint, wire, memory, notices)).text == "ok"
        assert_counts_agree(memory, endpoint)
        assert len(endpoint.requests) == 3
    assert len(notices) == 2


@both_wires
def test_a_slow_reply_times_out_and_is_asked_for_again(wire: str, memory: Memory) -> None:
    def late_once(received: Received) -> Answer:
        return Answer("late", delay=60.0) if received.number == 1 else Answer("ok")

    with ScriptedEndpoint(late_once) as endpoint:
        assert ask(model_at(endpoint, wire, memory, [], timeout_seconds=1.0)).text == "ok"
        totals = only_totals(memory)
    assert totals.calls == 1
    assert totals.lost >= 1, "the first may have been charged"


@both_wires
@pytest.mark.parametrize(
    ("failure", "advice"),
    [
        pytest.param(OUT_OF_QUOTA, "no quota or credit", id="OpenAI's quota"),
        pytest.param(OUT_OF_CREDIT, "no quota or credit", id="Anthropic's credit"),
        pytest.param(Failure(402, "Insufficient Balance"), "no quota or credit", id="402"),
        pytest.param(WRONG_KEY, "API key", id="401"),
        pytest.param(Failure(403, "forbidden"), "API key", id="403"),
        pytest.param(Failure(404, "no such model"), "--model", id="404"),
        pytest.param(Failure(400, "maximum context length exceeded"), "refused", id="400"),
        pytest.param(Failure(500, "stop", headers={"x-should-retry": "false"}), "request", id="x-should-retry: false"),
    ],
)
def test_failures_that_last_are_not_tried_again(wire: str, memory: Memory, failure: Failure, advice: str) -> None:
    with ScriptedEndpoint([failure, Answer("never")]) as endpoint:
        with pytest.raises(LanguageModelError, match=advice):
            ask(model_at(endpoint, wire, memory, []))
        assert len(endpoint.requests) == 1
    assert memory.ledger.spent("s-1") == 0.0


@both_wires
def test_attempts_end(wire: str, memory: Memory) -> None:
    with ScriptedEndpoint([SERVER_ERROR] * 9) as endpoint:
        with pytest.raises(LanguageModelError, match="HTTP 500: The server had an error.*resume the session"):
            ask(model_at(endpoint, wire, memory, [], max_attempts=3))
        assert len(endpoint.requests) == 3


def test_a_wait_that_is_too_long_is_refused_and_an_http_date_is_read(memory: Memory) -> None:
    soon, late = (format_datetime(datetime.now(UTC) + timedelta(seconds=s), usegmt=True) for s in (1, 7200))
    with ScriptedEndpoint([RateLimit(soon), RateLimit(late)]) as endpoint:
        notices: list[str] = []
        with pytest.raises(LanguageModelError, match="asks to wait 7[12]"):
            ask(model_at(endpoint, "openai", memory, notices))
    assert len(notices) == 1


def test_a_server_that_does_not_run_is_named(memory: Memory) -> None:
    with ScriptedEndpoint([]) as endpoint:
        address = endpoint.openai_url
    settings = ModelSettings("m", address, first_wait_seconds=0.001, max_attempts=2)
    with pytest.raises(LanguageModelError, match="no connection .*check --base-url and that the server runs"):
        ask(HttpModel(settings, memory.ledger))
    assert memory.ledger.spent("s-1") == 0.0


@both_wires
def test_a_model_without_native_tools_is_learnt_and_called_in_text(wire: str, memory: Memory) -> None:
    reply_text = 'I try dropout.\n```json\n{"tool": "run", "arguments": {"dropout": 0.3}}\n```'
    with ScriptedEndpoint([Answer(reply_text)] * 3, Model(tools=False)) as endpoint:
        model = model_at(endpoint, wire, memory, [])
        first = ask(model)
        assert (first.stop, first.calls[0].arguments) == ("tool_calls", {"dropout": 0.3})
        ask(model)
        ask(model_at(endpoint, wire, memory, []))  # another process, with the same memory.db
        assert endpoint.complaints == 1, "learnt once"
        assert endpoint.requests[-1].tools == []
        assert '"dropout"' in endpoint.requests[-1].prompt
        assert_counts_agree(memory, endpoint)


def test_tools_in_text_can_be_chosen_or_excluded(memory: Memory) -> None:
    with ScriptedEndpoint([Answer("ok")], Model(tools=False, max_tokens=False)) as endpoint:
        ask(model_at(endpoint, "openai", memory, [], tools="text"))
        assert endpoint.complaints == 1
        known = memory.ledger.quirks(endpoint.openai_url, "m")
        assert known == {"max_completion_tokens"}, "text was chosen, not learnt"
        with pytest.raises(LanguageModelError, match="does not support tools"):
            ask(model_at(endpoint, "openai", memory, [], tools="native"))


@pytest.mark.parametrize(
    ("error", "missing"),
    [
        (Failure(400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser'), "tools"),
        (Failure(500, "tools param requires --jinja flag", "server_error"), "tools"),
        (Failure(404, "No endpoints found that support tool use. To learn more about provider routing"), "tools"),
        (
            Failure(
                400,
                "Function tools with reasoning_effort are not supported for gpt-6-sol in /v1/chat/completions. To use "
                "function tools, use /v1/responses or set reasoning_effort to 'none'.",
                "invalid_request_error",
                param="reasoning_effort",
            ),
            "tools",
        ),
        (Failure(400, "invalid temperature: only 1 is allowed for this model", "invalid_request_error"), "temperature"),
        (Failure(400, "System role not supported"), "system"),
        (Failure(400, "Unsupported parameter: 'temperature' is not supported with this model."), "temperature"),
    ],
    ids=["vllm", "llama.cpp", "openrouter", "openai reasoning", "kimi", "gemma", "o1"],
)  # fmt: skip
def test_errors_of_real_servers_are_understood(memory: Memory, error: Failure, missing: str) -> None:
    request = Request(ASK.messages, (RUN,), temperature=0.2)
    with ScriptedEndpoint([error, Answer("ok")]) as endpoint:
        assert ask(model_at(endpoint, "openai", memory, []), request).text == "ok"
        before, after = (set(r.body) | {m["role"] for m in r.body["messages"]} for r in endpoint.requests)
    assert before - after == {missing}


def test_the_limit_of_the_output_has_the_name_that_the_model_wants(memory: Memory) -> None:
    with ScriptedEndpoint([Answer("ok")] * 2, Model(max_tokens=False)) as endpoint:
        ask(model_at(endpoint, "openai", memory, []))
        ask(model_at(endpoint, "openai", memory, []))
        assert [("max_tokens" in r.body, "max_completion_tokens" in r.body) for r in endpoint.requests] == [
            (True, False), (False, True), (False, True),
        ]  # fmt: skip


def test_contradictory_errors_end(memory: Memory) -> None:
    with ScriptedEndpoint([], Model(max_tokens=False, max_completion_tokens=False)) as endpoint:
        with pytest.raises(LanguageModelError, match="HTTP 400"):
            ask(model_at(endpoint, "openai", memory, []))
        assert len(endpoint.requests) <= 4


@both_wires
def test_several_quirks_of_one_model_are_learnt_in_one_call(wire: str, memory: Memory) -> None:
    odd = Model(tools=False, temperature=False, max_tokens=False, system=False)
    with ScriptedEndpoint([Answer("ok")], odd) as endpoint:
        ask(model_at(endpoint, wire, memory, []), Request(ASK.messages, (RUN,), temperature=0.0))
        body = endpoint.requests[-1].body
        assert "Tune the model." in endpoint.requests[-1].prompt
    assert "temperature" not in body and "tools" not in body


def test_the_stable_prefix_is_cached_at_anthropic_and_counted_by_kind(memory: Memory) -> None:
    long = Request((Message("system", "Rule. " * 900), Message("user", "What next?")), (RUN,), session="s-1")
    with ScriptedEndpoint([Answer("ok")] * 2) as endpoint:
        model = model_at(endpoint, "anthropic", memory, [])
        first, second = ask(model, long).usage, ask(model, long).usage
        assert_counts_agree(memory, endpoint)
    assert first.cache_write == second.cached > 1024
    assert first.input == second.input < 20


def test_openais_cached_tokens_are_not_counted_as_input_too(memory: Memory) -> None:
    long = Request((Message("system", "Rule. " * 900), Message("user", "What next?")), session="s-1")
    with ScriptedEndpoint([Answer("ok")] * 2) as endpoint:
        model = model_at(endpoint, "openai", memory, [])
        first, second = ask(model, long).usage, ask(model, long).usage
        assert_counts_agree(memory, endpoint)
    assert second.cached > 1024
    assert second.cached + second.input == first.input


@both_wires
def test_a_server_that_reports_no_usage_gets_an_estimate_that_is_marked(wire: str, memory: Memory) -> None:
    with ScriptedEndpoint([Answer("A sentence of a few words.", report_usage=False)]) as endpoint:
        usage = ask(model_at(endpoint, wire, memory, [])).usage
        assert usage.estimated
        assert endpoint.tokens["input"] <= usage.input < 3 * endpoint.tokens["input"] + 500
        assert usage.output == endpoint.tokens["output"]
    assert only_totals(memory).estimated == 1


@both_wires
def test_the_key_goes_to_the_server_and_nowhere_else(
    wire: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "key"
    file.write_text(f"\n{CANARY}\n", encoding="utf-8")
    file.chmod(0o600)
    echo = [
        Failure(500, f"cannot use {CANARY}"),
        Dropped(),
        Answer(f"your key is {CANARY}"),
        Failure(400, f"bad key {CANARY}"),
    ]
    notices: list[str] = []
    with ExitStack() as stack:
        memory = stack.enter_context(Memory(tmp_path / "memory.db"))
        endpoint = stack.enter_context(ScriptedEndpoint(echo, Model(key=CANARY)))
        model = model_at(endpoint, wire, memory, notices, key_file=file)
        reply = ask(model)
        with pytest.raises(LanguageModelError) as raised:
            ask(model)
        assert all(CANARY in str(received.headers) for received in endpoint.requests)
        stored = (tmp_path / "memory.db").read_bytes() + (tmp_path / "memory.db-wal").read_bytes()
    said = [reply.text, str(raised.value), *notices, caplog.text, repr(model.settings)]
    assert not [text for text in said if CANARY in text]
    assert CANARY.encode() not in stored
    assert b"your key is [key]" in stored, "the test looks where replies are stored"


def test_a_wrong_key_is_reported_without_it(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTUALMLE_API_KEY", CANARY)
    expected = r"Incorrect API key provided: \[key\].*check the API key"
    with ScriptedEndpoint([], Model(key="another")) as endpoint, pytest.raises(LanguageModelError, match=expected):
        ask(model_at(endpoint, "openai", memory, []))


def test_a_key_that_the_provider_repeats_in_part_is_redacted_too(memory: Memory) -> None:
    failure = Failure(401, "Incorrect API key provided: sk-proj-ab12****cd34.", "invalid_request_error")
    with ScriptedEndpoint([failure]) as endpoint, pytest.raises(LanguageModelError) as raised:
        ask(model_at(endpoint, "openai", memory, []))
    assert "[key]" in str(raised.value) and "cd34" not in str(raised.value)


@pytest.mark.parametrize("failure", [RateLimit("0.2"), RateLimit(retry_after_ms="200", retry_after="9")])
def test_the_wait_that_the_provider_asks_for_is_kept(memory: Memory, failure: Failure) -> None:
    notices: list[str] = []
    with ScriptedEndpoint([failure, Answer("ok")]) as endpoint:
        ask(model_at(endpoint, "openai", memory, notices))
    assert notices[0].endswith("attempt 2 of 4 in 0.2 s")


def test_a_local_server_is_not_asked_through_a_proxy(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with ScriptedEndpoint([Answer("ok")]) as endpoint:
        assert ask(model_at(endpoint, "openai", memory, [])).text == "ok"


def test_a_local_server_gets_no_provider_key(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    with ScriptedEndpoint([Answer("ok")]) as endpoint:
        ask(model_at(endpoint, "openai", memory, []))
        assert "authorization" not in endpoint.requests[0].headers

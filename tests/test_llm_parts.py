"""The parts of the language-model client that need no server: tools in text, usage, keys, prices, waits, quirks."""

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from virtualmle.agents.llm.anthropic_wire import AnthropicWire
from virtualmle.agents.llm.client import HttpModel
from virtualmle.agents.llm.client_files import read_usage
from virtualmle.agents.llm.keys import find_key, redact
from virtualmle.agents.llm.messages import Message, Reply, Request, ToolCall, ToolSpec, Usage
from virtualmle.agents.llm.openai_wire import OpenAIWire
from virtualmle.agents.llm.prices import Price, PriceTable
from virtualmle.agents.llm.quirks import quirk_in
from virtualmle.agents.llm.retries import ProviderError, backoff_seconds, seconds_asked
from virtualmle.agents.llm.settings import ModelSettings, price_files
from virtualmle.agents.llm.text_tools import calls_in, in_text, read_calls
from virtualmle.agents.llm.tokens import estimate_tokens
from virtualmle.agents.llm.wire import UnreadableReply
from virtualmle.agents.verbs import RunTrialArguments
from virtualmle.data.errors import LanguageModelError
from virtualmle.memory.store import Memory

RUN = ToolSpec("run", "Runs a trial.", {"type": "object", "properties": {"dropout": {"type": "number"}}})
ASK = Request((Message("system", "Tune."), Message("user", "What next?")), (RUN,))
GOOD = '{"tool": "run", "arguments": {"dropout": 0.3}}'


def made_in(text: str) -> list[tuple[str, Any]]:
    return [(call.name, call.arguments) for call in calls_in(text, {"run", "stop"})]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(GOOD, id="bare"),
        pytest.param(f"I think so.\n```json\n{GOOD}\n```", id="fenced"),
        pytest.param(f"```\n{GOOD}\n```\nDone.", id="fenced without a language"),
        pytest.param(f"```json\n{GOOD}", id="the fence is never closed"),
        pytest.param(f"<tool_call>\n{GOOD}\n</tool_call>", id="tags"),
        pytest.param(f"Given {{x}} and {{}}: {GOOD}", id="other braces before it"),
        pytest.param('{"name": "run", "parameters": {"dropout": 0.3}}', id="name and parameters"),
        pytest.param('[{"name": "run", "arguments": "{\\"dropout\\": 0.3}"}]', id="a list, arguments as text"),
        pytest.param('{"type": "function", "function": {"name": "run", "arguments": {"dropout": 0.3}}}', id="OpenAI's"),
        pytest.param(
            '```json\n{"tool": "run", "arguments": {"dropout": 0.3, "why": "```"}}\n```', id="a fence in a text"
        ),
        pytest.param(f'I know {{"a": 1}}.\n```json\n{GOOD}\n```\nor {GOOD}', id="the fenced one goes before the bare"),
    ],
)
def test_a_call_is_found_in_a_text(text: str) -> None:
    ((name, arguments),) = made_in(text)
    assert (name, arguments["dropout"]) == ("run", 0.3)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        pytest.param('{"tool": "run", "arguments": {"dropout": 0.', [("run", None)], id="cut off"),
        pytest.param('```json\n{"tool": "run", \'arguments\': {}}\n```', [("run", None)], id="no JSON"),
        pytest.param('{"tool": "run", "arguments": [1]}', [("run", None)], id="arguments are no object"),
        pytest.param('{"tool": "walk", "arguments": {}}', [("walk", None)], id="unknown tool"),
        pytest.param('{"tool": "stop"}', [("stop", {})], id="no arguments"),
        pytest.param('{"name": "Ann", "age": 3}', [], id="an object that is no call"),
        pytest.param("Nothing to call. {}", [], id="nothing"),
        pytest.param(f"{GOOD} then {GOOD}", [("run", {"dropout": 0.3})] * 2, id="two"),
        pytest.param('{"tool": "run", "arguments": ' + "[" * 100_000, [("run", None)], id="nested without end"),
    ],
)
def test_malformed_calls_are_reported_and_other_objects_left_alone(text: str, made: list[tuple[str, Any]]) -> None:
    assert made_in(text) == made


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    arguments=st.dictionaries(st.text(max_size=8), json_values, max_size=4),
    before=st.text(alphabet="ab \n`", max_size=9),
)
def test_any_call_survives_being_written_and_read(arguments: dict[str, Any], before: str) -> None:
    written = json.dumps({"tool": "run", "arguments": arguments})
    assert made_in(f"{before.replace('```', '')}\n```json\n{written}\n```") == [("run", arguments)]
    assert made_in(f"{before.replace('`', '')} {written}") == [("run", arguments)]


@given(text=st.text(alphabet='{}[]":, `\ntoolruname1', max_size=60))
def test_no_text_breaks_the_parser(text: str) -> None:
    for call in calls_in(text, {"run"}):
        assert call.arguments is None or isinstance(call.arguments, dict)


@given(body=json_values | st.fixed_dictionaries({"choices": json_values, "content": json_values, "usage": json_values}))
def test_no_body_breaks_a_wire(body: Any) -> None:
    for wire in (OpenAIWire(), AnthropicWire()):
        try:
            reply = wire.reply(body if isinstance(body, dict) else {}, ASK)
        except UnreadableReply:
            continue
        assert isinstance(reply.text, str)
        assert min(reply.usage.input, reply.usage.output, reply.usage.cached) >= 0


def test_in_text_everything_stays_readable_and_no_tool_message_is_left() -> None:
    made, broken = ToolCall("1", "run", {"dropout": 0.3}, "…"), ToolCall("2", "run", None, '{"dropout": ')
    messages = (
        *ASK.messages,
        Message("assistant", "I try.", (made, broken)),
        Message("tool", "NDCG .05", call_id="1"),
    )
    written = in_text(Request(messages, (RUN,)))
    assert written.tools == ()
    assert [message.role for message in written.messages] == ["system", "system", "user", "assistant", "user"]
    assert json.dumps(dict(RUN.parameters)) in written.messages[1].text
    assert made_in(written.messages[3].text)[0] == ("run", {"dropout": 0.3})
    assert written.messages[4].text == "Result of run:\nNDCG .05"
    assert in_text(Request(ASK.messages)) == Request(ASK.messages), "no tools, no change"


def test_a_truncated_call_in_text_stays_marked_as_truncated() -> None:
    reply = read_calls(Reply('{"tool": "run", "arg', (), Usage(), "length", "m"), ASK)
    assert (reply.stop, reply.calls[0].arguments) == ("length", None)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param(
            {"prompt_tokens": 100, "completion_tokens": 50, "prompt_tokens_details": {"cached_tokens": 60},
             "completion_tokens_details": {"reasoning_tokens": 30}},
            Usage(40, 60, 0, 20, 30), id="OpenAI",
        ),
        pytest.param(
            {"prompt_tokens": 100, "completion_tokens": 5,
             "prompt_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 50}},
            Usage(30, 20, 50, 5, 0), id="OpenAI with cache writes",
        ),
        pytest.param(
            {"prompt_tokens": 99, "completion_tokens": 5, "prompt_cache_hit_tokens": 64},
            Usage(35, 64, 0, 5, 0), id="DeepSeek",
        ),
        pytest.param({"prompt_tokens": 9, "completion_tokens": 5, "cached_tokens": 4}, Usage(5, 4, 0, 5, 0), id="Kimi"),
        pytest.param({"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": None}, Usage(9, 0, 0, 5, 0),
                     id="vLLM"),
        pytest.param({"prompt_tokens": 0, "completion_tokens": 0}, Usage(estimated=True), id="nothing counted"),
        pytest.param(None, Usage(estimated=True), id="none"),
    ],
)  # fmt: skip
def test_openais_usage_is_told_apart_by_kind(usage: Any, expected: Usage) -> None:
    body = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
    assert OpenAIWire().reply(body, ASK).usage == expected


def test_hidden_reasoning_in_the_text_is_left_out_and_parts_are_joined() -> None:
    for content in (
        '<think>\n{"tool": "run"}\n</think>\n\nYes.',
        [{"type": "thinking"}, {"type": "text", "text": "Yes."}],
    ):
        assert OpenAIWire().reply({"choices": [{"message": {"content": content}}]}, ASK).text == "Yes."


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "20"}, 20.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Thu, 26 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Thu, 26 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({}, None),
    ],
)
def test_the_wait_that_a_provider_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert seconds_asked(headers, datetime(2026, 11, 26, 12, tzinfo=UTC)) == seconds


@given(failures=st.integers(1, 30), seed=st.integers(0, 99))
def test_waits_double_up_to_the_longest_and_are_spread(failures: int, seed: int) -> None:
    wait = backoff_seconds(failures, 1.0, 60.0, random.Random(seed))
    full = min(60.0, 2.0 ** (failures - 1))
    assert full / 2 <= wait <= full


def test_rate_limits_are_not_taken_for_an_empty_account() -> None:
    assert ProviderError(429, "Rate limit reached for gpt in organization org on tokens per min", {}).is_transient
    assert not ProviderError(429, "You exceeded your current quota, please check your plan", {}).is_transient


@pytest.mark.parametrize(
    "text",
    ["context length exceeded: max_tokens is too large", "The temperature outside is nice", "invalid tools schema"],
)
def test_other_errors_are_no_quirk(text: str) -> None:
    assert quirk_in(text) is None


@pytest.mark.parametrize(
    ("settings", "wire", "provider", "address"),
    [
        (ModelSettings("gpt-6.1-sol"), "openai", "openai", "https://api.openai.com/v1"),
        (ModelSettings("claude-opus-5"), "anthropic", "anthropic", "https://api.anthropic.com"),
        (ModelSettings("q", "http://localhost:11434/v1/"), "openai", "local", "http://localhost:11434/v1"),
        (ModelSettings("q", "http://[::1]:8000/v1"), "openai", "local", "http://[::1]:8000/v1"),
        (ModelSettings("d", "https://api.deepseek.com/anthropic"), "anthropic", "deepseek", "https://api.deepseek.com/anthropic"),
        (ModelSettings("claude-x", "https://gate.example/v1"), "openai", "gate.example", "https://gate.example/v1"),
        (ModelSettings("m", "https://gate.example", "anthropic"), "anthropic", "gate.example", "https://gate.example"),
    ],
)  # fmt: skip
def test_wire_and_provider_follow_from_the_address(
    settings: ModelSettings, wire: str, provider: str, address: str
) -> None:
    assert (settings.wire_format, settings.provider, settings.address) == (wire, provider, address)


@pytest.mark.parametrize(
    ("base_url", "message"),
    [
        ("localhost:8000", "no http address"),
        ("ftp://x/v1", "no http address"),
        ("https://user:secret@x/v1", "contains a user"),
        ("https://x/v1?key=secret", "contains a user, password or query"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused_without_their_secret(base_url: str, message: str) -> None:
    with pytest.raises(LanguageModelError, match=message) as raised:
        ModelSettings("m", base_url)
    assert "secret" not in str(raised.value)


def test_a_key_goes_to_its_own_provider_only() -> None:
    environment = {"OPENAI_API_KEY": "sk-o", "ANTHROPIC_API_KEY": "sk-a"}
    assert find_key(ModelSettings("gpt-6.1-sol"), environment) == "sk-o"
    assert find_key(ModelSettings("claude-opus-5"), environment) == "sk-a"
    assert find_key(ModelSettings("m", "https://gate.example/v1"), environment) is None
    assert find_key(ModelSettings("m", "http://localhost:1/v1"), environment) is None
    assert find_key(ModelSettings("m", "https://gate.example/v1"), {"VIRTUALMLE_API_KEY": " k \n"}) == "k"
    with pytest.raises(LanguageModelError, match="set DEEPSEEK_API_KEY or VIRTUALMLE_API_KEY"):
        find_key(ModelSettings("m", "https://api.deepseek.com"), environment)


def test_a_key_is_not_sent_in_the_clear_over_a_public_network() -> None:
    environment = {"VIRTUALMLE_API_KEY": "sk-secret"}
    with pytest.raises(LanguageModelError, match="not encrypted") as raised:
        find_key(ModelSettings("m", "http://gate.example/v1"), environment)
    assert "sk-secret" not in str(raised.value)
    for private in ("http://gpubox:8000/v1", "http://192.168.1.5:8000/v1", "http://127.0.0.1:8000/v1"):
        assert find_key(ModelSettings("m", private), environment) == "sk-secret"


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-secret\n", encoding="utf-8")
    wanted = ModelSettings("gpt-6.1-sol", key_file=file)
    for mode in (0o644, 0o640, 0o604):
        file.chmod(mode)
        with pytest.raises(LanguageModelError, match=f"mode {mode:o}.*chmod 600"):
            find_key(wanted, {})
    file.chmod(0o600)
    assert find_key(wanted, {"OPENAI_API_KEY": "another"}) == "sk-secret"
    for content, message in (("", "is empty"), ("sk secret", "spaces or characters"), ("sk-ü", "spaces or characters")):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(LanguageModelError, match=message):
            find_key(wanted, {})
    with pytest.raises(LanguageModelError, match="cannot be read"):
        find_key(ModelSettings("m", key_file=tmp_path / "missing"), {})


@given(
    key=st.from_regex(r"sk-[A-Za-z0-9_-]{8,40}", fullmatch=True), before=st.text(max_size=9), after=st.text(max_size=9)
)
def test_no_text_keeps_a_key(key: str, before: str, after: str) -> None:
    assert key not in redact(f"{before}{key}{after}", key)


def test_what_looks_like_a_key_is_redacted_too() -> None:
    assert redact("provided: sk-proj-ab12********cd34. Bearer abc.def", None) == "provided: [key] Bearer [key]"


def test_the_shipped_prices_are_dated_sourced_and_unambiguous() -> None:
    rows = PriceTable.load().rows
    assert len(rows) > 20
    assert all(row.source.startswith("https://") for row in rows if row.provider != "local")
    keys = [(row.provider, row.model, row.up_to_input) for row in rows]
    assert len(keys) == len(set(keys))
    for row in rows:
        assert row.provider == "local" or 0 < row.input < row.output, row.model
        assert row.cached is None or row.cached <= row.input


def test_a_price_is_found_by_name_without_a_date_and_by_the_length_of_the_prompt() -> None:
    table = PriceTable.load()
    assert table.find("anthropic", "claude-opus-4-5-20251101") == table.find("anthropic", "claude-opus-4-5")
    assert table.find("openai", "gpt-6.1-sol-2026-09-29") == table.find("openai", "gpt-6.1-sol") is not None
    short, long = (table.find("anthropic", "claude-haiku-5-5", tokens) for tokens in (100_000, 100_001))
    assert short and long and (short.input, long.input) == (0.1, 0.5)
    assert table.find("openai", "claude-opus-5") is None
    assert table.find("gate.example", "gpt-6.1-sol") is None, "a gateway has prices of its own"
    local = table.find("local", "anything")
    assert local is not None and local.cost(Usage(10**6, 0, 0, 10**6, 0)) == 0.0


def test_users_override_prices_row_by_row(tmp_path: Path) -> None:
    row = '[[price]]\nprovider="{}"\nmodel="{}"\ninput={}\noutput=9\nsource="mine"\nas_of=2026-01-01\n'
    own, given_file = tmp_path / "prices.toml", tmp_path / "given.toml"
    assert price_files(tmp_path) == ()
    own.write_text(row.format("openai", "gpt-6.1-sol", 7) + row.format("local", "*", 1), encoding="utf-8")
    given_file.write_text(row.format("openai", "gpt-6.1-sol", 8), encoding="utf-8")
    table = PriceTable.load(price_files(tmp_path, given_file))
    found = [table.find(*name) for name in (("openai", "gpt-6.1-sol"), ("local", "x"), ("anthropic", "claude-opus-5"))]
    assert [price.input for price in found if price] == [8, 1, 5]


@pytest.mark.parametrize(
    "content",
    [
        "[[price",
        '[[price]]\nprovider="x"',
        '[[price]]\nprovider="x"\nmodel="m"\ninput=-1\noutput=1\nsource=""\nas_of=2026-01-01',
    ],
)
def test_a_wrong_price_file_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(LanguageModelError, match="prices.toml are not usable.*every .*price.* needs provider"):
        PriceTable.load((file,))


def test_money_by_kind_and_the_worst_case() -> None:
    price = Price(
        provider="p", model="m", input=2, cached=0.1, cache_write=2.5, output=10, source="", as_of="2026-01-01"
    )  # type: ignore[arg-type]
    assert price.cost(Usage(10**6, 10**6, 10**6, 10**6, 10**6)) == pytest.approx(2 + 0.1 + 2.5 + 10 + 10)
    assert price.worst_cost(10**6, 10**6) == pytest.approx(2.5 + 10)
    plain = price.model_copy(update={"cached": None, "cache_write": None})
    assert plain.cost(Usage(0, 10**6, 10**6, 0, 0)) == pytest.approx(4), "without a price of its own, as input"


def test_a_cap_needs_a_price() -> None:
    settings_ = ModelSettings("new-model", "https://gate.example/v1", max_usd=1.0)
    with Memory(None) as memory:
        with pytest.raises(
            LanguageModelError, match="no price for model='new-model' of provider='gate.example'.*prices.toml"
        ):
            HttpModel(settings_, memory.ledger)
        HttpModel(ModelSettings("new-model", "https://gate.example/v1"), memory.ledger)
        HttpModel(ModelSettings("new-model", "http://localhost:1/v1", max_usd=1.0), memory.ledger)


@settings(max_examples=30)
@given(words=st.lists(st.sampled_from(["dropout", "0.25", "{", '"', "NDCG@10", "learning_rate", "层"]), max_size=50))
def test_the_estimate_grows_with_the_text(words: list[str]) -> None:
    text = " ".join(words)
    assert estimate_tokens(text) >= len(words)
    assert estimate_tokens(text + " more") > estimate_tokens(text)


@pytest.mark.parametrize("address", ["http://[x/v1", "http://localhost:99999/v1", "http://localhost:abc/v1"])
def test_an_address_that_cannot_be_one_is_refused(address: str) -> None:
    with pytest.raises(LanguageModelError, match="no http address"):
        ModelSettings("m", address)


@pytest.mark.parametrize("text", ["price = 5", '[price]\na = 1', '[[price]]\ninput = inf'])
def test_prices_that_are_no_rows_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(LanguageModelError, match="not usable"):
        PriceTable.load([path])


@pytest.mark.parametrize("text", ["[" * 100_000, "[" + "9" * 5000 + "]"])
def test_arguments_in_a_text_that_json_cannot_read_are_a_mistake_of_the_model(text: str) -> None:
    with pytest.raises(ValidationError, match="valid dictionary"):
        RunTrialArguments.model_validate({"changes": text})


def test_usage_by_model_that_is_no_object_is_left_out() -> None:
    result = {"type": "result", "usage": {"input_tokens": 1}, "modelUsage": {"a": 5, "b": {"inputTokens": 3}}}
    assert [(usage.model, usage.usage.input) for usage in read_usage(json.dumps(result))] == [("b", 3)]

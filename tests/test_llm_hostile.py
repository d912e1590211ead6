"""Replies of language models and servers that are hostile or broken, over real HTTP."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scripted_endpoint import Failure, ScriptedEndpoint
from tests.test_llm_client import ASK, both_wires, model_at
from virtualmle.memory.store import Memory


@pytest.fixture
def memory() -> Iterator[Memory]:
    with Memory(None) as opened:
        yield opened


def wire_body(wire: str, name: str, arguments: str, usage: str) -> str:
    """The text of a reply with one native call; `name`, `arguments` and `usage` are JSON as the server sends it."""
    if wire == "openai":
        call = f'{{"id": "a", "function": {{"name": {name}, "arguments": {arguments}}}}}'
        return f'{{"choices": [{{"message": {{"content": "", "tool_calls": [{call}]}}}}], "usage": {usage}}}'
    call = f'{{"type": "tool_use", "id": "a", "name": {name}, "input": {arguments}}}'
    return f'{{"content": [{call}], "stop_reason": "tool_use", "usage": {usage}}}'


HONEST = '{"prompt_tokens": 9, "completion_tokens": 5, "input_tokens": 9, "output_tokens": 5}'


@both_wires
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        pytest.param('"run"', '{"dropout": "\\ud800"}', id="a lone surrogate"),
        pytest.param('"run"', json.dumps('{"dropout": "\\ud800"}'), id="a lone surrogate within a text"),
        pytest.param('"\\udfff"', "{}", id="a lone surrogate as name"),
        pytest.param('"run"', '{"a": ' * 300 + "1" + "}" * 300, id="nested too deeply to be stored"),
        pytest.param('"run"', '{"dropout": NaN}', id="NaN"),
        pytest.param('"run"', '{"dropout": 1e999}', id="infinity"),
        pytest.param('["run"]', "{}", id="the name is a list"),
    ],
)
@pytest.mark.anyio
async def test_a_hostile_call_is_paid_once_and_read_again_as_it_was(
    memory: Memory, wire: str, name: str, arguments: str
) -> None:
    body = wire_body(wire, name, arguments, HONEST)
    with ScriptedEndpoint([Failure(200, "", body=body)]) as endpoint:
        model, asked = model_at(endpoint, wire, memory, []), dataclasses.replace(ASK, step="1")
        assert await model.complete(asked) == await model.complete(asked)
        assert len(endpoint.requests) == 1
    (totals,) = memory.ledger.totals()
    assert (totals.calls, totals.lost, totals.input, totals.output) == (1, 0, 9, 5)


@both_wires
@pytest.mark.parametrize("figure", ["1" + "0" * 30, "1" + "0" * 400, "-5", "NaN", "0", '"12"', "null"])
@pytest.mark.anyio
async def test_tokens_that_cannot_be_counts_are_estimated(memory: Memory, wire: str, figure: str) -> None:
    usage = re.sub(r"\d+", figure, HONEST)
    with ScriptedEndpoint([Failure(200, "", body=wire_body(wire, '"run"', "{}", usage))]) as endpoint:
        reply = await model_at(endpoint, wire, memory, []).complete(ASK)
    assert reply.usage.estimated and reply.usage.input > 0 and reply.usage.output > 0
    (totals,) = memory.ledger.totals()
    assert (totals.calls, totals.estimated, totals.input) == (1, 1, reply.usage.input)


@both_wires
@pytest.mark.anyio
async def test_a_key_that_a_server_repeats_in_escapes_is_not_stored(memory: Memory, wire: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk/canary/9f8e7d")
    file.chmod(0o600)
    body = wire_body(wire, '"run"', '{"note": "sk\\/canary\\/9f8e7d"}', HONEST)
    with ScriptedEndpoint([Failure(200, "", body=body)]) as endpoint:
        reply = await model_at(endpoint, wire, memory, [], key_file=file).complete(dataclasses.replace(ASK, step="1"))
    assert reply.calls[0].arguments == {"note": "[key]"}
    assert "canary" not in (memory.ledger.last_reply("s-1", "1") or "") + str(reply)

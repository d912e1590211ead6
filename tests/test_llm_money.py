"""The client and the ledger together: caps, warnings, replies that were paid, and kills at random moments."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.scripted_endpoint import Answer, Behaviour, Dropped, Received, ScriptedEndpoint
from virtualmle.agents.llm.client import HttpModel
from virtualmle.agents.llm.messages import Message, Reply, Request
from virtualmle.agents.llm.settings import ModelSettings
from virtualmle.data.errors import CostCapError, LanguageModelError
from virtualmle.memory.records import SessionRecord
from virtualmle.memory.store import Memory

PRICES = """
[[price]]
provider = "local"
model = "*"
input = 1000.0
output = 5000.0
source = "a test"
as_of = 2026-01-01
"""


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    file = tmp_path / "prices.toml"
    file.write_text(PRICES, encoding="utf-8")
    return file


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory(tmp_path / "memory.db") as opened:
        yield opened


def request(step: str = "1", text: str = "What next?") -> Request:
    return Request((Message("user", text),), max_output_tokens=20, session="s", step=step)


def model_at(endpoint: ScriptedEndpoint, memory: Memory, notices: list[str], **settings: Any) -> HttpModel:
    quick = {"first_wait_seconds": 0.001, "timeout_seconds": 60.0, "max_attempts": 3, **settings}
    return HttpModel(ModelSettings("m", endpoint.openai_url, **quick), memory.ledger, notices.append)


def ask(model: HttpModel, wanted: Request) -> Reply:
    return anyio.run(model.complete, wanted)


def test_money_is_the_endpoints_count_at_the_prices_of_the_file(memory: Memory, prices: Path) -> None:
    with ScriptedEndpoint([Answer("one two three", reasoning=7), Answer("four")]) as endpoint:
        model = model_at(endpoint, memory, [], prices=(prices,))
        ask(model, request("1"))
        ask(model, request("2"))
        spent = endpoint.tokens["input"] * 1000 + (endpoint.tokens["output"] + endpoint.tokens["reasoning"]) * 5000
    assert memory.ledger.spent("s") == pytest.approx(spent / 1e6)


def test_a_call_beyond_the_cap_is_refused_before_it_is_sent_and_warnings_come_in_time(
    memory: Memory, prices: Path
) -> None:
    notices: list[str] = []
    with ScriptedEndpoint(lambda _: Answer("word " * 20)) as endpoint:
        model = model_at(endpoint, memory, notices, prices=(prices,), max_usd=0.7)
        with pytest.raises(CostCapError, match=r"may cost 0\.1\d+ US dollars, and 0\.[56]\d+ .* of the cap of 0\.7000"):
            for step in range(20):
                ask(model, request(str(step)))
        assert len(endpoint.requests) == endpoint.answered == 6
        spent = memory.ledger.spent("s")
        assert spent is not None and spent <= 0.7
        with pytest.raises(CostCapError):  # and in a new process
            ask(model_at(endpoint, memory, [], prices=(prices,), max_usd=0.7), request("x"))
        assert len(endpoint.requests) == 6
    assert [notice.split("%")[0][:1] for notice in notices] == ["5", "8"], notices


def test_the_cap_of_the_session_holds_too(memory: Memory, prices: Path) -> None:
    record = SessionRecord(
        id="s", dataset="demo", dataset_id="d", backbone="sasrec", protocol_hash="h", protocol_text="t", max_trials=3,
        max_train_seconds=9.0, profile={}, max_llm_usd=0.05,
    )  # fmt: skip
    memory.sessions.open(record)
    with ScriptedEndpoint([]) as endpoint, pytest.raises(CostCapError, match="max_llm_usd"):
        ask(model_at(endpoint, memory, [], prices=(prices,)), request())
    settings = ModelSettings("unknown", "https://gate.example/v1")
    with pytest.raises(LanguageModelError, match="there is no price"):
        ask(HttpModel(settings, memory.ledger), request())


def test_a_reply_that_was_paid_is_returned_again_for_the_same_step_and_request_only(memory: Memory) -> None:
    with ScriptedEndpoint([Answer("first"), Answer("second"), Answer("third"), Answer("fourth")]) as endpoint:
        model = model_at(endpoint, memory, [])
        first = ask(model, request("1"))
        assert ask(model_at(endpoint, memory, []), request("1")) == first, "another process resumes the step"
        assert ask(model, request("2")).text == "second"
        assert ask(model, request("1", "Something else?")).text == "third"
        assert ask(model, request("")).text == "fourth", "a call without a step is always made"
        assert endpoint.answered == 4
    (totals,) = memory.ledger.totals("s")
    assert totals.calls == 4


def test_a_dropped_connection_is_counted_at_its_reservation(memory: Memory, prices: Path) -> None:
    with ScriptedEndpoint([Dropped(), Answer("ok")]) as endpoint:
        ask(model_at(endpoint, memory, [], prices=(prices,)), request())
    (totals,) = memory.ledger.totals("s")
    assert (totals.calls, totals.lost) == (1, 1)
    assert totals.usd is not None and totals.lost_usd is not None and totals.lost_usd > totals.usd > 0
    assert memory.ledger.spent("s") == pytest.approx(totals.usd + totals.lost_usd)


def test_a_reservation_that_a_killed_process_left_is_marked_at_the_next_call_of_the_session(memory: Memory) -> None:
    left = memory.ledger.reserve("s", "1", "r", provider="local", model="m", usd=0.1)
    other = memory.ledger.reserve("another", "1", "r", provider="local", model="m", usd=0.1)
    with ScriptedEndpoint([Answer("ok")]) as endpoint:
        ask(model_at(endpoint, memory, []), request())
    states = dict(memory.database.db.execute("SELECT id, state FROM llm_calls").fetchall())
    assert (states[left], states[other]) == ("lost", "reserved")


WORK = """
import sys, anyio
from pathlib import Path
from virtualmle.agents.llm.client import HttpModel
from virtualmle.agents.llm.messages import Message, Request
from virtualmle.agents.llm.settings import ModelSettings
from virtualmle.memory.store import Memory
memory = Memory(Path(sys.argv[1]))
model = HttpModel(ModelSettings("m", sys.argv[2]), memory.ledger)
for step in range(6):
    asked = Request((Message("user", f"step {step}"),), session="s", step=str(step))
    print(anyio.run(model.complete, asked).text, flush=True)
"""


def test_killed_at_random_moments_it_resumes_and_pays_no_reply_twice(tmp_path: Path) -> None:
    moments, path = random.Random(4), tmp_path / "memory.db"
    running: list[int] = []

    def kill(process: int) -> None:
        with suppress(ProcessLookupError):  # an earlier kill was quicker
            os.kill(process, signal.SIGKILL)

    def answer(received: Received) -> Behaviour:
        if received.number <= 5:  # kill the client before, while or after it reads and stores the reply
            threading.Timer(moments.uniform(0.0, 0.05), kill, (running[-1],)).start()
        return Answer(f"reply to {received.body['messages'][-1]['content']}", delay=0.02)

    with ScriptedEndpoint(answer) as endpoint:
        for _ in range(12):
            command = [sys.executable, "-P", "-c", WORK, str(path), endpoint.openai_url]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            running.append(process.pid)
            output, errors = process.communicate(timeout=120)
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, errors
        assert output.splitlines() == [f"reply to step {step}" for step in range(6)]
        asked = Counter(received.body["messages"][-1]["content"] for received in endpoint.requests)
        answered = endpoint.answered
    assert len(running) > 1, "nothing was killed"
    with Memory(path) as memory:
        (totals,) = memory.ledger.totals("s")
        rows = memory.database.db.execute("SELECT step, count(*), sum(state = 'settled') FROM llm_calls GROUP BY step")
        for step, calls, settled in rows.fetchall():
            assert settled == 1, f"step {step} was paid {settled} times"
            assert asked[f"step {step}"] <= calls, "a request was sent without a reservation, or for a settled step"
    assert totals.calls == 6 <= answered <= totals.calls + totals.lost

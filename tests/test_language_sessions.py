"""Sessions of the agents that ask a language model, over real HTTP: misfortunes, costs to the token, limits, kills."""

import json
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.types import Implementation

from tests.language_models import engineer_answer, engineer_calls, opro_answer
from tests.quick_home import environment, quick_home
from tests.scripted_endpoint import (
    SERVER_ERROR,
    Answer,
    Behaviour,
    Call,
    Dropped,
    RateLimit,
    Received,
    Refused,
    ScriptedEndpoint,
    Truncated,
)
from virtualmle.agents.events import Event, Finalized, TrialRefused
from virtualmle.agents.events import Refused as CallRefused
from virtualmle.agents.llm.client import HttpModel
from virtualmle.agents.llm.settings import ModelSettings
from virtualmle.agents.loop import run_agent
from virtualmle.agents.registry import AgentOptions, make_agent
from virtualmle.data.errors import LanguageModelError
from virtualmle.memory.store import Memory
from virtualmle.sandbox.protocol import PACKAGED
from virtualmle.sandbox.reflection import needs_reflection
from virtualmle.server.app import build_server
from virtualmle.tools.results import FinalResult
from virtualmle.tools.workspace import Settings

KINDS = ("input", "cached", "cache_write", "output", "reasoning")
TUNE = [sys.executable, "-P", "-m", "virtualmle", "tune", "demo", "--threads", "1", "--keep-warm", "60"]


@pytest.fixture(autouse=True)
def importable_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


async def drive(
    home: Path, name: str, url: str, trials: int, on_event: Any = lambda _: None, **options: Any
) -> FinalResult:
    """One session with an agent that asks the model at `url`; errors are raised outside the client's task groups."""
    server = build_server(home, Settings(threads=1, keep_warm=60.0, max_trials=trials))
    failure: LanguageModelError
    with Memory(home / "memory.db") as memory:
        settings = ModelSettings("rules", url, timeout_seconds=2.0, first_wait_seconds=0.01)
        model = HttpModel(settings, memory.ledger)
        agent = make_agent(name, options=AgentOptions(model=model, **options))
        async with Client(server, client_info=Implementation(name="virtualmle-llm", version="1")) as client:
            try:
                return await run_agent(client, agent, "demo", "sasrec", on_event=on_event)
            except LanguageModelError as error:
                failure = error
    raise failure


def assert_ledger_equals(home: Path, endpoint: ScriptedEndpoint, lost: int = 0) -> None:
    """The ledger has the endpoint's own count of calls and of tokens by kind."""
    with Memory(home / "memory.db") as memory:
        (totals,) = memory.ledger.totals()
    assert {kind: getattr(totals, kind) for kind in KINDS} == {kind: endpoint.tokens[kind] for kind in KINDS}
    assert (totals.calls, totals.lost) == (endpoint.answered, lost)


MISFORTUNES: dict[int, Callable[[str], Behaviour]] = {
    1: lambda _: RateLimit("0.01"),
    2: lambda prompt: Truncated(calls=engineer_calls(prompt)),
    3: lambda prompt: Answer(calls=[*engineer_calls(prompt)[:-1], Call("run_trial", '{"changes": {"hidden_dim":')]),
    4: lambda _: Refused(),
    5: lambda _: SERVER_ERROR,
    6: lambda prompt: Answer(calls=engineer_calls(prompt), delay=4.0),  # the client waits 2 s
    7: lambda _: Dropped(),
    9: lambda _: Answer(calls=[Call("run_trial", {"changes": {"hidden_dim": 4096}})]),  # the server refuses it
    10: lambda _: Answer(calls=[Call("read_memory", {"view": "trial", "trial": "t099"})]),  # there is no such trial
    11: lambda _: Answer("Let me think."),
}


@pytest.mark.anyio
@pytest.mark.parametrize("wire", ["openai", "anthropic"])
async def test_a_session_survives_what_endpoints_do_and_its_ledger_is_exact(tmp_path: Path, wire: str) -> None:
    home, seen = quick_home(tmp_path / "home"), list[Event]()

    def script(received: Received) -> Behaviour:
        special = MISFORTUNES.get(received.number)
        return special(received.prompt) if special else engineer_answer(received.prompt)

    with ScriptedEndpoint(script) as endpoint:
        result = await drive(home, "llm", getattr(endpoint, f"{wire}_url"), 4, seen.append)
        assert result.state == "revealed" and isinstance(seen[-1], Finalized)
        assert_ledger_equals(home, endpoint, lost=2)
        prompts = [received.prompt for received in endpoint.requests]
    refused = [event.reason for event in seen if isinstance(event, TrialRefused | CallRefused)]
    assert any("hidden_dim=4096" in reason for reason in refused) and any("t099" in reason for reason in refused)
    for number, told in ((3, "cut off"), (4, "no JSON object"), (5, "you refused"), (10, "4096"), (11, "t099")):
        assert told in prompts[number - 1], f"request {number}"
    with Memory(home / "memory.db") as memory:
        trials = memory.trials.all(result.session)
    assert len(trials) == 4
    # A change drawn at random may be a re-scoring within noise, on which the protocol asks for no reflection.
    assert not [trial.handle for trial in trials if needs_reflection(trial, keep_z=1.0)]
    assert sum(trial.reflected for trial in trials) >= 2


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "trials"), [("opro", 8), ("hybrid", 8)])
async def test_opro_and_hybrid_run_to_their_end_and_their_ledger_is_exact(
    tmp_path: Path, name: str, trials: int
) -> None:
    home = quick_home(tmp_path / "home")
    answer = opro_answer if name == "opro" else engineer_answer
    troubles: dict[int, Behaviour] = {1: RateLimit("0.01"), 2: Truncated("[hidden_dim=8, batch")}

    def script(received: Received) -> Behaviour:
        return troubles.get(received.number) or answer(received.prompt, received.number)

    with ScriptedEndpoint(script) as endpoint:
        result = await drive(home, name, endpoint.anthropic_url, trials)
        assert_ledger_equals(home, endpoint)
    with Memory(home / "memory.db") as memory:
        session = memory.sessions.get(result.session)
        assert len(memory.trials.all(session.id)) == trials
        assert not session.with_reflection and not memory.reflections.all(session.id)


@pytest.mark.anyio
async def test_the_chat_driver_continues_its_conversation_in_another_process(tmp_path: Path) -> None:
    home = quick_home(tmp_path / "home")
    options = {"driver": "chat", "sessions": home / ".virtualmle" / "sessions"}

    def script(received: Received) -> Behaviour:
        return engineer_answer(received.prompt)

    with ScriptedEndpoint(script) as endpoint:
        with pytest.raises(LanguageModelError, match="--max-steps"):
            await drive(home, "llm", endpoint.openai_url, 4, max_steps=2, **options)
        before = len(endpoint.requests[-1].body["messages"])
        result = await drive(home, "llm", endpoint.openai_url, 4, **options)
        assert result.state == "revealed"
        assert len(endpoint.requests[2].body["messages"]) > before
        assert_ledger_equals(home, endpoint)
        asked = [len(received.body["messages"]) for received in endpoint.requests]
    assert asked == sorted(set(asked))  # every request continues the one before


@pytest.mark.anyio
async def test_too_many_malformed_replies_leave_a_session_that_can_be_resumed(tmp_path: Path) -> None:
    home = quick_home(tmp_path / "home")
    with ScriptedEndpoint(lambda _: Answer("I would rather talk.")) as endpoint:
        with pytest.raises(LanguageModelError, match="5 replies in a row .*the session is kept"):
            await drive(home, "llm", endpoint.openai_url, 2)
        assert endpoint.answered == 5
    with ScriptedEndpoint(lambda received: engineer_answer(received.prompt)) as endpoint:
        assert (await drive(home, "llm", endpoint.openai_url, 2)).state == "revealed"


def fast_page() -> str:
    """The packaged SANDBOX.md with its whole action space, but trials of one epoch."""
    return re.sub(r"(\| `epochs` \|.*?\| 1 … 100 \|) 20 \| 20", r"\1 1 | 1", PACKAGED.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_fourteen_trials_cost_less_than_80000_input_tokens(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    page = fast_page().replace("| `patience` | 12 |", "| `patience` | 14 |")  # the budget ends the session
    (home / "SANDBOX.md").write_text(page, encoding="utf-8")
    with ScriptedEndpoint(lambda received: engineer_answer(received.prompt)) as endpoint:
        options = ["--agent", "llm", "--model", "rules", "--base-url", endpoint.openai_url, "--trials", "14"]
        done = subprocess.run(
            [*TUNE, *options, "--home", str(home), "--json"], env=environment(), capture_output=True, text=True,
            timeout=400, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told = sum(endpoint.tokens[kind] for kind in ("input", "cached", "cache_write"))
        assert_ledger_equals(home, endpoint)
    assert done.stderr.count("\nt0") == 14 and told < 80_000, f"{told} tokens in {endpoint.answered} calls"
    (cost,) = json.loads(done.stdout)["llm"]
    assert cost["input"] + cost["cached"] == told and cost["usd"] == 0.0
    assert re.search(rf"model: {endpoint.answered} calls, {told:,} tokens in", done.stderr)


class Assassin:
    """Ends the running process at chosen requests: before the reply, or some time after it was sent."""

    def __init__(self, seed: int, kills: int) -> None:
        generator = random.Random(seed)
        gaps = [generator.randint(1, 2) for _ in range(kills)]
        kinds = [generator.choice(["before", "after", "interrupt"]) for _ in range(kills)]
        self.plan = {sum(gaps[: i + 1]): (kind, generator.uniform(0.0, 0.6)) for i, kind in enumerate(kinds)}
        self.victim: subprocess.Popen[str] | None = None

    def __call__(self, received: Received) -> Behaviour:
        kind, delay = self.plan.pop(received.number, ("", 0.0))
        if kind == "before":
            self.strike(signal.SIGKILL)
        elif kind:
            with_signal = signal.SIGINT if kind == "interrupt" else signal.SIGKILL
            threading.Timer(delay, self.strike, [with_signal]).start()
        return engineer_answer(received.prompt)

    def strike(self, with_signal: int) -> None:
        assert self.victim is not None
        self.victim.send_signal(with_signal)


@pytest.mark.parametrize("seed", [11, 12])
def test_a_session_that_is_killed_at_random_moments_runs_and_charges_nothing_twice(tmp_path: Path, seed: int) -> None:
    home, assassin, codes = quick_home(tmp_path / "home"), Assassin(seed, kills=4), []
    with ScriptedEndpoint(assassin) as endpoint:
        options = ["--agent", "llm", "--model", "rules", "--base-url", endpoint.openai_url, "--trials", "7"]
        command = [*TUNE, *options, "--home", str(home)]
        while 0 not in codes:
            with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
                assassin.victim = process
                _, errors = process.communicate(timeout=240)
            codes.append(process.returncode)
            assert process.returncode in (0, -signal.SIGKILL, 130), errors
            command = [*TUNE[:4], "sessions", "resume", "demo-sasrec-1", *TUNE[6:], "--home", str(home)]
        answered = endpoint.answered
    assert len(codes) >= 3  # of four strikes, two may fall on one process
    with sqlite3.connect(home / "memory.db") as db:
        trials = db.execute("SELECT count(*), count(DISTINCT config_hash) FROM trials").fetchone()
        steps = db.execute("SELECT count(*), count(DISTINCT step) FROM llm_calls WHERE state = 'settled'").fetchone()
        lost = db.execute("SELECT count(*) FROM llm_calls WHERE state = 'lost'").fetchone()[0]
    db.close()
    with Memory(home / "memory.db") as memory:
        unreflected = [trial for trial in memory.trials.all("demo-sasrec-1") if not trial.reflected]
    assert trials == (7, 7)
    # A process that is killed before it reflects on a re-scoring within noise leaves it so: the protocol asks for none.
    assert not [trial.handle for trial in unreflected if needs_reflection(trial, keep_z=1.0)]
    # A kill between the reservation and the request leaves a lost call that the endpoint has not answered.
    assert steps[0] == steps[1] and steps[0] <= answered <= steps[0] + lost


def test_options_of_the_model_are_checked_before_anything_is_prepared(tmp_path: Path) -> None:
    def refusal(*options: str) -> str:
        command = [*TUNE, "--home", str(tmp_path), *options]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        return done.stderr

    assert "--model qwen3:8b" in refusal("--agent", "llm")
    assert "ftp://x" in refusal("--agent", "opro", "--model", "m", "--base-url", "ftp://x")
    assert not (tmp_path / ".virtualmle" / "data").exists()

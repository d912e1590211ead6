"""No test information comes back through memory: a session that knows revealed figures writes them into every text.

Session A is revealed. Session B, on the same data, writes A's figures in many notations into every text and number that
the tools take. Session C, and whoever reads B, must find none of them, in any view, prior, search, resource or export;
nor are they in the long-term tables of memory.db. All of it goes over a real server on stdio.
"""

import asyncio
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.types import Implementation

from tests.quick_home import quick_home
from virtualmle.cli.headless import server_parameters
from virtualmle.examiner.request import TestResult, read_revealed
from virtualmle.memory.figures import UNVERIFIED
from virtualmle.memory.portable import collect
from virtualmle.memory.store import Memory
from virtualmle.tools.workspace import Settings

A, B, C = "demo-sasrec-1", "demo-sasrec-2", "demo-hstu-1"
WORD = "marzipan"  # marks every text that B writes
LONG_TERM = ("rules", "rule_statements", "rule_counts", "summaries", "effects", "configurations", "curves", "datasets")
VIEWS = ("state", "trajectory", "long_term", "action_space", "protocol", "brief")


def notations(value: float) -> list[str]:
    """A figure as texts may state it."""
    four = f"{value:.4f}"
    digits = four[2:]
    return [
        four, four[1:], four.replace(".", ","), f"{value:.6f}", f"{100 * value:.2f} %", f"{100 * value:.2f} percent",
        f"{digits}e-4", f"{10 * value:.3f}×10⁻¹", " ".join(digits), f"{four[:4]} {four[4:]}",
        four.translate({ord("0") + d: ord("٠") + d for d in range(10)}),
        four.translate({ord("0") + d: ord("０") + d for d in range(10)}),
    ]  # fmt: skip


def told(test: TestResult) -> dict[str, list[str]]:
    """The notations of the revealed figures; recalls are left out, because a validation recall may equal them."""
    return {name: notations(value) for name, value in test.metrics.items() if "recall" not in name}


@dataclass
class World:
    """What A's reveal told, and what could be read afterwards."""

    home: Path
    test: TestResult
    seen: dict[str, str]
    receipt: dict[str, Any]


class _Play:
    def __init__(self, home: Path, client: Client) -> None:
        self.home, self.client = home, client
        self.seen: dict[str, str] = {}
        self.receipt: dict[str, Any] = {}

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        answer = await self.client.call_tool(tool, arguments)
        assert not answer.is_error and answer.structured_content is not None, answer.content
        return answer.structured_content

    async def tune(self, session: str, **extra: Any) -> None:
        for changes in ({}, {"transition_weight": 8.0}):
            trial = await self.call("run_trial", session=session, changes=changes, **extra.get("trial", {}))
            claims = extra.get("reflection", {})
            reflection = {"helped": "unclear", "dimension": "scoring", "lesson": "a model", **claims}
            answer = await self.call("write_reflection", session=session, trial=trial["trial"], **reflection)
            self.receipt = answer
        if extra:
            await self.call("write_reflection", session=session, trial="t002", amend=True, **reflection)

    async def spread(self, test: TestResult) -> None:
        """Session B: every text field, and every number that is a claim."""
        value = test.metrics["ndcg@10"]
        text = f"{WORD}: the test figures: " + "; ".join(n for each in told(test).values() for n in each)
        rules = [
            {"kind": "prefer", "statement": text, "condition": f"transition_weight >= {value:.6f}"},
            {"kind": "insight", "statement": text},
            {"kind": "avoid", "statement": text},
        ]
        hypothesis = {"dimension": text[-40:], "direction": "better", "size": value, "reason": text}
        claims = {"helped": "yes", "lesson": text, "next_step": text, "cause": text, "effect": value, "rule": rules[0]}
        trial = {"hypothesis": hypothesis, "override_reason": text}
        await self.tune(B, trial=trial, reflection=claims)
        await self.call("finalize", session=B, cognition_summary=text, rules=rules, confirm=True)

    async def read(self, test: TestResult) -> None:
        """Everything that C's agent can read, about all sessions."""
        opened = await self.call("open_session", dataset="demo", backbone="hstu")
        assert opened["session"] == C
        self.seen["brief of C"] = dumped(opened)
        self.seen["list_sessions"] = dumped(await self.call("list_sessions"))
        for session in (A, B, C):
            for view in VIEWS:
                self.seen[f"{view} of {session}"] = dumped(await self.call("read_memory", session=session, view=view))
            uri = f"session://{session}/trajectory"
            self.seen[uri] = str((await self.client.read_resource(uri)).contents)
        for trial in ("t001", "t002"):
            self.seen[f"trial {trial}"] = dumped(await self.call("read_memory", session=B, view="trial", trial=trial))
            self.seen[f"wait for {trial}"] = dumped(await self.call("wait_trial", session=B, trial=trial))
        queries = [WORD, "test NDCG", "transition weight", *(n for each in told(test).values() for n in each)]
        for query in queries:
            found = (await self.call("read_memory", session=C, view="long_term", query=query))["content"]["found"]
            self.seen[f"search for {query}"] = dumped(found)
        refused = await self.client.call_tool("finalize", {"session": A, "cognition_summary": "again", "confirm": True})
        self.seen["finalize A again"] = str(refused.content)


def dumped(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False)


async def _played(home: Path) -> World:
    settings = Settings(threads=1, device="cpu", keep_warm=30)
    info = Implementation(name="virtualmle", version="1")
    async with Client(server_parameters(home, settings), client_info=info) as client:
        play = _Play(home, client)
        await play.call("open_session", dataset="demo", backbone="sasrec")
        await play.tune(A)
        await play.call("finalize", session=A, cognition_summary="a model", confirm=True)
        test = read_revealed(home, A)
        assert test is not None
        assert (await play.call("open_session", dataset="demo", backbone="sasrec"))["session"] == B
        await play.spread(test)
        await play.read(test)
    with Memory(home / "memory.db") as memory:
        play.seen["export"] = collect(memory).model_dump_json()
    return World(home, test, play.seen, play.receipt)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return asyncio.run(_played(quick_home(tmp_path_factory.mktemp("canary") / "home")))


def test_nothing_that_a_later_session_reads_holds_a_revealed_figure(world: World) -> None:
    found = [
        f"{place}: {name} as {notation}"
        for place, text in world.seen.items()
        for name, each in told(world.test).items()
        for notation in each
        if notation in text and f"search for {notation}" != place
    ]
    assert not found, "\n".join(found)
    assert world.seen[f"trajectory of {B}"].count(UNVERIFIED) > 20, "B's texts are shown, with the figures masked"


def test_no_claimed_number_returns_with_more_than_one_digit(world: World) -> None:
    value = world.test.metrics["ndcg@10"]
    trial, trajectory = (json.loads(world.seen[place])["content"] for place in ("trial t002", f"trajectory of {B}"))
    assert trial["asked"]["size"] == trial["hypothesis"]["size_predicted"] == float(f"{value:.0e}")
    assert {row["effect"] for row in trajectory["reflections"]} == {float(f"{value:.0e}")}


def test_the_long_term_tables_hold_no_word_of_an_agent_that_may_know_test_figures(world: World) -> None:
    with sqlite3.connect(world.home / "memory.db") as db:
        rows = {table: dumped(db.execute(f"SELECT * FROM {table}").fetchall()) for table in LONG_TERM}
        for table in ("rules_fts", "summaries_fts"):
            query = f"SELECT count(*) FROM {table} WHERE {table} MATCH ?"
            assert db.execute(query, [WORD]).fetchone() == (0,)
    planted = [notation for each in told(world.test).values() for notation in each]
    found = [(table, notation) for table, text in rows.items() for notation in planted if notation in text]
    assert not found and not any(WORD in text for text in rows.values())
    for place in (f"long_term of {C}", "brief of C", f"search for {WORD}", "export"):
        assert WORD not in world.seen[place], place


def test_what_trials_bear_out_is_passed_on_in_the_words_of_the_server(world: World) -> None:
    assert world.receipt["rule"]["check"] == "supported" and world.receipt["rule"]["rule_id"] is not None
    with Memory(world.home / "memory.db") as memory:
        rules, summaries, kept = memory.rules.all(), memory.summaries.all(), memory.kept_texts.all(B)
    assert [(rule.kind, rule.condition, rule.check) for rule in rules] == [
        ("prefer", "transition_weight >= 8.0", "supported")
    ]
    assert rules[0].statement.startswith("prefer transition_weight >= 8.0: validation NDCG@10 +0.")
    assert "transition_weight >= 8.0" in world.seen["brief of C"]
    assert [summary.text == "a model" for summary in summaries] == [True, False]
    assert summaries[1].text.startswith("sasrec on demo, computed by the server: best of 2 trials is t002")
    assert [(text.kind, WORD in text.text) for text in kept] == [("rule", True)] * 6 + [("summary", True)]


def test_a_person_still_reads_what_the_agent_wrote(world: World) -> None:
    with Memory(world.home / "memory.db") as memory:
        reflection = memory.reflections.all(B)[1]
    assert reflection.after_reveal and f"{world.test.metrics['ndcg@10']:.4f}" in reflection.lesson

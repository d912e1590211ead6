"""The cost ledger in memory.db: reservations, caps, kills, imports."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtualmle.data.errors import CostCapError, SessionError
from virtualmle.memory.ledger import ImportedUsage, Ledger
from virtualmle.memory.records import SessionRecord
from virtualmle.memory.store import Memory

TOKENS = {"input": 100, "cached": 20, "cache_write": 3, "output": 40, "reasoning": 5}


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory(tmp_path / "memory.db") as opened:
        yield opened


def open_session(memory: Memory, max_llm_usd: float | None = None) -> str:
    record = SessionRecord(
        id="", dataset="demo", dataset_id="d", backbone="sasrec", protocol_hash="h", protocol_text="t", max_trials=3,
        max_train_seconds=9.0, profile={}, max_llm_usd=max_llm_usd,
    )  # fmt: skip
    return memory.sessions.open(record).id


def reserve(ledger: Ledger, session: str, usd: float | None = 0.1, max_usd: float | None = None) -> int:
    return ledger.reserve(session, "1", "request", provider="p", model="m", usd=usd, max_usd=max_usd)


def test_a_settled_call_has_its_tokens_and_money_and_raises_the_cost_of_its_session(memory: Memory) -> None:
    session, ledger = open_session(memory), memory.ledger
    call = reserve(ledger, session)
    assert ledger.spent(session) == pytest.approx(0.1), "reserved money counts"
    ledger.settle(call, TOKENS, usd=0.04, reply={"text": "ok"})
    (totals,) = ledger.totals(session)
    assert {kind: getattr(totals, kind) for kind in TOKENS} == TOKENS
    assert (totals.calls, totals.lost, totals.usd, totals.lost_usd) == (1, 0, 0.04, 0.0)
    assert memory.sessions.get(session).llm_usd == pytest.approx(0.04)
    assert ledger.last_reply(session, "1") == '{"text": "ok"}'
    assert ledger.last_reply(session, "1", "another request") is None
    assert ledger.last_reply(session, "2") is None


def test_a_call_ends_once(memory: Memory) -> None:
    call = reserve(memory.ledger, "s")
    memory.ledger.settle(call, TOKENS, usd=0.04, reply={})
    with pytest.raises(AssertionError, match="ended already"):
        memory.ledger.settle(call, TOKENS, usd=0.04, reply={})
    with pytest.raises(AssertionError, match="ended already"):
        memory.ledger.release(call, "no")
    with pytest.raises(Exception, match="does not change"):
        memory.database.db.execute("UPDATE llm_calls SET usd = 0 WHERE id = ?", [call])


def test_a_released_call_costs_nothing_and_a_lost_one_its_reservation(memory: Memory) -> None:
    session, ledger = open_session(memory), memory.ledger
    ledger.release(reserve(ledger, session), "429")
    assert ledger.spent(session) == 0.0
    ledger.lose(reserve(ledger, session), "time-out")
    (totals,) = ledger.totals(session)
    assert (totals.calls, totals.lost, totals.usd, totals.lost_usd) == (0, 1, 0.0, 0.1)
    assert memory.sessions.get(session).llm_usd == pytest.approx(0.1)


def test_the_cap_refuses_a_call_before_it_is_sent(memory: Memory) -> None:
    ledger = memory.ledger
    reserve(ledger, "s", 0.6, max_usd=1.0)
    with pytest.raises(CostCapError, match=r"may cost 0\.5000 US dollars, and 0\.6000 .* of the cap of 1\.0000"):
        reserve(ledger, "s", 0.5, max_usd=1.0)
    assert ledger.spent("s") == pytest.approx(0.6), "the refused call left no row"
    reserve(ledger, "s", 0.4, max_usd=1.0)
    reserve(ledger, "another session", 0.9, max_usd=1.0)


def test_money_of_an_unknown_price_is_unknown_and_no_cap_is_kept_with_it(memory: Memory) -> None:
    ledger = memory.ledger
    call = reserve(ledger, "s", None)
    assert ledger.spent("s") is None
    ledger.settle(call, TOKENS, usd=None, reply={})
    (totals,) = ledger.totals("s")
    assert totals.usd is None
    with pytest.raises(CostCapError, match="unknown amount"):
        reserve(ledger, "s", 0.1, max_usd=1.0)


def test_two_threads_cannot_exceed_the_cap_together(memory: Memory) -> None:
    results: list[str] = []

    def spend() -> None:
        for _ in range(20):
            try:
                reserve(memory.ledger, "s", 0.1, max_usd=1.0)
                results.append("reserved")
            except CostCapError:
                results.append("refused")

    threads = [threading.Thread(target=spend) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("reserved") in (9, 10)  # 10 × 0.1 may be a rounding error above 1
    assert (memory.ledger.spent("s") or 0.0) <= 1.0 + 1e-9


def test_a_session_knows_the_cap_that_it_was_opened_with(memory: Memory) -> None:
    assert memory.ledger.cap(open_session(memory, 2.5)) == 2.5
    assert memory.ledger.cap(open_session(memory)) is None
    assert memory.ledger.cap("") is None


KILLED = """
import os, signal, sys
from pathlib import Path
from virtualmle.memory.store import Memory
memory = Memory(Path(sys.argv[1]))
call = memory.ledger.reserve("s", "1", "request", provider="p", model="m", usd=0.1)
if sys.argv[2] == "after settling":
    memory.ledger.settle(call, {"input": 7}, usd=0.04, reply={"text": "paid"})
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["before settling", "after settling"])
def test_a_killed_process_leaves_a_state_that_the_next_one_uses(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "memory.db"
    done = subprocess.run([sys.executable, "-P", "-c", KILLED, path, moment], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    with Memory(path) as memory:
        left = memory.ledger.reclaim("s")
        (totals,) = memory.ledger.totals("s")
        if moment == "before settling":
            assert (left, totals.calls, totals.lost, totals.lost_usd) == (1, 0, 1, 0.1)
            assert memory.ledger.last_reply("s", "1", "request") is None
        else:
            assert (left, totals.calls, totals.lost, totals.usd) == (0, 1, 0, 0.04)
            assert memory.ledger.last_reply("s", "1", "request") == '{"text": "paid"}'
        assert memory.ledger.reclaim("s") == 0


def test_a_reservation_that_was_taken_for_abandoned_can_still_be_settled(memory: Memory) -> None:
    call = reserve(memory.ledger, "s")
    memory.ledger.reclaim("s")
    memory.ledger.settle(call, TOKENS, usd=0.04, reply={})
    assert memory.ledger.spent("s") == pytest.approx(0.04)


def imported(origin: str, tokens: int) -> ImportedUsage:
    return ImportedUsage(origin=origin, provider="anthropic", model="x", tokens={"input": tokens}, usd=0.5)


def test_imported_usage_is_counted_once_grows_and_stands_apart(memory: Memory) -> None:
    session, ledger = open_session(memory), memory.ledger
    assert ledger.import_usage(session, [imported("a", 10), imported("b", 5)]) == 2
    assert ledger.import_usage(session, [imported("a", 10), imported("b", 5)]) == 0
    assert ledger.import_usage(session, [imported("a", 12)]) == 1, "a running total that has grown"
    assert ledger.import_usage(session, [imported("a", 3)]) == 0
    reserve(ledger, session)
    by_source = {totals.source: totals for totals in ledger.totals(session)}
    assert (by_source["imported"].calls, by_source["imported"].input, by_source["imported"].usd) == (2, 17, 1.0)
    assert ledger.spent(session) == pytest.approx(0.1), "the cap is on what this client spends"
    with pytest.raises(SessionError, match="unknown session"):
        ledger.import_usage("nothing", [imported("a", 1)])


def test_quirks_are_remembered_per_address_and_model(memory: Memory) -> None:
    memory.ledger.learn("http://a", "m", {"x", "y"})
    memory.ledger.learn("http://a", "m", {"y", "z"})
    assert memory.ledger.quirks("http://a", "m") == {"y", "z"}
    assert memory.ledger.quirks("http://b", "m") == memory.ledger.quirks("http://a", "n") == frozenset()


amounts = st.one_of(st.none(), st.floats(0, 5))


@settings(max_examples=40)
@given(calls=st.lists(st.tuples(amounts, st.sampled_from(["settle", "lose", "release", "leave"]), amounts), max_size=8))
def test_the_spent_money_is_the_sum_of_what_counts(calls: list[tuple[float | None, str, float | None]]) -> None:
    counted: list[float | None] = []
    with Memory(None) as memory:
        for reserved, end, price in calls:
            call = reserve(memory.ledger, "s", reserved)
            if end == "settle":
                memory.ledger.settle(call, {}, usd=price, reply={})
            elif end == "lose":
                memory.ledger.lose(call, "")
            elif end == "release":
                memory.ledger.release(call, "")
            if end != "release":
                counted.append(price if end == "settle" else reserved)
        known = [usd for usd in counted if usd is not None]
        expected = pytest.approx(sum(known)) if len(known) == len(counted) else None
        assert memory.ledger.spent("s") == expected

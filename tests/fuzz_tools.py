"""A fuzzer of the wire and of all tools, and `check_invariants`, which walks what a server leaves in its home.

The server is a process of its own that replays a small table, so that no trial is trained. Valid calls of an agent and
fuzzed ones are mixed; every line gets an answer before the next one is written.
"""

import itertools
import json
import math
import random
import re
import sqlite3
import string
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.quick_home import environment
from virtualmle.data.prepared import read_manifest
from virtualmle.examiner.ledger import Ledger
from virtualmle.memory.records import SessionRecord, TrialRecord
from virtualmle.memory.store import Memory
from virtualmle.sandbox.program import trials_used
from virtualmle.training.cells import Cell
from virtualmle.training.metrics import metrics_from_ranks
from virtualmle.training.spec import RANKS, EpochRecord
from virtualmle.trials.replay_table import Footer, ReplayTable

MAX_TRIALS = 8
WIDTHS, WEIGHTS = (8, 16, 32), (0.0, 4.0, 8.0)
PAGE = f"""\
# Small grid

| rule | value |
|---|---|
| `metric` | ndcg@10 |
| `max_trials` | {MAX_TRIALS} |
| `max_train_seconds` | 60 |
| `trial_seconds` | 300 |
| `patience` | 10 |
| `keep_z` | 1.0 |
| `require_reflection` | true |

## capacity

| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| `hidden_dim` | 8, 16, 32 | 16 | 16 |

## scoring

| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| `transition_weight` | 0, 4, 8 | 0 | 0 |
"""
SERVE = """
import sys
from pathlib import Path
from virtualmle.server.serve import serve
from virtualmle.tools.workspace import Settings
serve(Path(sys.argv[1]), Settings(threads=1, replay=Path(sys.argv[2])))
"""
HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "fuzz", "version": "1"}}
MAX_ANSWER = 100_000  # bytes
INSIDE = re.compile(r"Traceback|site-packages|\w\.py\b")  # what only a traceback says
STATES = {"open", "frozen", "attempted", "revealed", "void"}
CONCLUDED = {"finished", "stopped", "crashed", "cancelled"}


def write_table(dataset_dir: Path, path: Path) -> Path:
    """A replay table with made-up ranks for every cell of PAGE; one configuration has failed."""
    manifest, rng = read_manifest(dataset_dir), np.random.default_rng(5)
    cells = []
    for backbone, width, weight in itertools.product(("sasrec", "hstu"), WIDTHS, WEIGHTS):
        settings: dict[str, Any] = {} if width == 16 else {"hidden_dim": width}
        settings |= {"transition_weight": weight} if weight else {}
        ranks = rng.integers(1, 61, manifest.num_ranked).astype(np.uint8)
        metrics = metrics_from_ranks(ranks.astype(np.int32))
        epoch = EpochRecord(epoch=1, loss=1.0, ndcg10=metrics["ndcg@10"], train_seconds=1.0, evaluate_seconds=0.1)
        measured = {"train_seconds": 4.0, "evaluate_seconds": 0.5, "score_seconds": 0.5, "wall_seconds": 5.0}
        if (width, weight) == (32, 8.0):
            cells.append(Cell(backbone=backbone, settings=settings, cause="the loss was not finite", **measured))
            continue
        cells.append(
            Cell(
                backbone=backbone, settings=settings, metrics=metrics, model_ndcg10=metrics["ndcg@10"],
                train_ndcg10=0.5, parameters=1000, best_epoch=1, curve=[epoch], ranks=ranks, **measured,
            )
        )  # fmt: skip
    ReplayTable(path, Footer(page=PAGE, dataset=manifest, seed=0, clock="processor", provenance={}), cells).write()
    return path


class Server:
    """A server over stdio, one line at a time."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._ids = itertools.count(1)
        self._answered = 0  # messages with an id, or an error without one

    def send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """The next message; an empty line means that the server has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server has ended"
        assert len(line) < MAX_ANSWER, f"an answer of {len(line):,} bytes"
        message: dict[str, Any] = json.loads(line)
        self._answered += "id" in message
        return message

    def ask(self, method: str, params: Any) -> dict[str, Any]:
        """The answer to a request; a damaged line that was a call after all may be answered before it."""
        number = next(self._ids)
        self.send(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode())
        while (message := self.receive()).get("id") != number:
            check_answer(message)
        return message

    def survive(self, line: bytes) -> None:
        """Send a line of any kind, and then a ping, which must be answered, and before it a line that is not JSON."""
        answered = self._answered
        self.send(line)
        assert "result" in self.ask("ping", {})
        assert self._answered > answered + 1 or _is_json(line), line


def _is_json(line: bytes) -> bool:
    """Whether a line is JSON to a tolerant parser, or blank."""
    try:
        json.loads(line.strip().decode() or "{}")
    except ValueError:
        return False
    return True


@contextmanager
def served(home: Path, table: Path, log: Path) -> Iterator[Server]:
    """A server over `home`; it logs to the file `log`."""
    command = [sys.executable, "-P", "-c", SERVE, str(home), str(table)]
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment()
        ) as process,
    ):
        server = Server(process)
        try:
            server.ask("initialize", HELLO)
            yield server
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()


@dataclass
class Fuzzer:
    """Draws calls: those of an agent that knows the protocol, and mutations of them."""

    rng: random.Random
    victim: Path  # a file outside the home, which path-like texts name
    sessions: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def step(self, server: Server) -> None:
        """One call or line, with its answer checked."""
        kind = self.rng.choices(("valid", "mutated", "wild", "raw"), (35, 40, 15, 10))[0]
        self.counts[kind] += 1
        if kind == "raw":
            server.survive(self._damaged_line())
            return
        name, arguments = self._valid()
        if kind == "mutated":
            arguments = self._mutated(arguments)
        if kind == "wild":
            name = self.rng.choice([name, "no_tool", "../finalize", "__import__", ""])
            arguments = {self._text(): self._value() for _ in range(self.rng.randrange(4))}
        params: Any = {"name": name, "arguments": arguments}
        if kind == "wild" and self.rng.random() < 0.3:
            params = self.rng.choice([{"name": name}, {"name": self._value(), "arguments": self._value()}, {}])
            params |= {"_meta": self._value()} if self.rng.random() < 0.5 else {}
        answer = server.ask("tools/call", params)
        check_answer(answer)
        self._learn(answer.get("result", {}).get("structuredContent") or {}, kind)

    def _learn(self, content: dict[str, Any], kind: str) -> None:
        self.counts[f"{kind} answered"] += bool(content)
        if content.get("brief") or "action_space" in content:
            self.sessions.append(content["session"])
        if content.get("state") == "revealed":
            self.counts["finalized"] += 1

    def _valid(self) -> tuple[str, dict[str, Any]]:
        """A call that an agent could make now, and which may still be refused for the state of its session."""
        rng = self.rng
        session = rng.choice(self.sessions[-3:]) if self.sessions else "tiny-sasrec-1"
        trial = f"t{min(rng.randrange(1, MAX_TRIALS + 1) for _ in range(3)):03d}"  # a session begins with few trials
        settings = [{"transition_weight": weight} for weight in rng.sample(WEIGHTS[1:], rng.randrange(1, 3))]
        changes = rng.choice([{}, {"hidden_dim": rng.choice(WIDTHS)}, settings[0], {"hidden_dim": 8} | settings[0]])
        reflection = {
            "helped": rng.choice(["yes", "no", "unclear"]), "dimension": rng.choice(["capacity", "scoring"]),
            "lesson": self._text() or "none", "effect": rng.choice([None, 0.01, -0.3]), "evidence": [trial],
            "rule": rng.choice([None, {"kind": "avoid", "statement": self._text() or "x"}]),
        }  # fmt: skip
        calls: list[tuple[str, int, dict[str, Any]]] = [
            ("open_session", 3, {"dataset": "tiny", "backbone": rng.choice(["sasrec", "hstu"]),
                                 "new": rng.random() < 0.2}),
            ("run_trial", 8, {"session": session, "changes": changes, "base": rng.choice(["default", "incumbent"])}),
            ("run_trial", 3, {"session": session, "hypothesis": {"dimension": "", "size": 0.0}, "base": "",
                              "changes_list": [{"knob": name, "value": str(given)} for name, given in changes.items()]
                              }),
            ("sweep", 3, {"session": session, "settings": settings}),
            ("sweep", 1, {"session": session, "settings_list": [f"transition_weight={weight}" for weight in WEIGHTS]}),
            ("wait_trial", 2, {"session": session, "trial": trial}),
            ("cancel_trial", 1, {"session": session, "trial": trial}),
            ("read_memory", 3, {"session": session, "trial": trial, "query": self._text(),
                                "view": rng.choice(["state", "trajectory", "trial", "long_term", "action_space",
                                                    "protocol", "brief"])}),
            ("write_reflection", 8, {"session": session, "trial": trial, **reflection}),
            ("finalize", 1, {"session": session, "cognition_summary": self._text(), "confirm": rng.random() < 0.5}),
            ("list_sessions", 1, {}),
        ]  # fmt: skip
        name, _, arguments = rng.choices(calls, [weight for _, weight, _ in calls])[0]
        return name, arguments

    def _mutated(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments with one or two of them changed, left out or added."""
        changed = dict(arguments)
        for _ in range(self.rng.randrange(1, 3)):
            name = self.rng.choice([*arguments, self._text(), "seed", "split", "wait_seconds"])
            change = self.rng.random()
            if change < 0.15:
                changed.pop(name, None)
            elif change < 0.4 and isinstance(changed.get(name), dict):
                knob = self.rng.choice(["hidden_dim", "lr", "seed", self._text()])
                changed[name] = {**changed[name], knob: self._value()}
            else:
                changed[name] = 0 if name == "wait_seconds" and change < 0.7 else self._value()
        return changed

    def _value(self, depth: int = 0) -> Any:
        """Any JSON value, and NaN and infinities, which Python writes."""
        rng = self.rng
        leaves: list[Any] = [
            self._text(),
            self._text(),
            rng.choice([0, -1, 1, 2**31, -(2**63), 2**64, 10**40, 10**4000, rng.randrange(100)]),
            rng.choice([math.nan, math.inf, -math.inf, 1e308, 5e-324, -0.0, 0.1, 8.000001]),
            rng.choice([None, True, False]),
            rng.choice([[], {}, "t001", ["t001", "t002"], "incumbent"]),
        ]
        kind = rng.randrange(9) if depth < 4 else 0
        if kind == 6:
            return [self._value(depth + 1) for _ in range(rng.randrange(5))]
        if kind == 7:
            return {self._text(): self._value(depth + 1) for _ in range(rng.randrange(5))}
        return self._nested() if kind == 8 else rng.choice(leaves)

    def _nested(self) -> Any:
        """A value in as many levels as the parser accepts, or fewer."""
        nested: Any = self.rng.choice([0, "x", None])
        for _ in range(self.rng.choice([10, 100, 180])):
            nested = [nested] if self.rng.random() < 0.5 else {"a": nested}
        return nested

    def _text(self) -> str:
        rng = self.rng
        return rng.choice(
            [
                "", " ", "t001", "tiny", "../../victim.txt", str(self.victim), f"{self.victim}\0", "/etc/passwd",
                "~/x", "..", ".", "CON", "a/b", "a\\b", "file:///etc/passwd", "\0", "\x1b[2J\x07", "\u202eabc\u200b",
                "\U0001f600" * 50, "e\u0301\ufb01\u1e9e", "'; DROP TABLE trials; --", "NEAR(\" * ^ : AND OR",
                "%s%n{0}{x}",
                "<script>", "None", "NaN", "null", "test NDCG@10 0.4242", "\u2028\r\n\t", "x" * 300, "y " * 20_000,
                "".join(rng.choices(string.printable, k=rng.randrange(30))), chr(rng.randrange(1, 0xD800)),
            ]
        )  # fmt: skip

    def _damaged_line(self) -> bytes:
        """A line whose bytes are not those of a client: cut, changed or repeated, or none of a message at all."""
        rng = self.rng
        name, arguments = self._valid()
        params = {"name": name, "arguments": self._mutated(arguments)}
        line = json.dumps({"jsonrpc": "2.0", "id": "damaged", "method": "tools/call", "params": params}).encode()
        start = rng.randrange(len(line))
        match rng.randrange(6):
            case 0:
                return line[:start]
            case 1:
                return line[:start] + rng.choice([b"\\ud800", b"\0", b"\xff", b"}", b'"', b"[" * 600]) + line[start:]
            case 2:
                return bytes(rng.choices(range(256), k=rng.randrange(50))).replace(b"\n", b"")
            case 3:
                return b"[" + line + b"," + line + b"]"
            case 4:
                return line[:start] + bytes([rng.randrange(256)]).replace(b"\n", b" ") + line[start + 1 :]
        return line.replace(b'"damaged"', rng.choice([b"null", b"1.5", b"[]", b"-1", b'""', b"1e400", b"true"]))


def check_answer(message: dict[str, Any]) -> None:
    """No answer shows the inside of the server: no traceback, and no error that the server did not expect."""
    text = json.dumps(message, ensure_ascii=False)
    assert not INSIDE.search(text), text[:2000]
    error = message.get("error", {})
    assert error.get("code") != -32603, message
    for block in message.get("result", {}).get("content", []):
        said = block.get("text", "")
        assert not (said.startswith("Error executing tool") and ": " not in said), f"an unexpected exception: {message}"
        assert not message["result"].get("isError") or len(said) < 5000, f"{len(said)} characters: {said[:1200]}"


def contents_of(folder: Path, without: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of every file and folder below `folder`, except those in `without`."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
        if not path.is_relative_to(without)
    }


def check_invariants(home: Path) -> None:
    """Walk memory.db, the ledger and the files of a home: AssertionError for a state that no calls may lead to."""
    with closing(sqlite3.connect(f"file:{home / 'memory.db'}?mode=ro", uri=True)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    with Memory(home / "memory.db") as memory:
        sessions = memory.sessions.all()
        for session in sessions:
            trials = memory.trials.all(session.id)
            every = [*trials, *memory.trials.repetitions(session.id)]
            _check_session(session, trials)
            for trial in every:
                _check_trial(home, trial)
            reflected = {reflection.trial for reflection in memory.reflections.all(session.id)}
            assert reflected <= {trial.handle for trial in trials if trial.status in CONCLUDED}, session.id
            _check_files(home, session, {trial.handle for trial in every})
    _check_looks(home, {session.id: session for session in sessions})
    folders = home / ".virtualmle" / "sessions"
    assert {path.name for path in folders.glob("*")} <= {session.id for session in sessions}
    assert not [path for path in home.rglob("*") if path.is_symlink()]


def _check_session(session: SessionRecord, trials: list[TrialRecord]) -> None:
    assert session.state in STATES and (session.frozen_at is None) == (session.state == "open"), session
    assert [trial.number for trial in sorted(trials, key=lambda trial: trial.number)] == list(
        range(1, len(trials) + 1)
    ), f"{session.id}: trials are numbered one by one"
    assert trials_used(trials) <= session.max_trials, f"{session.id} has used {trials_used(trials)} trials"
    ended = sorted((trial for trial in trials if trial.outcome), key=lambda trial: trial.order)
    spent = [trial.outcome.train_seconds for trial in ended if trial.outcome]
    assert sum(spent[: -session.parallel]) < session.max_train_seconds, f"{session.id}: a trial started without budget"
    assert sum(trial.status == "running" for trial in trials) <= (session.parallel if session.state == "open" else 0)
    finished = {trial.handle for trial in trials if trial.status == "finished"}
    assert session.selected is None or session.selected in finished, session
    assert session.selected is not None or session.state in ("open", "void"), session


def _check_trial(home: Path, trial: TrialRecord) -> None:
    name = f"{trial.session}/{trial.handle}"
    assert (trial.outcome is None) == (trial.status == "running"), name
    if trial.outcome is None:
        return
    assert trial.outcome.train_seconds >= 0 and trial.outcome.verdict in ("keep", "discard", "crash", None), name
    if trial.status == "crashed":
        assert trial.outcome.cause and trial.outcome.verdict == "crash", name
    if trial.status != "finished":
        return
    ranks = np.load(home / ".virtualmle" / "sessions" / trial.session / trial.handle / RANKS)
    assert ranks.dtype == np.int32 and ranks.ndim == 1 and ranks.min() >= 1, name
    expected = metrics_from_ranks(ranks)
    for metric, value in trial.outcome.metrics.items():
        assert math.isclose(value, expected[metric], rel_tol=1e-6, abs_tol=1e-9), f"{name}: {metric} of other ranks"


def _check_files(home: Path, session: SessionRecord, handles: set[str]) -> None:
    folder = home / ".virtualmle" / "sessions" / session.id
    found = {path.name for path in folder.glob("t[0-9]*")}
    assert found <= handles, f"{session.id} has files of unknown trials: {found - handles}"


def _check_looks(home: Path, sessions: dict[str, SessionRecord]) -> None:
    """A session that has been revealed has had exactly one look, and an open one none; a replayed one never has."""
    looks = Counter(look.session for look in Ledger(home / ".virtualmle" / "vault").looks())
    for session in sessions.values():
        most = 0 if session.replay or session.state in ("open", "frozen") else 1
        least = 1 if session.state == "revealed" and not session.replay else 0
        assert least <= looks[session.id] <= most, f"{session.id} ({session.state}) has had {looks[session.id]} looks"
    assert set(looks) <= set(sessions)


def fuzz(folder: Path, dataset_dir: Path, num_calls: int, seed: int) -> Counter[str]:
    """Send `num_calls` calls and lines to a new server in `folder`, and check its home; what was sent, counted."""
    home, victim = folder / "home", folder / "victim.txt"
    victim.write_text("not to be touched", encoding="utf-8")
    table = write_table(dataset_dir, folder / "table.parquet")
    log = folder.parent / f"{folder.name}.log"
    before = contents_of(folder, home)
    fuzzer = Fuzzer(random.Random(seed), victim)
    with served(home, table, log) as server:
        for number in range(num_calls):
            fuzzer.step(server)
            if number % 1000 == 999:
                check_invariants(home)
    check_invariants(home)
    assert contents_of(folder, home) == before, "a file outside the home was changed"
    said = log.read_text(encoding="utf-8")
    assert "Traceback" not in said, said
    return fuzzer.counts

"""The latency of the tools on a large memory: 100,000 trials and 20,000 rules by default.

Fills a memory.db as closed sessions leave it (sessions, trials, reflections, rules with counts, summaries, effects,
configurations), opens one more session with 30 trials, and measures the tools as plain functions: median wall-clock and
median CPU time of each. On a machine with other work, only the CPU time is meaningful. Prints a table, then one JSON
line.

    python benchmarks/bench_memory.py
    python benchmarks/bench_memory.py --trials 300 --rules 60 --repetitions 2    # a quick check that it runs
"""

import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from record import environment, parser_of

from virtualmle.memory.records import Hypothesis, ReflectionRecord, TrialOutcome, TrialRecord
from virtualmle.memory.text import content_key
from virtualmle.models.config import TrialConfig, fingerprint, train_hash
from virtualmle.sandbox.action_space import ActionSpace, Knob
from virtualmle.sandbox.proposals import value_at
from virtualmle.sandbox.protocol import MOST_SESSIONS
from virtualmle.tools.open_session import open_session
from virtualmle.tools.read_memory import read_memory
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.tools.write_reflection import RuleInput, write_reflection

LIMIT_MS = 50.0
DATASETS = 40
PER_SESSION = 30
WORDS = "wider deeper layers rates decay dropout transitions popular items help hurt sparse short long users".split()  # noqa: SIM905


def main() -> None:
    """Fill the memory, measure the calls and print the results."""
    parser = parser_of(__doc__)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--rules", type=int, default=20_000)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--home", type=Path, help="keep the files in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        ws = Workspace.open(arguments.home or Path(scratch), settings=Settings(threads=1, max_sessions=MOST_SESSIONS))
        ws.dataset("demo")
        fill(ws, arguments.trials, arguments.rules)
        rows = {name: measure(call, arguments.repetitions) for name, call in calls(ws, arguments.repetitions)}
        size = (ws.home / "memory.db").stat().st_size / 1e6
        ws.close()
    print(f"{arguments.trials:,} trials, {arguments.rules:,} rules, memory.db {size:.0f} MB")
    for name, (wall, cpu) in rows.items():
        print(f"{name:32} {wall:7.1f} ms wall {cpu:7.1f} ms CPU {'' if wall <= LIMIT_MS else 'over the limit'}")
    record = {"bench": "memory", **environment(), "trials": arguments.trials, "rules": arguments.rules}
    print(json.dumps({**record, "ms": rows, "limit_ms": LIMIT_MS}))


def measure(call: Callable[[], object], repetitions: int) -> tuple[float, float]:
    """Median wall-clock and CPU time of a call in milliseconds, after one warm-up call."""
    call()
    walls, cpus = [], []
    for _ in range(repetitions):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return 1000 * statistics.median(walls), 1000 * statistics.median(cpus)


def calls(ws: Workspace, repetitions: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """The calls to measure, with their names."""
    session = open_session(ws, "demo", "sasrec").session
    add_trials(ws, session, PER_SESSION)
    yield "open_session, new", lambda: open_session(ws, "demo", "hstu", new=True)
    yield "open_session, resumed", lambda: open_session(ws, "demo", "sasrec")
    for view in ("state", "trajectory", "long_term", "action_space", "protocol"):
        yield f"read_memory {view}", lambda view=view: read_memory(ws, session, view)  # type: ignore[misc]
    yield "read_memory trial", lambda: read_memory(ws, session, "trial", trial="t002")
    yield "read_memory long_term, search", lambda: read_memory(ws, session, "long_term", "dropout on sparse users")
    pending = iter([handle for _ in range(repetitions + 1) for handle in add_trials(ws, session, 1)])

    def reflect() -> None:
        condition = f"lr > {random.random():.6f}"
        rule = RuleInput(kind="prefer", statement=f"{sentence(random.Random())} {condition}", condition=condition)
        lesson = sentence(random.Random())
        write_reflection(ws, session, next(pending), "unclear", "optimisation", lesson, evidence=["t001"], rule=rule)

    yield "write_reflection with a rule", reflect


def fill(ws: Workspace, trials: int, rules: int) -> None:
    """Write closed sessions with trials, and rules with counts, in bulk, with the rows that the tools would write."""
    rng = random.Random(0)
    sessions = trials // PER_SESSION
    with ws.memory.database.writing() as db:
        profiles = [ws.dataset("demo").profile | {"users": int(10 ** rng.uniform(3, 6))} for _ in range(DATASETS)]
        for number, profile in enumerate(profiles):
            db.execute("INSERT OR IGNORE INTO datasets VALUES (?, ?)", [f"d{number}", json.dumps(profile)])
        for number in range(sessions):
            write_session(ws, db, number, json.dumps(profiles[number % DATASETS]), rng)
        for number in range(rules):
            write_rule(ws.protocol.space, db, number, json.dumps(profiles[number % DATASETS]), rng)


def insert(db: Any, table: str, *, on_conflict: str = "ABORT", **values: object) -> int:
    """Insert one row and return its rowid. on_conflict: SQLite's resolution for a row that exists already."""
    names, marks = ", ".join(f'"{name}"' for name in values), ", ".join("?" * len(values))
    sql = f"INSERT OR {on_conflict} INTO {table} ({names}) VALUES ({marks})"
    return int(db.execute(sql, list(values.values())).lastrowid)


def write_session(ws: Workspace, db: Any, number: int, profile: str, rng: random.Random) -> None:
    """Write one closed session with its trials, effects, configurations and summary."""
    space, backbone = ws.protocol.space, ("sasrec", "hstu")[number % 2]
    name, dataset = f"old-{number}", f"d{number % DATASETS}"
    data = {"dataset": dataset, "dataset_id": dataset, "backbone": backbone}
    insert(
        db, "sessions", id=name, **data, state="open", seed=0, protocol_hash="p", protocol_text="p" * 1000,
        max_trials=30, max_train_seconds=1.0, with_reflection=1, with_memory=1, profile=profile, client="",
        opened_at="then",
    )  # fmt: skip
    default = space.default(backbone).model_dump()
    for index in range(PER_SESSION):
        handle, config_hash = f"t{index + 1:03}", f"{number}-{index}"
        knob = rng.choice(space.knobs(backbone))
        changes = {knob.name: some_value(knob, rng)}
        config, ndcg = json.dumps(default | changes), 0.05 + rng.gauss(0, 0.002)
        insert(
            db, "trials", session=name, handle=handle, number=index + 1, base="default", changes=json.dumps(changes),
            config=config, config_hash=config_hash, train_hash="t", status="finished", verdict="discard",
            metrics=json.dumps({"ndcg@10": ndcg}), base_delta=0.001, base_delta_se=0.001, details="{}",
            curve=json.dumps([{"epoch": e, "loss": 1 / e} for e in range(1, 21)]), created_at="a", finished_at="b",
        )  # fmt: skip
        insert(
            db, "reflections", session=name, trial=handle, what_changed=knob.name, verdict="discard", helped="no",
            dimension=knob.dimension, evidence="[]", cause="", lesson=sentence(rng), next_step="", check="supported",
            check_note="", created_at="then",
        )  # fmt: skip
        insert(
            db, "effects", on_conflict="IGNORE", session=name, **data, knob=knob.name,
            value=json.dumps(changes[knob.name]), n=1, weight=2500.0, weighted=rng.gauss(0, 50),
        )  # fmt: skip
        if index < 5:
            insert(
                db, "configurations", session=name, trial=handle, **data, config=config, config_hash=config_hash,
                ndcg=ndcg,
            )  # fmt: skip
    insert(db, "summaries", session=name, **data, text=sentence(rng), computed="{}", profile=profile, created_at="then")
    db.execute("UPDATE sessions SET state = 'frozen', frozen_at = 'then' WHERE id = ?", [name])


def write_rule(space: ActionSpace, db: Any, number: int, profile: str, rng: random.Random) -> None:
    """Write one rule with the counts of two sessions."""
    backbone = ("sasrec", "hstu", None)[number % 3]
    knob = rng.choice(space.knobs(backbone or "sasrec"))
    value = some_value(knob, rng)
    shown = str(value).lower() if isinstance(value, bool) else str(value)  # as conditions write it
    statement = f"{sentence(rng)} {number}"
    counts = [(rng.randrange(4), rng.randrange(3)) for _ in range(2)]
    support, against = (sum(count[i] for count in counts) for i in (0, 1))
    data = {"dataset": f"d{number % DATASETS}", "dataset_id": f"d{number % DATASETS}"}
    rule = insert(
        db, "rules", kind=rng.choice(["prefer", "avoid", "insight"]), statement=statement, **data, evidence="[]",
        condition=f"{knob.name} {'>' if knob.low is not None else '=='} {shown}", backbone=backbone, profile=profile,
        session=f"old-{number}", support=support, contradiction=against, created_at="then", source=data["dataset"],
        check="supported" if support > against else "contradicted" if support < against else "unverified",
        words=content_key(statement), knob=knob.name,
    )  # fmt: skip
    for index, (pro, con) in enumerate(counts):
        session = f"old-{number + index}"
        insert(db, "rule_counts", rule=rule, session=session, support=pro, contradiction=con, evidence="[]", **data)


def add_trials(ws: Workspace, session: str, count: int) -> list[str]:
    """Add finished trials to an open session and return their handles; each has a reflection if `count` exceeds 1."""
    rng = random.Random(len(ws.memory.trials.all(session)))
    record = ws.memory.sessions.get(session)
    space = ws.session_protocol(record).space
    default = space.default(record.backbone)
    handles = []
    for _ in range(count):
        first = not ws.memory.trials.all(session)
        knob = rng.choice(space.knobs(record.backbone))
        changes = {} if first else {knob.name: some_value(knob, rng)}
        config = TrialConfig(**default.model_dump() | changes)
        trial = ws.memory.trials.start(TrialRecord(
            session=session, handle="", number=0, base="default", changes=changes, config=config.model_dump(),
            config_hash=fingerprint(config.model_dump()), train_hash=train_hash(config),
            hypothesis=Hypothesis(dimension="capacity"),
        ))  # fmt: skip
        outcome = TrialOutcome(
            status="finished", verdict="keep" if first else "discard", metrics={"ndcg@10": 0.05 + rng.gauss(0, 0.001)},
            ndcg_se=0.002, base_delta=None if first else rng.gauss(0, 0.001), base_delta_se=None if first else 0.0008,
            curve=[{"epoch": e, "loss": 5 / e, "ndcg10": 0.05, "seconds": 1.0} for e in range(1, 21)],
        )  # fmt: skip
        ws.memory.trials.finish(session, trial.handle, outcome)
        if count > 1:
            ws.memory.reflections.add(ReflectionRecord(
                session=session, trial=trial.handle, what_changed="", verdict="discard", helped="no",
                dimension="capacity", lesson=f"{sentence(rng)} {trial.handle}",
            ))  # fmt: skip
        handles.append(trial.handle)
    return handles


def some_value(knob: Knob, rng: random.Random) -> Any:
    """One of a few values of a knob, at random."""
    if knob.low is None:
        return rng.choice(knob.choices or (False, True))
    return value_at(knob, rng.choice([0.1, 0.3, 0.5, 0.7, 0.9]))


def sentence(rng: random.Random) -> str:
    """Eight random words in place of an agent's text."""
    return " ".join(rng.choices(WORDS, k=8))


if __name__ == "__main__":
    main()

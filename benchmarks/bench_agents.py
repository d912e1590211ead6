"""How many trials a search needs: the engineer, its ablations, and the engineer with memory, against random search.

    python benchmarks/bench_agents.py office.tsv.gz
    python benchmarks/bench_agents.py office.tsv.gz --sources beauty.tsv.gz tools.tsv.gz \\
        --set hidden_dim.high=64 hidden_dim.default=64 lr.default=0.001

With a low --epochs-cap, the default learning rate is too low to learn anything in so few epochs. Raise it for all arms,
as the second command does.
Every session (arm x backbone x seed) has its own home, and all have the same budget and protocol, one thread and a warm
worker. All figures are for validation: the homes contain no key, and no session is finalized. Finished sessions are
stored in --home and not repeated. Prints a table and one JSON line; writes benchmarks/results/agents-NAME.json and .md.
"""

import argparse
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from agent_table import summary_of, table
from record import HERE, RESULTS, environment, parser_of, save
from shuffle_memory import shuffled

from virtualmle.data.atomic import write_bytes
from virtualmle.data.catalogue import Catalogue
from virtualmle.examiner.vault import Vault
from virtualmle.memory.portable import collect, merge
from virtualmle.memory.store import Memory
from virtualmle.sandbox.page import ABSENT, RANGE_COLUMN
from virtualmle.sandbox.protocol import PACKAGED, load_protocol, parse_protocol

ARMS: dict[str, tuple[str, dict[str, Any]]] = {  # name: (agent, settings)
    "random": ("random", {}),
    "engineer": ("engineer", {}),
    "without reflection": ("engineer", {"with_reflection": False}),
    "without memory": ("engineer", {"with_memory": False}),
    "carried": ("engineer", {}),
    "placebo": ("engineer", {}),
}
INFORMED = ("carried", "placebo")
"""Arms that start with what the sessions on the sources have learnt; "placebo" gets it about the wrong knobs."""


def capped(text: str, epochs: int, trials: int, further: Sequence[str] = ()) -> str:
    """`text`, a SANDBOX.md, with at most `epochs` epochs per trial, and with `trials` trials as the only stop rule.

    further: other low, high or default values, such as "lr.default=0.001". All arms tune under this text.
    """
    for rule, value in {"max_trials": trials, "max_train_seconds": 10_000_000, "patience": trials}.items():
        text = _with_cells(text, rule, lambda cells, value=value: {"value": str(value)})
    for entry in (f"epochs.high={epochs}", f"epochs.default={epochs}", *further):
        path, _, value = entry.partition("=")
        knob, _, key = path.partition(".")
        text = _with_cells(text, knob, lambda cells, key=key, value=value: _narrowed(cells, key, value))
    parse_protocol(text)  # raises ProtocolError for values beyond the engine's bounds
    return text


def _narrowed(cells: dict[str, str], key: str, value: str) -> dict[str, str]:
    """The cells of a knob's row that change if its low, high or default (`key`) becomes `value`."""
    if key == "default":
        return {column: value for column in ("SASRec", "HSTU") if cells[column] != ABSENT}
    low, separator, high = re.split(r"( … )", cells[RANGE_COLUMN])
    scale = ", log" if high.endswith(", log") else ""
    ends = {"low": low, "high": high.removesuffix(scale), key: value}
    return {RANGE_COLUMN: f"{ends['low']}{separator}{ends['high']}{scale}"}


def _with_cells(text: str, name: str, changed: Callable[[dict[str, str]], dict[str, str]]) -> str:
    """The page with the cells that `changed` returns replaced in the row of the rule or knob `name`."""
    lines = text.split("\n")
    number = next(n for n, line in enumerate(lines) if line.startswith(f"| `{name}` |"))
    header = max(n for n in range(number) if lines[n].startswith("|---")) - 1
    columns, row = ([cell.strip() for cell in lines[n].strip("| ").split("|")] for n in (header, number))
    cells = dict(zip(columns, row, strict=False))
    lines[number] = f"| {' | '.join((cells | changed(cells)).values())} |"
    return "\n".join(lines)


class Bench:
    """The sessions of one experiment, with their homes in a directory that is named after the protocol's hash."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        text = self.protocol(arguments.epochs_cap, arguments.trials)
        self.base = arguments.home / "base"
        self.folder = arguments.home / hashlib.sha256(text.encode()).hexdigest()[:8]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sandbox = self.folder / "SANDBOX.md"
        write_bytes(self.sandbox, text.encode())
        self.prepared: dict[Path, str] = {}

    def protocol(self, epochs: int, trials: int) -> str:
        """The SANDBOX.md of this experiment, limited to `epochs` epochs per trial and to `trials` trials."""
        text = (self.arguments.sandbox or PACKAGED).read_text(encoding="utf-8")
        return capped(text, epochs, trials, self.arguments.set)

    def register(self, log: Path) -> str:
        """The log's dataset name. The base home prepares the log once, so that all sessions use the same ids."""
        self.base.mkdir(parents=True, exist_ok=True)
        if log not in self.prepared:
            self.prepared[log] = Catalogue(self.base).resolve(str(log), Vault(self.base).public_key())
        return self.prepared[log]

    def run_session(self, task: dict[str, Any]) -> dict[str, Any] | None:
        """Run a task's session, unless its result is stored, and return the result; None if the session fails."""
        home = Path(task["home"])
        result = home / f"{task['name']}.json"
        if not result.exists():
            data = home / ".virtualmle" / "data"
            if not (data / task["dataset"]).exists():  # copied without the vault, so that no test set can be opened
                shutil.copytree(self.base / ".virtualmle" / "data" / task["dataset"], data / task["dataset"])
            variables = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
            done = subprocess.run(
                [sys.executable, "-P", str(HERE / "agent_session.py")],
                input=json.dumps({**task, "result": str(result)}), text=True, env=variables, check=False,
            )  # fmt: skip
            if done.returncode:
                print(f"{task['name']} failed; run the command again to resume it", file=sys.stderr)
                return None
        session: dict[str, Any] = json.loads(result.read_bytes())
        return session

    def task(self, arm: str, backbone: str, seed: int) -> dict[str, Any]:
        """The task of one session, as agent_session.py reads it."""
        agent, settings = ARMS[arm]
        name = f"{arm.replace(' ', '-')}-{backbone}-{seed}"
        home = self.folder / name
        if arm in INFORMED:
            names = [self.register(log) for log in self.arguments.sources]
            settings = {**settings, "memory_from": names}
            seed_of = seed if arm == "placebo" else None
            carry_memory(self.folder / f"sources-{backbone}", home, self.sandbox, seed_of)
        return {
            "name": name, "arm": arm, "backbone": backbone, "seed": seed, "agent": agent, "settings": settings,
            "dataset": self.register(self.arguments.log), "home": str(home), "sandbox": str(self.sandbox),
            "trials": self.arguments.trials, "freeze": False,
        }  # fmt: skip

    def source_sessions(self, backbone: str) -> Callable[[], bool]:
        """A function that runs the sessions on the sources, in order and in one home, and says whether all finished."""
        arguments = self.arguments
        sandbox = self.folder / "SANDBOX-sources.md"
        write_bytes(sandbox, self.protocol(arguments.source_epochs, arguments.source_trials).encode())
        tasks = [
            {
                "name": f"source-{name}-{backbone}", "arm": "source", "backbone": backbone, "seed": 0,
                "agent": "engineer", "settings": {}, "dataset": name,
                "home": str(self.folder / f"sources-{backbone}"), "sandbox": str(sandbox),
                "trials": arguments.source_trials, "freeze": True,
            }
            for name in (self.register(log) for log in arguments.sources)
        ]  # fmt: skip
        return lambda: all(self.run_session(task) for task in tasks)


def carry_memory(source: Path, home: Path, sandbox: Path, seed: int | None) -> None:
    """Import what the home `source` has learnt into `home`, with knobs shuffled by `seed` if one is given.

    As `virtualmle memory export` and `import`. Has no effect if `home` has a memory.
    """
    target = home / "memory.db"
    if target.exists():
        return
    home.mkdir(parents=True, exist_ok=True)
    with Memory(source / "memory.db") as memory:
        cognition = collect(memory)
    if seed is not None:
        cognition = shuffled(cognition, load_protocol(sandbox).space, seed)
    unfinished = target.with_suffix(".new")  # a kill in between must not leave a home with an empty memory
    unfinished.unlink(missing_ok=True)
    with Memory(unfinished) as memory:
        merge(memory, cognition)
    unfinished.rename(target)


def run(bench: Bench, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the sessions without a stored result and return the results of all sessions that finished."""
    bench.register(arguments.log)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        if any(arm in INFORMED for arm in arguments.arms):
            runs = [bench.source_sessions(backbone) for backbone in arguments.backbones]
            if not all(pool.map(lambda run_sources: run_sources(), runs)):
                sys.exit("a source session failed, so that no other session was started; run the command again")
        tasks = [
            bench.task(arm, backbone, seed)
            for seed in range(arguments.seeds) for backbone in arguments.backbones for arm in arguments.arms
        ]  # fmt: skip
        sessions = list(pool.map(bench.run_session, tasks))
    return [session for session in sessions if session]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("log", type=Path, nargs="?", default=Path("office.tsv.gz"))
    parser.add_argument("--sources", type=Path, nargs="*", default=[], help="logs whose sessions fill the memory")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), help="default: all; carried, placebo need --sources")
    parser.add_argument("--backbones", nargs="*", choices=["sasrec", "hstu"], default=["sasrec", "hstu"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--epochs-cap", type=int, default=3, help="maximum number of epochs of a trial, for all arms")
    parser.add_argument("--set", nargs="*", default=[], help="other lows, highs, defaults, e.g. hidden_dim.high=64")
    parser.add_argument("--source-trials", type=int, default=12)
    parser.add_argument("--source-epochs", type=int, default=3)
    parser.add_argument("--sandbox", type=Path, help="the SANDBOX.md to use instead of the packaged one")
    parser.add_argument("--jobs", type=int, default=2, help="number of sessions in parallel, one thread each")
    parser.add_argument("--home", type=Path, default=Path("agents-home"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the result files")
    parser.add_argument("--name", help="name of the result files; default: the log's name")
    arguments = parser.parse_args()
    missing = [str(log) for log in (arguments.log, *arguments.sources) if not log.exists()]
    if missing:
        print(f"skipped: there is no {', '.join(missing)}; give the path of a log (user, item, timestamp)")
        return
    arguments.home = arguments.home.resolve()
    arguments.arms = arguments.arms or [arm for arm in ARMS if arguments.sources or arm not in INFORMED]
    if not arguments.sources and any(arm in INFORMED for arm in arguments.arms):
        parser.error("carried and placebo need --sources")
    bench = Bench(arguments)
    sessions = run(bench, arguments)
    write_record(arguments, bench.prepared[arguments.log], sessions)


def write_record(arguments: argparse.Namespace, dataset: str, sessions: list[dict[str, Any]]) -> None:
    """Print the table and the JSON line, and write both to benchmarks/results."""
    groups = {b: [s for s in sessions if s["backbone"] == b] for b in arguments.backbones} | {"both": sessions}
    if len(arguments.backbones) == 1:
        del groups["both"]
    summaries = {
        group: {arm: row for arm in arguments.arms if (row := summary_of(members, arm))}
        for group, members in groups.items()
    }
    options = {name: getattr(arguments, name) for name in ("seeds", "trials", "epochs_cap", "set", "jobs")}
    sources = {name: getattr(arguments, name) for name in ("source_trials", "source_epochs")}
    record = finite({
        "bench": "agents", "dataset": dataset, **environment(), **options, **sources,
        "sources": [log.name.split(".")[0] for log in arguments.sources], "summaries": summaries,
    })  # fmt: skip
    narrowed = f" ({', '.join(arguments.set)})" if arguments.set else ""
    about = (
        f"{dataset}, {arguments.trials} trials of at most {arguments.epochs_cap} epochs{narrowed}, {arguments.seeds} "
        f"seeds; {record['hardware']}, {record['cores']} cores, {arguments.jobs} sessions in parallel, one thread "
        f"each, {record['date']}, commit {record['commit']}"
    )
    text = f"{about}\n\n{table(summaries, arguments.trials)}\n"
    curves = [
        {name: session[name] for name in ("arm", "backbone", "seed", "seconds")}
        | {"ndcg@10": [trial["ndcg@10"] for trial in session["trials"]]}
        for session in sessions
    ]
    save(arguments.results / f"agents-{arguments.name or dataset}", {**record, "sessions": curves}, text)
    print(text)
    print(json.dumps(record))


def finite(value: Any) -> Any:
    """`value` with None for infinities, which JSON cannot represent; they stand for a level that was never reached."""
    if isinstance(value, dict):
        return {str(name): finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and math.isinf(value) else value


if __name__ == "__main__":
    main()

"""What the engineer gains from reflection, from memory and from memory of other datasets; uses `virtualmle compare`.

    python benchmarks/bench_agents.py office.tsv.gz
    python benchmarks/bench_agents.py office.tsv.gz --sources beauty.tsv.gz tools.tsv.gz \\
        --set epochs.high=3 epochs.default=3 hidden_dim.high=64 hidden_dim.default=64 lr.default=0.001

With --sources, `engineer+carried` starts with what the engineer learnt on them, and `engineer+placebo` with the same
knowledge about the wrong knobs (shuffle_memory.py, drawn anew for each seed). No session looks at a test set. Finished
sessions are not run again. The report is written into --out, as that of `virtualmle compare`.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from record import parser_of
from shuffle_memory import shuffled

from virtualmle.compare.comparison import Compared, Request, compare, plan_of, report_of
from virtualmle.compare.outcome import SessionResult
from virtualmle.compare.runner import Advance
from virtualmle.compare.sources import source_cognition
from virtualmle.compare.summary import summarise
from virtualmle.data.atomic import write_bytes
from virtualmle.memory.portable import read_cognition
from virtualmle.sandbox.protocol import parse_protocol

ABLATIONS = ("engineer", "engineer+without-reflection", "engineer+without-memory", "random")
CARRIED, PLACEBO = "engineer+carried", "engineer+placebo"


def show(step: Advance) -> None:
    """One line per session that ends."""
    if (step.result or step.error) and not step.stored:
        found = f"{step.result.final:.4f}" if step.result else f"failed: {step.error}"
        print(f"{step.task.key} {found}", file=sys.stderr, flush=True)


def placebo_sessions(request: Request) -> list[SessionResult]:
    """The sessions of the engineer with shuffled memory, one memory per backbone and seed, under the name PLACEBO."""
    plan, sources = plan_of(replace(request, arms=(CARRIED,)))
    found: list[SessionResult] = []
    for backbone, file in source_cognition(plan, sources, show).items():
        for seed in range(request.seeds):
            target = request.out / "placebo" / f"{backbone}-{seed}.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            memory = shuffled(read_cognition(file), parse_protocol(plan.page).space, seed)
            write_bytes(target, (memory.model_dump_json(indent=1) + "\n").encode())
            one = replace(
                request, arms=(CARRIED,), backbones=(backbone,), seeds=1, first_seed=seed, memory_from=(str(target),)
            )
            found += [result.model_copy(update={"arm": PLACEBO}) for result in compare(one, show).results]
    return found


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("log", type=Path, nargs="?", default=Path("office.tsv.gz"))
    parser.add_argument("--sources", type=Path, nargs="*", default=[], help="logs whose sessions fill the memory")
    parser.add_argument("--backbones", nargs="*", choices=["sasrec", "hstu"], default=["sasrec", "hstu"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--set", nargs="*", default=[], help="ends of ranges and defaults, e.g. hidden_dim.high=64")
    parser.add_argument("--sandbox", type=Path, help="the SANDBOX.md to use instead of the packaged one")
    parser.add_argument("--jobs", type=int, default=2, help="number of sessions in parallel, one thread each")
    parser.add_argument("--home", type=Path, default=Path("agents-home"))
    parser.add_argument("--out", type=Path, default=Path("agents-out"))
    arguments = parser.parse_args()
    missing = [str(log) for log in (arguments.log, *arguments.sources) if not log.exists()]
    if missing:
        print(f"skipped: there is no {', '.join(missing)}; give the path of a log (user, item, timestamp)")
        return
    compared, arms = run(arguments)
    paths = report_of(compared, summarise(compared.results, arms, arms[0], arguments.trials))
    print(paths[0].with_suffix(".md").read_text(encoding="utf-8"))
    print(paths[0])


def run(arguments: argparse.Namespace) -> tuple[Compared, list[str]]:
    """The sessions of all arms, and the names of the arms."""
    sources = tuple(map(str, arguments.sources))
    request = Request(
        home=arguments.home.resolve(),
        out=arguments.out.resolve(),
        datasets=(str(arguments.log),),
        arms=(*ABLATIONS, *((CARRIED,) if sources else ())),
        backbones=tuple(arguments.backbones),
        seeds=arguments.seeds,
        trials=arguments.trials,
        sandbox=arguments.sandbox,
        settings=tuple(arguments.set),
        memory_from=sources,
        jobs=arguments.jobs,
        look=False,
    )
    compared = compare(request, show)
    if not sources:
        return compared, list(request.arms)
    return replace(compared, results=[*compared.results, *placebo_sessions(request)]), [*request.arms, PLACEBO]


if __name__ == "__main__":
    main()

"""`make interop`: every suite against the real server, then one Markdown table; exit 1 on an unexpected failure.

    python -P tests/interop/run.py [--only NAME …] [--list] [--save]

A suite whose tool cannot be installed on this machine is skipped with the reason. `--only conformance` runs every suite
whose name begins with that word. `--save` writes the report to benchmarks/results/interop.md.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, for the imports below

from tests.interop import clients, conformance, frameworks, inspector, packages
from tests.interop.environments import ROOT, Missing
from tests.interop.outcome import Check, Outcome, details, skipped, summary, table

RESULT = ROOT / "benchmarks" / "results" / "interop.md"
DOCUMENT = "[docs/interop.md](../../docs/interop.md)"
SUITES: dict[str, Callable[[], Outcome]] = {
    "conformance-2025-06-18": lambda: conformance.run_conformance("2025-06-18"),
    "conformance-2025-11-25": lambda: conformance.run_conformance("2025-11-25"),
    "conformance-2026-07-28": lambda: conformance.run_conformance("2026-07-28"),
    "inspector": inspector.run_inspector,
    "typescript-1": lambda: clients.run_typescript_client("client_1.mjs"),
    "typescript-2": lambda: clients.run_typescript_client("client_2.mjs"),
    "python-1.9": lambda: clients.run_python_client("1.9"),
    "python-1.30": lambda: clients.run_python_client("1.30"),
    "converters": frameworks.run_converters,
    "session-openai-agents": lambda: frameworks.run_session("openai_agents"),
    "session-pydantic-ai": lambda: frameworks.run_session("pydantic_ai"),
    "bundle": packages.run_bundle,
    "registry": packages.run_registry,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen suites and print the report; 0 if nothing failed unexpectedly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="suites whose names begin so")
    parser.add_argument("--list", action="store_true", help="print the names of the suites and end")
    parser.add_argument("--save", action="store_true", help="write the report to benchmarks/results/interop.md")
    options = parser.parse_args(arguments)
    chosen = [name for name in SUITES if name.startswith(tuple(options.only))]
    if not chosen:
        parser.error(f"no suite begins with {' or '.join(options.only)}; the suites are {', '.join(SUITES)}")
    if options.list:
        print("\n".join(chosen))
        return 0
    outcomes = [outcome_of(name) for name in chosen]
    print(f"\n{table(outcomes)}\n\n{details(outcomes)}")
    if options.save:
        RESULT.write_text(page(outcomes, options.only), encoding="utf-8")
    return int(any(outcome.failed for outcome in outcomes))


def page(outcomes: Sequence[Outcome], only: Sequence[str]) -> str:
    """The report as a document: how it was made, the table, and what explains it."""
    command = " ".join(["make interop", *([f'ONLY="{" ".join(only)}"'] if any(only) else [])])
    made = f"`{command}` on {date.today().isoformat()}, Python {platform.python_version()}."
    explained = "\n".join(f"- {line}" for line in details(outcomes).splitlines())
    return f"# Other people's clients\n\n{made} What each suite does: {DOCUMENT}.\n\n{table(outcomes)}\n\n{explained}\n"


def outcome_of(name: str) -> Outcome:
    """Run one suite, and say on stderr how it went."""
    print(f"{name} …", file=sys.stderr, flush=True)
    began = time.monotonic()
    outcome = _run(name)
    took = f"{time.monotonic() - began:.0f} s"
    print(f"{name}: {summary(outcome)}, {took}", file=sys.stderr, flush=True)
    return outcome


def _run(name: str) -> Outcome:
    """The outcome of a suite: one that breaks has failed, one whose tool is missing is skipped."""
    try:
        return SUITES[name]()
    except Missing as missing:
        return skipped(name, str(missing))
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        return Outcome(name, checks=[Check("the suite ran to its end", False, f"{type(error).__name__}: {error}")])


if __name__ == "__main__":
    sys.exit(main())

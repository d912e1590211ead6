"""The bundle's manifest.json and the registry's server.json: what they start exists, and they say what README says.

Their schemas are checked by their own tools: `mcpb validate manifest.json` and `mcp-publisher validate server.json`.
"""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

import virtualmle
from virtualmle.cli.app import app

ROOT = Path(virtualmle.__file__).parent
MANIFEST = json.loads((ROOT / "manifest.json").read_text(encoding="utf-8"))
SERVER = json.loads((ROOT / "server.json").read_text(encoding="utf-8"))


def options_of_serve() -> set[str]:
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return {name for option in serve.params for name in option.opts}


def test_the_registry_entry_has_the_name_of_the_readme_and_a_short_description() -> None:
    assert f"<!-- mcp-name: {SERVER['name']} -->" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", SERVER["name"])
    assert 0 < len(SERVER["description"]) <= 100, "the registry refuses more than 100 characters"
    assert {SERVER["version"], MANIFEST["version"], *(package["version"] for package in SERVER["packages"])} == {
        virtualmle.__version__
    }


def test_the_registry_entry_starts_the_server() -> None:
    (package,) = SERVER["packages"]
    first, *named = package["packageArguments"]
    assert (package["registryType"], package["identifier"]) == ("pypi", "virtualmle")
    assert first == {"type": "positional", "value": "serve"} and package["transport"] == {"type": "stdio"}
    assert {argument["name"] for argument in named} <= options_of_serve()


def test_the_bundle_starts_the_server_from_its_own_directory() -> None:
    server = MANIFEST["server"]
    assert (MANIFEST["manifest_version"], server["type"]) == ("0.4", "uv")
    assert (ROOT / server["entry_point"]).exists()
    arguments = server["mcp_config"]["args"]
    assert arguments[:5] == ["run", "--directory", "${__dirname}", "virtualmle", "serve"]
    assert {word for word in arguments[5:] if word.startswith("-")} <= options_of_serve()
    used = set(re.findall(r"\$\{user_config\.(\w+)\}", shlex.join(arguments)))
    assert used == set(MANIFEST["user_config"])


def test_the_bundle_contains_every_room_and_no_tests() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    ignored = {line.rstrip("/") for line in (ROOT / ".mcpbignore").read_text(encoding="utf-8").splitlines()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tops = {name.split("/")[0] for name in tracked.splitlines() if name.count("/")}
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert tops - ignored == rooms | {"sandboxes"}, "name what the bundle leaves out in .mcpbignore"

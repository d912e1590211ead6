"""`virtualmle install`: the entry of every client, and configuration files that keep everything else."""

import json
import os
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from mcp import Client as McpClient
from mcp import StdioServerParameters

from virtualmle.cli import json_entry, toml_entry
from virtualmle.cli.app import main
from virtualmle.cli.client_entry import BACKUP, launch_command
from virtualmle.cli.mcp_clients import CLIENTS, Place
from virtualmle.data.errors import ClientConfigError

Run = Callable[..., tuple[int, str, str]]
ENTRY = {"command": "/opt/virtualmle", "args": ["serve", "--home", "/srv/home"]}
JSON_CLIENTS = [name for name in CLIENTS if name != "codex"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A user's home without any client; the working directory is a project in it."""
    for name in ("XDG_CONFIG_HOME", "CODEX_HOME", "CLAUDE_CONFIG_DIR", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(project)
    return Place(sys.platform, {}, tmp_path, project)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], place: Place) -> Run:
    """Run `virtualmle install` in this process; returns exit code, stdout and stderr."""

    def command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["install", *arguments])
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return command


def file_of(client: str, place: Place, text: str | None = None) -> Path:
    """The configuration file of a client that has run here; with `text` in it, if any is given."""
    CLIENTS[client].marks(place)[0].mkdir(parents=True, exist_ok=True)
    path = CLIENTS[client].file(place)
    if text is not None:
        path.write_bytes(text.encode())
    return path


def entry_in(client: str, path: Path) -> dict[str, object]:
    text = path.read_text(encoding="utf-8")
    found: dict[str, object] = (tomllib.loads if client == "codex" else json.loads)(text)[CLIENTS[client].group]  # type: ignore[operator]
    return found["virtualmle"]  # type: ignore[return-value]


@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_gets_an_entry_with_absolute_paths_once(run: Run, place: Place, client: str) -> None:
    path = file_of(client, place)
    code, out, err = run("--client", client, "--home", "../models")
    assert (code, err) == (0, "") and str(path) in out and CLIENTS[client].restart in out
    entry = entry_in(client, path)
    assert Path(str(entry["command"])).is_absolute() and os.access(str(entry["command"]), os.X_OK)
    assert entry["args"] == ["serve", "--home", str(place.home / "models")] and "env" not in entry
    assert entry.get("type") == ("stdio" if client == "vscode" else None)
    before = path.read_bytes()
    assert "nothing was changed" in run("--client", client, "--home", "../models")[1]
    assert path.read_bytes() == before and not path.with_name(path.name + BACKUP).exists()
    assert run("--client", client, "--home", "../other")[0] == 0
    assert entry_in(client, path)["args"] == ["serve", "--home", str(place.home / "other")]
    assert path.with_name(path.name + BACKUP).read_bytes() == before


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_that_has_not_run_here_is_said_and_print_works_without_it(
    run: Run, place: Place, client: str
) -> None:
    code, out, err = run("--client", client)
    assert (code, out) == (1, "") and f"{CLIENTS[client].title} has not run here" in err and "--print" in err
    assert not CLIENTS[client].file(place).exists()
    code, out, err = run("--client", client, "--print")
    group = (tomllib.loads if client == "codex" else json.loads)(out)[CLIENTS[client].group]  # type: ignore[operator]
    assert code == 0 and group["virtualmle"]["args"][-2:] == ["--home", str(place.working_directory)]
    assert str(CLIENTS[client].file(place)) in err and list(place.home.iterdir()) == [place.working_directory]


@pytest.mark.anyio
async def test_the_written_entry_starts_the_server(run: Run, place: Place, tmp_path: Path) -> None:
    path = file_of("cursor", place)
    assert run("--client", "cursor", "--home", str(tmp_path / "models"), "--env", "OMP_NUM_THREADS=1")[0] == 0
    entry = entry_in("cursor", path)
    assert entry["env"] == {"OMP_NUM_THREADS": "1"}
    async with McpClient(StdioServerParameters.model_validate(entry | {"cwd": str(tmp_path)})) as client:
        assert "open_session" in [tool.name for tool in (await client.list_tools()).tools]
    assert (tmp_path / "models" / "memory.db").exists()


def test_variables_that_clients_hide_are_entered_only_if_set_or_given(
    run: Run, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("SECRET_TOKEN", "never")
    path = file_of("codex", place)
    assert run("--client", "codex", "--env", "A=x=y")[0] == 0
    assert entry_in("codex", path)["env"] == {"CUDA_VISIBLE_DEVICES": "1", "A": "x=y"}
    assert run("--client", "codex", "--env", "CUDA_VISIBLE_DEVICES=0")[0] == 0
    assert entry_in("codex", path)["env"] == {"CUDA_VISIBLE_DEVICES": "0", "A": "x=y"}
    assert "never" not in path.read_text()


def test_what_the_user_added_to_the_entry_is_kept(run: Run, place: Place) -> None:
    own = {"command": "old", "args": [], "disabled": True, "env": {"VIRTUALMLE_WAIT_SECONDS": "60"}}
    path = file_of("windsurf", place, json.dumps({"mcpServers": {"virtualmle": own}}))
    assert run("--client", "windsurf")[0] == 0
    entry = entry_in("windsurf", path)
    assert entry["disabled"] is True and entry["env"] == own["env"] and entry["command"] != "old"


@pytest.mark.parametrize("client", JSON_CLIENTS)
@pytest.mark.parametrize(
    "text",
    [
        '{{\n    "theme": 1, // mine\n    "{group}": {{\n        "git": {{"command": "git"}} /* keep */\n    }}\n}}\n',
        '{{\r\n\t"{group}": {{\r\n\t\t"git": {{ "command": "git" }},\r\n\t}},\r\n\t"x": [1, 2.50, "\\u00e9é"],\r\n}}',
        '\ufeff{{"{group}":{{"a//b":{{"command":"/* x */"}}}}}}',
        '// servers\n{{ "{group}": {{\n  // none yet\n}} }}\n// end',
    ],
    ids=["comments", "tabs-crlf-trailing-commas", "bom-one-line", "empty-group"],
)
def test_a_json_file_is_kept_byte_for_byte_around_the_entry(run: Run, place: Place, client: str, text: str) -> None:
    original = text.format(group=CLIENTS[client].group)
    path = file_of(client, place, original)
    assert run("--client", client)[0] == 0
    edited = path.read_bytes().decode()
    document = json_entry.read(edited).value
    assert document[CLIENTS[client].group]["virtualmle"]["args"][0] == "serve"
    assert path.with_name(path.name + BACKUP).read_bytes() == original.encode()
    remaining = iter(edited)
    kept = [character for character in original if not character.isspace()]
    assert all(character in remaining for character in kept), "a character of the file was lost or moved"
    assert edited.count("\r\n") in (0, edited.count("\n")), "line ends were mixed"
    assert run("--client", client, "--uninstall")[0] == 0
    left = path.read_bytes().decode()
    assert "".join(left.split()) == "".join(original.split())
    if '"git"' in text:  # the group had entries, each on its line
        assert left == original


CODEX = """\
# my settings
model = "o9"   # the model

[mcp_servers.git]
command = "git"
args = [
  "a", # one
  "b",
]

# about projects
[projects."/srv/x"]
trust_level = "trusted"
"""
OURS = """
[mcp_servers."virtualmle"]  # ours
startup_timeout_sec = 20
args = [
    "serve", # multi-line
]
command = 'old'

[mcp_servers.virtualmle.env]
A = "1"

[mcp_servers.virtualmle.tools.finalize]
approval_mode = "prompt"
"""


def test_a_codex_file_keeps_its_comments_and_order(run: Run, place: Place) -> None:
    path = file_of("codex", place, CODEX)
    assert run("--client", "codex")[0] == 0
    assert path.read_text().startswith(CODEX + "\n[mcp_servers.virtualmle]\ncommand = ")
    assert run("--client", "codex", "--uninstall")[0] == 0
    assert path.read_text() == CODEX


def test_an_entry_of_codex_is_updated_in_its_place(run: Run, place: Place) -> None:
    before, after = CODEX.split("# about projects")
    path = file_of("codex", place, before + OURS.lstrip() + "\n# about projects" + after)
    assert run("--client", "codex", "--env", "B=2")[0] == 0
    entry = entry_in("codex", path)
    assert entry["env"] == {"A": "1", "B": "2"} and entry["startup_timeout_sec"] == 20 and entry["args"] != ["serve"]
    assert entry["tools"] == {"finalize": {"approval_mode": "prompt"}}
    assert path.read_text().startswith(before) and path.read_text().endswith("\n\n# about projects" + after)
    assert run("--client", "codex", "--uninstall")[0] == 0
    assert path.read_text() == CODEX


def test_characters_survive_in_both_forms() -> None:
    odd = {"command": 'C:\\x "y"\t', "args": ["é\U0001f600\x7f"], "env": {"K": "\x01"}}
    assert json_entry.read(json_entry.with_entry("", "mcpServers", "v", odd)).value == {"mcpServers": {"v": odd}}
    assert tomllib.loads(toml_entry.with_table("", "mcp_servers", "v", odd)) == {"mcp_servers": {"v": odd}}


BROKEN = {
    "no JSON": ("cursor", '{\n "mcpServers": {\n', "not valid JSON at line 3"),
    "cut": ("cursor", '{"mcpServers": {"a": tru', "not valid JSON at line 1"),
    "trailing text": ("gemini", '{"a": 1}\n}', "not valid JSON at line 2"),
    "bad escape": ("gemini", '{"a": "\\q"}', "not valid JSON at line 1"),
    "an array": ("cursor", "[]", "must contain a JSON object"),
    "servers are a list": ("vscode", '{"servers": []}', "its 'servers' must be a JSON object"),
    "a name twice": ("cursor", '{"a": 1, "mcpServers": {"x": 1}, "mcpServers": {"y": {}}}', ""),
    "too deep": ("cursor", '{"a": ' + "[" * 5000, "nests deeper"),
    "no TOML": ("codex", "model = \n", "not valid TOML"),
    "an inline table": ("codex", 'mcp_servers = {git = {command = "git"}}\n', "prevents a safe edit"),
    "servers are a string": ("codex", 'mcp_servers = "x"\n', "mcp_servers.virtualmle must be a table"),
    "a header in a text": ("codex", 'a = """\n[mcp_servers.virtualmle]\n"""\n[mcp_servers.virtualmle]\na=1\n', "safe"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_cannot_be_edited_safely_is_left_alone(run: Run, place: Place, case: str) -> None:
    client, text, reason = BROKEN[case]
    path = file_of(client, place, text)
    code, out, err = run("--client", client)
    if case == "a name twice":  # readers use the last one, so that is where the entry goes
        assert code == 0 and json.loads(path.read_text())["mcpServers"].keys() == {"y", "virtualmle"}
        return
    assert (code, out) == (1, "") and err.count("\n") == 1, err
    assert str(path) in err and reason in err and f"--client {client} --print" in err
    assert path.read_text() == text and not path.with_name(path.name + BACKUP).exists()


def test_a_file_that_cannot_be_read_is_left_alone(run: Run, place: Place) -> None:
    path = file_of("cursor", place)
    path.write_bytes(b'{"mcpServers": {}, "x": "\xff"}')
    assert "not UTF-8" in run("--client", "cursor")[2]
    path.unlink()
    path.mkdir()
    assert "cannot be read" in run("--client", "cursor")[2]


@pytest.mark.skipif(os.name != "posix", reason="links and permissions of POSIX")
def test_a_link_stays_a_link_and_permissions_stay(run: Run, place: Place) -> None:
    path = file_of("claude-desktop", place)
    target = place.home / "dotfiles.json"
    target.write_text("{}")
    target.chmod(0o640)
    path.symlink_to(target)
    assert run("--client", "claude-desktop")[0] == 0
    assert path.is_symlink() and target.stat().st_mode & 0o777 == 0o640 and "virtualmle" in target.read_text()


def test_uninstall_without_an_entry_changes_nothing(run: Run, place: Place) -> None:
    path = file_of("gemini", place, '{"theme": "x"}')
    assert "nothing was changed" in run("--client", "gemini", "--uninstall")[1]
    assert path.read_text() == '{"theme": "x"}'
    assert "nothing was changed" in run("--client", "cursor", "--uninstall")[1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--env", "novalue"), "--env takes NAME=VALUE"),
        (("--env", "1A=x"), "--env takes NAME=VALUE"),
        (("--name", "my server"), "--name takes"),
        (("--name", ""), "--name takes"),
    ],
)
def test_a_name_or_variable_that_clients_refuse_is_refused(
    run: Run, place: Place, options: tuple[str, str], reason: str
) -> None:
    file_of("cursor", place)
    code, _, err = run("--client", "cursor", *options)
    assert code == 1 and reason in err and not CLIENTS["cursor"].file(place).exists()


def test_the_files_are_where_each_platform_has_them(tmp_path: Path) -> None:
    mac, linux = (Place(name, {}, tmp_path, tmp_path / "p") for name in ("darwin", "linux"))
    windows = Place("win32", {"APPDATA": str(tmp_path / "R"), "LOCALAPPDATA": str(tmp_path / "L")}, tmp_path, tmp_path)
    files = {name: [str(client.file(where).relative_to(tmp_path)) for where in (mac, linux, windows)]
             for name, client in CLIENTS.items()}  # fmt: skip
    support = "Library/Application Support"
    desktop = "Claude/claude_desktop_config.json"
    assert files == {
        "claude-desktop": [f"{support}/{desktop}", f".config/{desktop}", f"R/{desktop}"],
        "claude-code": ["p/.mcp.json", "p/.mcp.json", ".mcp.json"],
        "cursor": [".cursor/mcp.json"] * 3,
        "vscode": [f"{support}/Code/User/mcp.json", ".config/Code/User/mcp.json", "R/Code/User/mcp.json"],
        "codex": [".codex/config.toml"] * 3,
        "gemini": [".gemini/settings.json"] * 3,
        "windsurf": [".codeium/windsurf/mcp_config.json"] * 3,
    }
    package = tmp_path / "L" / "Packages" / "Claude_abc" / "LocalCache" / "Roaming" / "Claude"
    package.mkdir(parents=True)  # the packaged application reads its own copy
    assert CLIENTS["claude-desktop"].file(windows) == package / "claude_desktop_config.json"
    shutil.copytree(tmp_path / "L" / "Packages" / "Claude_abc", tmp_path / "L" / "Packages" / "Claude_def")
    with pytest.raises(ClientConfigError, match="installed 2 times.*--print"):
        CLIENTS["claude-desktop"].file(windows)
    environ = {"CODEX_HOME": str(tmp_path / "c"), "XDG_CONFIG_HOME": str(tmp_path / "x")}
    moved = Place("linux", environ, tmp_path, tmp_path)
    assert CLIENTS["codex"].file(moved) == tmp_path / "c" / "config.toml"
    assert CLIENTS["vscode"].file(moved) == tmp_path / "x" / "Code" / "User" / "mcp.json"


def test_without_the_console_script_python_starts_the_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    entry = launch_command(tmp_path, {"PYTHONPATH": "/x"}, {})
    assert entry["command"] == str(tmp_path / "python") and entry["args"][:3] == ["-P", "-m", "virtualmle"]
    assert entry["env"] == {"PYTHONPATH": "/x"}

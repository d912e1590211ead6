"""The MCP clients of `virtualmle install`: where each keeps its servers, in which form, and how it is restarted.

The locations are those that each client documents. Pure functions of a `Place`, so that every platform can be tested on
one; nothing here writes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.errors import ClientConfigError


@dataclass(frozen=True)
class Place:
    """What decides where configuration files are: `platform` as sys.platform, and three directories."""

    platform: str
    environ: Mapping[str, str]
    home: Path
    working_directory: Path

    def roaming(self) -> Path:
        """Where applications of this platform keep their settings."""
        if self.platform == "darwin":
            return self.home / "Library" / "Application Support"
        if self.platform == "win32":
            return Path(self.environ.get("APPDATA") or self.home / "AppData" / "Roaming")
        return Path(self.environ.get("XDG_CONFIG_HOME") or self.home / ".config")


@dataclass(frozen=True)
class Client:
    """One client. `group` holds the entries of its file; `marks` are paths of which one exists if it is installed."""

    title: str
    file: Callable[[Place], Path]
    marks: Callable[[Place], list[Path]]
    restart: str
    group: str = "mcpServers"
    fields: dict[str, Any] = field(default_factory=dict)  # what an entry has beside command, args and env

    def is_installed(self, place: Place) -> bool:
        """Whether the client has run here for this user."""
        return any(path.exists() for path in self.marks(place))


def _claude_desktop(place: Place) -> Path:
    """The settings directory; the packaged Windows application reads a private copy instead of %APPDATA%."""
    if place.platform == "win32":
        local = Path(place.environ.get("LOCALAPPDATA") or place.home / "AppData" / "Local")
        found = sorted(local.glob("Packages/Claude_*/LocalCache/Roaming/Claude"))
        if len(found) > 1:
            raise ClientConfigError(
                f"Claude Desktop is installed {len(found)} times: {', '.join(map(str, found))}; print the entry with "
                "--print and add it with Settings → Developer → Edit Config"
            )
        if found:
            return found[0]
    return place.roaming() / "Claude"


def _codex(place: Place) -> Path:
    return Path(place.environ.get("CODEX_HOME") or place.home / ".codex")


def _claude_code_marks(place: Place) -> list[Path]:
    settings = place.environ.get("CLAUDE_CONFIG_DIR")
    return [Path(settings)] if settings else [place.home / ".claude", place.home / ".claude.json"]


CLIENTS = {
    "claude-desktop": Client(
        "Claude Desktop",
        file=lambda place: _claude_desktop(place) / "claude_desktop_config.json",
        marks=lambda place: [_claude_desktop(place)],
        restart="Quit Claude Desktop completely, since closing its window is not enough, and start it again.",
    ),
    # Not ~/.claude.json: it is Claude Code's own state, which a running session overwrites.
    "claude-code": Client(
        "Claude Code",
        file=lambda place: place.working_directory / ".mcp.json",
        marks=_claude_code_marks,
        restart="Start `claude` in this directory and approve the server; /mcp shows it.",
    ),
    "cursor": Client(
        "Cursor",
        file=lambda place: place.home / ".cursor" / "mcp.json",
        marks=lambda place: [place.home / ".cursor"],
        restart="Restart Cursor; the server is listed in its settings under MCP.",
    ),
    "vscode": Client(
        "VS Code",
        file=lambda place: place.roaming() / "Code" / "User" / "mcp.json",
        marks=lambda place: [place.roaming() / "Code" / "User"],
        restart="Run the command `MCP: List Servers` in VS Code and start the server.",
        group="servers",
        fields={"type": "stdio"},
    ),
    "codex": Client(
        "Codex",
        file=lambda place: _codex(place) / "config.toml",
        marks=lambda place: [_codex(place)],
        restart="Start a new session of Codex; /mcp lists the server.",
        group="mcp_servers",
    ),
    "gemini": Client(
        "Gemini CLI",
        file=lambda place: place.home / ".gemini" / "settings.json",
        marks=lambda place: [place.home / ".gemini"],
        restart="Start `gemini` again; /mcp lists the server.",
    ),
    "windsurf": Client(
        "Windsurf",
        file=lambda place: place.home / ".codeium" / "windsurf" / "mcp_config.json",
        marks=lambda place: [place.home / ".codeium" / "windsurf"],
        restart="Press the refresh button among the MCP servers of Cascade, or restart Windsurf.",
    ),
}

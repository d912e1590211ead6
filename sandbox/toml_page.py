"""Reader for SANDBOX.md files of version 0.1, which state rules and knobs in fenced toml blocks.

Stored sessions keep the page under which they were opened, and a home directory may contain its own page; both must
remain readable. Newer pages use tables (`page.py`).
"""

import re
import tomllib
from typing import Any, NamedTuple

from ..data.errors import ProtocolError

_POSITION = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


class TomlTables(NamedTuple):
    """(line, name, value) of every rule, and (line, name, table) of every knob; line is e.g. "SANDBOX.md:12"."""

    rules: list[tuple[str, str, Any]]
    knobs: list[tuple[str, str, dict[str, Any]]]


def toml_tables(text: str, source: str) -> TomlTables:
    """The contents of all toml blocks of a page; empty if there are none. Raises ProtocolError for invalid blocks."""
    found = TomlTables([], [])
    for first_line, block in _blocks(text, source):
        for section, content in _parsed(block, source, first_line).items():
            if section not in ("protocol", "knobs") or not isinstance(content, dict):
                where = f"{source}:{_line_of(block, first_line, section)}"
                raise ProtocolError(f"{where}: [{section}] is unknown; use [protocol] and [knobs.NAME]")
            for name, value in content.items():
                where = f"{source}:{_line_of(block, first_line, name)}"
                if section == "protocol":
                    found.rules.append((where, name, value))
                elif isinstance(value, dict):
                    found.knobs.append((where, name, value))
                else:
                    raise ProtocolError(f"{where}: knobs.{name}={value!r} is not a table; write [knobs.{name}]")
    return found


def _blocks(text: str, source: str) -> list[tuple[int, str]]:
    """The ```toml blocks of `text` in order, each with the line number of its first line."""
    blocks: list[tuple[int, str]] = []
    lines = text.split("\n")
    opened: int | None = None  # index of the first line inside the open block
    for index, line in enumerate(lines):
        if opened is None and line.strip() == "```toml":
            opened = index + 1
        elif opened is not None and line.strip() == "```":
            blocks.append((opened + 1, "\n".join(lines[opened:index]) + "\n"))
            opened = None
    if opened is not None:
        raise ProtocolError(f"{source}:{opened}: this toml block is not closed; end it with a line ```")
    return blocks


def _parsed(block: str, source: str, first_line: int) -> dict[str, Any]:
    try:
        return tomllib.loads(block)
    except tomllib.TOMLDecodeError as error:
        position = _POSITION.search(str(error))
        last = max(block.count("\n"), 1)
        line = int(position[1]) if position and position[1] else last
        message = _POSITION.sub("", str(error))
        raise ProtocolError(f"{source}:{first_line + line - 1}: not valid toml: {message}") from None


def _line_of(block: str, first_line: int, name: str) -> int:
    """The line number of the table header or key called `name`."""
    begins = re.compile(rf"\s*(\[[^\]]*\b)?[\"']?{re.escape(name)}\b")
    return first_line + next((i for i, line in enumerate(block.split("\n")) if begins.match(line)), 0)

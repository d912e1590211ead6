"""Fenced toml blocks in a markdown text, and the line numbers of what stands in them."""

import re
import tomllib
from dataclasses import dataclass
from typing import Any

from ..data.errors import ProtocolError

_POSITION = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


@dataclass(frozen=True)
class Block:
    """The text between two fences; `first_line` is the number, in the markdown file, of its first line."""

    source: str
    first_line: int
    text: str

    def parse(self) -> dict[str, Any]:
        """The block as toml; raises ProtocolError with the line in the markdown file."""
        try:
            return tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            position = _POSITION.search(str(error))
            last = max(self.text.count("\n"), 1)
            line = int(position[1]) if position and position[1] else last
            message = _POSITION.sub("", str(error))
            raise ProtocolError(f"{self.source}:{self.first_line + line - 1}: not valid toml: {message}") from None

    def error(self, table: str, key: str | None, text: str) -> ProtocolError:
        """A ProtocolError that points at `key` of `table`, or at the table where it has no such key."""
        return ProtocolError(f"{self.source}:{self.line_of(table, key)}: {text}")

    def line_of(self, table: str, key: str | None = None) -> int:
        """The line of `key` in `table` ("knobs.lr"); of the table's own line, or the block's, where that is missing."""
        lines = self.text.split("\n")
        name = table.rpartition(".")[2]
        start = _first(lines, 0, rf"\s*\[.*\b{re.escape(name)}\b\W*\]")
        if start is None:  # written as a dotted key or an inline table, on one line
            start = _first(lines, 0, rf".*\b{re.escape(name)}\b")
            return self.first_line + (start or 0)
        end = _first(lines, start + 1, r"\s*\[[\w.\s\"'-]*\]\s*(#.*)?$")
        found = _first(lines[:end], start + 1, rf"\s*[\"']?{re.escape(key)}\b") if key else None
        return self.first_line + (start if found is None else found)


def _first(lines: list[str], start: int, pattern: str) -> int | None:
    return next((i for i in range(start, len(lines)) if re.match(pattern, lines[i])), None)


def toml_blocks(text: str, source: str) -> list[Block]:
    """The ```toml blocks of `text` in order; raises ProtocolError for one that is not closed."""
    blocks: list[Block] = []
    lines = text.split("\n")
    opened: int | None = None  # index of the first line inside the open block
    for index, line in enumerate(lines):
        if opened is None and line.strip() == "```toml":
            opened = index + 1
        elif opened is not None and line.strip() == "```":
            blocks.append(Block(source, opened + 1, "\n".join(lines[opened:index]) + "\n"))
            opened = None
    if opened is not None:
        raise ProtocolError(f"{source}:{opened}: this toml block is not closed; end it with a line of ```")
    return blocks

"""A conversation with a language model on disk: one JSON line for the messages that are said together.

A line is complete or absent: a line that a killed process left unfinished is dropped when the file is read.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from ..data.atomic import write_bytes
from .llm.messages import Message

_MESSAGES = TypeAdapter(list[Message])


class Conversation:
    """The messages of a conversation; kept in memory only if `path` is None."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.messages: list[Message] = _read(path) if path and path.exists() else []

    def say(self, *messages: Message) -> None:
        """Append messages, all or none of them."""
        self.messages += messages
        if self._path is None or not messages:
            return
        line = json.dumps([asdict(message) for message in messages], ensure_ascii=False, default=dict)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())


def _read(path: Path) -> list[Message]:
    """The messages in a file. What a killed process left of its last line is removed from the file, too."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_bytes(path, whole)
    return [message for line in whole.splitlines() for message in _MESSAGES.validate_json(line)]

"""One attack: what it tries, by what means, and the function that tries it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .scene import Scene
from .verdict import Verdict

Means = Literal["tools", "wire", "shell"]
"""An MCP client; bytes on the server's input or socket; a process of the same user."""


@dataclass(frozen=True)
class Attack:
    """One attack; `number` is its row in docs/security.md."""

    number: str
    title: str
    means: Means
    run: Callable[[Scene], Verdict]
    is_quick: bool = False  # needs no server and no further training: `doctor` tries it, too

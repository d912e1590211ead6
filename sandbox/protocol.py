"""The protocol of a session, read from SANDBOX.md: budgets, the keep rule, and the action space.

Prose is for people and agents; only the fenced toml blocks count here. What the engine cannot do is refused with the
line of the key that asks for it.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..data.errors import ConfigError, ProtocolError
from .action_space import BACKBONES, ActionSpace, Knob
from .blocks import Block, toml_blocks
from .knob_table import read_knob

PACKAGED = Path(__file__).resolve().parents[1] / "SANDBOX.md"


class Protocol(BaseModel):
    """Rules of one session; a session keeps the text and the hash of the protocol it was opened under."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    metric: Literal["ndcg@10"]  # on validation, full ranking
    max_trials: int = Field(ge=1, le=100_000)
    max_train_seconds: float = Field(gt=0, le=1e8)  # all trials of the session together
    trial_seconds: float = Field(gt=0, le=1e8)  # one trial
    patience: int = Field(ge=1, le=100_000)  # finished trials without a keep
    keep_z: float = Field(ge=0, le=10)
    require_reflection: bool
    target_ndcg: float | None = Field(None, gt=0, le=1)
    max_llm_usd: float | None = Field(None, gt=0, le=1e6)  # of the session's language model
    space: ActionSpace
    text: str
    sha256: str  # of `text`


def load_protocol(path: Path | None = None) -> Protocol:
    """The protocol in the file at `path`; None means the SANDBOX.md that comes with the package.

    Raises ProtocolError for a file that is missing, is no text, or breaks a rule (with the line number).
    """
    file = path or PACKAGED
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ProtocolError(f"{file} cannot be read ({error.strerror}); give the path of a SANDBOX.md") from None
    except UnicodeDecodeError:
        raise ProtocolError(f"{file} is not UTF-8 text; save it as UTF-8") from None
    return parse_protocol(text, str(file) if path else "SANDBOX.md")


def parse_protocol(text: str, source: str = "SANDBOX.md") -> Protocol:
    """The protocol that `text` states; `source` names it in errors ("SANDBOX.md:12: …")."""
    rules: tuple[Block, dict[str, Any]] | None = None
    knobs: dict[str, tuple[Block, Knob]] = {}
    for block in toml_blocks(text, source):
        for section, content in block.parse().items():
            if section not in ("protocol", "knobs") or not isinstance(content, dict):
                raise block.error(section, None, f"[{section}] is unknown; use [protocol] and [knobs.NAME]")
            if section == "knobs":
                _add_knobs(knobs, block, content)
            elif rules is not None:
                raise block.error("protocol", None, "[protocol] stands here a second time; merge the two")
            else:
                rules = block, content
    end = text.count("\n") + 1
    if rules is None:
        raise ProtocolError(f"{source}:{end}: no [protocol] in any fenced toml block; add one")
    if not knobs:
        raise ProtocolError(f"{source}:{end}: no [knobs.NAME] in any fenced toml block; offer one knob at least")
    return _protocol(*rules, _space(knobs), text)


def _add_knobs(knobs: dict[str, tuple[Block, Knob]], block: Block, tables: dict[str, Any]) -> None:
    for name, table in tables.items():
        if name in knobs:
            first, _ = knobs[name]
            line = first.line_of(f"knobs.{name}")
            raise block.error(f"knobs.{name}", None, f"{name} stands already in line {line}; remove one of the two")
        if not isinstance(table, dict):
            raise block.error("knobs", name, f"knobs.{name}={table!r} is not a table; write [knobs.{name}]")
        knobs[name] = block, read_knob(block, name, table)


def _space(knobs: dict[str, tuple[Block, Knob]]) -> ActionSpace:
    space = ActionSpace(entries=tuple(knob for _, knob in knobs.values()))
    for backbone in BACKBONES:
        try:
            space.default(backbone)
        except ConfigError as error:  # each default is fine by itself; together they have no meaning
            name = next((n for n in knobs if str(error).startswith(n)), next(iter(knobs)))
            block = knobs[name][0]
            raise block.error(f"knobs.{name}", "default", f"the defaults of {backbone} do not fit: {error}") from None
    return space


def _protocol(block: Block, rules: dict[str, Any], space: ActionSpace, text: str) -> Protocol:
    own = {"space", "text", "sha256"}
    known = [name for name in Protocol.model_fields if name not in own]
    for key in rules:
        if key not in known:
            raise block.error("protocol", key, f"{key} is not a rule of the protocol; the rules are {', '.join(known)}")
    try:
        return Protocol(**rules, space=space, text=text, sha256=hashlib.sha256(text.encode()).hexdigest())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        if first["type"] == "missing":
            raise block.error("protocol", None, f"[protocol] lacks {key}; add it") from None
        raise block.error("protocol", key, f"{key}={first['input']!r} is refused: {first['msg']}") from None

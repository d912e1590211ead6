"""The protocol of a session, read from SANDBOX.md: budgets, the keep rule, and the action space.

Only the tables of the page count: the table of rules, and one table of knobs under the heading of each dimension.
Values beyond the engine's bounds are refused, with the line number.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..data.errors import ConfigError, ProtocolError
from ..models.knobs.declaration import BACKBONES
from .action_space import ActionSpace
from .knob_entry import read_knob
from .page import Entry, Page, read_page

PACKAGED = Path(__file__).resolve().parents[1] / "SANDBOX.md"
PAGES = PACKAGED.with_name("sandboxes")
"""The directory of further pages that are shipped with the package."""

MAX_PARALLEL = 64
"""Trials of one session at a time, at most."""


MOST_SESSIONS = 100_000
"""Sessions on the same content, at most."""


class Protocol(BaseModel):
    """The rules of one session. A session stores the text and the hash of the protocol under which it was opened."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    metric: Literal["ndcg@10"]  # on validation, full ranking
    max_trials: int = Field(ge=1, le=100_000)
    max_train_seconds: float = Field(gt=0, le=1e8)  # budget of the session: sum over its trials
    trial_seconds: float = Field(gt=0, le=1e8)  # time limit of one trial
    patience: int = Field(ge=1, le=100_000)  # finished or stopped trials in a row without a keep
    keep_z: float = Field(ge=0, le=10)
    require_reflection: bool
    target_ndcg: float | None = Field(None, gt=0, le=1)
    max_sweep: int = Field(24, ge=1, le=100)  # settings of one sweep
    parallel: Annotated[int, Field(ge=1, le=MAX_PARALLEL)] | Literal["auto"] = 1  # trials of a session at a time
    racing: bool = False  # stop trials that would not be kept; a page without the row is of an earlier version
    reuse_trials: bool = True  # a trial that an earlier session has measured is not run again
    max_sessions: int = Field(3, ge=1, le=MOST_SESSIONS)  # opened on the same content by agents
    confirm_top: int = Field(0, ge=0, le=20)  # best trials that are trained again before the selection; 0 = none
    confirm_repetitions: int = Field(0, ge=0, le=10)  # under so many fresh seeds each
    max_llm_usd: float | None = Field(None, gt=0, le=1e6)  # cost limit of the session's language model
    space: ActionSpace
    text: str
    sha256: str  # of `text`


def packaged_page(name: str) -> Path:
    """The page `sandboxes/NAME.md` of the package; raises ProtocolError, with all names, if there is none."""
    path = PAGES / f"{name}.md"
    if not path.is_file():
        names = ", ".join(sorted(page.stem for page in PAGES.glob("*.md")))
        raise ProtocolError(f"no page is named {name!r}; shipped with the package: {names}; or give the path of a file")
    return path


def load_protocol(path: Path | None = None) -> Protocol:
    """The protocol in the file at `path`; None means the SANDBOX.md that is shipped with the package.

    Raises ProtocolError for a file that is missing, is not UTF-8 text, or is invalid (with the line number).
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
    """Parse the text of a protocol; `source` is its name in error messages ("SANDBOX.md:12: …")."""
    page = read_page(text, source)
    if not page.rules:
        raise ProtocolError(f"{page.end}: the page has no table of rules (| rule | value |); add one")
    if not page.knobs:
        raise ProtocolError(f"{page.end}: the page has no table of knobs (| knob | …); offer at least one knob")
    _refuse_duplicates(page.rules)
    _refuse_duplicates(page.knobs)
    return _protocol(page, _space(page.knobs), text)


def _refuse_duplicates(entries: tuple[Entry, ...]) -> None:
    first: dict[str, Entry] = {}
    for entry in entries:
        if entry.name in first:
            line = first[entry.name].where.rpartition(":")[2]
            raise entry.error(f"{entry.name} is already stated in line {line}; remove one of the two")
        first[entry.name] = entry


def _space(entries: tuple[Entry, ...]) -> ActionSpace:
    space = ActionSpace(entries=tuple(read_knob(entry) for entry in entries))
    for backbone in BACKBONES:
        try:
            space.default(backbone)
        except ConfigError as error:  # each default is valid by itself, but not their combination
            entry = next((entry for entry in entries if str(error).startswith(entry.name)), entries[0])
            raise entry.error(f"the defaults of {backbone} are not a valid combination: {error}") from None
    return space


def _refuse_half_a_confirmation(rules: Mapping[str, Entry]) -> None:
    """Raise ProtocolError if only one of the two rules of a confirmation asks for one."""
    names = ("confirm_top", "confirm_repetitions")
    asking = [rules[name] for name in names if name in rules and rules[name].values["value"]]
    if len(asking) == 1:
        other = next(name for name in names if name != asking[0].name)
        raise asking[0].error(f"{asking[0].name} needs {other} above 0 as well; add it, or set both to 0")


def _protocol(page: Page, space: ActionSpace, text: str) -> Protocol:
    rules = {entry.name: entry for entry in page.rules}
    computed = {"space", "text", "sha256"}
    rule_names = [name for name in Protocol.model_fields if name not in computed]
    for name, entry in rules.items():
        if name not in rule_names:
            raise entry.error(f"{name} is not a rule of the protocol; the rules are {', '.join(rule_names)}")
    values = {name: entry.values["value"] for name, entry in rules.items()}
    _refuse_half_a_confirmation(rules)
    try:
        return Protocol(**values, space=space, text=text, sha256=hashlib.sha256(text.encode()).hexdigest())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        if name == "parallel":
            given = values[name]
            raise rules[name].error(f"parallel={given!r} is refused: give auto, or 1 to {MAX_PARALLEL}") from None
        if first["type"] == "missing":
            raise page.rules[0].error(f"the table of rules lacks {name}; add it") from None
        raise rules[name].error(f"{name}={first['input']!r} is refused: {first['msg']}") from None

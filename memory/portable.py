"""Export and import of cognition: rules, summaries, effects, configurations and curves of a memory, as one file.

A file contains only knowledge derived from training and validation data: no interactions, items or users, no trials of
open sessions, nothing about test targets; numbers in texts that no recorded figure bears out are masked. Merging only
adds: existing entries are not changed, and a second import of the same file has no effect. Sessions of another home are
named ORIGIN:SESSION, because ids such as "demo-hstu-1" exist in both homes.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from sqlite_utils import Database

from ..data.errors import ConfigError
from .measurements import CONFIGURATION_COLUMNS, CURVE_COLUMNS
from .records import ConfigurationRecord, CurveRecord, EffectRecord, RuleKind, RuleRecord, SummaryRecord
from .rows import from_row, insert, insert_or_ignore, to_json, to_row
from .rules import RULE_COLUMNS
from .sessions import store_profile
from .store import Memory
from .summaries import SUMMARY_COLUMNS, SUMMARY_LIMIT
from .text import clean_text

NAME_LIMIT = 200
MAX_ENTRIES = 1_000_000
QUALIFIED = re.compile(r"[0-9a-f]{12}:.+")

Name = Annotated[str, Field(max_length=NAME_LIMIT)]
Text = Annotated[str, Field(max_length=20_000)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Profile = dict[Name, Any]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Counts(_Entry):
    """The counts of one session for and against a rule."""

    session: Name
    dataset: Name
    dataset_id: Name
    support: int = Field(ge=0, le=1_000_000)
    contradiction: int = Field(ge=0, le=1_000_000)
    evidence: list[Name] = Field(max_length=1000)


class Rule(_Entry):
    """A rule with the counts of every session that has tested it."""

    kind: RuleKind
    statement: Text
    condition: Annotated[str, Field(max_length=300)] | None
    backbone: Name | None
    dataset: Name
    dataset_id: Name
    session: Name
    profile: Profile
    created_at: Name
    counts: list[Counts] = Field(max_length=100_000)


class Summary(_Entry):
    """A Cognition Summary."""

    session: Name
    dataset: Name
    dataset_id: Name
    backbone: Name
    text: Text
    computed: dict[str, Any]
    profile: Profile
    created_at: Name


class Effect(_Entry):
    """The effect of one knob value in one session."""

    session: Name
    dataset: Name
    dataset_id: Name
    backbone: Name
    knob: Name
    value: bool | int | float | Name
    n: int = Field(ge=1, le=1_000_000)
    weight: float = Field(gt=0, allow_inf_nan=False)
    weighted: Number


class Configuration(_Entry):
    """A top configuration of a session."""

    session: Name
    trial: Name
    dataset: Name
    dataset_id: Name
    backbone: Name
    config: dict[Name, bool | int | float | Name]
    config_hash: Name
    ndcg: float = Field(ge=0, le=1)
    gain: Number | None


class Curve(_Entry):
    """The learning curve of a trial."""

    session: Name
    trial: Name
    dataset: Name
    dataset_id: Name
    backbone: Name
    users: int = Field(ge=1, le=10**9)
    config: dict[Name, bool | int | float | Name]
    epochs: list[Annotated[int, Field(ge=1, le=10_000)]] = Field(min_length=1, max_length=10_000)
    ndcg10: list[Annotated[float, Field(ge=0, le=1)]] = Field(min_length=1, max_length=10_000)

    @model_validator(mode="after")
    def _one_value_per_epoch(self) -> "Curve":
        if len(self.epochs) != len(self.ndcg10) or sorted(set(self.epochs)) != self.epochs:
            raise ValueError("a curve has one value for each of its epochs, which ascend")
        return self


class Cognition(_Entry):
    """The file: its format, its origin, and its contents."""

    format: Literal["virtualmle-cognition"] = "virtualmle-cognition"
    schema_version: Literal[1] = 1
    origin: str = Field(pattern=r"^[0-9a-f]{12}$", description="the memory that wrote it")
    datasets: dict[Name, Profile] = Field(description="train-only profiles by dataset id")
    rules: list[Rule] = Field(max_length=MAX_ENTRIES)
    summaries: list[Summary] = Field(max_length=MAX_ENTRIES)
    effects: list[Effect] = Field(max_length=MAX_ENTRIES)
    configurations: list[Configuration] = Field(max_length=MAX_ENTRIES)
    curves: list[Curve] = Field([], max_length=MAX_ENTRIES, description="absent from files of earlier versions")


class MergeCounts(BaseModel):
    """The numbers of rows that an import has added."""

    rules: int = 0
    counts: int = 0
    summaries: int = 0
    effects: int = 0
    configurations: int = 0
    curves: int = 0


def read_cognition(file: Path) -> Cognition:
    """Read and validate a file; raises ConfigError, with the first error, if it is not a valid cognition file."""
    try:
        return Cognition.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); give a file written by `memory export`") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(
            f"{file} is not a cognition file that this version can read: {place}: {first['msg']}; nothing was imported"
        ) from None


def collect(memory: Memory) -> Cognition:
    """All cognition of a memory, with globally unique session names."""
    with memory.database.reading() as db:
        origin = _origin(db)

        def name(session: str) -> str:
            return session if not session or QUALIFIED.fullmatch(session) else f"{origin}:{session}"

        return Cognition(
            origin=origin,
            datasets={key: json.loads(profile) for key, profile in db.execute("SELECT * FROM datasets").fetchall()},
            rules=[_rule(memory, row, name) for row in list(db.query(f"SELECT {RULE_COLUMNS} FROM rules"))],
            summaries=[
                Summary(**from_row(row, ["computed", "profile"]) | _outside(memory, row, "text", name))
                for row in db.query(f"SELECT {SUMMARY_COLUMNS} FROM summaries ORDER BY id")
            ],
            effects=[
                Effect(**from_row(row, ["value"]) | {"session": name(row["session"])})
                for row in db.query("SELECT * FROM effects")
            ],
            configurations=[
                Configuration(**from_row(row, ["config"]) | {"session": name(row["session"])})
                for row in db.query(f"SELECT {CONFIGURATION_COLUMNS} FROM configurations")
            ],
            curves=[
                Curve(**from_row(row, ["config", "epochs", "ndcg10"]) | {"session": name(row["session"])})
                for row in db.query(f"SELECT {CURVE_COLUMNS} FROM curves ORDER BY rowid")
            ],
        )


def merge(memory: Memory, cognition: Cognition) -> MergeCounts:
    """Add new entries in one transaction and count them. Texts are sanitised like those of agents."""
    with memory.database.writing() as db:
        origin = _origin(db)

        def name(session: str) -> str:
            """The local session name: sessions of this memory lose the prefix that their export has added."""
            own = session.removeprefix(f"{origin}:")
            return clean_text(own, NAME_LIMIT)

        before = _row_counts(db)
        for key, profile in cognition.datasets.items():
            db.execute("INSERT OR IGNORE INTO datasets VALUES (?, ?)", [clean_text(key, NAME_LIMIT), to_json(profile)])
        for rule in cognition.rules:
            _add_rule(memory, rule, name)
        for summary in cognition.summaries:
            _add_summary(db, summary, name)
        memory.measurements.add(
            [ConfigurationRecord(**_cleaned(c) | {"session": name(c.session)}) for c in cognition.configurations],
            [EffectRecord(**_cleaned(e) | {"session": name(e.session)}) for e in cognition.effects],
            [CurveRecord(**_cleaned(c) | {"session": name(c.session)}) for c in cognition.curves],
        )
        after = _row_counts(db)
        return MergeCounts(**{table: after[table] - before[table] for table in after})


def _origin(db: Database) -> str:
    """The name of this memory in exported files."""
    return str(db.execute("SELECT id FROM origin").fetchone()[0])


def _outside(memory: Memory, row: dict[str, Any], text: str, name: Callable[[str], str]) -> dict[str, Any]:
    """What of a row is written otherwise in a file: the name of its session, and its text with numbers masked."""
    return {"session": name(row["session"]), text: memory.figures.mask(row[text], row["session"])}


def _rule(memory: Memory, row: dict[str, Any], name: Callable[[str], str]) -> Rule:
    fields = {key: row[key] for key in Rule.model_fields if key not in ("counts", "profile", "session", "statement")}
    counts = memory.database.db.query(
        "SELECT session, dataset, dataset_id, support, contradiction, evidence FROM rule_counts "
        "WHERE rule = ? ORDER BY rowid", [row["id"]],
    )  # fmt: skip
    return Rule(
        **fields,
        **_outside(memory, row, "statement", name),
        profile=json.loads(row["profile"]),
        counts=[Counts(**from_row(c, ["evidence"]) | {"session": name(c["session"])}) for c in counts],
    )


def _add_rule(memory: Memory, rule: Rule, name: Callable[[str], str]) -> None:
    record = RuleRecord(**_cleaned(rule, ["counts"]) | {"session": name(rule.session)})
    rule_id, _ = memory.rules.find_or_store(record)
    for counts in rule.counts:
        row = _cleaned(counts, ["evidence"]) | {"session": name(counts.session), "rule": rule_id}
        row["evidence"] = to_json([clean_text(handle, NAME_LIMIT) for handle in counts.evidence])
        insert_or_ignore(memory.database.db, "rule_counts", row)
    memory.rules.update_totals(rule_id)


def _add_summary(db: Database, summary: Summary, name: Callable[[str], str]) -> None:
    session = name(summary.session)
    if db.execute("SELECT 1 FROM summaries WHERE session = ?", [session]).fetchone():
        return
    fields = _cleaned(summary) | {"session": session, "text": clean_text(summary.text, SUMMARY_LIMIT)}
    store_profile(db, fields["dataset_id"], summary.profile)
    insert(db, "summaries", to_row(SummaryRecord(**fields)))


def _cleaned(entry: _Entry, leave_out: Iterable[str] = ()) -> dict[str, Any]:
    """The fields of an entry, with sanitised names and texts."""
    fields = entry.model_dump(exclude=set(leave_out))
    return {key: clean_text(value, 20_000) if isinstance(value, str) else value for key, value in fields.items()}


def _row_counts(db: Database) -> dict[str, int]:
    tables = {name: name for name in MergeCounts.model_fields} | {"counts": "rule_counts"}
    return {name: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for name, table in tables.items()}

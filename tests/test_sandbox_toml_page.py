"""Pages of version 0.1, which state rules and knobs in toml blocks; stored sessions still contain them."""

import re

import pytest

from virtualmle.data.errors import ProtocolError
from virtualmle.sandbox.protocol import parse_protocol

RULES = """[protocol]
metric = "ndcg@10"
max_trials = 30
max_train_seconds = 14400
trial_seconds = 3600
patience = 12
keep_z = 1.0
require_reflection = true
"""
KNOBS = """[knobs.lr]
type = "float"
dimension = "optimisation"
low = 1e-5
high = 1e-2
scale = "log"
default = 3e-4

[knobs.dropout]
type = "float"
dimension = "regularisation"
low = 0.0
high = 0.8
default = { sasrec = 0.2, hstu = 0.5 }

[knobs.linear_dim]
type = "int"
dimension = "capacity"
low = 8
high = 128
default = 16
backbones = ["hstu"]
"""
TABLES = """# The same in tables

| rule | value |
|---|---|
| metric | ndcg@10 |
| max_trials | 30 |
| max_train_seconds | 14400 |
| trial_seconds | 3600 |
| patience | 12 |
| keep_z | 1.0 |
| require_reflection | true |

### optimisation
| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| lr | 1e-5 … 1e-2, log | 3e-4 | 3e-4 |

### regularisation
| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| dropout | 0.0 … 0.8 | 0.2 | 0.5 |

### capacity
| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| linear_dim | 8 … 128 | – | 16 |
"""


def page(*blocks: str) -> str:
    return "# Sandbox\n\nprose\n\n" + "\n".join(f"```toml\n{block}```\n" for block in blocks)


def test_toml_blocks_and_equivalent_tables_give_the_same_protocol() -> None:
    older, newer = parse_protocol(page(RULES, KNOBS)), parse_protocol(TABLES)
    assert older.model_dump(exclude={"text", "sha256"}) == newer.model_dump(exclude={"text", "sha256"})


def test_tables_are_ignored_on_a_page_with_toml_blocks() -> None:
    text = page(RULES, KNOBS) + TABLES.replace("| 30 |", "| 7 |").replace("1e-2", "1e-3")
    assert parse_protocol(text).max_trials == 30 and parse_protocol(text).space.entries[0].high == 1e-2


@pytest.mark.parametrize(
    ("old", "new", "line_of", "message"),
    [
        pytest.param("high = 1e-2", "high = 2.0", "[knobs.lr]", "outside the engine", id="beyond the engine"),
        pytest.param("low = 1e-5", "low = 1e-5\nx = 1", "[knobs.lr]", "x is not a key", id="unknown key"),
        pytest.param("default = 3e-4\n", "", "[knobs.lr]", "lr lacks default", id="no default"),
        pytest.param("[knobs.lr]", "[knobs.learning]", "[knobs.learning]", "not a knob", id="unknown knob"),
        pytest.param("max_trials = 30", "max_trials = 0", "max_trials =", "or equal to 1", id="no trials"),
        pytest.param("patience = 12\n", "", "metric =", "lacks patience", id="missing rule"),
        pytest.param("[protocol]", "[protocols]", "[protocols]", "is unknown", id="unknown table"),
        pytest.param("keep_z = 1.0", "keep_z = ", "keep_z =", "not valid toml", id="broken toml"),
        pytest.param("{ sasrec = 0.2, hstu = 0.5 }", "{ hstu = 0.5 }", "[knobs.dropout]", "has values for", id="half"),
    ],
)
def test_an_invalid_block_is_refused_with_its_line(old: str, new: str, line_of: str, message: str) -> None:
    text = page(RULES, KNOBS)
    assert text.count(old) == 1
    text = text.replace(old, new)
    (line,) = [n for n, line in enumerate(text.split("\n"), 1) if line_of in line]
    with pytest.raises(ProtocolError, match=re.escape(message)) as error:
        parse_protocol(text)
    assert str(error.value).startswith(f"SANDBOX.md:{line}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n```toml\n" + RULES, "SANDBOX.md:2: this toml block is not closed"),
        (page(RULES, "[knobs]\nlr = 3\n"), r"SANDBOX.md:1\d: knobs.lr=3 is not a table"),
        (page(RULES, KNOBS, KNOBS), r"SANDBOX.md:\d+: lr is already stated in line \d+"),
    ],
    ids=["open fence", "knob is not a table", "duplicate knob"],
)
def test_an_invalid_page_is_refused(text: str, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        parse_protocol(text)

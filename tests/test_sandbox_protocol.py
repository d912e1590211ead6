"""SANDBOX.md as the code reads it, and what it says when it is wrong."""

import re
from pathlib import Path

import pytest

from virtualmle.data.errors import ProtocolError
from virtualmle.models.config import TrialConfig, make_config
from virtualmle.sandbox.action_space import BACKBONES, DIMENSIONS, ENGINE_KNOBS
from virtualmle.sandbox.protocol import PACKAGED, load_protocol, parse_protocol

SHIPPED = PACKAGED.read_text(encoding="utf-8")
RULES = """[protocol]
metric = "ndcg@10"
max_trials = 30
max_train_seconds = 14400
trial_seconds = 3600
patience = 12
keep_z = 1.0
require_reflection = true
"""
LR = """[knobs.lr]
type = "float"
dimension = "optimisation"
low = 1e-5
high = 1e-2
scale = "log"
default = 3e-4
"""
READOUT = """[knobs.readout]
type = "choice"
dimension = "sequence_modelling"
choices = ["last", "mean"]
default = "last"
"""


def page(*blocks: str) -> str:
    return "# Sandbox\n\nprose\n\n" + "\n".join(f"```toml\n{block}```\n" for block in blocks)


def line_with(text: str, wanted: str) -> int:
    """The number of the only line that holds `wanted`."""
    (line,) = [n for n, line in enumerate(text.split("\n"), 1) if wanted in line]
    return line


def markdown_rows(first_column: str) -> list[list[str]]:
    """Cells of every row of the shipped page's tables whose header starts with `first_column`."""
    rows, inside = [], False
    for line in SHIPPED.split("\n"):
        if not line.startswith("|"):
            inside = False
        elif line.startswith(f"| {first_column} |"):
            inside = True
        elif inside and not line.startswith("|---"):
            rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


def test_the_shipped_protocol_has_the_documented_budgets() -> None:
    protocol = load_protocol()
    assert (protocol.max_trials, protocol.max_train_seconds, protocol.trial_seconds) == (30, 14400, 3600)
    assert (protocol.patience, protocol.keep_z, protocol.require_reflection) == (12, 1.0, True)
    assert (protocol.metric, protocol.target_ndcg) == ("ndcg@10", None)
    assert protocol.text == SHIPPED


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_shipped_defaults_are_the_baselines_of_the_engine(backbone: str) -> None:
    assert load_protocol().space.default(backbone) == make_config(backbone)


def test_every_knob_of_the_engine_is_offered_and_every_dimension_has_one() -> None:
    entries = load_protocol().space.entries
    assert {knob.name for knob in entries} == set(TrialConfig.model_fields) - {"backbone"}
    assert {knob.dimension for knob in entries} == set(DIMENSIONS)


def test_the_budget_table_agrees_with_the_protocol_block() -> None:
    protocol = load_protocol()
    table = {name: value for name, value, why in markdown_rows("rule") if why.endswith(".")}
    shown = {name: str(getattr(protocol, name)).lower().removesuffix(".0") for name in table}
    assert {name: value.removesuffix(".0") for name, value in table.items()} == shown
    assert set(table) | {"target_ndcg", "max_llm_usd", "space", "text", "sha256"} == set(type(protocol).model_fields)


def test_the_knob_tables_agree_with_the_knob_blocks() -> None:
    space = load_protocol().space
    rows = markdown_rows("knob")
    assert [row[0] for row in rows] == [knob.name for knob in space.entries]
    for knob, (name, kind, values, sasrec, hstu, does) in zip(space.entries, rows, strict=True):
        assert kind == knob.type and does, name
        if knob.type in ("int", "float"):
            low, high = re.fullmatch(r"(\S+) … (\S+?)(?:, log)?", values).groups()  # type: ignore[union-attr]
            assert (float(low), float(high)) == (knob.low, knob.high), name
            assert ("log" in values) == (knob.scale == "log"), name
        else:
            assert values == ("true, false" if knob.type == "bool" else ", ".join(knob.choices)), name
        for backbone, cell in (("sasrec", sasrec), ("hstu", hstu)):
            default = knob.defaults.get(backbone, "–")
            shown = str(default).lower() if isinstance(default, bool | str) else default
            assert cell == shown or float(cell) == shown, name


def test_each_knob_stands_under_the_heading_of_its_dimension() -> None:
    sections = re.split(r"^### ", SHIPPED, flags=re.MULTILINE)[1:]
    by_heading = {s.split("\n")[0]: set(re.findall(r"^\[knobs\.(\w+)\]", s, re.MULTILINE)) for s in sections}
    entries = load_protocol().space.entries
    assert by_heading == {d: {k.name for k in entries if k.dimension == d} for d in DIMENSIONS}


def test_a_small_page_parses_and_fixes_what_it_leaves_out() -> None:
    protocol = parse_protocol(page(RULES + 'target_ndcg = 0.06\n', LR, READOUT))
    assert protocol.target_ndcg == 0.06
    assert [knob.name for knob in protocol.space.knobs("hstu")] == ["lr", "readout"]
    assert protocol.space.default("hstu") == make_config("hstu")


def test_equal_texts_have_equal_hashes_and_a_changed_budget_another() -> None:
    text = page(RULES, LR)
    assert parse_protocol(text).sha256 == parse_protocol(text, "elsewhere").sha256
    assert parse_protocol(text).sha256 != parse_protocol(text.replace("= 30", "= 31")).sha256


def test_a_default_may_be_moved_and_a_range_narrowed() -> None:
    narrow = LR.replace("1e-2", "1e-3").replace("3e-4", "{ sasrec = 1e-3, hstu = 5e-4 }")
    space = parse_protocol(page(RULES, narrow)).space
    assert (space.default("sasrec").lr, space.default("hstu").lr) == (1e-3, 5e-4)


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    file = tmp_path / "SANDBOX.md"
    file.write_bytes(b"\xef\xbb\xbf" + page(RULES, LR).replace("\n", "\r\n").encode())
    assert load_protocol(file).space == parse_protocol(page(RULES, LR)).space


@pytest.mark.parametrize(
    ("old", "new", "offender", "message"),
    [
        pytest.param("low = 1e-5", "low = 0.0", "low = 0.0", "beyond the engine", id="below the engine"),
        pytest.param("high = 1e-2", "high = 2.0", "high =", "beyond the engine", id="beyond the engine"),
        pytest.param("high = 1e-2", "high = true", "high =", "beyond the engine", id="bound of a wrong type"),
        pytest.param("high = 1e-2", "high = nan", "high =", "beyond the engine", id="bound that is no number"),
        pytest.param("low = 1e-5", "low = 0.5\nx = 1", "x = 1", "x is no key", id="unknown key of a knob"),
        pytest.param("low = 1e-5", "low = 0.5", "low =", "lies above", id="empty range"),
        pytest.param("3e-4", "0.5", "default = 0.5", "the default does not fit", id="default out of range"),
        pytest.param("3e-4", "'fast'", "default = 'fast'", "not a number", id="default of a wrong type"),
        pytest.param("3e-4", "{ sasrec = 3e-4 }", "{ sasrec", "has values for", id="default for one backbone"),
        pytest.param("default = 3e-4\n", "", "[knobs.lr]", "lacks default", id="no default"),
        pytest.param("high = 1e-2\n", "", "[knobs.lr]", "lacks high", id="no upper bound"),
        pytest.param("[knobs.lr]", "[knobs.learning]", "[knobs.learning]", "not a knob", id="unknown knob"),
        pytest.param("[knobs.lr]", "[knobs.seed]", "[knobs.seed]", "seeds belong to the server", id="seed"),
        pytest.param('"float"', '"int"', "\"int\"", "write type = 'float'", id="wrong type"),
        pytest.param('"optimisation"', '"speed"', 'dimension = "speed"', "choose one of", id="unknown dimension"),
        pytest.param('"log"', '"sqrt"', 'scale = "sqrt"', "choose linear or log", id="unknown scale"),
        pytest.param('["last", "mean"]', "[]", "choices = []", "no list with an entry", id="empty choices"),
        pytest.param('"mean"]', '"median"]', '"median"', "beyond the engine", id="unknown choice"),
        pytest.param('"mean"]', '"last"]', "choices =", "names one twice", id="repeated choice"),
        pytest.param("max_trials = 30", "max_trials = 0", "max_trials =", "greater than or equal to 1", id="no trials"),
        pytest.param("max_trials = 30", "max_trials = '9'", "max_trials =", "valid integer", id="budget as text"),
        pytest.param("patience = 12", "patienc = 12", "patienc =", "not a rule", id="unknown rule"),
        pytest.param("patience = 12\n", "", "[protocol]", "lacks patience", id="missing rule"),
        pytest.param('"ndcg@10"', '"mrr"', "metric =", "refused", id="another metric"),
        pytest.param("[protocol]", "[protocols]", "[protocols]", "is unknown", id="unknown table"),
        pytest.param("keep_z = 1.0", "keep_z = ", "keep_z =", "not valid toml", id="broken toml"),
    ],
)
def test_a_wrong_page_is_refused_with_the_line_of_the_offending_key(
    old: str, new: str, offender: str, message: str
) -> None:
    text = page(RULES, LR, READOUT)
    assert text.count(old) == 1
    text = text.replace(old, new)
    with pytest.raises(ProtocolError, match=re.escape(message)) as error:
        parse_protocol(text)
    assert str(error.value).startswith(f"SANDBOX.md:{line_with(text, offender)}: ")


def test_a_knob_that_stands_in_two_blocks_is_refused_at_the_second() -> None:
    second = LR.replace("[knobs.lr]", "[knobs.lr]  # again")
    text = page(RULES, LR, second)
    with pytest.raises(ProtocolError, match=f"SANDBOX.md:{line_with(text, '# again')}: lr stands already"):
        parse_protocol(text)


def test_a_knob_that_stands_twice_in_one_block_is_refused_with_its_line() -> None:
    text = page(RULES, LR + "[knobs.lr]  # again\n")
    with pytest.raises(ProtocolError, match=f"SANDBOX.md:{line_with(text, '# again')}: "):
        parse_protocol(text)


def test_a_second_protocol_block_is_refused() -> None:
    with pytest.raises(ProtocolError, match="a second time"):
        parse_protocol(page(RULES, LR, RULES))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"SANDBOX.md:1: no \[protocol\]"),
        (page(LR), r"SANDBOX.md:\d+: no \[protocol\]"),
        (page(RULES), r"SANDBOX.md:\d+: no \[knobs.NAME\]"),
        ("a\n```toml\n" + RULES, "SANDBOX.md:2: this toml block is not closed"),
        (page(RULES, "[knobs]\nlr = 3\n"), "SANDBOX.md:18: knobs.lr=3 is not a table"),
        (page(RULES, LR, 'x = """\n'), r"SANDBOX.md:2\d: not valid toml"),
    ],
    ids=["empty", "no protocol", "no knobs", "open fence", "knob is no table", "open string"],
)
def test_a_page_without_its_blocks_is_refused(text: str, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        parse_protocol(text)


def test_a_knob_is_not_offered_for_a_backbone_where_it_does_nothing() -> None:
    width = '[knobs.linear_dim]\ntype = "int"\ndimension = "capacity"\nlow = 8\nhigh = 64\ndefault = 16\n'
    text = page(RULES, width)
    with pytest.raises(ProtocolError, match="does nothing on 'sasrec'; write backbones"):
        parse_protocol(text)
    space = parse_protocol(page(RULES, width + 'backbones = ["hstu"]\n')).space
    assert (space.knobs("sasrec"), len(space.knobs("hstu"))) == ([], 1)


def test_defaults_that_do_not_fit_together_are_refused_with_a_line() -> None:
    heads = '[knobs.num_heads]\ntype = "int"\ndimension = "capacity"\nlow = 1\nhigh = 8\ndefault = 3\n'
    width = '[knobs.hidden_dim]\ntype = "int"\ndimension = "capacity"\nlow = 16\nhigh = 64\ndefault = 64 # odd\n'
    text = page(RULES, heads, width)
    with pytest.raises(ProtocolError, match=f"SANDBOX.md:{line_with(text, '# odd')}: the defaults of sasrec"):
        parse_protocol(text)


def test_a_logarithmic_range_starts_above_zero() -> None:
    weight = '[knobs.popularity_weight]\ntype = "float"\ndimension = "scoring"\nlow = 0\nhigh = 20\ndefault = 0\n'
    text = page(RULES, weight + 'scale = "log"\n')
    with pytest.raises(ProtocolError, match=f"SANDBOX.md:{line_with(text, 'scale')}: scale='log' needs low > 0"):
        parse_protocol(text)


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="nowhere.md cannot be read"):
        load_protocol(tmp_path / "nowhere.md")
    (tmp_path / "latin.md").write_bytes(b"caf\xe9")
    with pytest.raises(ProtocolError, match="is not UTF-8 text"):
        load_protocol(tmp_path / "latin.md")


def test_the_table_of_knobs_names_exactly_the_knobs_of_the_engine() -> None:
    page = (Path(__file__).parents[1] / "docs" / "knobs.md").read_text(encoding="utf-8")
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    named = [name for cell in cells for name in re.findall(r"`([a-z0-9_]+)`", cell)]
    assert sorted(named) == sorted(ENGINE_KNOBS)

"""Parsing of SANDBOX.md, and the error messages for invalid pages."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from virtualmle.data.errors import ConfigError, ProtocolError
from virtualmle.models.config import KNOBS, make_config
from virtualmle.models.knobs.declaration import BACKBONES, DIMENSIONS
from virtualmle.sandbox.protocol import PACKAGED, load_protocol, parse_protocol
from virtualmle.sandbox.tables import KNOBS_PAGE, SANDBOX, format_value, replace_tables

PAGES = {"SANDBOX.md": SANDBOX, "docs/knobs.md": KNOBS_PAGE}
SHIPPED = PACKAGED.read_text(encoding="utf-8")
OPTIONAL = ("target_ndcg", "max_llm_usd", "confirm_top", "confirm_repetitions")
RULES = """| rule | value | why |
|---|---|---|
| `metric` | ndcg@10 | |
| `max_trials` | 30 | |
| `max_train_seconds` | 14400 | |
| `trial_seconds` | 3600 | |
| `patience` | 12 | |
| `keep_z` | 1.0 | |
| `require_reflection` | true | |
"""
HEAD = "| knob | type | range or choices | SASRec | HSTU |\n|---|---|---|---|---|\n"
LR = f"### optimisation\n\n{HEAD}| `lr` | float | 1e-5 … 1e-2, log | 3e-4 | 3e-4 |\n"
READOUT = f"### sequence_modelling\n\n{HEAD}| `readout` | choice | last, mean | last | last |\n"


def page(*parts: str) -> str:
    return "# Sandbox\n\nprose | with a bar\n\n" + "\nmore prose\n\n".join(parts)


def knob(dimension: str, row: str) -> str:
    """A table with one row."""
    return f"### {dimension}\n\n{HEAD}| {row} |\n"


def line_with(text: str, content: str) -> int:
    """The number of the only line that contains `content`."""
    (line,) = [n for n, line in enumerate(text.split("\n"), 1) if content in line]
    return line


def test_the_shipped_protocol_has_the_documented_budgets() -> None:
    protocol = load_protocol()
    assert (protocol.max_trials, protocol.max_train_seconds, protocol.trial_seconds) == (30, 14400, 3600)
    assert (protocol.patience, protocol.keep_z, protocol.require_reflection) == (12, 1.0, True)
    assert (protocol.metric, protocol.target_ndcg) == ("ndcg@10", None)
    assert protocol.text == SHIPPED


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_shipped_defaults_are_the_baselines_of_the_engine(backbone: str) -> None:
    assert load_protocol().space.default(backbone) == make_config(backbone)


def test_the_shipped_page_offers_every_knob_as_declared() -> None:
    entries = load_protocol().space.entries
    assert [knob.name for knob in entries] == [*KNOBS]
    for entry, declared in zip(entries, KNOBS.values(), strict=True):
        assert (entry.type, entry.dimension, entry.defaults) == (declared.type, declared.dimension, declared.defaults)
        assert (entry.low, entry.high, entry.choices) == (declared.low, declared.high, declared.choices)
        assert entry.scale == declared.about.scale
    assert {knob.dimension for knob in entries} == set(DIMENSIONS)


@pytest.mark.parametrize("path", PAGES)
def test_the_tables_of_a_page_match_the_declarations(path: str) -> None:
    text = (PACKAGED.parent / path).read_text(encoding="utf-8")
    assert replace_tables(text, PAGES[path]) == text, "the declarations changed: run `make tables`"


def test_a_page_without_the_heading_of_a_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="no heading 'optimisation'"):
        replace_tables("# A page\n", SANDBOX)


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (3e-4, "3e-4"), (1e-5, "1e-5"), (0.0125, "0.0125"), (2.5e-3, "2.5e-3"), (0.0, "0.0"), (9, "9")],
)
def test_formatted_values_are_short_and_parse_back(value: bool | float, text: str) -> None:
    assert format_value(value) == text and (text == "true" or float(text) == value)


def test_the_table_of_rules_names_every_rule_except_the_optional_ones() -> None:
    protocol = load_protocol()
    named = set(re.findall(r"^\| `(\w+)` \|[^|]*\|[^|]*\.\s*\|$", SHIPPED, re.MULTILINE))
    assert named | {*OPTIONAL, "space", "text", "sha256"} == set(type(protocol).model_fields)


def test_a_small_page_parses_and_fixes_the_knobs_that_it_omits() -> None:
    protocol = parse_protocol(page(RULES + "| target_ndcg | 0.06 | |\n", LR, READOUT))
    assert protocol.target_ndcg == 0.06
    assert [knob.name for knob in protocol.space.knobs("hstu")] == ["lr", "readout"]
    assert protocol.space.default("hstu") == make_config("hstu")


def test_a_confirmation_needs_both_of_its_rules() -> None:
    both = parse_protocol(page(RULES + "| confirm_top | 3 | |\n| confirm_repetitions | 2 | |\n", LR, READOUT))
    assert (both.confirm_top, both.confirm_repetitions) == (3, 2)
    off = parse_protocol(page(RULES + "| confirm_top | 0 | |\n", LR, READOUT))
    assert (off.confirm_top, off.confirm_repetitions) == (0, 0)
    for given, missing in (("confirm_top", "confirm_repetitions"), ("confirm_repetitions", "confirm_top")):
        with pytest.raises(ProtocolError, match=f"{given} needs {missing} above 0"):
            parse_protocol(page(RULES + f"| {given} | 2 | |\n", LR, READOUT))


def test_tables_inside_a_fenced_block_are_ignored() -> None:
    fenced = f"```\n{READOUT}```\n"
    assert [knob.name for knob in parse_protocol(page(RULES, LR, fenced)).space.entries] == ["lr"]


def test_ranges_may_be_written_with_dots_and_without_a_type_column() -> None:
    other = "### optimisation\n|knob|range or choices|SASRec|HSTU|\n|:--|--|--|--|\n|lr|1e-5...1e-2 , log|3e-4|3e-4|\n"
    assert parse_protocol(page(RULES, other)).space == parse_protocol(page(RULES, LR)).space


def test_the_hash_depends_on_the_text_alone() -> None:
    text = page(RULES, LR)
    assert parse_protocol(text).sha256 == parse_protocol(text, "elsewhere").sha256
    assert parse_protocol(text).sha256 != parse_protocol(text.replace("| 30 |", "| 31 |")).sha256


def test_defaults_may_be_changed_and_ranges_narrowed() -> None:
    narrowed = LR.replace("1e-2", "1e-3").replace("| 3e-4 | 3e-4 |", "| 1e-3 | 5e-4 |")
    space = parse_protocol(page(RULES, narrowed)).space
    assert (space.default("sasrec").lr, space.default("hstu").lr) == (1e-3, 5e-4)
    assert space.entries[0].high == 1e-3


def test_a_range_may_be_widened_up_to_the_bounds_of_the_engine() -> None:
    row = "`hidden_dim` | int | 16 … {high}, log | 128 | 128"
    assert parse_protocol(page(RULES, knob("capacity", row.format(high=1024)))).space.entries[0].high == 1024
    with pytest.raises(ProtocolError, match="high: hidden_dim=1025 is outside the engine's bounds"):
        parse_protocol(page(RULES, knob("capacity", row.format(high=1025))))


def test_windows_line_endings_and_a_byte_order_mark_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "SANDBOX.md"
    file.write_bytes(b"\xef\xbb\xbf" + page(RULES, LR).replace("\n", "\r\n").encode())
    assert load_protocol(file).space == parse_protocol(page(RULES, LR)).space


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("1e-5 …", "0.0 …", "outside the engine", id="below the engine"),
        pytest.param("… 1e-2", "… 2.0", "outside the engine", id="beyond the engine"),
        pytest.param("… 1e-2", "… true", "outside the engine", id="bound of the wrong type"),
        pytest.param("… 1e-2", "… nan", "outside the engine", id="bound that is not a number"),
        pytest.param("1e-5 … 1e-2", "1e-5 - 1e-2", "is not a range; write LOW … HIGH", id="not a range"),
        pytest.param("1e-5 …", "0.5 …", "is above high", id="empty range"),
        pytest.param("| 3e-4 | 3e-4 |", "| 0.5 | 3e-4 |", "the default is invalid", id="default out of range"),
        pytest.param("| 3e-4 | 3e-4 |", "| fast | 3e-4 |", "not a number", id="default of the wrong type"),
        pytest.param("| 3e-4 | 3e-4 |", "| – | – |", "lr is offered for no backbone", id="no default"),
        pytest.param("| 3e-4 | 3e-4 |", "| 3e-4 |", "4 cells and its table 5 columns", id="missing cell"),
        pytest.param("`lr`", "`learning`", "not a knob", id="unknown knob"),
        pytest.param("`lr`", "`seed`", "seeds belong to the server", id="seed"),
        pytest.param("float", "int", "write float", id="wrong type"),
        pytest.param(", log", ", sqrt", "choose linear or log", id="unknown scale"),
        pytest.param("last, mean", "", "has no choices", id="empty choices"),
        pytest.param("last, mean", "last, median", "outside the engine", id="unknown choice"),
        pytest.param("last, mean", "last, last", "contains a duplicate", id="repeated choice"),
        pytest.param("| 30 |", "| 0 |", "greater than or equal to 1", id="no trials"),
        pytest.param("| 30 |", "| many |", "valid integer", id="budget as text"),
        pytest.param("`patience`", "`patienc`", "not a rule", id="unknown rule"),
        pytest.param("ndcg@10", "mrr", "refused", id="another metric"),
    ],
)
def test_an_invalid_row_is_refused_with_its_line(old: str, new: str, message: str) -> None:
    text = page(RULES, LR, READOUT)
    assert text.count(old) == 1
    changed = text.replace(old, new)
    line = [a == b for a, b in zip(text.split("\n"), changed.split("\n"), strict=True)].index(False) + 1
    with pytest.raises(ProtocolError, match=re.escape(message)) as error:
        parse_protocol(changed)
    assert str(error.value).startswith(f"SANDBOX.md:{line}: ")


def test_the_refusal_of_parallel_says_both_kinds_of_values() -> None:
    text = page(RULES + "| `parallel` | Auto | |\n", LR, READOUT)
    where = f"SANDBOX.md:{line_with(text, 'Auto')}"
    with pytest.raises(ProtocolError, match=f"{where}: parallel='Auto' is refused: give auto, or 1 to 64"):
        parse_protocol(text)


def test_a_table_without_the_heading_of_a_dimension_is_refused() -> None:
    text = page(RULES, LR.replace("### optimisation", "### speed"))
    with pytest.raises(ProtocolError, match=f"SANDBOX.md:{line_with(text, '`lr`')}: dimension 'speed' is unknown"):
        parse_protocol(text)


def test_a_table_without_the_columns_of_the_backbones_is_refused() -> None:
    text = page(RULES, LR.replace("| SASRec |", "| default |"))
    with pytest.raises(ProtocolError, match="has no column 'SASRec'; its columns are knob, type"):
        parse_protocol(text)


def test_a_row_separated_from_its_table_by_a_blank_line_is_refused() -> None:
    text = page(RULES, LR.replace("| `lr`", "\n| `lr`"))
    with pytest.raises(ProtocolError, match=f"SANDBOX.md:{line_with(text, '`lr`')}: the row of lr is separated"):
        parse_protocol(text)


@pytest.mark.parametrize(
    ("edit", "line", "message"),
    [
        pytest.param(lambda t: t.replace("| knob", "knob", 1), "`lr`", "is separated from its table", id="header"),
        pytest.param(lambda t: t.replace("|\n|---", "|\n\n|---"), "`lr`", "is separated from its table", id="blank"),
        pytest.param(
            lambda t: t.replace("| `lr`", "\n| rate | float | 0 … 1 | 0 | 0 |\n| `lr`"),
            "`lr`",
            "is separated from its table",
            id="below an unknown name",
        ),
        pytest.param(lambda t: t.replace("| knob", "| Knob"), "`lr`", "has no column 'knob'", id="capital letter"),
        pytest.param(lambda t: t.replace("| knob", "| name"), "`lr`", "has no column 'knob'", id="another name"),
        pytest.param(lambda t: "```\n" + t, "```", "block is not closed; end it with a line ```", id="open block"),
        pytest.param(lambda t: "<!--\n" + t, "<!--", "comment is not closed; end it with -->", id="open comment"),
    ],
)
def test_a_table_is_refused_rather_than_silently_ignored(edit: Callable[[str], str], line: str, message: str) -> None:
    text = page(RULES, READOUT, edit(LR))
    with pytest.raises(ProtocolError, match=f"SANDBOX.md:{line_with(text, line)}: .*{message}"):
        parse_protocol(text)


def test_a_table_inside_a_comment_or_a_longer_fence_is_ignored() -> None:
    hidden = f"<!-- not yet:\n{READOUT}-->\n\n````\n```\n{READOUT}```\n````\n```` is a fence, `<` is not a comment\n"
    text = page(RULES, hidden, LR)
    assert [knob.name for knob in parse_protocol(text).space.entries] == ["lr"]
    with pytest.raises(ProtocolError, match=f"SANDBOX.md:{line_with(text, '`lr`')}: "):  # lines are still counted
        parse_protocol(text.replace("1e-5 …", "0.5 …"))


def test_a_missing_rule_is_named() -> None:
    with pytest.raises(ProtocolError, match="the table of rules lacks patience; add it"):
        parse_protocol(page(RULES.replace("| `patience` | 12 | |\n", ""), LR))


@pytest.mark.parametrize("repeated", [LR, RULES], ids=["knob", "rule"])
def test_a_duplicate_is_refused_at_its_second_line(repeated: str) -> None:
    text = page(RULES, LR, repeated)
    first, second = [n for n, line in enumerate(text.split("\n"), 1) if line.startswith(("| `lr`", "| `metric`"))][::2]
    if repeated is LR:
        first, second = [n for n, line in enumerate(text.split("\n"), 1) if line.startswith("| `lr`")]
    with pytest.raises(ProtocolError, match=f"SANDBOX.md:{second}: .* is already stated in line {first}"):
        parse_protocol(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "SANDBOX.md:1: the page has no table of rules"),
        (page(LR), r"SANDBOX.md:\d+: the page has no table of rules"),
        (page(RULES), r"SANDBOX.md:\d+: the page has no table of knobs"),
    ],
    ids=["empty", "no rules", "no knobs"],
)
def test_a_page_without_its_tables_is_refused(text: str, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        parse_protocol(text)


def test_a_knob_cannot_be_offered_for_a_backbone_that_does_not_have_it() -> None:
    text = page(RULES, knob("capacity", "`linear_dim` | int | 8 … 64 | 16 | 16"))
    with pytest.raises(ProtocolError, match="linear_dim has no effect on 'sasrec'; offer it for"):
        parse_protocol(text)
    space = parse_protocol(text.replace("| 16 | 16 |", "| – | 16 |")).space
    assert (space.knobs("sasrec"), len(space.knobs("hstu"))) == ([], 1)


def test_a_knob_may_be_offered_for_a_single_backbone() -> None:
    space = parse_protocol(page(RULES, LR.replace("| 3e-4 | 3e-4 |", "| 3e-4 | – |"))).space
    assert (len(space.knobs("sasrec")), space.knobs("hstu")) == (1, [])


def test_a_boolean_knob_is_fixed_by_removing_its_row() -> None:
    text = page(RULES, knob("sequence_modelling", "`causal` | bool | true, false | true | true"))
    assert parse_protocol(text).space.default("hstu").causal is True
    with pytest.raises(ProtocolError, match="remove the row to fix the knob"):
        parse_protocol(text.replace("true, false", "true"))


def test_an_invalid_combination_of_defaults_is_refused_with_a_line() -> None:
    heads = knob("capacity", "`num_heads` | int | 1 … 8 | 3 | 3")
    text = page(RULES, heads, knob("capacity", "`hidden_dim` | int | 16 … 64 | 64 | 64"))
    with pytest.raises(ProtocolError, match=f"SANDBOX.md:{line_with(text, 'hidden_dim')}: the defaults of sasrec"):
        parse_protocol(text)


def test_a_logarithmic_range_starts_above_zero() -> None:
    text = page(RULES, knob("scoring", "`popularity_weight` | float | 0 … 20, log | 0 | 0"))
    with pytest.raises(ProtocolError, match=f"SANDBOX.md:{line_with(text, 'popularity')}: a log scale needs low > 0"):
        parse_protocol(text)


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="nowhere.md cannot be read"):
        load_protocol(tmp_path / "nowhere.md")
    (tmp_path / "latin.md").write_bytes(b"caf\xe9")
    with pytest.raises(ProtocolError, match="is not UTF-8 text"):
        load_protocol(tmp_path / "latin.md")


LEVELS = f"### optimisation\n\n{HEAD}| `lr` | float | 3e-4, 0.001, `3e-3` | 3e-4 | 0.001 |\n"


def test_a_number_may_have_levels_instead_of_a_range() -> None:
    (lr,) = parse_protocol(page(RULES, LEVELS)).space.entries
    assert lr.levels == (0.0003, 0.001, 0.003)
    assert (lr.low, lr.high, lr.scale) == (0.0003, 0.003, "linear")
    assert lr.defaults == {"sasrec": 0.0003, "hstu": 0.001}
    with pytest.raises(ConfigError, match=r"lr=0.002 is not one of its levels; give one of 0.0003, 0.001, 0.003"):
        lr.check(0.002)


def test_a_single_level_fixes_a_number_at_another_value_than_the_engine_does() -> None:
    text = page(RULES, knob("optimisation", "`epochs` | int | 12 | 12 | 12"))
    assert parse_protocol(text).space.default("sasrec").epochs == 12


@pytest.mark.parametrize(
    "cells, error",
    [
        pytest.param("0.001, 3e-4 | 3e-4 | 3e-4", "levels ascend, and 0.0003 follows 0.001", id="descending"),
        pytest.param("3e-4, 3e-4 | 3e-4 | 3e-4", "levels ascend, and 0.0003 follows 0.0003", id="repeated"),
        pytest.param("3e-4, 7 | 3e-4 | 3e-4", "levels: lr=7.0 is outside the engine's bounds", id="engine"),
        pytest.param("3e-4, fast | 3e-4 | 3e-4", "'3e-4, fast' is not a range; write LOW … HIGH", id="text"),
        pytest.param("3e-4, 1e-3, log | 3e-4 | 3e-4", "or the only values: 1, 2, 4", id="scale"),
        pytest.param("3e-4, 1e-3 | 5e-4 | 3e-4", "the default is invalid: lr=0.0005 is not one of its", id="default"),
    ],
)
def test_wrong_levels_are_refused_with_their_line(cells: str, error: str) -> None:
    text = page(RULES, knob("optimisation", f"`lr` | float | {cells}"))
    with pytest.raises(ProtocolError, match=re.escape(error)) as refusal:
        parse_protocol(text)
    assert str(refusal.value).startswith(f"SANDBOX.md:{line_with(text, '`lr`')}: ")

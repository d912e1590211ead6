"""Which columns are taken as user, item and time: by name and content."""

import pytest

from virtualmle.data.columns import Column, choose_columns, kind_of
from virtualmle.data.errors import ColumnsError, DataError

VALUES = {"unix": "1700000000", "ms": "1700000000123", "iso": "2023-11-14T22:13:20", "date": "2023-11-14",
          "clock": "221320", "rating": "4.5", "text": "shoes", "large": "123", "empty": ""}  # fmt: skip


def chosen(*columns: tuple[str, str], header: bool = True, **given: str) -> tuple[list[str], str]:
    """The names of the three columns, and the notes; each column is a name and one of VALUES."""
    choice = choose_columns("log", [Column(name, [VALUES[kind]] * 3) for name, kind in columns], given, header)
    return [columns[position][0] for position in choice.positions.values()], " ".join(choice.notes)


@pytest.mark.parametrize(
    ("user", "item", "time"),
    [
        ("customer", "sku", "purchase_date"),
        ("client", "article", "datetime"),
        ("CustomerID", "Product Code", "event_time"),
        ("visitorid", "itemid", "timestamp"),
        ("reviewerID", "asin", "unixReviewTime"),
        ("uid", "iid", "ts"),
        ("session_id", "video_id", "created_at"),
        ("original_user_id", "track_id", "played_at"),
        ("user_id:token", "item_id:token", "timestamp:float"),
        ("customer", "product", "order_date"),
        ("visitor_id", "product_id", "created_at"),
        ("client_id", "item_sku", "purchased_at"),
        ("user_pseudo_id", "variant_id", "order_time"),
        ("customer_email", "Lineitem sku", "ordered_on"),
        ("cust_id", "prod_id", "t_dat"),
        ("household_key", "StockCode", "InvoiceDate"),
    ],
)
def test_customary_names_are_guessed(user: str, item: str, time: str) -> None:
    assert chosen((time, "iso"), (item, "text"), (user, "text"))[0] == [user, item, time]


@pytest.mark.parametrize(
    ("columns", "names", "note"),
    [
        ([("user_id", "text"), ("user", "text"), ("item_id", "text"), ("timestamp", "unix")],
         ["user_id", "item_id", "timestamp"], "'user_id', not from 'user'"),
        ([("user_id", "text"), ("item", "text"), ("item_id", "text"), ("timestamp", "unix")],
         ["user_id", "item_id", "timestamp"], "'item_id', not from 'item'"),
        ([("user_id", "text"), ("item_id", "text"), ("date", "date"), ("time_ms", "ms")],
         ["user_id", "item_id", "time_ms"], "'time_ms', not from 'date'"),
        ([("user_id", "text"), ("session_id", "text"), ("item_id", "text"), ("time", "large")],
         ["user_id", "item_id", "time"], "'user_id', not from 'session_id'"),
        ([("user_id", "text"), ("item_id", "text"), ("when", "iso"), ("price", "rating")],
         ["user_id", "item_id", "when"], "the only one that holds times"),
        ([("user_id", "text"), ("item_id", "text"), ("watch_time", "large"), ("ts", "unix")],
         ["user_id", "item_id", "ts"], ""),
        ([("user_id", "text"), ("item_id", "text"), ("timestamp", "rating")],
         ["user_id", "item_id", "timestamp"], ""),
    ],
)  # fmt: skip
def test_ids_and_unix_times_are_preferred(columns: list[tuple[str, str]], names: list[str], note: str) -> None:
    found, notes = chosen(*columns)
    assert found == names
    assert note in notes


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([("customer_id", "text"), ("client_id", "text"), ("sku", "text"), ("time", "unix")],
         "'customer_id' and 'client_id' fit equally well as the user; name them, for example with --user customer_id$"),
        ([("user", "text"), ("sku", "text"), ("asin", "text"), ("time", "unix")], "'sku' and 'asin'.*--item"),
        ([("user", "text"), ("item", "text"), ("viewed_at", "iso"), ("rated_at", "iso")], "'viewed_at' and 'rated_at'"),
        ([("customer_unique_id", "text"), ("customer_id", "text"), ("sku", "text"), ("time", "unix")],
         "'customer_unique_id' and 'customer_id' fit equally well as the user"),
        ([("user", "text"), ("item", "text"), ("date", "date"), ("time", "clock")], "'date' and 'time' are a date and"),
        ([("user", "text"), ("item", "text"), ("rating", "rating")], "lacks a column for the timestamp; it has 'user'"),
        ([("a", "text"), ("b", "text")], "a column for the user and a column for the item and a column for the timest"),
    ],
)  # fmt: skip
def test_what_cannot_be_decided_is_refused_with_the_options(columns: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        chosen(*columns)


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ([("who", "text"), ("what", "large"), ("when", "date")], "--user who --item what --timestamp when"),
        ([("when", "iso"), ("due", "iso"), ("who", "text"), ("the sku", "text")],
         "--user who --item 'the sku' --timestamp when"),
        ([("user", "text"), ("asin", "text"), ("sku", "text"), ("created at", "iso"), ("paid at", "iso")],
         "--item asin --timestamp 'created at'"),
        ([("client", "text"), ("price", "rating"), ("birth_date", "unix")], "--item price --timestamp birth_date"),
        ([("user", "text"), ("same", "text"), ("same", "text"), ("time", "unix")], "--item 2"),
        ([("user", "text"), ("item", "text"), ("colour", "text")], "--timestamp COLUMN"),
    ],
)  # fmt: skip
def test_one_error_names_every_undecided_role_and_options_that_work(
    columns: list[tuple[str, str]], options: str
) -> None:
    with pytest.raises(ColumnsError) as caught:
        chosen(*columns)
    assert str(caught.value).endswith(f"; name them, for example with {options}")
    for role in caught.value.columns:
        assert f"the {role}" in str(caught.value)
    if "COLUMN" not in options:
        chosen(*columns, **caught.value.columns)


def test_a_date_that_is_no_event_is_not_taken_as_the_time() -> None:
    columns = [("customer_id", "text"), ("sku", "text"), ("order_date", "date"), ("ship_date", "date")]
    assert chosen(*columns)[0] == ["customer_id", "sku", "order_date"]
    with pytest.raises(DataError, match="lacks a column for the timestamp"):
        chosen(("user", "text"), ("item", "text"), ("updated_at", "iso"))


def test_given_columns_decide_by_name_or_number() -> None:
    columns = [("date", "date"), ("time", "clock"), ("buyer", "text"), ("sku", "text"), ("2", "text")]
    assert chosen(*columns, timestamp="date")[0] == ["buyer", "sku", "date"]
    assert chosen(*columns, timestamp="1", item="2")[0] == ["buyer", "2", "date"]
    with pytest.raises(DataError, match=r"lacks column 'who' and column '9'; .*with --user buyer --timestamp date$"):
        chosen(*columns, user="who", timestamp="9")
    with pytest.raises(DataError, match="must be three columns"):
        chosen(*columns, user="3", item="buyer", timestamp="1")


@pytest.mark.parametrize(
    ("kinds", "positions"),
    [
        (["text", "text", "unix"], [0, 1, 2]),
        (["large", "large", "large"], [0, 1, 2]),
        (["text", "text", "date"], [0, 1, 2]),
        (["text", "text", "rating", "unix"], [0, 1, 3]),
        (["text", "text", "ms", "rating"], [0, 1, 2]),
        (["text", "text", "rating"], None),
        (["text", "text", "text", "unix"], None),
        (["text", "unix", "text", "text", "text", "text"], None),
    ],
)
def test_without_a_header_only_clear_layouts_are_guessed(kinds: list[str], positions: list[int] | None) -> None:
    columns = [(f"column_{number}", kind) for number, kind in enumerate(kinds)]
    if positions is None:
        with pytest.raises(DataError, match=r"no header and .*'column_0' \('shoes'\).*--timestamp (N|4|2)$"):
            chosen(*columns, header=False)
    else:
        assert chosen(*columns, header=False)[0] == [f"column_{position}" for position in positions]


def test_an_error_lists_a_wide_table_in_part() -> None:
    with pytest.raises(DataError) as caught:
        chosen(*[(f"{'x' * 500}{number}", "text") for number in range(1000)])
    assert "and 980 more" in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1700000000", "0", "", "1700000001"], "instant"),
        (["1.7e12"], "instant"),
        (["20231114221320"], "instant"),
        (["2023-11-14 22:13:20+00"], "instant"),
        (["Tue, 14 Nov 2023 22:13:20 GMT"], "instant"),
        (["Tue Nov 14 22:13:20 +0000 2023"], "instant"),
        (["20231114"], "date"),
        (["14/11/2023"], "date"),
        (["22:13", "01:59:59"], "clock"),
        (["5", "0.5"], "rating"),
        (["45244.97", "12"], "number"),
        (["a", "5"], "text"),
        (["", "NULL"], "empty"),
    ],
)
def test_values_are_recognised_by_their_form(values: list[str], kind: str) -> None:
    assert kind_of(values) == kind

"""Counts in sentences."""

import pytest

from virtualmle.data.wording import counted


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "trial", "0 trials"),
        (1, "trial", "1 trial"),
        (1440, "user", "1,440 users"),
        (1, "summary", "1 summary"),
        (2, "summary", "2 summaries"),
        (2, "day", "2 days"),
        (1, "finished trial", "1 finished trial"),
    ],
)
def test_a_number_agrees_with_its_noun(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text

"""Counts in sentences."""


def counted(number: int, noun: str) -> str:
    """`1 trial`, `2 trials`, `1,440 users`: a number with its noun, whose plural takes an s."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")

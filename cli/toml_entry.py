"""One table of a TOML configuration file (Codex), set or removed in the text: all other lines stay as they were.

Headers and assignments are recognised by the TOML parser of Python itself, line by line, and every edit is checked by
reading its result: where the layout is too unusual (inline tables, dotted keys), the edit is refused.
"""

import json
import re
import tomllib
from typing import Any

from ..data.errors import ClientConfigError

Lines = list[str]


def with_table(text: str, group: str, name: str, entry: dict[str, Any]) -> str:
    """`text` with the keys of `entry` set in the table [group.name]; its other keys stay. Raises ClientConfigError."""
    before = _read(text)
    present = _table(before, group, name)
    if present is not None and {**present, **entry} == present:
        return text
    newline = "\r\n" if "\r\n" in text else "\n"
    assignments = [f"{key} = {_written(value)}{newline}" for key, value in entry.items()]
    lines = text.splitlines(keepends=True)
    for key in entry:
        _drop_table(lines, (group, name, key))
    start = _header(lines, (group, name))
    if start is None:
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += newline
        header = f"[{group}.{name}]{newline}"
        lines += [*([newline] if lines else []), header, *assignments]
    else:
        for key in entry:
            _drop_assignment(lines, start, key)
        lines[start + 1 : start + 1] = assignments
    expected = {**before, group: {**before.get(group, {}), name: {**(present or {}), **entry}}}
    return _checked("".join(lines), expected)


def without_table(text: str, group: str, name: str) -> str:
    """`text` without the table [group.name] and the tables below it. Raises ClientConfigError."""
    before = _read(text)
    if _table(before, group, name) is None:
        return text
    lines = text.splitlines(keepends=True)
    while any(path[:2] == (group, name) for path in map(_path, lines)):
        _drop_table(lines, next(path for path in map(_path, lines) if path[:2] == (group, name)))
    others = {other: value for other, value in before[group].items() if other != name}
    expected = {key: value for key, value in before.items() if key != group} | ({group: others} if others else {})
    return _checked("".join(lines), expected)


def table(text: str, group: str, name: str) -> dict[str, Any] | None:
    """The table [group.name], or None. Raises ClientConfigError."""
    return _table(_read(text), group, name)


def _table(document: dict[str, Any], group: str, name: str) -> dict[str, Any] | None:
    found = document.get(group, {})
    if not isinstance(found, dict) or not isinstance(found.get(name, {}), dict):
        raise ClientConfigError(f"its {group}.{name} must be a table")
    return found.get(name)


def _read(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ClientConfigError(f"it is not valid TOML: {error}") from None


def _checked(edited: str, expected: dict[str, Any]) -> str:
    try:
        agrees = _without_empty(tomllib.loads(edited)) == _without_empty(expected)
    except tomllib.TOMLDecodeError:
        agrees = False
    if not agrees:
        raise ClientConfigError("its layout, for example an inline table, prevents a safe edit")
    return edited


def _without_empty(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value != {}}


def _path(line: str) -> tuple[str, ...]:
    """The keys of a table header such as [a."b.c"]; empty if the line is none."""
    if not line.lstrip(" \t").startswith("["):
        return ()
    try:
        document = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    keys = []
    while isinstance(document, dict) and document:
        key, document = next(iter(document.items()))
        keys.append(key)
    return tuple(keys)


def _header(lines: Lines, path: tuple[str, ...]) -> int | None:
    return next((number for number, line in enumerate(lines) if _path(line) == path), None)


def _end(lines: Lines, start: int) -> int:
    """The line after the table that starts at `start`, without the comments that introduce the next one."""
    end = next((number for number in range(start + 1, len(lines)) if _path(lines[number])), len(lines))
    while end > start + 1 and re.fullmatch(r"\s*(#.*)?\s*", lines[end - 1]):
        end -= 1
    return end


def _drop_table(lines: Lines, path: tuple[str, ...]) -> None:
    """Delete the table, if it is there, with the blank line before it."""
    start = _header(lines, path)
    if start is not None:
        end = _end(lines, start)
        del lines[start - 1 if start and not lines[start - 1].strip() else start : end]


def _drop_assignment(lines: Lines, start: int, key: str) -> None:
    """Delete the assignment of `key` in the table that starts at `start`; it may take several lines."""
    for first in range(start + 1, _end(lines, start)):
        if re.match(rf"""\s*["']?{re.escape(key)}["']?\s*=""", lines[first]):
            for last in range(first, len(lines)):
                if _is_whole("".join(lines[first : last + 1])):
                    del lines[first : last + 1]
                    return


def _is_whole(snippet: str) -> bool:
    try:
        tomllib.loads(snippet)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _written(value: Any) -> str:
    """A string, a list of strings or a dictionary of strings as TOML; a JSON string is a TOML basic string."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return f"{{ {', '.join(f'{_written(key)} = {_written(item)}' for key, item in value.items())} }}"

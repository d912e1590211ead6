"""One entry of a JSON configuration file, set or removed in the text: every other byte stays as it was.

Comments and trailing commas are understood, because VS Code and Gemini CLI allow them. Pure functions over text; each
edit is checked by reading its result. Not covered: comments inside our own entry, which is replaced as a whole.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from ..data.errors import ClientConfigError

SPACE = re.compile(r"(?:\s|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
SCALAR = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null")
BOM = "\ufeff"
DEEPEST = 100  # levels of nesting; the recursion below must end before Python's own limit


@dataclass(frozen=True)
class Member:
    """A member of an object: its name, where the name starts, and its value."""

    name: str
    start: int
    node: "Node"


@dataclass(frozen=True)
class Node:
    """A value of the document and the text that it takes: text[start:end]."""

    value: Any
    start: int
    end: int
    members: list[Member] = field(default_factory=list)  # of an object

    def member(self, name: str) -> Member | None:
        """The member that readers use: of several with one name, the last."""
        return next((member for member in reversed(self.members) if member.name == name), None)


def read(text: str) -> Node:
    """The document as values with their positions; one without content is an empty object. Raises ClientConfigError."""
    start = _skip(text, len(BOM) if text.startswith(BOM) else 0)
    if start == len(text):
        return Node({}, start, start)
    node = _value(text, start, 0)
    if _skip(text, node.end) != len(text):
        raise _malformed(text, node.end)
    if not isinstance(node.value, dict):
        raise ClientConfigError("it must contain a JSON object")
    return node


def with_entry(text: str, group: str, name: str, entry: dict[str, Any]) -> str:
    """`text` with the member `name` of the object `group` set to `entry`; unchanged if it has this value already.

    Raises ClientConfigError if the text is not JSON, or if `group` is not an object.
    """
    root = read(text)
    holder = root.member(group)
    if holder is None:
        edited = _insert(text, root, group, {name: entry})
    else:
        _require_object(holder)
        member = holder.node.member(name)
        if member is None:
            edited = _insert(text, holder.node, name, entry)
        elif member.node.value == entry:
            return text
        else:
            indent = _indent_of(text, member.start) or ""
            written = _written(entry, indent, _unit(text), _newline(text))
            edited = text[: member.node.start] + written + text[member.node.end :]
    return _checked(edited, {**root.value, group: {**root.value.get(group, {}), name: entry}})


def without_entry(text: str, group: str, name: str) -> str:
    """`text` without the member `name` of the object `group`. Raises ClientConfigError if the text is not JSON."""
    root = read(text)
    holder = root.member(group)
    if holder is None:
        return text
    _require_object(holder)
    if holder.node.member(name) is None:
        return text
    rest = {other: value for other, value in holder.node.value.items() if other != name}
    return _checked(_remove(text, holder.node, name), {**root.value, group: rest})


def _require_object(member: Member) -> None:
    if not isinstance(member.node.value, dict):
        raise ClientConfigError(f"its {member.name!r} must be a JSON object")


def _checked(edited: str, expected: dict[str, Any]) -> str:
    if read(edited).value != expected:
        raise ClientConfigError("its layout, for example a name that occurs twice, prevents a safe edit")
    return edited


def _insert(text: str, node: Node, name: str, value: Any) -> str:
    """`text` with a further member at the end of the object `node`, in the style of the document."""
    newline, unit = _newline(text), _unit(text)
    if node.start == node.end:  # a file without content
        written = _pair(name, value, unit, unit, newline)
        return text[: node.start] + newline.join(("{", unit + written, "}", ""))
    closing = node.end - 1
    base = _line_indent(text, node.start)
    own = _indent_of(text, node.members[-1].start) if node.members else None
    indent = base + unit if own is None else own
    written = _pair(name, value, indent, unit, newline)
    after = node.members[-1].node.end if node.members else node.start + 1
    tail = text[after:closing]
    has_comma = _comma(text, after, closing) is not None
    kept = tail.rstrip()
    end = tail[len(kept) :] if "\n" in tail[len(kept) :] else newline + base
    before, behind = ("" if has_comma or not node.members else ","), ("," if has_comma else "")
    return text[:after] + before + kept + newline + indent + written + behind + end + text[closing:]


def _remove(text: str, node: Node, name: str) -> str:
    """`text` without every member of this name: with its line break and with one comma."""
    for member in reversed([member for member in node.members if member.name == name]):
        following = _comma(text, member.node.end, node.end - 1)
        end = member.node.end if following is None else following + 1
        before = text[: member.start]
        start = len(before.rstrip(" \t"))
        start = len(before[:start].removesuffix("\n").removesuffix("\r"))
        index = node.members.index(member)
        preceding = _comma(text, node.members[index - 1].node.end, member.start) if index else None
        if following is None and preceding is not None:
            text = text[:preceding] + text[preceding + 1 : start] + text[end:]
        else:
            text = text[:start] + text[end:]
    return text


def _comma(text: str, start: int, end: int) -> int | None:
    """Where the comma is that follows, outside comments, at `start`."""
    position = _skip(text, start)
    return position if position < end and text[position] == "," else None


def _pair(name: str, value: Any, indent: str, unit: str, newline: str) -> str:
    return f"{json.dumps(name)}: {_written(value, indent, unit, newline)}"


def _written(value: Any, indent: str, unit: str, newline: str) -> str:
    return json.dumps(value, indent=unit, ensure_ascii=False).replace("\n", newline + indent)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _unit(text: str) -> str:
    """The indentation of the first indented line."""
    found = re.search(r'^([ \t]+)"', text, flags=re.MULTILINE)
    return found[1] if found else "  "


def _line_indent(text: str, position: int) -> str:
    line = text[text.rfind("\n", 0, position) + 1 : position]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _indent_of(text: str, position: int) -> str | None:
    """The indentation before `position` if it is the first text of its line."""
    line = text[text.rfind("\n", 0, position) + 1 : position]
    return line if not line.strip(" \t") and "\n" in text[:position] else None


def _skip(text: str, position: int) -> int:
    found = SPACE.match(text, position)
    return found.end() if found else position


def _value(text: str, position: int, depth: int) -> Node:
    if depth > DEEPEST:
        raise ClientConfigError(f"it nests deeper than {DEEPEST} levels")
    if text.startswith("{", position):
        return _object(text, position, depth)
    if text.startswith("[", position):
        return _array(text, position, depth)
    found = STRING.match(text, position) or SCALAR.match(text, position)
    if found is None:
        raise _malformed(text, position)
    try:
        return Node(json.loads(found[0]), position, found.end())
    except ValueError:  # an escape that JSON does not know, or too many digits
        raise _malformed(text, position) from None


def _object(text: str, start: int, depth: int) -> Node:
    members: list[Member] = []
    position = _skip(text, start + 1)
    while not text.startswith("}", position):
        name = STRING.match(text, position)
        if name is None:
            raise _malformed(text, position)
        colon = _skip(text, name.end())
        if not text.startswith(":", colon):
            raise _malformed(text, colon)
        node = _value(text, _skip(text, colon + 1), depth + 1)
        members.append(Member(_value(text, position, depth).value, position, node))
        position = _next(text, node.end, "}")
    return Node({member.name: member.node.value for member in members}, start, position + 1, members)


def _array(text: str, start: int, depth: int) -> Node:
    values = []
    position = _skip(text, start + 1)
    while not text.startswith("]", position):
        node = _value(text, position, depth + 1)
        values.append(node.value)
        position = _next(text, node.end, "]")
    return Node(values, start, position + 1)


def _next(text: str, position: int, closing: str) -> int:
    """Where the next element starts, or the closing bracket is."""
    position = _skip(text, position)
    if text.startswith(",", position):
        return _skip(text, position + 1)
    if not text.startswith(closing, position):
        raise _malformed(text, position)
    return position


def _malformed(text: str, position: int) -> ClientConfigError:
    return ClientConfigError(f"it is not valid JSON at line {text.count(chr(10), 0, _skip(text, position)) + 1}")

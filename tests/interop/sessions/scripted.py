"""The scripted engineer that the test models of the frameworks play: ten trials, a reflection on each, the reveal.

It sees what a framework shows a model, and nothing else: the schemas of the tools and the answers as text. It gives
every argument that a schema requires, in the form that the schema allows: where a strict converter has left `changes`
without properties, it uses the list `changes_list`; elsewhere it uses the two forms in turn.
"""

import json
import re
from collections.abc import Generator, Mapping
from typing import Any

PLAN: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, "optimisation"),
    ({"hidden_dim": 24}, "capacity"),
    ({"hidden_dim": 32}, "capacity"),
    ({"batch_size": 256}, "optimisation"),
    ({"transition_weight": 2.0}, "scoring"),
    ({"transition_weight": 8.0}, "scoring"),
    ({"hidden_dim": 24, "batch_size": 256}, "capacity, optimisation"),
    ({"hidden_dim": 32, "transition_weight": 4.0}, "capacity, scoring"),
    ({"hidden_dim": 8}, "capacity"),
    ({"hidden_dim": 8, "batch_size": 320, "transition_weight": 1.0}, "capacity, optimisation, scoring"),
)
SUMMARY = "The demo is small: a wider model and transition counts were tried, each against the default."
RULE = {
    "kind": "insight", "statement": "Width was tried before depth on this small catalogue.",
    "condition": "hidden_dim >= 16", "evidence": ["t002", "t003"],
}  # fmt: skip
DONE = "The session is over."
MAX_WAITS = 40
WAIT_SECONDS = 20

Call = tuple[str, dict[str, Any]]


class Engineer:
    """Decides one call after another; `next_call` takes the answer to the last one."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self.shown: dict[str, int] = {"tools": 0, "answers": 0, "all requests": 0, "requests": 0}
        self._calls = self._session()
        self._schemas: Mapping[str, dict[str, Any]] = {}
        self._begun = False

    def next_call(self, schemas: Mapping[str, dict[str, Any]], answer: str) -> Call | None:
        """The next tool and its arguments in the form that its schema allows; None at the end of the session."""
        self._schemas = schemas
        try:
            tool, wanted = self._calls.send(answer) if self._begun else next(self._calls)
        except StopIteration:
            return None
        self._begun = True
        return tool, arguments_for(schemas[tool], wanted, as_list=len(self.asked) % 2 == 0)

    def read(self, tools: str, answer: str, history: int) -> None:
        """Count the characters of a request: the tools once, the new answer, and everything that is sent again."""
        self.shown["tools"] = len(tools)
        self.shown["answers"] += len(answer)
        self.shown["all requests"] += len(tools) + history
        self.shown["requests"] += 1

    def report(self, version: str, run_ended: dict[str, Any], note: str) -> str:
        """The JSON object that the runner reads."""
        complete = {"name": "every answer was understood", "passed": not self.errors, "detail": "; ".join(self.errors)}
        ended = {"name": "the model reached its end", "passed": len(self.asked) == len(PLAN), "detail": str(self.asked)}
        return json.dumps({
            "version": version, "asked": self.asked, "checks": [run_ended, complete, ended], "note": note,
            "shown": self.shown, "summary": SUMMARY, "rule": RULE["statement"],
        })  # fmt: skip

    def _session(self) -> Generator[Call, str, None]:
        text = yield "open_session", {"dataset": "demo", "backbone": "sasrec"}
        found = re.search(r"demo-sasrec-\d+", text)
        if not found:
            self.errors.append(f"open_session names no session: {text[:300]}")
            return
        for changes, dimension in PLAN:
            yield from self._trial(found[0], changes, dimension)
        text = yield "finalize", {"session": found[0], "cognition_summary": SUMMARY, "rules": [RULE], "confirm": True}
        if not re.search(r"\btest\b", text):
            self.errors.append(f"finalize gives no test result: {text[:300]}")

    def _trial(self, session: str, changes: dict[str, Any], dimension: str) -> Generator[Call, str, None]:
        number = len(self.asked) + 1
        handle = f"t{number:03d}"
        hypothesis = {
            "dimension": dimension, "direction": "better", "size": 0.001, "reason": f"Trial {number} of the plan.",
        }  # fmt: skip
        lesson = f"Step {number} of the plan is measured and can be compared with the default."
        self.asked.append({"changes": changes, "hypothesis": hypothesis, "lesson": lesson})
        text = yield "run_trial", {
            "session": session, "changes": changes, "hypothesis": hypothesis, "base": "default",
            "wait_seconds": WAIT_SECONDS,
        }  # fmt: skip
        waits = 0
        while re.search(r"\brunning\b", text[:160]) and waits < MAX_WAITS:
            text = yield "wait_trial", {"session": session, "trial": handle, "wait_seconds": WAIT_SECONDS}
            waits += 1
        if handle not in text or not re.search(r"\b(keep|discard)\b", text):
            self.errors.append(f"the answer about {handle} has no verdict: {text[:300]}")
        text = yield "write_reflection", {
            "session": session, "trial": handle, "helped": "unclear", "dimension": dimension, "lesson": lesson,
            "next_step": "The next step of the plan.", "evidence": [handle],
        }  # fmt: skip
        if not re.search(r"\b(supported|contradicted|unsupported)\b", text):
            self.errors.append(f"the reflection on {handle} was not checked: {text[:300]}")


def arguments_for(schema: dict[str, Any], wanted: dict[str, Any], *, as_list: bool = False) -> dict[str, Any]:
    """`wanted` in the form that the schema of a tool allows, with a neutral value for what it requires beyond that.

    as_list: give changes as a list where both forms are possible.
    """
    known = schema["properties"]
    given = dict(wanted)
    if "changes" in given and "changes_list" in known and (as_list or not takes_keys(known.get("changes", {}))):
        changes = given.pop("changes")
        given["changes_list"] = [{"knob": knob, "value": str(value)} for knob, value in changes.items()]
    return _complete(schema, given)


def takes_keys(schema: dict[str, Any]) -> bool:
    """Whether an object can have keys under this schema; a strict converter closes one without properties."""
    choices = schema.get("anyOf", [schema])
    return any(
        choice.get("type") == "object" and (choice.get("properties") or choice.get("additionalProperties") is not False)
        for choice in choices
    )


def _complete(schema: dict[str, Any], given: Any) -> Any:
    """`given` with a neutral value for each property that the schema requires, at every level."""
    if schema.get("type") == "array" and isinstance(given, list):
        return [_complete(schema.get("items", {}), entry) for entry in given]
    properties = schema.get("properties") or {}
    if not isinstance(given, dict) or not properties:
        return given
    missing = [name for name in schema.get("required", []) if name not in given]
    kept = {name: _complete(_object_of(properties.get(name, {})), value) for name, value in given.items()}
    return {**kept, **{name: _neutral(properties[name]) for name in missing}}


def _object_of(schema: dict[str, Any]) -> dict[str, Any]:
    """The alternative of a schema that is not null."""
    return next((choice for choice in schema.get("anyOf", []) if choice.get("type") != "null"), schema)


def _neutral(schema: dict[str, Any]) -> Any:
    """The value with which a model says nothing: the default, null, or an empty one."""
    kinds = [choice.get("type") for choice in schema.get("anyOf", [schema])]
    kinds = [entry for kind in kinds for entry in (kind if isinstance(kind, list) else [kind])]
    if "default" in schema:
        return schema["default"]
    if "null" in kinds:
        return None
    if schema.get("enum"):
        return schema["enum"][0]
    if kinds[0] == "object":
        return _complete(schema, {})
    return {"string": "", "array": [], "boolean": False, "integer": 0, "number": 0}.get(kinds[0], "")

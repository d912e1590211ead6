"""Checks the arguments of a tool call before the tool sees them; refusals say what to correct."""

from typing import Any

from mcp.server.mcpserver.exceptions import ToolError

from ..models.config import TrialConfig

MAX_NAMED = 8  # unknown arguments that a refusal names

UNAVAILABLE = {
    "seed": "Seeds belong to the server: it uses one per configuration, so that nobody can pick a lucky seed.",
    "split": "Trials are evaluated on validation; only finalize evaluates on the test set, once.",
} | dict.fromkeys(TrialConfig.model_fields, "Knobs go inside `changes`.")
"""Arguments that agents try, with the reason why they do not exist."""


def checked_arguments(tool: str, known: list[str], given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `tool`, whose arguments are `known`. Raises ToolError for an unknown one."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        reasons = " ".join(dict.fromkeys(UNAVAILABLE[name] for name in unknown if name in UNAVAILABLE))
        raise ToolError(
            f"{tool} has no argument {', '.join(f'{name!r:.60}' for name in unknown[:MAX_NAMED])}; "
            f"its arguments are {', '.join(known) or 'none'}. {reasons}".rstrip()
        )
    return given

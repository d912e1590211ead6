"""What an agent probably meant by a name that does not exist, and why it does not."""

import difflib
from collections.abc import Sequence

from ..models.config import KNOBS, knobs_named

ALIASES = {
    "session_id": "session", "sessionid": "session", "session_name": "session", "trial_id": "trial", "handle": "trial",
    "trial_handle": "trial", "trials": "trial", "data": "dataset", "dataset_name": "dataset", "model": "backbone",
    "architecture": "backbone", "config": "changes", "configuration": "changes", "params": "changes",
    "parameters": "changes", "hyperparameters": "changes", "knobs": "changes", "configs": "settings",
    "configurations": "settings", "timeout": "wait_seconds", "wait": "wait_seconds", "seconds": "wait_seconds",
    "reason": "override_reason", "summary": "cognition_summary", "base_trial": "base", "prediction": "hypothesis",
    "search": "query", "confirmed": "confirm", "delta": "effect", "rationale": "cause",
}  # fmt: skip
"""Names that agents try for arguments."""
REFUSED = {
    "seed": "seeds belong to the server: it uses one per configuration, so that nobody can pick a lucky seed",
    "split": "trials are evaluated on validation; only finalize evaluates on the test set, once",
}
"""Arguments that agents try, with the reason why they do not exist."""
_WHERE = {"changes": "inside `changes`", "settings": "inside `settings`"}
_LONGEST = 60  # characters of a name that is compared with others


def hint(name: str, known: Sequence[str]) -> str:
    """`, did you mean trial?` in brackets, after a name that is not among `known`; empty if nothing is similar."""
    folded = name[:_LONGEST].strip().lower().replace("-", "_").replace(" ", "_")
    meant = ALIASES.get(folded)
    similar = [meant] if meant and meant in known else difflib.get_close_matches(folded, known, n=2)
    if not similar and any(where in known for where in _WHERE) and folded not in KNOBS:
        similar = [f"the knob {knob}" for knob in knobs_named(folded)[:1]]
    return f" (did you mean {' or '.join(similar)}?)" if similar else ""


def reason(unknown: Sequence[str], known: Sequence[str]) -> str:
    """Why arguments of these names do not exist, as the end of a sentence; empty if there is nothing to say."""
    said = [REFUSED[name] for name in unknown if name in REFUSED]
    if any(knobs_named(name[:_LONGEST]) for name in unknown if name not in REFUSED and name not in ALIASES):
        where = next((text for name, text in _WHERE.items() if name in known), "inside `changes` of run_trial")
        said.append(f"knobs go {where}")
    return "".join(f"; {text}" for text in dict.fromkeys(said))

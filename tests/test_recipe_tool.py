"""Run the example of docs/recipes/add-a-tool.md on a real workspace."""

import re
import textwrap
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

import virtualmle
from virtualmle.memory.records import TrialRecord
from virtualmle.models.config import fingerprint, make_config, train_hash
from virtualmle.tools.help_text import described
from virtualmle.tools.open_session import open_session
from virtualmle.tools.sync import sync_session
from virtualmle.tools.workspace import Settings, Workspace

LONG_AGO = "2020-01-01T00:00:00+00:00"  # a trial that was asked for then, and has no worker, has crashed
RECIPE = Path(virtualmle.__file__).parent / "docs" / "recipes" / "add-a-tool.md"


class TrialCount(BaseModel):
    """The result that step 2 of the recipe asks for."""

    session: str
    running: int = 0
    crashed: int = 0


def example() -> str:
    """The one Python block of the recipe."""
    blocks = re.findall(r"^ *```python\n(.*?)^ *```$", RECIPE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    return textwrap.dedent(blocks[0])


def test_the_example_tool_counts_the_trials_of_a_session(tmp_path: Path) -> None:
    names: dict[str, Any] = {
        "Annotated": Annotated, "Counter": Counter, "Field": Field, "TrialCount": TrialCount, "Workspace": Workspace,
        "described": described, "sync_session": sync_session,
    }  # fmt: skip
    exec(example(), names)
    config = make_config("sasrec")
    ws = Workspace.open(tmp_path, settings=Settings())
    with ws.memory:
        session = open_session(ws, "demo", "sasrec").session
        ws.memory.trials.start(
            TrialRecord(
                session=session, handle="", number=0, base="default", changes={}, config=config.model_dump(),
                config_hash=fingerprint(config.model_dump()), train_hash=train_hash(config), created_at=LONG_AGO,
            )  # fmt: skip
        )
        assert names["count_trials"](ws, session) == TrialCount(session=session, crashed=1)

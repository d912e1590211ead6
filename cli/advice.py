"""What a person at a terminal can do about a session, as commands.

The tools advise agents and name other tools; the same advice is given here in the words of the command line.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.wording import counted

if TYPE_CHECKING:
    from ..memory.records import SessionRecord
    from ..tools.workspace import Settings


@dataclass(frozen=True)
class SessionCommands:
    """The commands about one session; `session` is empty as long as none is open."""

    home: Path
    dataset: str
    backbone: str
    session: str = ""

    @property
    def resume(self) -> str:
        """Goes on with the session."""
        return self._command("sessions", "resume", self.session)

    @property
    def show(self) -> str:
        """Shows its trials and its result."""
        return self._command("sessions", "show", self.session)

    @property
    def report(self) -> str:
        """Writes its report."""
        return self._command("report", self.session)

    @property
    def new(self) -> str:
        """Opens another session on the same dataset and backbone."""
        return self._command("tune", self.dataset, "--backbone", self.backbone, "--new")

    def _command(self, *words: str) -> str:
        return shlex.join(["virtualmle", *words, "--home", str(self.home)])


def in_commands(text: str, commands: SessionCommands) -> str:
    """An error text of a tool with the tools that it names replaced by commands."""
    replacements = {
        "open_session(new=true) starts another": f"`{commands.new}` starts another",
        "call finalize again to see": f"run `{commands.resume}` to see",
        "call finalize again in a minute": f"run `{commands.resume}` in a minute",
        "then finalize again": f"then run `{commands.resume}`",
        "run_trial with changes={} first": f"`{commands.show}` shows what failed, `{commands.new}` starts anew",
        "see list_sessions": "see `virtualmle sessions list`",
        "call wait_trial or cancel_trial for it first": f"`{commands.resume}` waits for it",
        "wait_trial or cancel_trial first": f"`{commands.resume}` waits for it",
        "; call finalize": f"; run `{commands.resume}`",
    }
    for words, command in replacements.items():
        text = text.replace(words, command)
    return text


def ended(record: "SessionRecord", home: Path) -> str:
    """Why a finalized session cannot be resumed, and what can be done instead."""
    commands = SessionCommands(home, record.dataset, record.backbone, record.id)
    return (
        f"session {record.id} has been finalized (state {record.state}), so nothing is left to resume; "
        f"see its result with `{commands.show}`, its report with `{commands.report}`, "
        f"or tune again with `{commands.new}`"
    )


def ignored_options(settings: "Settings", record: "SessionRecord") -> str:
    """A note on the options of a `tune` that took up the open session `record` and could not apply them; often empty.

    Only options that were given and differ from what the session was opened with are named.
    """
    given = {
        f"--trials {settings.max_trials}": settings.max_trials not in (None, record.max_trials),
        f"--seconds {settings.max_train_seconds or 0:g}":
            settings.max_train_seconds not in (None, record.max_train_seconds),
        f"--seed {settings.seed}": settings.seed not in (0, record.seed),
        "--without-reflection": not settings.with_reflection and record.with_reflection,
        "--without-memory": not settings.with_memory and record.with_memory,
        "--memory-from": list(settings.memory_from) not in ([], record.memory_from),
        "--placebo-memory": settings.placebo and not record.placebo,
    }  # fmt: skip
    ignored = [option for option, differs in given.items() if differs]
    if not ignored:
        return ""
    return (
        f"note: {', '.join(ignored)} applies to new sessions only and is ignored: {record.id} is open with a budget of "
        f"{counted(record.max_trials, 'trial')} and {record.max_train_seconds:g} training seconds, and with seed "
        f"{record.seed}; --new opens another session"
    )

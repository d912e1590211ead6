"""Advice about sessions as commands of the command line.

The error messages of the tools advise agents, and therefore name other tools. A person at a terminal needs commands.
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
    """The commands for one session; `session` is empty until one is open."""

    home: Path
    dataset: str
    backbone: str
    session: str = ""
    no_finalize: bool = False  # whether the run that printed them was to leave the session open

    @property
    def resume(self) -> str:
        """Resumes the session."""
        return self._command("sessions", "resume", self.session, *(["--no-finalize"] if self.no_finalize else []))

    @property
    def finalize(self) -> str:
        """Finalizes the session."""
        return self._command("sessions", "finalize", self.session)

    @property
    def extend(self) -> str:
        """Adds six trials to its budget."""
        return self._command("sessions", "extend", self.session, "--trials", "6")

    @property
    def export(self) -> str:
        """Exports its best model."""
        return self._command("export", self.session, f"{self.session}-model")

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
    """The error text of a tool, with advice to call other tools replaced by commands."""
    replacements = {
        "restore it, or open a new session": f"restore it with `virtualmle data replace`, or run `{commands.new}`",
        "open_session(new=true) starts another": f"`{commands.new}` starts another",
        "open_session(new=true) opens another session": f"`{commands.new}` opens another session",
        "call finalize again in a minute": f"run `{commands.resume}` in a minute",
        "and call finalize again": f"and run `{commands.resume}`",
        "run_trial with changes={} first":
            f"`{commands.show}` shows what failed, `{commands.new}` opens another session",
        "see list_sessions": "see `virtualmle sessions list`",
        "call wait_trial or cancel_trial for it first": f"`{commands.resume}` waits for it",
        "wait_trial or cancel_trial first": f"`{commands.resume}` waits for it",
        "; call finalize": f"; run `{commands.resume}`",
    }  # fmt: skip
    for words, command in replacements.items():
        text = text.replace(words, command)
    return text


def describe_end(record: "SessionRecord", home: Path) -> str:
    """The error text for an attempt to resume a finalized session, with the commands that are useful instead."""
    commands = SessionCommands(home, record.dataset, record.backbone, record.id)
    return (
        f"session {record.id} has been finalized (state {record.state}), so nothing is left to resume; "
        f"see its result with `{commands.show}`, its report with `{commands.report}`, "
        f"or tune again with `{commands.new}`"
    )


def describe_closed(record: "SessionRecord", home: Path) -> str:
    """The error text for an attempt to extend a session that is not open: what a second session may reuse."""
    commands = SessionCommands(home, record.dataset, record.backbone, record.id)
    return (
        f"session {record.id} is {record.state}, and its budget is fixed since it was frozen; `{commands.new}` opens a "
        "second session, which takes over the results of trials of equal configuration at no training cost and starts "
        "from what memory has learnt; its look at the test set counts as one more look at the same content"
    )


def look_notice(record: "SessionRecord", home: Path) -> str:
    """What a run that will finalize the open session says when it starts."""
    from ..data.catalogue import Catalogue
    from ..data.similar import similar_datasets
    from ..examiner.ledger import looks_at
    from ..examiner.request import looks
    from ..examiner.vault import Vault

    if Vault(home).mode == "operator":
        return (
            f"at its end, this run freezes {record.id} and leaves a sealed choice: the key of the test set is kept "
            "elsewhere; with --no-finalize the session stays open"
        )
    catalogue = Catalogue(home)
    similar = [catalogue.manifest(name).dataset_id for name, _ in similar_datasets(catalogue, record.dataset_id)]
    before = len(looks_at(looks(home), {record.dataset_id, *similar}))
    return (
        f"at its end, this run finalizes {record.id}, which uses the session's one look at the test set "
        f"({counted(before, 'look')} at this data so far); with --no-finalize the session stays open"
    )


def ignored_options(settings: "Settings", record: "SessionRecord") -> str:
    """A note on the options of `tune` that have no effect because it resumes the open session `record`, or "".

    It names only the options that were given and differ from the settings of the session.
    """
    given = {
        f"--trials {settings.max_trials}": settings.max_trials not in (None, record.max_trials),
        f"--seconds {settings.max_train_seconds or 0:g}":
            settings.max_train_seconds not in (None, record.max_train_seconds),
        f"--parallel {settings.parallel}": settings.parallel is not None and (
            settings.parallel != ("auto" if record.auto_parallel else record.parallel)
        ),
        f"--seed {settings.seed}": settings.seed not in (0, record.seed),
        "--without-reflection": not settings.with_reflection and record.with_reflection,
        "--without-memory": not settings.with_memory and record.with_memory,
        "--memory-from": list(settings.memory_from) not in ([], record.memory_from),
    }  # fmt: skip
    ignored = [option for option, differs in given.items() if differs]
    if not ignored:
        return ""
    return (
        f"note: {', '.join(ignored)} applies to new sessions only and is ignored: {record.id} is open with a budget of "
        f"{counted(record.max_trials, 'trial')} and {record.max_train_seconds:g} training seconds, and with seed "
        f"{record.seed}; --new opens another session"
    )

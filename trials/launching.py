"""Where a trial runs: an interface of three verbs over the trial's directory, and how to find a trial's launcher.

Whatever runs a trial leaves its files in the trial's directory (training/spec.py). A launcher is therefore stateless:
a restarted server asks the directory which launcher it belongs to, and goes on.

    launcher.py       processes on this machine
    ray_launcher.py   tasks of a Ray cluster
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..training.spec import TrialSpec
from .launcher import TrialState, cancel, launch, poll
from .ray_launcher import RayLauncher, is_on_ray


class Launcher(Protocol):
    """Runs trials; each verb returns without waiting for the trial."""

    def submit(self, spec: TrialSpec, directory: Path) -> None:
        """Start `spec` with the input files that `directory` holds already.

        TrialError if the directory holds a trial, MachineError if the trial cannot be started here.
        """

    def look(self, directory: Path, *, asked_at: float | None = None) -> TrialState:
        """The state of the trial. asked_at: when it was requested, in seconds since the epoch."""

    def cancel(self, directory: Path) -> TrialState:
        """Stop the trial and return its final state; a trial that is over does not change."""


@dataclass(frozen=True)
class LocalLauncher:
    """Runs each trial in a process of this machine, or in the warm worker of `inbox`; the arguments of `launch`."""

    inbox: Path | None = None
    keep_warm: float = 0.0
    cwd: Path | None = None
    key: bytes | None = field(default=None, repr=False)

    def submit(self, spec: TrialSpec, directory: Path) -> None:
        """Start the trial in a process."""
        launch(spec, directory, inbox=self.inbox, keep_warm=self.keep_warm, cwd=self.cwd, key=self.key)

    def look(self, directory: Path, *, asked_at: float | None = None) -> TrialState:
        """The state of the trial, from its files and the process table."""
        return poll(directory, asked_at=asked_at)

    def cancel(self, directory: Path) -> TrialState:
        """End the trial's process."""
        return cancel(directory)


def launcher_of(directory: Path, key: bytes | None = None) -> Launcher:
    """The launcher of the trial in `directory`, from its files; key: of its session, for a bridge that must start."""
    return RayLauncher(key=key) if is_on_ray(directory) else LocalLauncher(key=key)

"""Where a session is tracked to, as people name it: mlflow=URI, optuna=URL or tensorboard=DIR. Loads no tracker."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from ..data.errors import ConfigError
from .tracker import Tracker

LIBRARIES = {"mlflow": "mlflow", "optuna": "optuna", "tensorboard": "tensorboardX"}


class Target(NamedTuple):
    """A kind of tracker and its address."""

    kind: str
    address: str

    @property
    def option(self) -> str:
        """As --track takes it."""
        return f"{self.kind}={self.address}"


def parse_targets(texts: Sequence[str]) -> tuple[Target, ...]:
    """The targets of --track options. Raises ConfigError for an unknown kind or a library that is not installed."""
    return tuple(_checked(*text.partition("=")[::2]) for text in texts)


def _checked(kind: str, address: str) -> Target:
    if kind not in LIBRARIES or not address:
        shown = f"{kind}={address}" if address else kind
        raise ConfigError(f"track={shown!r:.60} is not KIND=ADDRESS; write mlflow=URI, optuna=URL or tensorboard=DIR")
    if find_spec(LIBRARIES[kind]) is None:
        raise ConfigError(
            f"tracking to {kind} needs {LIBRARIES[kind]}; install it with: pip install 'virtualmle[track]'"
        )
    return Target(kind, str(Path(address).expanduser().resolve()) if kind == "tensorboard" else address)


def open_tracker(target: Target) -> Tracker:
    """The tracker of a target, whose library is loaded now."""
    # Imported here: each loads a large library, and most are optional
    if target.kind == "mlflow":
        from .mlflow_runs import MlflowTracker  # noqa: PLC0415

        return MlflowTracker(target.address)
    if target.kind == "optuna":
        from .optuna_study import OptunaTracker  # noqa: PLC0415

        return OptunaTracker(target.address)
    from .event_files import EventFileTracker  # noqa: PLC0415

    return EventFileTracker(Path(target.address))

"""The errors of this room; the tree it belongs to is drawn in `data/errors.py`."""

from ..data.errors import TrialError


class TrainingError(TrialError):
    """Training or scoring came to nothing usable: a diverged loss, a non-finite score, a checkpoint that is not one."""


class StateError(TrainingError):
    """A saved training state that cannot be gone on from: damaged, or of another run."""

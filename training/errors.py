"""The errors that training/ raises; `data/errors.py` shows the whole tree of errors."""

from ..data.errors import TrialError


class TrainingError(TrialError):
    """Training or scoring failed: the loss diverged, a score is not finite, or a file is not a valid checkpoint."""


class StateError(TrainingError):
    """Training cannot resume from a saved state: the file is damaged or belongs to another run."""

"""The HTML page of several sessions side by side: one self-contained file, in the style of a session's report."""

import hashlib
from itertools import accumulate
from pathlib import Path

from markupsafe import Markup

from .. import __version__
from ..data.atomic import write_bytes
from ..data.errors import HomeError
from . import formats
from .gather import ReportData, ndcg
from .side_by_side import SideBySide
from .templates import page_template

NAME_LENGTH = 150  # of a page, so that the file system accepts it


def write_side_page(compared: SideBySide) -> Path:
    """Write the page to `.virtualmle/reports/` in the home and return its path. HomeError if it cannot be written."""
    path = compared.home / ".virtualmle" / "reports" / f"{_name([d.session.id for d in compared.sessions])}.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, render(compared).encode(), mode=0o600)  # private, as test metrics may be in it
    except OSError as error:
        raise HomeError(f"{str(path)!r} cannot be written: {error.strerror}; check permissions and space") from None
    return path


def render(compared: SideBySide) -> str:
    """The comparison as HTML."""
    from .side_plots import progress_charts  # noqa: PLC0415 - matplotlib is slow to import

    progress = [(data.session.id, *_progress(data)) for data in compared.sessions]
    return page_template(Path(__file__).with_name("side_page.html.j2")).render(
        compared=compared,
        formats=formats,
        charts=[Markup(chart) for chart in progress_charts(progress)],
        version=__version__,
    )


def _progress(data: ReportData) -> tuple[list[float], list[float]]:
    """The training seconds after every finished trial, and the best validation NDCG@10 until then."""
    spent = accumulate(trial.outcome.train_seconds if trial.outcome else 0.0 for trial in data.trials)
    measured = [(s, ndcg(trial) or 0.0) for s, trial in zip(spent, data.trials, strict=True) if trial in data.finished]
    return [seconds for seconds, _ in measured], list(accumulate((value for _, value in measured), max))


def _name(sessions: list[str]) -> str:
    """The ids joined; shortened, and made unique by a digest, if they are too long for a file name."""
    name = "-and-".join(sessions)
    if len(name) <= NAME_LENGTH:
        return name
    return f"{name[:NAME_LENGTH]}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"

"""Write a comparison as Markdown, CSV, SVG, PNG, JSON and one HTML page; equal sessions give equal files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from ..data.atomic import write_bytes
from ..data.errors import HomeError
from ..data.wording import counted
from ..report.templates import page_template
from .caveats import Setting
from .outcome import SessionResult
from .summary import Summary
from .tables import Table, markdown, sessions_csv, table_csv, trials_csv

if TYPE_CHECKING:
    from .pictures import Picture


@dataclass(frozen=True)
class Document:
    """A report before it is written. `quoted`: tables of published figures, which were not measured here."""

    name: str
    title: str
    about: str
    tables: Sequence[Table]
    pictures: Sequence["Picture"]
    caveats: Sequence[str]
    notes: Sequence[str] = ()
    quoted: Sequence[Table] = ()
    sources: Sequence[str] = field(default_factory=tuple)


def about(setting: Setting) -> str:
    """One paragraph that says how the sessions were run."""
    budget = counted(setting.trials, "trial")
    if setting.train_seconds is not None:
        budget += f" or {setting.train_seconds:g} training seconds"
    where = f"replayed from {setting.replay}" if setting.replay else f"trained on device {setting.device}"
    memory = f"; carried arms start with the cognition of {setting.memory_from}" if setting.memory_from else ""
    return (
        f"{counted(setting.seeds, 'seed')} per arm, dataset and backbone; {budget} per session, {where}{memory}. "
        "Protocol "
        f"{setting.page_sha256[:8]}, VirtualMLE {setting.version}."
    )


def write_document(
    folder: Path, document: Document, summary: Summary, results: Sequence[SessionResult], setting: Setting
) -> list[Path]:
    """Write all files of a report into `folder`, and return their paths, the HTML page first.

    Raises HomeError if the folder cannot be written.
    """
    record = {
        "setting": setting.model_dump(),
        "summary": summary.model_dump(),
        "caveats": list(document.caveats),
    }
    name = document.name
    files = {
        f"{name}.html": render(document),
        f"{name}.md": as_markdown(document),
        f"{name}.json": json.dumps(record, indent=1, allow_nan=False) + "\n",
        f"{name}-sessions.csv": sessions_csv(results),
        f"{name}-trials.csv": trials_csv(results),
        **{f"{name}-{_slug(table.title)}.csv": table_csv(table) for table in document.tables},
        **{f"{name}-{picture.name}.svg": picture.svg for picture in document.pictures},
    }
    images = {f"{name}-{picture.name}.png": picture.png for picture in document.pictures}
    contents = {**{file: text.encode() for file, text in files.items()}, **images}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            write_bytes(folder / file, content)
    except OSError as error:
        raise HomeError(f"{folder} cannot be written ({error.strerror}); choose another directory with --out") from None
    return [folder / file for file in contents]


def _slug(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower()).strip("-")


def as_markdown(document: Document) -> str:
    """The report as Markdown; pictures are linked by their file names."""
    parts = [f"# {document.title}", "", document.about, ""]
    parts += [line for note in document.notes for line in (note, "")]
    for picture in document.pictures:
        parts += [f"![{picture.title}: {picture.description}]({document.name}-{picture.name}.svg)", ""]
    parts += [markdown(table) for table in [*document.tables, *document.quoted]]
    if document.sources:
        parts += ["Sources:", "", *(f"- {source}" for source in document.sources), ""]
    parts += ["## What these figures cannot say", "", " ".join(document.caveats)]
    return "\n".join(parts) + "\n"


def render(document: Document) -> str:
    """The report as one HTML page that loads nothing and runs no script; the template escapes all text."""
    tables = [*document.tables, *document.quoted]
    template = page_template(Path(__file__).with_name("compare.html.j2"))
    return template.render(document=document, tables=tables, Markup=Markup)

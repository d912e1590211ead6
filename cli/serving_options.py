"""The arguments and options of the commands that use an export."""

from pathlib import Path
from typing import Annotated

import typer

ExportDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="An export, as `virtualmle export` writes it.")]
ServingDevice = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
ServingThreads = Annotated[
    int, typer.Option("--threads", min=0, help="Threads that compute on the CPU.", show_default="all cores")
]

"""`virtualmle convert`: add the model of an export as a graph for other programs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json

if TYPE_CHECKING:
    from ..serving.conversion import Format


def convert(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An export, as `virtualmle export` writes it.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Add model.onnx, for ONNX Runtime and others.")] = False,
    torch_export: Annotated[bool, typer.Option("--torch-export", help="Add model.pt2, for torch.export.load.")] = False,
    as_json: Json = False,
) -> None:
    """Add the model of an export to it as ONNX or as a torch.export program.

    The graph maps padded histories to the best items, their scores and the user vectors, for any number of users,
    events and results. Programs without virtualmle can run it. Score priors are not in it; the section that is added to
    the model card lists the inputs and outputs, and what else is left out.

    Example: virtualmle convert model --onnx
    """
    from ..data.errors import ExportError
    from ..serving.conversion import convert_export  # imports torch

    chosen: dict[Format, bool] = {"onnx": onnx, "torch": torch_export}
    formats = [name for name, wanted in chosen.items() if wanted]
    if not formats:
        raise ExportError("no format is chosen; give --onnx, --torch-export or both")
    added = convert_export(directory, formats)
    if as_json:
        print(json.dumps({"export": str(directory), "files": {each.file: each.bytes for each in added}}))
        return
    for each in added:
        print(f"wrote {directory / each.file} ({each.bytes:,} bytes)")
    print(f"inputs, outputs and limits: {directory / 'MODEL_CARD.md'}")

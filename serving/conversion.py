"""Adds the graph of `portable.py` to an export, as a file of torch.export (`model.pt2`) or ONNX (`model.onnx`).

The other files stay as they are, except the card, which gets a section about the graphs, and the manifest. Both formats
are written without the places in source code that torch records, because an export names no path of a machine.
"""

import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch.export import Dim, ExportedProgram

from ..data.errors import ExportError
from .artifact import Export, replace_files
from .layout import CARD, GRAPHS, ONNX, PT2
from .portable import PortableModel
from .reading import read_export

Format = Literal["torch", "onnx"]
FILES: dict[Format, str] = {"torch": PT2, "onnx": ONNX}
INPUTS = ("histories", "lengths", "k", "times")
OUTPUTS = ("items", "scores", "vectors")
KEPT_META = {"val", "unbacked_bindings"}  # what serialisation needs; the others name source files of this machine
ONNX_LIMIT = 2**31  # bytes of a protocol buffer
HEADING = "## Graphs for other programs"
OPSET = 20


class Converted(NamedTuple):
    """A graph that was added to an export."""

    file: str
    bytes: int


def convert_export(directory: Path, formats: Sequence[Format]) -> list[Converted]:
    """Add a graph in each format to the export in `directory`, replacing an earlier one.

    ExportError if the export is damaged or cannot be written, if a library that writes ONNX is missing, or if the
    weights are too large for a file of ONNX. The export is then unchanged.
    """
    if "onnx" in formats:
        _check_onnx()
    directory = directory.expanduser().resolve()
    files, export = read_export(directory), Export.load(directory)
    nameless = None if export.nameless is None else torch.tensor(export.nameless)
    model = PortableModel([member.model for member in export.members], torch.tensor(export.counts), nameless).eval()
    program = _exported(model)
    graphs = {FILES[kind]: _pt2(program) if kind == "torch" else _onnx(program, model) for kind in formats}
    kept = {name: (directory / name).read_bytes() for name in (CARD, *GRAPHS) if name in files.manifest.files}
    contents = {**files.contents, **kept, **graphs}
    present = [name for name in GRAPHS if name in contents]
    contents[CARD] = _with_section(contents[CARD].decode(), graph_section(model, export, present)).encode()
    replace_files(directory, contents)
    return [Converted(name, len(content)) for name, content in graphs.items()]


@torch.no_grad()
def _exported(model: PortableModel) -> ExportedProgram:
    """The graph, for any number of users, tokens and results."""
    lengths = torch.tensor([1, 3, 2])
    histories = torch.zeros(3, 4, dtype=torch.int64)
    users, tokens = Dim("users"), Dim("tokens")
    examples = [histories, lengths, torch.tensor(1), *([histories.clone()] if model.reads_times else [])]
    shapes: list[Any] = [{0: users, 1: tokens}, {0: users}, None, {0: users, 1: tokens}]
    model(*examples)  # fills tables that are computed at first use; while exporting, they would be symbols
    program = torch.export.export(model, tuple(examples), dynamic_shapes=tuple(shapes[: len(examples)]))
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta = {name: value for name, value in node.meta.items() if name in KEPT_META}
    return program


def _pt2(program: ExportedProgram) -> bytes:
    program.example_inputs = None  # the one part of the file that torch would pickle
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _onnx(program: ExportedProgram, model: PortableModel) -> bytes:
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size >= ONNX_LIMIT:
        raise ExportError(f"the weights have {size:,} bytes, and a file of ONNX less than {ONNX_LIMIT:,}; use .pt2")
    with _quiet():
        found = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=OPSET)
    assert found is not None
    proto = found.model_proto
    graph = proto.graph
    del graph.value_info[:]
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    _name(graph, model.reads_times)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _name(graph: Any, reads_times: bool) -> None:
    """Give the outputs their names, and the free dimensions of inputs and outputs theirs."""
    renamed = {value.name: name for value, name in zip(graph.output, OUTPUTS, strict=True)}
    for node in graph.node:
        node.output[:] = [renamed.get(name, name) for name in node.output]
        node.input[:] = [renamed.get(name, name) for name in node.input]
    dimensions = dict(zip(INPUTS, (("users", "tokens"), ("users",), (), ("users", "tokens")), strict=True))
    dimensions |= {renamed[value.name]: size for value, size in zip(
        graph.output, (("users", "k"), ("users", "k"), ("users", "")), strict=True)}  # fmt: skip
    for value in (*graph.input, *graph.output):
        value.name = renamed.get(value.name, value.name)
        for dimension, name in zip(value.type.tensor_type.shape.dim, dimensions[value.name], strict=True):
            if name:
                dimension.dim_param = name


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's notes on packages that it does not find and on its own deprecated calls."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _check_onnx() -> None:
    for package in ("onnx", "onnxscript"):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            raise ExportError(f"{package} is missing, which writes ONNX; pip install 'virtualmle[onnx]'") from None


def graph_section(model: PortableModel, export: Export, names: Sequence[str]) -> str:
    """The section of the card about the graphs `names`."""
    width, num_items = model.item_vectors.shape[1], export.config.num_items
    times = "| `times` | int64 (users, tokens) | the time of each event, in seconds |\n" if model.reads_times else ""
    bare = "" if export.priors is None else (
        "**The figures of this card are with score priors; the lists of the graphs are without.**"
        "\n\n"
    )  # fmt: skip
    versions = {PT2: f"torch.export of torch {metadata.version('torch')}", ONNX: f"ONNX, opset {OPSET}"}
    warning = TRUST if PT2 in names else ""
    listed = " and ".join(f"`{name}` ({versions[name]})" for name in names)
    return f"""{HEADING}

The model as a graph of plain operators on the CPU, for any number of users, tokens and results: {listed}.

| input | type | |
|---|---|---|
| `histories` | int64 (users, tokens) | numbers of items, below {num_items:,}, oldest first, then any padding |
| `lengths` | int64 (users,) | events of each history, 0 to tokens |
| `k` | int64 () | results for each user, 1 to {num_items:,} |
{times}
| output | type | |
|---|---|---|
| `items` | int64 (users, k) | the best items outside the history; number n is row n of `items.parquet` |
| `scores` | float32 (users, k) | their scores; -inf where a history leaves fewer than k items |
| `vectors` | float32 (users, {width}) | user vectors for `item_vectors.npy` |

A history of length 0 gets the items with most events. Equal scores are in no particular order.

{bare}Not in the graphs, and why:

- score priors and `fusion = rerank`: they add rows of large sparse tables, whose number depends on each history;
- original ids: strings are looked up outside (`items.parquet`);
- the packed layout and the CUDA kernels: they depend on the data and on Triton. Histories are padded rows here.
{warning}"""


TRUST = f"""
`{PT2}` was written without pickled parts, but `torch.export.load` would read them in a forged file. Before loading a
copy, compare its SHA-256 with `manifest.json`.
"""


def _with_section(card: str, section: str) -> str:
    """The card with the section at its end; an earlier one is replaced."""
    before = re.split(rf"^{HEADING}$", card, maxsplit=1, flags=re.MULTILINE)[0]
    return before.rstrip("\n") + "\n\n" + section.rstrip("\n") + "\n"

"""The graphs of an export against the packed model: every knob of the architecture, and two file formats."""

import json
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from virtualmle.cli.app import main
from virtualmle.data.histories import Histories
from virtualmle.data.prepared import PreparedDataset
from virtualmle.models.build import build_model
from virtualmle.models.config import KNOBS, TrialConfig, make_config
from virtualmle.serving.artifact import Export, write_export
from virtualmle.serving.assembly import assemble
from virtualmle.serving.conversion import convert_export
from virtualmle.serving.layout import TrainedModel
from virtualmle.serving.portable import PortableModel
from virtualmle.serving.recommender import Recommender
from virtualmle.training.checkpoint import save_checkpoint
from virtualmle.training.spec import CHECKPOINT

MAX_LEN, K = 6, 9
SMALL = {"hidden_dim": 16, "max_len": MAX_LEN, "num_heads": 2, "attention_dim": 8, "linear_dim": 8}
# Knobs of the architecture that are numbers, with a value that changes the model.
NUMBERS = {
    "hidden_dim": 24, "num_blocks": 2, "num_heads": 4, "linear_dim": 12, "attention_dim": 12, "ffn_multiplier": 2,
    "max_len": 4, "conv_kernel": 3, "latent_steps": 2, "readout_k": 2, "frequency_rescaling": 0.5,
    "frequency_cutoff": 2,
}  # fmt: skip
WITH = {
    "shared_blocks": {"num_blocks": 2}, "readout_k": {"readout": "last_k"}, "causal": {"supervision": "last"},
    "frequency_cutoff": {"frequency_rescaling": 0.5},
}  # fmt: skip
EVERYTHING = {
    "time_bias": True, "norm": "rms", "conv_kernel": 3, "frequency_filter": True, "frequency_rescaling": 0.5,
    "readout": "attention", "scores": "cosine",
}  # fmt: skip


def architectures() -> list[tuple[str, str, object]]:
    """Every value of every choice and switch of the architecture, and one value of every number, on both backbones."""
    found: list[tuple[str, str, object]] = []
    for name, knob in KNOBS.items():
        if knob.dimension in {"capacity", "sequence_modelling"} or name == "scores":
            values = knob.choices or ((False, True) if knob.type == "bool" else (NUMBERS[name],))
            found += [(backbone, name, value) for backbone in knob.defaults for value in values]
    return found


def history_rows(num_items: int) -> Histories:
    """One random history of every length from 0 to more than twice max_len, in another order, with times."""
    draw = np.random.default_rng(3)
    lengths = draw.permutation(2 * MAX_LEN + 2)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    times = draw.integers(0, 10**7, offsets[-1])
    for first, last in zip(offsets[:-1], offsets[1:], strict=True):
        times[first:last].sort()
    return Histories(draw.integers(0, num_items, offsets[-1]).astype(np.int32), offsets, times)


def padded(histories: Histories, fill: int, extra: int = 3) -> dict[str, np.ndarray]:
    """The inputs of a graph: rows with `extra` columns of padding beyond the longest history."""
    lengths = np.diff(histories.offsets)
    rows, times = (np.full((len(lengths), lengths.max() + extra), fill) for _ in range(2))
    for user, length in enumerate(lengths):
        part = slice(histories.offsets[user], histories.offsets[user + 1])
        rows[user, :length], times[user, :length] = histories.items[part], histories.times[part]
    return {"histories": rows, "lengths": lengths.astype(np.int64), "k": np.array(K), "times": times}


def export_of(folder: Path, dataset_dir: Path, *configs: TrialConfig) -> Path:
    """An export with random weights of one model per configuration, without score priors."""
    num_items, models = PreparedDataset.load(dataset_dir).num_items, []
    for number, config in enumerate(configs):
        trial = folder / f"t{number:03d}"
        trial.mkdir(parents=True)
        model = build_model(config, num_items, seed=number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3)  # so that every part of the architecture matters
        save_checkpoint(trial / CHECKPOINT, model, config, num_items)
        models.append(TrainedModel(f"toy-1/t{number:03d}", trial))
    write_export(folder / "model", assemble(models, configs[0], dataset_dir, "# Card\n\nText.\n"))
    return folder / "model"


def check(found: dict[str, np.ndarray], directory: Path) -> None:
    """Compare the outputs of a graph with the library: equal lists up to ties, and equal scores and vectors."""
    recommender = Recommender.load(directory, "cpu")
    num_items = recommender.export.config.num_items
    histories = history_rows(num_items)
    filled = np.diff(histories.offsets) > 0
    items, scores = recommender.engine.top(histories, K)
    np.testing.assert_allclose(found["scores"], scores, rtol=1e-4, atol=2e-5)
    for user in range(len(filled)):
        different = found["items"][user] != items[user]
        close = np.isclose(scores[user][:, None], scores[user][None, :], rtol=1e-4, atol=2e-5).sum(axis=1) > 1
        last = np.isclose(scores[user], scores[user][-1], rtol=1e-4, atol=2e-5)  # may be tied with the next item
        assert not (different & ~close & ~last).any(), f"user {user}: {found['items'][user]} is not {items[user]}"
    bounds = np.concatenate(([0], np.cumsum(np.diff(histories.offsets)[filled])))
    vectors = recommender.engine.user_vectors(histories._replace(offsets=bounds)).numpy()
    np.testing.assert_allclose(found["vectors"][filled], vectors, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("backbone", "knob", "value"), architectures())
def test_padded_rows_give_the_scores_of_the_packed_model_for_every_architecture(
    backbone, knob, value, tiny_dataset_dir, tmp_path
):
    directory = export_of(
        tmp_path, tiny_dataset_dir, make_config(backbone, **{**SMALL, **WITH.get(knob, {}), knob: value})
    )
    export = Export.load(directory)
    model = PortableModel([member.model for member in export.members], torch.tensor(export.counts)).eval()
    inputs = {name: torch.tensor(value) for name, value in padded(history_rows(len(export.items)), fill=-7).items()}
    with torch.inference_mode():
        outputs = model(**inputs)
    check({name: each.numpy() for name, each in zip(("items", "scores", "vectors"), outputs, strict=True)}, directory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def single(folder, tiny_dataset_dir):
    directory = export_of(folder / "single", tiny_dataset_dir, make_config("sasrec", **SMALL))
    with pytest.raises(SystemExit) as left:
        main(["convert", str(directory), "--onnx", "--torch-export"])
    assert left.value.code in (0, None)
    return directory


@pytest.fixture(scope="module")
def ensemble(folder, tiny_dataset_dir):
    """Two members of different backbones, of which one reads times."""
    members = make_config("sasrec", **SMALL, time_bias=True), make_config("hstu", **SMALL)
    directory = export_of(folder / "ensemble", tiny_dataset_dir, *members)
    convert_export(directory, ["torch", "onnx"])
    return directory


@pytest.fixture(scope="module")
def everything(folder, tiny_dataset_dir):
    """A model with many layers that others lack."""
    config = make_config("sasrec", **SMALL, **EVERYTHING, position="rotary", ffn="swiglu", norm_placement="post")
    directory = export_of(folder / "everything", tiny_dataset_dir, config)
    convert_export(directory, ["torch", "onnx"])
    return directory


RUN = {
    "model.onnx": """
        sys.modules["torch"] = None
        import onnxruntime
        graph = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
        given = {each.name: inputs[each.name] for each in graph.get_inputs()}
        names = [each.name for each in graph.get_outputs()]
        outputs = dict(zip(names, graph.run(None, given)))
    """,
    "model.pt2": """
        import torch
        graph = torch.export.load(sys.argv[1]).module()
        values = [torch.tensor(inputs[name]) for name in ("histories", "lengths", "k", "times")]
        few = "times" not in str(graph.graph)
        outputs = dict(zip(("items", "scores", "vectors"), graph(*values[:3] if few else values)))
    """,
}


def without_virtualmle(file: Path, inputs: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """The outputs of a graph in a process that cannot import virtualmle (nor torch, for ONNX)."""
    body = "\n".join(line.strip() for line in RUN[file.name].splitlines())
    program = "import sys\nsys.modules['virtualmle'] = None\nimport numpy as np\ninputs = np.load(sys.argv[2])\n"
    program += body + "\n"
    np.savez(folder / "inputs.npz", **inputs)
    program += "np.savez(sys.argv[3], **{name: np.asarray(each) for name, each in outputs.items()})\n"
    arguments = [str(file), str(folder / "inputs.npz"), str(folder / "outputs.npz")]
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "outputs.npz"))


@pytest.mark.parametrize(
    "name", ["single", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ensemble", "everything"))]
)
@pytest.mark.parametrize("file", list(RUN))
def test_a_graph_runs_without_virtualmle_and_gives_the_lists_of_the_library(name, file, request, tmp_path):
    directory = request.getfixturevalue(name)
    inputs = padded(history_rows(Export.load(directory).config.num_items), fill=0)
    check(without_virtualmle(directory / file, inputs, tmp_path), directory)


def test_a_converted_export_still_loads_and_its_manifest_and_card_name_the_graphs(single):
    listed = json.loads((single / "manifest.json").read_text())["files"]
    assert {"model.pt2", "model.onnx", "MODEL_CARD.md"} <= set(listed)
    assert listed["model.onnx"]["bytes"] == (single / "model.onnx").stat().st_size
    assert len(Recommender.load(single, "cpu").recommend([], k=3)) == 3
    card = (single / "MODEL_CARD.md").read_text()
    assert card.startswith("# Card\n\nText.\n\n## Graphs for other programs\n")
    assert card.count("## Graphs for other programs") == 1
    assert "score priors" in card and "forged" in card and "`times`" not in card


def test_a_graph_holds_no_pickle_and_names_no_source_file_and_no_directory(single):
    archive = zipfile.ZipFile(BytesIO((single / "model.pt2").read_bytes()))
    parts = {name: archive.read(name) for name in archive.namelist()}
    others = {name: part for name, part in parts.items() if "/weights/weight" not in name}  # these are raw numbers
    assert not [name for name, part in others.items() if zipfile.is_zipfile(BytesIO(part)) or part[:1] == b"\x80"]
    parts["model.onnx"] = (single / "model.onnx").read_bytes()
    for name, content in parts.items():
        assert b".py" not in content, name
        assert str(single.parent).encode() not in content, name


def test_without_a_format_or_without_onnx_nothing_is_written(folder, tiny_dataset_dir, monkeypatch, capsys):
    directory = export_of(folder / "plain", tiny_dataset_dir, make_config("sasrec", **SMALL))
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    with pytest.raises(SystemExit) as left:
        main(["convert", str(directory)])
    assert left.value.code == 1
    assert "--onnx, --torch-export or both" in capsys.readouterr().err

    def missing(package: str) -> str:
        raise conversion.metadata.PackageNotFoundError(package)

    from virtualmle.serving import conversion  # noqa: PLC0415

    monkeypatch.setattr(conversion.metadata, "version", missing)
    with pytest.raises(SystemExit) as left:
        main(["convert", str(directory), "--onnx"])
    assert left.value.code == 1
    assert "pip install 'virtualmle[onnx]'" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before

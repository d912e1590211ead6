"""The files of an export: equal for equal contents, complete or refused, replaced as a whole, and about no user."""

import hashlib
import json
import os
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file

from tests.exported import contents_of
from virtualmle.data.errors import ExportError
from virtualmle.data.hashing import sha256_of
from virtualmle.data.prepared import PreparedDataset
from virtualmle.models.priors import PriorTables
from virtualmle.serving import artifact
from virtualmle.serving.artifact import Contents, Export, write_export
from virtualmle.serving.layout import CARD, CONFIG, MANIFEST

PRIORS = {"transition_weight": 3.0, "cooccurrence_weight": 2.0, "popularity_weight": 0.5}


@pytest.fixture(scope="module")
def contents(tiny_dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Contents:
    members = [("sasrec", PRIORS), ("hstu", {})]
    return contents_of(tiny_dataset_dir, tmp_path_factory.mktemp("models"), *members)


@pytest.fixture
def written(contents: Contents, tmp_path: Path) -> Path:
    write_export(tmp_path / "export", contents)
    return tmp_path / "export"


def test_an_export_has_these_files_and_equal_contents_give_equal_bytes(
    contents: Contents, written: Path, tmp_path: Path
):
    names = {path.name for path in written.iterdir()}
    assert names == {
        "config.json", "model.safetensors", "model-2.safetensors", "items.parquet", "priors.safetensors",
        "item_vectors.npy", "sums.safetensors", "MODEL_CARD.md", "manifest.json",
    }  # fmt: skip
    write_export(tmp_path / "again", contents)
    for name in names:
        assert (written / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert {path.name for path in tmp_path.iterdir()} == {"export", "again"}  # no temporary directory is left


def test_an_export_is_read_as_it_was_written(contents: Contents, written: Path, tiny_dataset_dir: Path):
    export, dataset = Export.load(written), PreparedDataset.load(tiny_dataset_dir)
    assert [member.trial for member in export.members] == ["toy-1/t000", "toy-1/t001"]
    for member, original in zip(export.members, contents.members, strict=True):
        assert member.config == original.config
        for (name, found), (_, expected) in zip(
            member.model.named_parameters(), original.model.named_parameters(), strict=True
        ):
            assert found.equal(expected), name
    assert export.items.to_list() == pl.read_parquet(tiny_dataset_dir / "item_ids.parquet")["original_id"].to_list()
    assert export.counts.tolist() == np.bincount(dataset.items, minlength=dataset.num_items).tolist()
    counted = PriorTables(dataset).priors(export.priors.config)
    assert export.priors.popularity.equal(counted.popularity)
    for name in ("transition", "cooccurrence"):
        for part in ("starts", "columns", "values"):
            assert getattr(getattr(export.priors, name), part).equal(getattr(getattr(counted, name), part))
    assert (export.config.trained_on, export.config.dataset.dataset_id) == ("train", dataset.dataset_id)


def test_the_manifest_has_the_hash_and_the_size_of_every_other_file(written: Path):
    files = json.loads((written / MANIFEST).read_bytes())["files"]
    assert set(files) == {path.name for path in written.iterdir()} - {MANIFEST}
    for name, entry in files.items():
        assert entry == {"sha256": sha256_of(written / name), "bytes": (written / name).stat().st_size}


def test_an_export_names_no_user_and_no_path(written: Path, tiny_dataset_dir: Path):
    users = pl.read_parquet(tiny_dataset_dir / "user_ids.parquet")["original_id"].to_list()
    everything = b"".join(path.read_bytes() for path in written.iterdir())
    for text in [*users, str(tiny_dataset_dir), str(written), os.sep + "tmp"]:
        assert text.encode() not in everything, text
    num_items = Export.load(written).config.num_items
    lengths = {len(table) for name, table in load_file(written / "priors.safetensors").items() if "." not in name}
    assert lengths == {num_items}


@pytest.mark.parametrize("name", ["config.json", "model-2.safetensors", "items.parquet", "item_vectors.npy"])
def test_a_changed_or_missing_file_is_found_when_the_export_is_loaded(name: str, written: Path):
    content = bytearray((written / name).read_bytes())
    content[len(content) // 2] ^= 1
    (written / name).write_bytes(content)
    with pytest.raises(ExportError, match=f"the hash of {name} differs.*--overwrite"):
        Export.load(written)
    (written / name).unlink()
    with pytest.raises(ExportError, match=f"not a complete export: {name}"):
        Export.load(written)


def test_a_card_may_be_amended(written: Path):
    (written / CARD).write_text("# Ours\n")
    assert Export.load(written).config.num_items


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"format_version": 2}, "format version 2, and this version of virtualmle reads 1", id="newer"),
        pytest.param({"format_version": None}, "format version None", id="none"),
        pytest.param({"files": {"../secret": {"sha256": "", "bytes": 1}}}, "which is not in it", id="outside"),
        pytest.param({"files": {}}, "does not list", id="incomplete"),
        pytest.param({"files": 3}, "manifest.json has 1 errors", id="malformed"),
    ],
)
def test_a_manifest_of_another_version_or_of_other_files_is_refused(change: dict, message: str, written: Path):
    manifest = json.loads((written / MANIFEST).read_bytes())
    (written / MANIFEST).write_text(json.dumps(manifest | change))
    with pytest.raises(ExportError, match=message):
        Export.load(written)


@pytest.mark.parametrize("content", [b"junk", b'{"format_version": 1, "members": []}'])
@pytest.mark.parametrize("name", ["config.json", "items.parquet", "priors.safetensors", "model.safetensors"])
def test_a_foreign_file_is_refused_even_if_the_manifest_has_its_hash(content: bytes, name: str, written: Path):
    (written / name).write_bytes(content)
    manifest = json.loads((written / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (written / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match="is damaged"):
        Export.load(written)


def test_a_configuration_with_knobs_of_a_later_version_says_which(written: Path):
    config = json.loads((written / CONFIG).read_bytes())
    config["members"][0]["config"]["knob_of_the_future"] = 3
    (written / CONFIG).write_text(json.dumps(config))
    manifest = json.loads((written / MANIFEST).read_bytes())
    manifest["files"][CONFIG]["sha256"] = sha256_of(written / CONFIG)
    (written / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match=r"does not accept \(knob_of_the_future\); update virtualmle"):
        Export.load(written)


def test_a_directory_that_is_no_export_is_neither_loaded_nor_replaced(contents: Contents, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text('{"files": []}')
    for overwrite in (False, True):
        with pytest.raises(ExportError, match="is not an export"):
            write_export(tmp_path / "mine", contents, overwrite=overwrite)
    with pytest.raises(ExportError, match="has no format version"):
        Export.load(tmp_path / "mine")
    with pytest.raises(ExportError, match="not a complete export.*virtualmle export SESSION DIR"):
        Export.load(tmp_path / "nowhere")


def test_an_export_is_replaced_only_on_request(contents: Contents, written: Path):
    (written / CARD).write_text("# Ours\n")
    with pytest.raises(ExportError, match="--overwrite"):
        write_export(written, contents)
    assert (written / CARD).read_text() == "# Ours\n"
    write_export(written, contents, overwrite=True)
    assert (written / CARD).read_text() == contents.card
    assert [path.name for path in written.parent.iterdir()] == ["export"]


def test_a_write_that_fails_leaves_the_export_as_it_was(contents: Contents, written: Path, monkeypatch):
    before = {path.name: path.read_bytes() for path in written.iterdir()}

    def full_disk(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact, "write_bytes", full_disk)
    with pytest.raises(ExportError, match="cannot be written.*No space left"):
        write_export(written, contents, overwrite=True)
    assert {path.name: path.read_bytes() for path in written.iterdir()} == before
    assert [path.name for path in written.parent.iterdir()] == ["export"]


def test_readers_see_one_export_or_the_other_while_it_is_replaced(
    contents: Contents, written: Path, tiny_dataset_dir: Path, tmp_path: Path
):
    other = contents_of(tiny_dataset_dir, tmp_path / "models", ("hstu", {"hidden_dim": 24}))
    done = threading.Event()

    def replace() -> None:
        for number in range(12):
            write_export(written, (other, contents)[number % 2], overwrite=True)
        done.set()

    writer = threading.Thread(target=replace)
    writer.start()
    seen = set()
    try:
        while not done.is_set():
            seen.add(len(Export.load(written).members))
    finally:
        writer.join()
    assert seen <= {1, 2} and seen

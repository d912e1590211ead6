"""Checkpoints: a model read back gives exactly the scores of the model that was written."""

import pytest
import torch
from safetensors.torch import save_file

from virtualmle.models.batch import make_batch
from virtualmle.models.build import build_model
from virtualmle.models.config import make_config
from virtualmle.training.checkpoint import load_checkpoint, save_checkpoint
from virtualmle.training.errors import TrainingError


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_read_back_gives_bit_identical_scores(backbone, tied, tmp_path):
    config = make_config(backbone, hidden_dim=16, tie_embeddings=tied, position="both", readout="attention")
    model = build_model(config, 30, seed=5).eval()
    save_checkpoint(tmp_path / "model.safetensors", model, config, 30)
    loaded, loaded_config = load_checkpoint(tmp_path / "model.safetensors")
    batch = make_batch(torch.arange(9), torch.tensor([0, 4, 9]), config)
    assert loaded_config == config and loaded.num_items == 30
    assert torch.equal(loaded.score(loaded(batch)), model.score(model(batch)))
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_equal_models_give_equal_bytes_and_a_tied_table_is_stored_once(tmp_path):
    sizes = {}
    for tied in (True, False):
        config = make_config("sasrec", hidden_dim=16, tie_embeddings=tied)
        for name in "ab":
            save_checkpoint(tmp_path / name, build_model(config, 100, seed=5), config, 100)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        sizes[tied] = (tmp_path / "a").stat().st_size
    assert sizes[False] - sizes[True] > 100 * 16 * 4


def test_a_file_that_is_not_a_checkpoint_is_an_error(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(TrainingError, match="cannot be read"):
        load_checkpoint(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(TrainingError, match="cannot be read"):
        load_checkpoint(path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(TrainingError, match="not a VirtualMLE checkpoint"):
        load_checkpoint(path)


def test_a_checkpoint_whose_weights_do_not_fit_its_configuration_is_an_error(tmp_path):
    path, config = tmp_path / "model.safetensors", make_config("sasrec", hidden_dim=16)
    save_checkpoint(path, build_model(config, 30, seed=0), make_config("sasrec", hidden_dim=32), 30)
    with pytest.raises(TrainingError, match="do not fit its configuration"):
        load_checkpoint(path)

"""Scores over the catalogue: dot or cosine, tied or untied, for all items or for some."""

import pytest
import torch
import torch.nn.functional as F

from virtualmle.models import item_table
from virtualmle.models.build import build_model, num_parameters
from virtualmle.models.config import make_config

torch.set_num_threads(1)

NUM_ITEMS = 23


def model_of(**changes):
    return build_model(make_config("sasrec", **{"hidden_dim": 8, **changes}), NUM_ITEMS, seed=0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scores", ["dot", "cosine"])
def test_scores_are_dot_products_or_cosines_over_the_temperature(scores, tied):
    model = model_of(scores=scores, tie_embeddings=tied, temperature=0.07)
    states, table = torch.randn(5, 8), model.item_table()
    if scores == "dot":
        expected = torch.einsum("nd,id->ni", states, table) / 0.07
    else:
        expected = F.cosine_similarity(states[:, None], table[None], dim=-1) / 0.07
    torch.testing.assert_close(model.score(states), expected)


@pytest.mark.parametrize("scores", ["dot", "cosine"])
def test_the_vectors_of_some_items_are_rows_of_the_catalogue(scores):
    items = model_of(scores=scores, temperature=0.5).items
    chosen, states = torch.tensor([3, 3, 0, 22]), torch.randn(4, 8)
    torch.testing.assert_close(items.vectors(chosen), items.catalogue()[chosen])
    torch.testing.assert_close(items.scaled(states) @ items.vectors(chosen).T, items.score(states)[:, chosen])


def test_in_a_large_catalogue_only_the_rows_looked_up_get_gradients(monkeypatch):
    monkeypatch.setattr(item_table, "ROW_SPARSE_ABOVE", 10)
    items = model_of(tie_embeddings=True, scores="cosine").items
    looked_up = torch.tensor([4, 2, 4])
    (items.embed(looked_up).sin().sum() + items.vectors(torch.tensor([7])).sum()).backward()
    gradient = items.input.grad.coalesce()
    assert gradient.is_sparse and gradient.indices()[0].tolist() == [2, 4, 7]
    monkeypatch.setattr(item_table, "ROW_SPARSE_ABOVE", 1000)
    dense = model_of(tie_embeddings=True, scores="cosine").items
    (dense.embed(looked_up).sin().sum() + dense.vectors(torch.tensor([7])).sum()).backward()
    torch.testing.assert_close(gradient.to_dense(), dense.input.grad)


def test_the_cosine_of_a_zero_vector_is_zero_with_a_finite_gradient():
    model = model_of(scores="cosine", temperature=0.05)
    states = torch.zeros(2, 8, requires_grad=True)
    scores = model.score(states)
    scores.sum().backward()
    assert (scores == 0).all() and states.grad.isfinite().all()


def test_a_tied_table_is_a_single_parameter():
    tied, untied = model_of(tie_embeddings=True), model_of(tie_embeddings=False)
    assert num_parameters(untied) - num_parameters(tied) == NUM_ITEMS * 8
    assert tied.item_table() is tied.items.input
    storages = [tensor.untyped_storage().data_ptr() for tensor in tied.state_dict().values()]
    assert len(set(storages)) == len(storages), "safetensors refuses tensors that share memory"

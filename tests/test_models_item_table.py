"""Scores against the catalogue: dot or cosine, tied or not, whole or sampled."""

import pytest
import torch
import torch.nn.functional as F

from virtualmle.models.build import build_model, num_parameters
from virtualmle.models.config import make_config

torch.set_num_threads(1)

NUM_ITEMS = 23


def model_of(**changes):
    return build_model(make_config("sasrec", **{"hidden_dim": 8, **changes}), NUM_ITEMS, seed=0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scores", ["dot", "cosine"])
def test_scores_follow_their_formula(scores, tied):
    model = model_of(scores=scores, tie_embeddings=tied, temperature=0.07)
    states, table = torch.randn(5, 8), model.item_table()
    if scores == "dot":
        expected = torch.einsum("nd,id->ni", states, table) / 0.07
    else:
        expected = F.cosine_similarity(states[:, None], table[None], dim=-1) / 0.07
    torch.testing.assert_close(model.score(states), expected)


@pytest.mark.parametrize("scores", ["dot", "cosine"])
def test_partial_scores_equal_the_columns_of_the_whole(scores):
    model = model_of(scores=scores, temperature=0.5)
    states = torch.randn(6, 8)
    targets, negatives = torch.randint(NUM_ITEMS, (6,)), torch.randint(NUM_ITEMS, (9,))
    whole = model.score(states)
    own, shared = model.score_sampled(states, targets, negatives)
    torch.testing.assert_close(shared, whole[:, negatives])
    torch.testing.assert_close(own, whole.gather(1, targets[:, None])[:, 0])


@pytest.mark.parametrize("scores", ["dot", "cosine"])
def test_sampled_scores_have_the_gradient_of_the_whole(scores):
    model = model_of(scores=scores).double()
    states = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    targets, negatives = torch.tensor([3, 3, 0, 22]), torch.tensor([3, 7, 7])
    whole = model.score(states)
    full = whole.gather(1, targets[:, None])[:, 0].sin().sum() + whole[:, negatives].cos().sum()
    own, shared = model.score_sampled(states, targets, negatives)
    leaves = (states, model.item_table())
    expected = torch.autograd.grad(full, leaves)
    for got, want in zip(torch.autograd.grad(own.sin().sum() + shared.cos().sum(), leaves), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_cosine_of_a_zero_vector_is_zero_with_a_finite_gradient():
    model = model_of(scores="cosine", temperature=0.05)
    states = torch.zeros(2, 8, requires_grad=True)
    scores = model.score(states)
    scores.sum().backward()
    assert (scores == 0).all() and states.grad.isfinite().all()


def test_a_tied_table_is_one_parameter_with_one_name():
    tied, untied = model_of(tie_embeddings=True), model_of(tie_embeddings=False)
    assert num_parameters(untied) - num_parameters(tied) == NUM_ITEMS * 8
    assert tied.item_table() is tied.items.input
    storages = [tensor.untyped_storage().data_ptr() for tensor in tied.state_dict().values()]
    assert len(set(storages)) == len(storages), "safetensors refuses tensors that share memory"

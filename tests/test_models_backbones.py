"""SASRec and HSTU: the formulas of their papers, causality, independence from the batch, seeds and dropout."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from virtualmle.models.batch import make_batch
from virtualmle.models.build import build_model, num_parameters
from virtualmle.models.config import make_config

torch.set_num_threads(1)

NUM_ITEMS, MAX_LEN = 31, 12
SMALL = {"hidden_dim": 8, "num_heads": 2, "num_blocks": 2, "max_len": MAX_LEN, "linear_dim": 4, "attention_dim": 6}
POSITIONS = ["absolute", "relative", "both", "none"]
READOUTS = ["last", "mean", "attention", "last_k"]
VARIANTS = [
    pytest.param(backbone, position, readout, ffn, id=f"{backbone}-{position}-{readout}-{ffn}")
    for backbone, position, readout, ffn in itertools.product(
        ["sasrec", "hstu"], POSITIONS, READOUTS, ["relu", "gelu", "swiglu"]
    )
    if backbone == "sasrec" or ffn == "gelu"  # HSTU has no feed-forward layer
]


def model_of(backbone, seed=0, **changes):
    """A small float64 model with larger weights than the initial ones, so that every part of it affects the states."""
    model = build_model(make_config(backbone, **{**SMALL, **changes}), NUM_ITEMS, seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.2)
    return model


def states_of(model, sequences):
    offsets = torch.tensor([0, *(len(sequence) for sequence in sequences)]).cumsum(0)
    items = torch.tensor([item for sequence in sequences for item in sequence], dtype=torch.int64)
    return model(make_batch(items, offsets, model.config))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("backbone", "position", "readout", "ffn"), VARIANTS)
@settings(deadline=None, max_examples=4)
@given(data=st.data())
def test_no_state_depends_on_a_later_item(backbone, position, readout, ffn, data):
    sequences = data.draw(
        st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), min_size=1, max_size=MAX_LEN), min_size=1, max_size=4)
    )
    model = model_of(backbone, position=position, readout=readout, ffn=ffn)
    which = data.draw(st.integers(0, len(sequences) - 1))
    step = data.draw(st.integers(0, len(sequences[which]) - 1))
    changed = [list(sequence) for sequence in sequences]
    changed[which][step] = (changed[which][step] + 1) % NUM_ITEMS
    before, after = states_of(model, sequences), states_of(model, changed)
    token = sum(map(len, sequences[:which])) + step
    end = sum(map(len, sequences[: which + 1]))
    same = torch.ones(len(before), dtype=torch.bool)
    same[token:end] = False
    close(before[same], after[same])
    assert not torch.equal(before[token], after[token]), "the state of the changed item has to change"


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_without_the_causal_mask_a_state_depends_on_its_whole_sequence_and_on_no_other(backbone):
    model = model_of(backbone, causal=False, supervision="last", position="both")
    first, second = states_of(model, [[1, 2, 3], [4, 5]]), states_of(model, [[1, 2, 30], [4, 5]])
    assert (first[:2] != second[:2]).any(1).all()
    close(first[3:], second[3:])


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
@settings(deadline=None, max_examples=8)
@given(
    others=st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=MAX_LEN), max_size=6),
    sequence=st.lists(st.integers(0, NUM_ITEMS - 1), min_size=1, max_size=MAX_LEN),
)
def test_states_do_not_depend_on_the_other_sequences_of_the_batch(backbone, readout, others, sequence):
    model = model_of(backbone, readout=readout, position="both")
    close(states_of(model, [*others, sequence])[-len(sequence) :], states_of(model, [sequence]))


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_only_a_model_with_positions_distinguishes_the_order_of_events(backbone, position):
    model = model_of(backbone, position=position, causal=False, supervision="last")
    state, swapped = states_of(model, [[3, 9, 4, 1]])[-1], states_of(model, [[9, 3, 4, 1]])[-1]
    assert torch.allclose(state, swapped, rtol=1e-9, atol=1e-9) == (position == "none")


def hstu_formula(model, items):
    """The states of one sequence by the formula of HSTU's research code, one head and pair at a time."""
    config, length, heads = model.config, len(items), model.config.num_heads
    x = model.items.input[items] * config.hidden_dim**0.5 + model.positions.table[:length]
    for block in model.blocks:
        uvqk = F.silu(F.layer_norm(x, (config.hidden_dim,), eps=1e-6) @ block.uvqk.weight.T)
        linear, attention = heads * config.linear_dim, heads * config.attention_dim
        u, v, q, k = (part.view(length, heads, -1) for part in uvqk.split([linear, linear, attention, attention], -1))
        out = torch.zeros_like(v)
        for head, i in itertools.product(range(heads), range(length)):
            for j in range(i + 1):
                score = q[i, head] @ k[j, head] + block.position_table[0, config.max_len - 1 + j - i]
                out[i, head] += F.silu(score) / config.max_len * v[j, head]
        gated = u.flatten(1) * F.layer_norm(out.flatten(1), (linear,), eps=1e-6)
        x = gated @ block.out.weight.T + block.out.bias + x
    return x


def sasrec_formula(model, items):
    """The states of one sequence by SASRec's formula, one head and query at a time."""
    config, length = model.config, len(items)
    width = config.hidden_dim // config.num_heads
    x = model.items.input[items] * config.hidden_dim**0.5 + model.positions.table[:length]
    for block in model.blocks:
        q, k, v = block.query_key_value(block.attention_norm(x)).chunk(3, -1)
        heads = []
        for head in range(config.num_heads):
            part, rows = slice(head * width, (head + 1) * width), []
            for i in range(length):
                bias = block.position_table[head, config.max_len - 1 - i :][: i + 1]
                weights = (k[: i + 1, part] @ q[i, part] / width**0.5 + bias).softmax(0)
                rows.append(weights @ v[: i + 1, part])
            heads.append(torch.stack(rows))
        x = x + block.out(torch.cat(heads, -1))
        normed, layer = block.feed_forward_norm(x), block.feed_forward
        x = x + F.gelu(normed @ layer.inner.weight.T + layer.inner.bias) @ layer.outer.weight.T + layer.outer.bias
    return model.final_norm(x)


@pytest.mark.parametrize(("backbone", "formula"), [("hstu", hstu_formula), ("sasrec", sasrec_formula)])
def test_a_backbone_computes_its_papers_formula(backbone, formula):
    model = model_of(backbone, position="both")
    sequences = [[7, 3, 3, 30, 0], [5], list(range(MAX_LEN))]
    close(states_of(model, sequences), torch.cat([formula(model, torch.tensor(items)) for items in sequences]))


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_the_weights_depend_on_the_seed_argument_only(backbone):
    config = make_config(backbone, **SMALL, position="both", readout="attention")
    models = []
    for global_seed, seed in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(global_seed)
        models.append(build_model(config, NUM_ITEMS, seed).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0]["items.input"], models[2]["items.input"])
    assert all(tensor.isfinite().all() and tensor.abs().max() < 5 for tensor in models[0].values())


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"num_blocks": 3}, id="more blocks"),
        pytest.param({"position": "both", "time_bias": True}, id="new tables"),
        pytest.param({"max_len": 40, "readout": "attention"}, id="another length"),
        pytest.param({"tie_embeddings": False, "conv_kernel": 3}, id="untied"),
    ],
)
def test_configurations_start_from_equal_weights_where_names_and_shapes_agree(backbone, changes):
    config = {**SMALL, "num_blocks": 2, "position": "relative", "tie_embeddings": True}
    plain = build_model(make_config(backbone, **config), NUM_ITEMS, 7).state_dict()
    changed = build_model(make_config(backbone, **{**config, **changes}), NUM_ITEMS, 7).state_dict()
    shared = [name for name in plain if name in changed and plain[name].shape == changed[name].shape]
    assert "items.input" in shared and "blocks.1.out.weight" in shared
    assert all(torch.equal(plain[name], changed[name]) for name in shared)


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_no_two_parameters_start_equal(backbone):
    model = build_model(make_config(backbone, **SMALL, tie_embeddings=False), NUM_ITEMS, 7)
    drawn = [(n, p) for n, p in model.named_parameters() if p.unique().numel() > 1]
    assert {"items.input", "items.untied", "blocks.0.out.weight", "blocks.1.out.weight"} <= {name for name, _ in drawn}
    starts = {tuple(parameter.flatten()[:8].tolist()) for _, parameter in drawn}
    assert len(starts) == len(drawn)


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_forward_and_backward_are_bitwise_reproducible(backbone):
    model = model_of(backbone, position="both", readout="mean", dropout=0.3, attention_dropout=0.2).float().train()
    sequences = [[1, 2, 3, 1, 1], [4], [3, 3, 3, 9]]
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        model.zero_grad()
        states = states_of(model, sequences)
        model.score(states).logsumexp(-1).sum().backward()
        runs.append([states, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("knob", ["dropout", "embedding_dropout", "attention_dropout"])
@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_each_dropout_acts_only_in_training(backbone, knob):
    none = {"dropout": 0.0, "embedding_dropout": 0.0, "attention_dropout": 0.0}
    model, plain = model_of(backbone, **{**none, knob: 0.5}), model_of(backbone, **none)
    sequences = [[1, 2, 3], [4, 5, 6, 7, 8]]
    assert torch.equal(states_of(model, sequences), states_of(plain, sequences))
    assert torch.equal(states_of(plain.train(), sequences), states_of(plain.eval(), sequences))
    model.train()
    assert not torch.equal(states_of(model, sequences), states_of(model, sequences))


@pytest.mark.parametrize(("backbone", "position", "readout", "ffn"), VARIANTS)
def test_every_parameter_gets_a_gradient(backbone, position, readout, ffn):
    model = model_of(backbone, position=position, readout=readout, ffn=ffn).train()
    sequences = [list(range(start, start + MAX_LEN)) for start in (0, 12, 19)]
    states = states_of(model, sequences)
    (model.score(states).sin() * torch.linspace(0, 1, NUM_ITEMS)).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or (p.grad == 0).all()]


def test_the_number_of_parameters_follows_from_the_knobs():
    config = make_config("hstu", hidden_dim=8, num_heads=2, linear_dim=4, attention_dim=6, position="both", max_len=12)
    block = 8 * 2 * 2 * (4 + 6) + (8 * 8 + 8) + 12
    assert num_parameters(build_model(config, NUM_ITEMS, 0)) == NUM_ITEMS * 8 + 12 * 8 + block

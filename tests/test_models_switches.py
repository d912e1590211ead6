"""The switches of the backbones: each against its formula, and any combination causal, trainable and reproducible."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from virtualmle.data.errors import ConfigError
from virtualmle.kernels.jagged.packing import PackingPlan
from virtualmle.models.batch import make_batch
from virtualmle.models.build import build_model, num_parameters
from virtualmle.models.config import make_config
from virtualmle.models.local_mixing import FrequencyFilter, FrequencyRescaling, ShortConvolution
from virtualmle.models.positions import rotate

torch.set_num_threads(1)

NUM_ITEMS, MAX_LEN = 31, 10
SMALL = {"hidden_dim": 8, "num_heads": 2, "num_blocks": 2, "max_len": MAX_LEN, "linear_dim": 4, "attention_dim": 6}
SWITCHES = st.fixed_dictionaries({
    "backbone": st.sampled_from(["sasrec", "hstu"]),
    "norm": st.sampled_from(["layer", "rms"]),
    "norm_placement": st.sampled_from(["pre", "post"]),
    "shared_blocks": st.booleans(),
    "ffn": st.sampled_from(["relu", "gelu", "swiglu"]),
    "ffn_multiplier": st.integers(1, 2),
    "position": st.sampled_from(["absolute", "relative", "both", "rotary", "none"]),
    "time_bias": st.booleans(),
    "conv_kernel": st.integers(0, 3),
    "frequency_filter": st.booleans(),
    "frequency_rescaling": st.sampled_from([0.0, 0.7]),
    "hstu_activation": st.sampled_from(["all", "gate"]),
    "hstu_gating": st.sampled_from(["product", "concat"]),
    "latent_steps": st.integers(0, 2),
    "readout": st.sampled_from(["last", "mean", "attention", "last_k"]),
    "scores": st.sampled_from(["dot", "cosine"]),
    "tie_embeddings": st.booleans(),
})
sequences_strategy = st.lists(
    st.lists(st.tuples(st.integers(0, NUM_ITEMS - 1), st.integers(0, 10**8)), min_size=1, max_size=MAX_LEN),
    min_size=1,
    max_size=3,
)


def model_of(backbone="sasrec", seed=0, **knobs):
    """A small float64 model with larger weights than the initial ones, so that every part of it affects the states."""
    model = build_model(make_config(backbone, **{**SMALL, **knobs}), NUM_ITEMS, seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.2)
    return model


def states_of(model, sequences, masked=None):
    offsets = torch.tensor([0, *map(len, sequences)]).cumsum(0)
    events = torch.tensor([event for sequence in sequences for event in sequence]).view(-1, 2)
    return model(make_batch(events[:, 0], offsets, model.config, times=events[:, 1], masked=masked))


def events_of(items):
    """(item, time) pairs, 100 seconds apart."""
    return [(item, 100 * index) for index, item in enumerate(items)]


@settings(deadline=None, max_examples=150)
@given(SWITCHES, sequences_strategy, st.data())
def test_no_state_depends_on_a_later_event_in_any_combination(knobs, sequences, data):
    model = model_of(**knobs)
    which = data.draw(st.integers(0, len(sequences) - 1))
    step = data.draw(st.integers(0, len(sequences[which]) - 1))
    changed = [list(sequence) for sequence in sequences]
    item, time = changed[which][step]
    changed[which][step] = ((item + 1) % NUM_ITEMS, time + 12_345)
    before, after = states_of(model, sequences), states_of(model, changed)
    first = sum(map(len, sequences[:which])) + step
    end = sum(map(len, sequences[: which + 1]))
    same = torch.ones(len(before), dtype=torch.bool)
    same[first:end] = False
    torch.testing.assert_close(before[same], after[same], rtol=1e-9, atol=1e-9)
    assert not torch.equal(before[first], after[first]), "the state of the changed event has to change"


@settings(deadline=None, max_examples=60)
@given(SWITCHES, sequences_strategy)
def test_states_do_not_depend_on_the_other_sequences_of_the_batch(knobs, sequences):
    model = model_of(**knobs)
    batched = states_of(model, sequences).split([len(sequence) for sequence in sequences])
    for sequence, states in zip(sequences, batched, strict=True):
        torch.testing.assert_close(states_of(model, [sequence]), states, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(SWITCHES)
def test_every_parameter_gets_a_gradient_in_any_combination(knobs):
    model = model_of(**knobs).train()
    sequences = [events_of(range(start, start + MAX_LEN)) for start in (0, 10, 20)]
    (model.score(states_of(model, sequences)).sin() * torch.linspace(0, 1, NUM_ITEMS)).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or (p.grad == 0).all()]


@settings(deadline=None, max_examples=30)
@given(SWITCHES)
def test_the_weights_depend_on_the_seed_argument_only(knobs):
    config, models = make_config(**{**SMALL, **knobs}), []
    for global_seed, seed in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(global_seed)
        models.append(build_model(config, NUM_ITEMS, seed).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0]["items.input"], models[2]["items.input"])
    assert all(tensor.isfinite().all() for tensor in models[0].values())


def test_shared_blocks_apply_one_block_several_times():
    shared, single = model_of(shared_blocks=True, num_blocks=3), model_of(num_blocks=1)
    assert num_parameters(shared) == num_parameters(single)
    x, plan = torch.randn(4, 8, dtype=torch.float64), PackingPlan.build(torch.tensor([0, 4]))
    block = shared.blocks[0]
    torch.testing.assert_close(shared._pass(x, plan), shared.final_norm(block(block(block(x, plan), plan), plan)))


def test_latent_steps_average_the_states_of_further_passes():
    model = model_of(latent_steps=2)
    batch = make_batch(torch.tensor([3, 1, 4]), torch.tensor([0, 3]), model.config)
    first = model._pass(model._embed(batch), batch.plan)
    second = model._pass(first + model.steps[0], batch.plan)
    third = model._pass(second + model.steps[1], batch.plan)
    torch.testing.assert_close(model(batch), (first + second + third) / 3)


def test_post_norm_normalises_the_residual_sum():
    block = model_of(norm_placement="post", num_blocks=1, ffn_multiplier=2).blocks[0]
    x, plan = torch.randn(5, 8, dtype=torch.float64), PackingPlan.build(torch.tensor([0, 2, 5]))
    middle = block.attention_norm(x + block.attend(x, plan))
    layer = block.feed_forward
    inner = F.gelu(middle @ layer.inner.weight.T + layer.inner.bias)
    assert inner.shape == (5, 16)
    expected = block.feed_forward_norm(middle + inner @ layer.outer.weight.T + layer.outer.bias)
    torch.testing.assert_close(block(x, plan), expected)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("gating", ["product", "concat"])
@pytest.mark.parametrize("activation", ["all", "gate"])
def test_the_hstu_block_follows_its_switches(activation, gating, placement, norm):
    model = model_of("hstu", num_heads=1, hstu_activation=activation, hstu_gating=gating, norm_placement=placement,
                     norm=norm, position="none")  # fmt: skip
    block, x = model.blocks[0], torch.randn(4, 8, dtype=torch.float64)

    def normalised(y):
        if norm == "rms":
            return y / (y.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()

    u, v, q, k = ((normalised(x) if placement == "pre" else x) @ block.uvqk.weight.T).split([4, 4, 6, 6], 1)
    u, (v, q, k) = F.silu(u), [F.silu(part) if activation == "all" else part for part in (v, q, k)]
    attended = normalised(F.silu(q @ k.T).tril() @ v / MAX_LEN)
    gated = u * attended if gating == "product" else torch.cat((u, attended, u * attended), 1)
    out = gated @ block.out.weight.T + block.out.bias + x
    expected = normalised(out) if placement == "post" else out
    torch.testing.assert_close(block(x, PackingPlan.build(torch.tensor([0, 4]))), expected)


def test_rotary_scores_depend_only_on_the_distance():
    q, k = torch.randn(2, 1, 1, 6, dtype=torch.float64)
    positions = torch.arange(20)
    rotated = [rotate(x.expand(20, 1, 6), positions)[:, 0] for x in (q, k)]
    scores = rotated[0] @ rotated[1].T
    for distance in range(-19, 20):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    torch.testing.assert_close(rotated[0].norm(dim=1), q.norm().expand(20))
    angle = torch.tensor(3.0 * 10_000 ** (-1 / 3), dtype=torch.float64)  # pair 1 at position 3
    a, b = q[0, 0, 1], q[0, 0, 4]
    torch.testing.assert_close(rotated[0][3, 1], a * angle.cos() - b * angle.sin())
    with pytest.raises(ConfigError, match="even attention_dim"):
        make_config("hstu", position="rotary", attention_dim=15)


def test_the_short_convolution_and_the_filter_add_a_causal_convolution_to_their_input():
    config = make_config("sasrec", **SMALL, conv_kernel=3, frequency_filter=True)
    x, plan = torch.randn(6, 8, dtype=torch.float64), PackingPlan.build(torch.tensor([0, 6]))
    for layer in (ShortConvolution(config), FrequencyFilter(config)):
        layer.double().eval()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.normal_()
        normed = layer.norm(x)
        if isinstance(layer, ShortConvolution):
            taps = layer.taps
        else:  # the inverse Fourier transform, term by term
            spectrum = torch.view_as_complex(layer.spectrum)
            steps, last = torch.arange(MAX_LEN), MAX_LEN // 2
            taps = spectrum[0].real + (-1.0) ** steps[:, None] * spectrum[last].real
            for frequency in range(1, last):
                wave = torch.exp(2j * torch.pi * frequency * steps / MAX_LEN)[:, None]
                taps = taps + 2 * (spectrum[frequency] * wave).real
            taps = taps / MAX_LEN**0.5
        mixed = torch.stack([sum(taps[s] * normed[t - s] for s in range(min(len(taps), t + 1))) for t in range(6)])
        torch.testing.assert_close(layer(x, plan), x + mixed, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cutoff", [1, 3, MAX_LEN // 2, MAX_LEN // 2 + 1, 99])
def test_the_frequency_rescaling_is_that_of_each_padded_prefix(cutoff):
    """BSARec's own form: the spectrum of every prefix, padded in front to max_len, of which the last step is read."""
    layer = FrequencyRescaling(make_config("sasrec", **SMALL, frequency_rescaling=0.7, frequency_cutoff=cutoff))
    layer.double()
    torch.nn.init.normal_(layer.gain)
    x = torch.randn(MAX_LEN + 4, 8, dtype=torch.float64)
    plan = PackingPlan.build(torch.tensor([0, MAX_LEN, MAX_LEN + 4]))
    expected = []
    for sequence in (x[:MAX_LEN], x[MAX_LEN:]):
        for end in range(1, len(sequence) + 1):
            padded = torch.zeros(MAX_LEN, 8, dtype=torch.float64)
            padded[MAX_LEN - end :] = sequence[:end]
            spectrum = torch.fft.rfft(padded, dim=0)
            spectrum[cutoff:] = 0
            low = torch.fft.irfft(spectrum, n=MAX_LEN, dim=0)[-1]
            expected.append(low + (1 + layer.gain) ** 2 * (padded[-1] - low))
    torch.testing.assert_close(layer(x, plan), torch.stack(expected), rtol=1e-5, atol=1e-6)
    if cutoff > MAX_LEN // 2:  # every frequency is kept, so that nothing is left to rescale
        torch.testing.assert_close(layer(x, plan), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_the_frequency_rescaling_is_mixed_with_the_attention_by_its_share(backbone):
    sequences = [events_of([3, 1, 4, 1, 5])]

    def branch(share):
        """What the first block adds to its input, from the states of a model of one block without a final norm."""
        model = model_of(backbone, num_blocks=1, position="none", frequency_rescaling=share)
        block, x = model.blocks[0], torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        plan = PackingPlan.build(torch.tensor([0, 5]))
        if backbone == "sasrec":
            return block._mix(x, plan), block.attend(x, plan), block.rescaling(x, plan)
        return block(x, plan), None, block.rescaling(F.layer_norm(x, (8,)), plan)

    mixed, attended, rescaled = branch(0.25)
    if backbone == "sasrec":
        torch.testing.assert_close(mixed, 0.75 * attended + 0.25 * rescaled)
    else:  # linear in the share, so three shares lie on one line
        torch.testing.assert_close(mixed, 0.5 * (branch(0.1)[0] + branch(0.4)[0]), rtol=1e-6, atol=1e-6)
    assert states_of(model_of(backbone, frequency_rescaling=0.5), sequences).shape == (5, 8)


def test_a_masked_item_does_not_matter_and_keeps_its_position():
    model = model_of(position="absolute")
    sequence, mask = events_of([3, 1, 4]), torch.tensor([False, True, False])
    masked = states_of(model, [sequence], masked=mask)
    assert torch.equal(masked, states_of(model, [events_of([3, 9, 4])], masked=mask))
    assert not torch.allclose(masked, states_of(model, [sequence]))


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_token_dropout_zeroes_whole_embeddings_in_training_only(backbone):
    model = model_of(backbone, token_dropout=0.5, dropout=0.0, position="none")
    batch = make_batch(torch.zeros(10, dtype=torch.int64), torch.tensor([0, 10]), model.config)
    assert (model._embed(batch) != 0).all()
    rows = torch.cat([(model.train()._embed(batch) != 0) for _ in range(200)])
    assert (rows.all(1) | ~rows.any(1)).all(), "an embedding is zeroed as a whole or not at all"
    assert rows[:, 0].double().mean() == pytest.approx(0.5, abs=0.05)

"""HSTU attention on a CUDA device: properties that neither the interpreter nor the compiler can show."""

import pytest
import torch

from virtualmle.data.errors import KernelError
from virtualmle.kernels.hstu import reference
from virtualmle.kernels.hstu.attention import hstu_attention
from virtualmle.kernels.hstu.philox import dropout_factors
from virtualmle.kernels.jagged.packing import PackingPlan, num_distances

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and torch with CUDA"),
]
SHAPES = [  # lengths, max_len, heads, dqk, dv
    pytest.param([9, 0, 31, 33, 50, 1, 2], 50, 4, 16, 16, id="short sequences"),
    pytest.param([200, 64, 65, 63, 7], 200, 2, 25, 25, id="several tiles, odd width"),
    pytest.param([50, 50, 3], 50, 8, 8, 8, id="narrow heads"),
    pytest.param([256, 100], 256, 2, 128, 64, id="wide heads of two widths"),
    pytest.param([130, 20], 256, 1, 256, 256, id="the widest heads"),
    pytest.param([700, 0, 513], 700, 2, 64, 64, id="the long family"),
]


def leaves_of(lengths, max_len, heads, dqk, dv, dtype, causal=True):
    generator = torch.Generator().manual_seed(0)
    total = sum(lengths)
    shapes = [(total, heads, dqk), (total, heads, dqk), (total, heads, dv)]
    shapes += [(1, num_distances(max_len, causal)), (1, 128)]
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    leaves = [x.to("cuda", dtype if number < 3 else torch.float32) for number, x in enumerate(drawn)]
    times = torch.randint(0, 10**8, (total,), generator=generator).cuda()
    offsets = torch.tensor([0, *lengths]).cumsum(0).to("cuda", torch.int32)
    return [leaf.requires_grad_() for leaf in leaves], times, offsets


def values_and_gradients(function, leaves):
    out = function(*leaves)
    generator = torch.Generator(out.device).manual_seed(1)
    weight = torch.randn(out.shape, generator=generator, device=out.device, dtype=torch.float32).to(out.dtype)
    return [out, *torch.autograd.grad(out, leaves, weight)]


def kernels_of(times, offsets, max_len, dqk, **terms):
    def attend(q, k, v, position, time):
        return hstu_attention(
            q, k, v, offsets=offsets, max_len=max_len, scale=1 / max_len, alpha=dqk**-0.5, position_table=position,
            time_table=time, times=times, **terms,
        )  # fmt: skip

    return attend


def plain_of(times, offsets, max_len, dqk, **terms):
    def attend(q, k, v, position, time):
        return reference.hstu_attention(
            q, k, v, offsets=offsets, scale=1 / max_len, alpha=dqk**-0.5, position_table=position.to(q.dtype),
            time_table=time.to(q.dtype), times=times, **terms,
        )  # fmt: skip

    return attend


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("lengths", "max_len", "heads", "dqk", "dv"), SHAPES)
def test_errors_are_close_to_those_of_torch_in_the_same_dtype(lengths, max_len, heads, dqk, dv, dtype, causal):
    leaves, times, offsets = leaves_of(lengths, max_len, heads, dqk, dv, dtype, causal)
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    plain = plain_of(times, offsets, max_len, dqk, causal=causal)
    exact = values_and_gradients(plain, exact_leaves)
    torchs = values_and_gradients(plain, leaves)
    ours = values_and_gradients(kernels_of(times, offsets, max_len, dqk, causal=causal), leaves)
    for number, (got, peer, want) in enumerate(zip(ours, torchs, exact, strict=True)):
        error, peers = ((x.double() - want).norm() / want.norm() for x in (got, peer))
        if dtype == torch.float32:
            assert error <= 1e-5, number
        else:
            assert error <= (5 if number else 2) * peers, number


@pytest.mark.parametrize(("lengths", "max_len", "heads", "dqk", "dv"), SHAPES)
def test_deterministic_runs_are_bit_identical(lengths, max_len, heads, dqk, dv):
    leaves, times, offsets = leaves_of(lengths * 40, max_len, heads, dqk, dv, torch.bfloat16)
    attend = kernels_of(times, offsets, max_len, dqk, deterministic=True)
    first = values_and_gradients(attend, leaves)
    for _ in range(10):
        assert all(map(torch.equal, first, values_and_gradients(attend, leaves)))


@pytest.mark.parametrize(("lengths", "max_len", "heads", "dqk", "dv"), SHAPES)
def test_a_cuda_graph_replays_on_new_inputs_and_new_offsets(lengths, max_len, heads, dqk, dv):
    leaves, times, offsets = leaves_of(lengths, max_len, heads, dqk, dv, torch.float16)
    attend = kernels_of(times, offsets, max_len, dqk, deterministic=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        values_and_gradients(attend, leaves)  # compiles, and fills the caches
    torch.cuda.current_stream().wait_stream(side)
    graph, weight = torch.cuda.CUDAGraph(), torch.randn_like(leaves[2])
    with torch.cuda.graph(graph):
        out = attend(*leaves)
        captured = [out, *torch.autograd.grad(out, leaves, weight)]
    with torch.no_grad():
        for leaf in leaves:
            leaf.mul_(0.5)
        offsets.copy_(torch.tensor([0, *reversed(lengths)]).cumsum(0))
    graph.replay()
    out = attend(*leaves)
    for got, want in zip(captured, [out, *torch.autograd.grad(out, leaves, weight)], strict=True):
        assert torch.equal(got, want)


def test_dropout_on_the_device_uses_the_mask_drawn_on_the_cpu():
    leaves, times, offsets = leaves_of([33, 50, 4], 50, 2, 16, 16, torch.float32)
    q, k, _, *_ = leaves
    v = torch.eye(87, device="cuda")[:, None].expand(87, 2, 87).contiguous()  # so that outputs are the weights
    terms = dict(offsets=offsets, max_len=50, scale=1.0)
    dropped, undropped = (hstu_attention(q, k, v, **terms, dropout=p, training=True, seed=9) for p in (0.4, 0.0))
    places, heads = torch.arange(87), torch.arange(2)[:, None, None]
    factors = dropout_factors(torch.tensor([9]), places, places[:, None], heads, 0.4).transpose(0, 1).cuda()
    torch.testing.assert_close(dropped, undropped * factors)


def test_a_plan_and_offsets_agree_on_the_device_and_validate_checks_the_offsets():
    leaves, times, offsets = leaves_of([5, 9], 9, 2, 16, 16, torch.float32)
    q, k, v, position, time = leaves
    terms = dict(scale=0.1, position_table=position, time_table=time)
    plan = PackingPlan.build(offsets.cpu().long(), "cuda", times)
    by_plan = hstu_attention(q, k, v, plan=plan, max_len=9, **terms)
    by_offsets = hstu_attention(q, k, v, offsets=offsets, max_len=9, times=times, validate=True, **terms)
    torch.testing.assert_close(by_plan, by_offsets)
    with pytest.raises(KernelError, match="a sequence has 9 tokens but max_len=8"):
        hstu_attention(q, k, v, offsets=offsets, max_len=8, times=times, validate=True, **terms)
    with pytest.raises(KernelError, match="float32, float16 or bfloat16"):
        hstu_attention(q.double(), k.double(), v.double(), offsets=offsets, max_len=9, scale=1.0)

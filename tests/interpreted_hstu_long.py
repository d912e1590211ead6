"""The long kernels in Triton's interpreter against the float64 reference; test_kernels_hstu_long.py runs this file.

To run it alone:

    TRITON_INTERPRET=1 pytest tests/interpreted_hstu_long.py

The interpreter takes milliseconds per tile, so the tests use small blocks; the kernels treat them like large ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from virtualmle.kernels.hstu import long_tables as hstu_long_tables
from virtualmle.kernels.hstu import reference
from virtualmle.kernels.hstu.attention_call import AttentionCall
from virtualmle.kernels.hstu.long_backward_triton import long_backward
from virtualmle.kernels.hstu.long_forward_triton import long_forward
from virtualmle.kernels.hstu.long_tiles import Tiles
from virtualmle.kernels.hstu.philox import dropout_factors
from virtualmle.kernels.jagged.packing import num_distances
from virtualmle.kernels.jagged.time_buckets import time_buckets

B = 16  # the block size in most tests
SQUARE, WIDE = Tiles(B, B, 1, 1), Tiles(B, 2 * B, 1, 1)
NAMES = ("out", "dq", "dk", "dv", "position", "time")


@dataclass
class Case:
    """N(0, 1) inputs of one attention call; computes the results of the kernels and of the reference."""

    call: AttentionCall
    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor

    def computed(self, tiles: Tiles = SQUARE) -> list[Tensor | None]:
        """Output and gradients of the kernels, in the order of NAMES."""
        out = long_forward(self.q, self.k, self.v, self.call, tiles)
        return [out, *long_backward(self.grad, self.q, self.k, self.v, self.call, tiles, tiles)]

    def expected(self) -> list[Tensor | None]:
        """The same in float64, by autograd through the reference or, with dropout, `attention_with_dropout`."""
        call = self.call
        leaves = [x if x is None else x.detach().double().requires_grad_() for x in self.tensors()]
        q, k, v, position_table, time_table = leaves
        function = attention_with_dropout if call.dropout else reference.hstu_attention
        extra = {"dropout": call.dropout, "seed": call.seed} if call.dropout else {}
        out = function(
            q, k, v, offsets=call.offsets, scale=call.scale, alpha=call.alpha, position_table=position_table,
            time_table=time_table, times=call.times, next_times=call.next_times, causal=call.causal, **extra,
        )  # fmt: skip
        out = torch.cat((out, torch.zeros(len(v) - len(out), *out.shape[1:], dtype=torch.float64)))
        present = [x for x in leaves if x is not None]
        grads = iter(torch.autograd.grad(out, present, self.grad.double()))
        return [out.detach(), *(None if x is None else next(grads) for x in leaves)]

    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.q, self.k, self.v, self.call.position_table, self.call.time_table


def attention_with_dropout(q: Tensor, k: Tensor, v: Tensor, *, dropout: float, seed: Tensor, **terms: object) -> Tensor:
    """The reference's formula for one sequence, with the dropout factors drawn on the host."""
    assert terms["offsets"].tolist() == [0, len(q)] and terms["causal"]
    steps, heads = torch.arange(len(q)), torch.arange(q.shape[1])[:, None, None]
    scores = torch.einsum("ihd,jhd->hij", q, k) * terms["alpha"]
    table = terms["position_table"]
    scores = scores + table[:, (steps[None, :] - steps[:, None]).clamp(max=0) + table.shape[1] - 1]
    scores = scores + terms["time_table"][:, time_buckets(terms["times"][:, None] - terms["times"][None, :])]
    factors = dropout_factors(seed, steps[None, None, :], steps[None, :, None], heads, dropout)
    weights = torch.nn.functional.silu(scores) * (steps[None, :] <= steps[:, None]) * factors * terms["scale"]
    return torch.einsum("hij,jhd->ihd", weights, v)


def case(  # noqa: PLR0913 (each is a term of the call)
    lengths: list[int], *, heads: int = 1, dqk: int = 16, dv: int = 16, entries: int | None = None, table_rows: int = 1,
    time: bool = True, position: bool = True, tail: int = 0, draws: int = 0, dtype: torch.dtype = torch.float32,
    **terms: object,
) -> Case:  # fmt: skip
    """Consecutive events are 0 or 1 s apart, so that a tile has few time buckets; `tail` tokens have no sequence."""
    draw = torch.Generator().manual_seed(draws)
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    tokens, longest, causal = int(offsets[-1]) + tail, max([*lengths, 1]), bool(terms.get("causal", True))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(dtype)

    call = AttentionCall(
        offsets, longest, 1 / longest,
        position_table=normal(table_rows, entries or num_distances(longest, causal)) if position else None,
        time_table=normal(table_rows, 128) if time else None,
        times=1_700_000_000 + (torch.rand(tokens, generator=draw) < 0.2).cumsum(0) if time else None,
    )  # fmt: skip
    rows = [normal(tokens, heads, dim) for dim in (dqk, dqk, dv, dv)]
    return Case(replace(call, **terms), *rows)


def assert_close(case: Case, tiles: Tiles = SQUARE, tolerance: float = 1e-5) -> None:
    """Every output and gradient: |error| / |reference| in the Euclidean norm."""
    for name, computed, expected in zip(NAMES, case.computed(tiles), case.expected(), strict=True):
        assert (computed is None) == (expected is None), name
        if computed is not None and expected is not None:
            assert computed.shape == expected.shape
            error = (computed.double() - expected).norm()
            assert error <= tolerance * expected.norm(), f"{name}: {error / expected.norm():.1e}"


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory that a kernel does not write stays NaN."""
    empty = torch.empty

    def poisoned(*shape: object, **options: object) -> Tensor:
        tensor = empty(*shape, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)
    yield


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("deterministic", [False, True], ids=["atomics", "deterministic"])
def test_lengths_around_every_tile_boundary(causal: bool, deterministic: bool) -> None:
    lengths = [1, B - 1, 0, B, B + 1, 2 * B + 3]  # one token; tile - 1; none; tile; tile + 1; several tiles
    assert_close(case(lengths, causal=causal, deterministic=deterministic))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_blocks_of_keys_may_be_wider_than_blocks_of_queries(causal: bool) -> None:
    assert_close(case([3 * B - 1, B + 2], causal=causal), WIDE)


def test_deterministic_programs_take_several_blocks_of_keys_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hstu_long_tables, "ORDERED_PROGRAMS", 2)
    assert_close(case([3 * B + 1], deterministic=True))


@pytest.mark.parametrize(
    ("dqk", "dv"),
    [
        pytest.param(8, 8, id="below the minimum of tensor cores"),
        pytest.param(25, 32, id="not a power of two, and dv is not dqk"),
        pytest.param(64, 16, id="dv narrower than dqk"),
        pytest.param(128, 256, id="the widest"),
    ],
)
def test_any_head_dimension(dqk: int, dv: int) -> None:
    assert_close(case([B + 3, 2], dqk=dqk, dv=dv, heads=2, alpha=dqk**-0.5))


@pytest.mark.parametrize(
    ("position", "time"), [(False, False), (True, False), (False, True)], ids=["none", "position", "time"]
)
def test_without_a_table_there_is_no_bias_and_no_table_gradient(position: bool, time: bool) -> None:
    assert_close(case([B + 5], position=position, time=time))


def test_each_head_may_have_its_own_tables() -> None:
    assert_close(case([B + 5, 3], heads=2, table_rows=2))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("entries", [1, 7, 79], ids=["one entry", "shorter than the sequence", "longer"])
def test_distances_outside_the_position_table_take_its_last_entry(entries: int, causal: bool) -> None:
    assert_close(case([B + 5], entries=entries, causal=causal, time=False))


def test_tokens_past_the_last_offset_belong_to_no_sequence() -> None:
    example = case([B + 1, 4], tail=5)
    assert_close(example)
    assert not any(x[-5:].any() for x in example.computed()[:4])


def test_a_sequence_longer_than_max_len_is_truncated_and_no_write_is_out_of_bounds() -> None:
    example = case([B + 2, 3], deterministic=True)
    truncated = replace(example, call=replace(example.call, max_len=B))
    short = [torch.cat((x[:B], x[B + 2 :])) for x in (example.q, example.k, example.v, example.grad)]
    offsets = torch.tensor([0, B, B + 3], dtype=torch.int32)
    times = torch.cat((example.call.times[:B], example.call.times[B + 2 :]))
    wanted = Case(replace(truncated.call, offsets=offsets, times=times), *short).computed()
    for got, want in zip(truncated.computed()[:4], wanted, strict=False):
        torch.testing.assert_close(torch.cat((got[:B], got[B + 2 :])), want)


def test_a_batch_without_tokens_gives_empty_results_and_zero_table_gradients() -> None:
    example = case([0, 0], tail=0)
    out, dq, dk, dv, position, time = example.computed()
    assert out.shape == example.v.shape and (dq.numel(), dk.numel(), dv.numel()) == (0, 0, 0)
    assert not position.any() and not time.any()


@pytest.mark.parametrize("deterministic", [False, True], ids=["atomics", "deterministic"])
def test_query_times_may_differ_from_key_times(deterministic: bool) -> None:
    example = case([B + 5, 0, 3], deterministic=deterministic)
    shift = torch.randint(-30, 90, example.call.times.shape, generator=torch.Generator().manual_seed(1))
    assert_close(replace(example, call=replace(example.call, next_times=example.call.times + shift)))


@pytest.mark.parametrize(
    "times",
    [
        pytest.param([2**31 - 1, 0, 5], id="the full range of 32-bit Unix times"),
        pytest.param([9 * 10**12, 9 * 10**12 + 7, 9 * 10**12 + 2**31 - 1], id="64 bits, spanning 68 years"),
        pytest.param([-40, 10**6, -10**6], id="before 1970, unsorted"),
    ],
)
def test_times_are_exact_while_a_sequence_spans_less_than_68_years(times: list[int]) -> None:
    example = case([3, 3], position=False)
    assert_close(replace(example, call=replace(example.call, times=torch.tensor(times * 2))))


def test_unsorted_int32_times_at_bucket_edges() -> None:
    edges = [t for power in range(3, 12) for t in (int(1.3512 ** (3 * power)), int(1.3512 ** (3 * power)) + 1)]
    example = case([len(edges)], position=False)
    order = torch.randperm(len(edges), generator=torch.Generator().manual_seed(2))
    assert_close(replace(example, call=replace(example.call, times=torch.tensor(edges, dtype=torch.int32)[order])))


@pytest.mark.parametrize("deterministic", [False, True], ids=["atomics", "deterministic"])
def test_forward_and_backward_use_the_dropout_mask_drawn_on_the_host(deterministic: bool) -> None:
    example = case(
        [B + 7], heads=2, entries=2 * B + 7, dropout=0.3, seed=torch.tensor([2**40 + 5]), deterministic=deterministic
    )
    assert_close(example)


def test_inputs_may_be_strided_views() -> None:
    example = case([B + 2, 3], heads=2)
    uvqk = torch.cat((example.v, example.q, example.k), 2)  # adjacent, as in the output of a block's projection
    v, q, k = uvqk.split(16, 2)
    transposed = example.grad.transpose(1, 2).contiguous().transpose(1, 2)  # elements of a head are not contiguous
    assert_close(replace(example, q=q, k=k, v=v, grad=transposed))


def test_half_precision_errors_stay_within_its_rounding() -> None:
    example = case([B + 9, 2 * B], dtype=torch.float16)
    assert_close(example, tolerance=3e-3)
    assert all(x.dtype == torch.float16 for x in example.computed())


@settings(max_examples=4, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(0, 2 * B + 1), min_size=1, max_size=3),
    causal=st.booleans(),
    deterministic=st.booleans(),
    wide=st.booleans(),
    draws=st.integers(0, 99),
)
def test_random_jagged_batches(lengths: list[int], causal: bool, deterministic: bool, wide: bool, draws: int) -> None:
    example = case([*lengths, 2], causal=causal, deterministic=deterministic, draws=draws)
    assert_close(example, WIDE if wide else SQUARE)

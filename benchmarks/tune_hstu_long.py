"""Measures tile sizes of the long HSTU kernels on a GPU and prints, per kernel, the fastest: for long_tiles.py.

    python -P benchmarks/tune_hstu_long.py --dtype bfloat16 --dim 64 128 --length 4096

Changes nothing. Candidates that do not compile or need more than the device has are passed over and named.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator

import torch

from virtualmle.kernels.hstu.attention_call import AttentionCall

TOKENS, HEADS = 32_768, 4
ROUNDS = 7


def candidates() -> Iterator[tuple[int, int, int, int]]:
    """block_queries, block_keys, num_warps, num_stages."""
    yield from itertools.product((32, 64, 128), (32, 64, 128), (4, 8), (1, 2, 3))


def milliseconds(work: Callable[[], object]) -> float:
    """Median of ROUNDS, after one round that compiles."""
    work()
    times = []
    for _ in range(ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def call_of(length: int, dtype: torch.dtype, dim: int, biased: bool) -> AttentionCall:
    """Full sequences of one length, causal; events some minutes apart."""
    times = torch.randint(0, 1000, (TOKENS,), device="cuda").cumsum(0)
    tables = [torch.randn(1, entries, device="cuda", dtype=dtype) if biased else None for entries in (length, 128)]
    offsets = torch.arange(0, TOKENS + 1, length, device="cuda", dtype=torch.int32)
    return AttentionCall(
        offsets, length, 1 / length, dim**-0.5, position_table=tables[0], time_table=tables[1],
        times=times if biased else None,
    )  # fmt: skip


def measure(length: int, dtype: torch.dtype, dim: int, biased: bool) -> None:
    """One line per kernel: the fastest tiles; skipped ones on stderr."""
    from triton.compiler.errors import CompilationError  # noqa: PLC0415 (Triton is only where a GPU can be)
    from triton.runtime.errors import OutOfResources  # noqa: PLC0415

    from virtualmle.kernels.hstu.long_backward_triton import long_backward  # noqa: PLC0415
    from virtualmle.kernels.hstu.long_forward_triton import long_forward  # noqa: PLC0415
    from virtualmle.kernels.hstu.long_queries_triton import query_gradient  # noqa: PLC0415
    from virtualmle.kernels.hstu.long_tiles import Tiles  # noqa: PLC0415

    call = call_of(length, dtype, dim, biased)
    grad, q, k, v = (torch.randn(TOKENS, HEADS, dim, device="cuda", dtype=dtype) for _ in range(4))
    kernels: dict[str, Callable[[Tiles], object]] = {
        "forward": lambda tiles: long_forward(q, k, v, call, tiles),
        "keys": lambda tiles: long_backward(grad, q, k, v, call, tiles),
        "queries": lambda tiles: query_gradient(grad, q, k, v, call, tiles),
    }
    for name, run in kernels.items():
        found: list[tuple[float, Tiles]] = []
        for sizes in candidates():
            tiles = Tiles(*sizes)
            if name == "keys" and tiles.block_keys < tiles.block_queries:
                continue
            try:
                found.append((milliseconds(lambda run=run, tiles=tiles: run(tiles)), tiles))
            except (CompilationError, OutOfResources) as error:
                print(f"{name} d={dim} {tiles}: {type(error).__name__}", file=sys.stderr)
        fastest, tiles = min(found, key=lambda pair: pair[0])
        print(f"{name:8} {dtype} d={dim:3} L={length} {'biased' if biased else 'plain':6} {fastest:8.3f} ms  {tiles}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--dim", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--length", type=int, default=4096, help="tokens in each sequence; divides 32768")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("tune_hstu_long.py needs a CUDA device, and there is none; nothing was measured", file=sys.stderr)
        return 1
    for dim, biased in itertools.product(arguments.dim, (False, True)):
        measure(arguments.length, getattr(torch, arguments.dtype), dim, biased)
    return 0


if __name__ == "__main__":
    sys.exit(main())

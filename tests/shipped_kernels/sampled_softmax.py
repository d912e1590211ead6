"""Kernels launched by the sampled softmax: for shared negatives, for negatives of each position, and for the table's
gradient. Every configuration has cosine and logQ on, which need the most registers.
"""

from collections.abc import Iterator
from typing import Any

from shipped_kernels.shipped_kernel import FLOAT32_SLACK, Shipped

from virtualmle.kernels.losses import item_gradients_triton, own_negatives_triton
from virtualmle.kernels.losses.item_gradients_triton import COLLECT_ROWS
from virtualmle.kernels.losses.own_negatives_triton import OWN_ITEMS
from virtualmle.kernels.losses.sampled_softmax_triton import (
    FINISH_ROWS,
    PREPARE_ITEMS,
    TILES,
    _finish,
    _forward,
    _negative_gradients,
    _prepare,
)
from virtualmle.kernels.losses.tiles import Tiles

DTYPES = ("bf16", "fp16", "fp32")
# Accepted register spills, in bytes per thread on sm_90, by kernel, kind of product and width.
SPILL = {("forward", "tf32", 256): 256}


def shipped() -> Iterator[Shipped]:
    """Every configuration that `forward` and `backward` can launch."""
    for (name, kind), sizes in TILES.items():
        for width, tiles in sizes.items():
            for dtype in ("bf16", "fp16") if kind == "half" else ("fp32",):
                yield _products(name, kind, width, tiles, dtype)
    for dtype in DTYPES:
        for width in TILES["forward", "half"]:
            yield _prepared(dtype, width)
            yield _finished(dtype, width)
            yield _own(dtype, width)
            for shared in (True, False):
                yield _collected(dtype, width, shared)


def _products(name: str, kind: str, width: int, tiles: Tiles, dtype: str) -> Shipped:
    constants: dict[str, Any] = {"WIDTH": width, "B_ROWS": tiles.rows, "B_ITEMS": tiles.items, "B_WIDTH": width}
    signature = _inputs(dtype) | _floats("weights shifts")
    if name == "forward":
        kernel = _forward
        signature |= _floats("max_scores exp_sums candidate_counts score_sums weighted_sums")
        signature |= {"num_rows": "i32", "num_negatives": "i32", "inverse_temperature": "fp32"}
        constants["COSINE"] = True
    else:
        kernel, signature = _negative_gradients, signature | _floats("lse smoothing_shares score_scales out")
        signature |= dict.fromkeys(("num_rows", "num_negatives", "per_split"), "i32")
    constants["PRECISION"] = "ieee" if kind == "half" else kind
    return Shipped(
        f"{name} {dtype} {kind} d={width} {tiles.rows}x{tiles.items}", kernel,
        signature | dict.fromkeys(constants, "constexpr"), constants, tiles.num_warps, tiles.num_stages,
        _aligned(signature), expects_wgmma=kind == "half",
        max_spill_bytes=SPILL.get((name, kind, width), 0 if kind == "half" else FLOAT32_SLACK),
    )  # fmt: skip


def _prepared(dtype: str, width: int) -> Shipped:
    signature = {"table": f"*{dtype}", "negatives": "*i64"} | _floats("log_q weights shifts vector_sums")
    signature |= {"num_negatives": "i32", "log_count": "fp32"}
    constants = {"WIDTH": width, "B_ITEMS": PREPARE_ITEMS, "B_WIDTH": width, "COSINE": True, "LOGQ": True}
    return _small(f"prepare {dtype} d={width}", _prepare, signature, constants)


def _finished(dtype: str, width: int) -> Shipped:
    signature = _inputs(dtype)
    del signature["negatives"]
    signature |= _floats("vector_sums max_scores exp_sums candidate_counts score_sums")
    signature |= _floats("losses lse smoothing_shares score_scales target_scores grad_states")
    signature |= dict.fromkeys(("num_rows", "num_negatives"), "i32")
    signature |= dict.fromkeys(("inverse_temperature", "smoothing"), "fp32")
    constants = {"WIDTH": width, "B_ROWS": FINISH_ROWS, "B_WIDTH": width, "COSINE": True}
    return _small(f"finish {dtype} d={width}", _finish, signature, constants)


def _own(dtype: str, width: int) -> Shipped:
    signature = _inputs(dtype) | _floats("log_q losses lse smoothing_shares score_scales candidate_scores grad_states")
    signature |= {"num_negatives": "i32"}
    signature |= dict.fromkeys(("inverse_temperature", "log_count", "smoothing"), "fp32")
    constants = {"WIDTH": width, "B_ITEMS": OWN_ITEMS[width], "B_WIDTH": width, "COSINE": True, "LOGQ": True}
    spill = FLOAT32_SLACK if dtype == "fp32" else 0
    return _small(f"own {dtype} d={width}", own_negatives_triton._forward, signature, constants, max_spill_bytes=spill)


def _collected(dtype: str, width: int, shared: bool) -> Shipped:
    signature = dict.fromkeys(("states", "table"), f"*{dtype}") | dict.fromkeys(("ordered", "order", "begins"), "*i64")
    signature |= _floats("candidate_scores lse smoothing_shares score_scales negative_gradients grad_scale")
    signature |= {"out": f"*{dtype}"}
    signature |= {"num_scored": "i32", "smoothing": "fp32"}
    constants: dict[str, Any] = {"SCORES": 1 if shared else 129, "SHARED": shared, "WIDTH": width}
    constants |= {"B_ROWS": COLLECT_ROWS[width], "B_WIDTH": width, "COSINE": True}
    name = f"collect {dtype} d={width} {'shared' if shared else 'own'}"
    warps = item_gradients_triton.NUM_WARPS
    return _small(name, item_gradients_triton._collect, signature, constants, num_warps=warps)


def _small(name: str, kernel: Any, signature: dict[str, str], constants: dict[str, Any], **options: int) -> Shipped:
    """The configuration of a kernel without a table of tiles."""
    kinds = signature | dict.fromkeys(constants, "constexpr")
    return Shipped(name, kernel, kinds, constants, aligned=_aligned(signature), **options)


def _inputs(dtype: str) -> dict[str, str]:
    """Pointers to the inputs of every kernel."""
    return dict.fromkeys(("states", "table"), f"*{dtype}") | dict.fromkeys(("targets", "negatives"), "*i64")


def _floats(names: str) -> dict[str, str]:
    """Pointers to float32."""
    return dict.fromkeys(names.split(), "*fp32")


def _aligned(signature: dict[str, str]) -> tuple[str, ...]:
    """Pointers that are multiples of 16 bytes: all but those to rows of (3, n), (4, n) and (2, m)."""
    rows = {"lse", "smoothing_shares", "score_scales"}
    rows |= {"shifts", "max_scores", "exp_sums", "candidate_counts", "score_sums"}
    return tuple(name for name, kind in signature.items() if kind.startswith("*") and name not in rows)

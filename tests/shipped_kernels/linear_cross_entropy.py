"""Kernels launched by the cross-entropy over the whole catalogue: every row of its table of tiles."""

from collections.abc import Iterator
from typing import Any

from shipped_kernels.shipped_kernel import FLOAT32_SLACK, Shipped

from virtualmle.kernels.losses.linear_cross_entropy_triton import FINISH_ROWS, TILES, _finish, _forward, _table_gradient
from virtualmle.kernels.losses.tiles import Tiles

HALF = ("bf16", "fp16")


def shipped() -> Iterator[Shipped]:
    """Every configuration that `forward` and `backward` can launch."""
    for (name, kind), sizes in TILES.items():
        for width, tiles in sizes.items():
            for dtype in HALF if kind == "half" else ("fp32",):
                yield from _products(name, kind, width, tiles, dtype)
    for dtype in (*HALF, "fp32"):
        for width in TILES["forward", "half"]:
            pointers = dict.fromkeys(("states", "table"), f"*{dtype}") | {"targets": "*i64"}
            outputs = ("max_logits", "exp_sums", "weighted_sums", "losses", "lse", "grad_states")
            pointers |= dict.fromkeys(("centre", *outputs), "*fp32")
            numbers = {"num_rows": "i32", "num_splits": "i32", "smoothing": "fp32"}
            constants = {"WIDTH": width, "B_ROWS": FINISH_ROWS, "B_WIDTH": width}
            signature = pointers | numbers | dict.fromkeys(constants, "constexpr")
            yield Shipped(f"finish {dtype} d={width}", _finish, signature, constants)


def _products(name: str, kind: str, width: int, tiles: Tiles, dtype: str) -> Iterator[Shipped]:
    constants: dict[str, Any] = {"WIDTH": width, "B_ROWS": tiles.rows, "B_ITEMS": tiles.items, "B_WIDTH": width}
    constants |= {"PRECISION": "ieee" if kind == "half" else kind}
    inputs = dict.fromkeys(("states", "table"), f"*{dtype}")
    sizes = dict.fromkeys(("num_rows", "num_items", "per_split"), "i32")
    for split in (False, True) if name == "table" else (None,):
        if split is None:
            kernel = _forward
            signature = inputs | dict.fromkeys(("max_logits", "exp_sums", "weighted_sums"), "*fp32") | sizes
        else:
            kernel, constants["SPLIT"] = _table_gradient, split
            signature = inputs | {"targets": "*i64"} | dict.fromkeys(("lse", "state_sum", "grad_scale"), "*fp32")
            signature |= {"out": "*fp32" if split else f"*{dtype}"} | sizes | {"smoothing": "fp32"}
        yield Shipped(
            f"{name} {dtype} {kind} d={width} {tiles.rows}x{tiles.items}" + " split" * bool(split),
            kernel, signature | dict.fromkeys(constants, "constexpr"), dict(constants),
            tiles.num_warps, tiles.num_stages, expects_wgmma=kind == "half",
            max_spill_bytes=0 if kind == "half" else FLOAT32_SLACK,
        )  # fmt: skip

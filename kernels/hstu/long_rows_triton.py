"""Rows of jagged tensors (total_tokens, heads, dim): loads and stores of blocks, and zeros past the last offset.

Tokens past the last offset belong to no sequence. Only they are zeroed, so that no output is written twice.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl
from torch import Tensor

from .attention_call import AttentionCall

VARYING = ["max_len", "reach", "entries", "kept_levels", "blocks"]  # arguments that cause no recompilation
PROGRAMS = 64
ELEMENTS = 1024


@triton.jit
def place_of(program, blocks, heads):
    """Block, head and sequence of a program; consecutive programs share one head of one sequence."""
    return program % blocks, program // blocks % heads, program // blocks // heads


@triton.jit
def load_rows(
    head, stride, first, length, ROWS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, BOUNDED: tl.constexpr
):
    """(ROWS, WIDTH) from row `first` on, with zeros past `length` (if BOUNDED) and in the padding from DIM to WIDTH.

    head: the first row of the sequence in one head; stride: elements from one row to the next.
    """
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    places = head + (first + rows).to(tl.int64) * stride + columns
    if BOUNDED and WIDTH != DIM:
        return tl.load(places, (first + rows < length) & (columns < DIM), other=0.0)
    if BOUNDED:
        return tl.load(places, first + rows < length, other=0.0)
    if WIDTH != DIM:
        return tl.load(places, columns < DIM, other=0.0)
    return tl.load(places)


@triton.jit
def store_rows(head, stride, first, length, tile, ROWS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """The inverse of `load_rows`; memory past length or past DIM is left unchanged."""
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    places = head + (first + rows).to(tl.int64) * stride + columns
    tl.store(places, tile.to(head.dtype.element_ty), (first + rows < length) & (columns < DIM))


def clear_tail(call: AttentionCall, *tensors: Tensor) -> None:
    """Zero the tokens past the last offset in contiguous tensors (total_tokens, heads, dim)."""
    for rows in tensors:
        elements = rows.shape[1] * rows.shape[2]
        write_zeros[(PROGRAMS,)](
            rows, call.offsets, call.batch, rows.numel(), elements, PROGRAMS=PROGRAMS, ELEMENTS=ELEMENTS, num_warps=4
        )


@triton.jit
def write_zeros(rows, offsets, batch, end, elements, PROGRAMS: tl.constexpr, ELEMENTS: tl.constexpr):
    """rows[offsets[batch]:] = 0; `elements` per row, `end` in total."""
    begin = tl.load(offsets + batch).to(tl.int64) * elements + tl.program_id(0) * ELEMENTS
    last = begin * 0 + end
    for place in range(begin, last, PROGRAMS * ELEMENTS):
        places = place + tl.arange(0, ELEMENTS)
        tl.store(rows + places, tl.zeros((ELEMENTS,), rows.dtype.element_ty), places < last)

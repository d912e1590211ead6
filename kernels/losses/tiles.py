"""How the work of a loss kernel is cut: tile sizes, padded widths, and the number of programs."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """The sizes of one launch."""

    rows: int  # positions in a tile
    items: int  # rows of the table in a tile
    num_warps: int
    num_stages: int


def kind_of_product(states: Tensor, precision: str) -> str:
    """ "half" for 16-bit numbers, else how float32 is multiplied."""
    return precision if states.dtype == torch.float32 else "half"


def wanted_programs(states: Tensor) -> int:
    """Two for each processor, so that one computes while another waits for memory."""
    return 2 * torch.cuda.get_device_properties(states.device).multi_processor_count


def split_evenly(length: int, tile: int, blocks: int, programs: int) -> tuple[int, int]:
    """Number of parts of `length` and the length of each, in whole tiles; blocks * parts is then about `programs`."""
    num_tiles = -(-length // tile)
    parts = max(1, min(programs // blocks, num_tiles))
    tiles = -(-num_tiles // parts)
    return -(-num_tiles // tiles), tiles * tile

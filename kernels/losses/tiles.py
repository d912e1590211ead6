"""Division of the work of a loss kernel: tile sizes and the number of programs."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """One launch configuration."""

    rows: int  # positions in a tile
    items: int  # rows of the table in a tile
    num_warps: int
    num_stages: int


def kind_of_product(states: Tensor, precision: str) -> str:
    """ "half" for 16-bit inputs, else the precision of float32 products."""
    return precision if states.dtype == torch.float32 else "half"


def wanted_programs(states: Tensor) -> int:
    """Two programs per multiprocessor, so that one computes while the other waits for memory."""
    return 2 * torch.cuda.get_device_properties(states.device).multi_processor_count


def split_evenly(length: int, tile: int, blocks: int, programs: int) -> tuple[int, int]:
    """(number of parts, length of a part) of `length`, in full tiles, such that blocks * parts is about `programs`."""
    num_tiles = -(-length // tile)
    parts = max(1, min(programs // blocks, num_tiles))
    tiles = -(-num_tiles // parts)
    return -(-num_tiles // tiles), tiles * tile

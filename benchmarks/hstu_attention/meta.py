"""C4 and C5: Meta's Triton kernels, where a folder with their files is given. None of them lies in this repository.

The folder holds, as in their checkouts, `generative_recommenders/` with `common.py`, `ops/utils.py` and

- C4, of 2026, without bias: `ops/triton/triton_hstu_attention.py`, `ops/triton/triton_attention_utils.py`;
- C5, of 2024, with the fused bias: `ops/triton/triton_ragged_hstu_attention.py`, `ops/triton/utils.py`.

Each is optional. Empty `__init__.py` files beside them do; nothing else of theirs is needed.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from virtualmle.kernels.jagged.time_buckets import NUM_TIME_BUCKETS

from .implementation import Implementation, Leaves
from .padded import LOG_STEP, Grid
from .shapes import Problem, Shape

PACKAGE = "generative_recommenders"
KIND = {"none": "NONE", "position": "POSITION", "position+time": "ALL"}


def meta_implementations(folder: Path | None) -> list[Implementation]:
    """What the folder holds; a file that is there and cannot be imported is the user's to mend."""
    if folder is None:
        return []
    operators = folder / PACKAGE / "ops" / "triton"
    if not operators.is_dir():
        raise SystemExit(f"--meta-folder {folder} holds no {PACKAGE}/ops/triton; give the root of a checkout")
    sys.path.insert(0, str(folder))
    found = []
    if (operators / "triton_hstu_attention.py").exists():
        _by_length()
        module = importlib.import_module(f"{PACKAGE}.ops.triton.triton_hstu_attention")
        for tma in (False, True):
            name = f"C4 Meta 2026{' TMA' if tma else ''}"
            found.append(Implementation(name, _plain(module, tma), refuses=_plain_widths))
    if (operators / "triton_ragged_hstu_attention.py").exists():
        module = importlib.import_module(f"{PACKAGE}.ops.triton.triton_ragged_hstu_attention")
        found.append(Implementation("C5 Meta 2024 bias", _biased(module), refuses=_biased_widths, asks_next=True))
    return found


def _by_length() -> None:
    """Without this their autotuner keeps what it found for the first length that it met."""
    common = importlib.import_module(f"{PACKAGE}.common")
    common.set_use_runtime_max_seq_len(True)


def _plain(module: ModuleType, tma: bool) -> Callable[[Problem, Leaves], Tensor]:
    def attend(problem: Problem, leaves: Leaves) -> Tensor:
        q, k, v = leaves
        out: Tensor = module.triton_hstu_mha(
            N=problem.shape.max_len, alpha=1.0, q=q, k=k, v=v, seq_offsets=problem.offsets_device, enable_tma=tma
        )  # divides by N, as we scale
        return out

    return attend


def _biased(module: ModuleType) -> Callable[[Problem, Leaves], Tensor]:
    def attend(problem: Problem, leaves: Leaves) -> Tensor:
        shape = problem.shape
        if "timestamps" not in problem.cache:
            problem.cache["timestamps"] = _timestamps(problem)
        # Theirs has one bucket more, and a position table of both directions whose second half is never read.
        position = F.pad(leaves[3][0], (0, shape.max_len - 1))
        time = F.pad(leaves[4][0], (0, 1)) if len(leaves) > 4 else position.new_zeros(NUM_TIME_BUCKETS + 1)
        out: Tensor = module.RaggedAttentionRelativeBiasFunction.apply(
            shape.max_len,
            1.0,  # alpha
            *leaves[:3],
            problem.offsets_device,
            "lower_triangular",
            problem.cache["timestamps"],
            time,
            position,
            True,  # causal
            NUM_TIME_BUCKETS,
            "log",
            1.0,  # seconds per unit
            LOG_STEP,
            0.0,  # added to every difference
            None,  # max_pos_ind
            None,  # num_targets
            KIND[shape.bias],
            None,  # max_attn_len
            None,  # contextual_seq_len
            False,  # sort_by_length
        )
        return out

    return attend


def _timestamps(problem: Problem) -> Tensor:
    """(B, N + 1): entry i + 1 is when query i is asked."""
    grid = Grid.of(problem)
    length = problem.shape.max_len
    return torch.cat((grid.times[:, :1], grid.query_times[:, :length]), dim=1).contiguous()


def _plain_widths(shape: Shape, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "CUDA only"
    if shape.bias != "none":
        return "has no bias"
    return _power_of_two(shape)


def _biased_widths(shape: Shape, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "CUDA only"
    if shape.bias == "none":
        return "measured with its bias alone"
    return _power_of_two(shape)


def _power_of_two(shape: Shape) -> str | None:
    good = shape.dim >= 16 and not shape.dim & (shape.dim - 1)
    return None if good else "takes widths that are powers of two from 16"

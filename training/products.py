"""Which CPU trains with products of bfloat16; imports no torch, because the server asks as well as the worker.

Only the full softmax has such products, and only on processors whose instructions multiply bfloat16 and sum in float32
(AVX512-BF16, AMX). The results of a trial then differ from those of other processors by rounding, so that its device
is named differently: trials whose devices have different names are not equal. Everything else, evaluation included,
is computed in float32.
"""

import functools
from pathlib import Path

FLOAT32_CPU = "cpu:float32"  # the device of a spec that trains on the CPU without products of bfloat16
BFLOAT16_CPU = "cpu (bfloat16 products)"  # the device of a result that was trained with them
PROCESSORS = Path("/proc/cpuinfo")
INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16"})


def trains_in_bfloat16(device: str, loss: str) -> bool:
    """Whether a trial with this loss has products of bfloat16 here, if `device` of its spec turns out to be the CPU."""
    return loss == "full_softmax" and device != FLOAT32_CPU and has_bfloat16_instructions()


@functools.cache
def has_bfloat16_instructions(processors: Path = PROCESSORS) -> bool:
    """Whether the processor multiplies bfloat16 in hardware, as Linux lists it; False on other systems."""
    try:
        lines = processors.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not INSTRUCTIONS.isdisjoint(flags.split())

"""One configuration of a Triton kernel that the package launches, described so that it compiles without a GPU.

Every other file of this folder has `shipped() -> Iterator[Shipped]`: all configurations that one family of kernels can
launch, and what the compiled code has to hold. `tests/sm90.py` compiles them for sm_90, a few of each kernel in the
quick tests and all of them in the slow ones, and reads registers, spills, shared memory and instructions of the result.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Bytes a thread that one version of ptxas spills where another spills none; more of them without tensor cores.
HALF_SLACK, FLOAT32_SLACK = 32, 96


@dataclass(frozen=True)
class Shipped:
    """What `triton.compile` has to know, and what the result has to hold."""

    name: str  # unique in its module, for people: "forward d=64 128x64 position+time"
    kernel: Any  # the @triton.jit function
    signature: Mapping[str, str]  # every argument in order: "*bf16", "i32", "fp32", "constexpr", "tensordesc<…>"
    constexprs: Mapping[str, Any]  # the values of the arguments that are "constexpr"; None where the launch passes None
    num_warps: int = 4
    num_stages: int = 3
    aligned: tuple[str, ...] | None = None  # arguments that are multiples of 16; None: every pointer
    expects_wgmma: bool = False  # the tensor cores' sm_90 instruction has to appear (needs tiles of 64 rows or more)
    max_spill_bytes: int = 0  # local memory per thread that is accepted, with slack for other versions of ptxas

    @property
    def attrs(self) -> dict[tuple[int, ...], list[list[object]]]:
        """Which arguments are multiples of 16, the way Triton writes it."""
        pointers = tuple(name for name, kind in self.signature.items() if kind.startswith("*"))
        aligned = pointers if self.aligned is None else self.aligned
        names = list(self.signature)
        return {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}

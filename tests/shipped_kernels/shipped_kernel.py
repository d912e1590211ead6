"""One configuration of a Triton kernel that the package launches, described so that it can be compiled without a GPU.

Every other file of this folder defines `shipped() -> Iterator[Shipped]`: all configurations that one family of kernels
can launch, and requirements on the compiled code. `tests/sm90.py` compiles them for sm_90 (a few of each kernel in the
quick tests, all in the slow tests) and reads registers, spills, shared memory and instructions of the result.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Spilled bytes per thread by which versions of ptxas differ; larger without tensor cores.
HALF_SLACK, FLOAT32_SLACK = 32, 96


@dataclass(frozen=True)
class Shipped:
    """The input of `triton.compile`, and the requirements on its result."""

    name: str  # readable and unique in its module: "forward d=64 128x64 position+time"
    kernel: Any  # the @triton.jit function
    signature: Mapping[str, str]  # every argument in order: "*bf16", "i32", "fp32", "constexpr", "tensordesc<…>"
    constexprs: Mapping[str, Any]  # the values of the arguments that are "constexpr"; None where the launch passes None
    num_warps: int = 4
    num_stages: int = 3
    aligned: tuple[str, ...] | None = None  # arguments that are multiples of 16; None: every pointer
    expects_wgmma: bool = False  # sm_90's tensor-core instruction must appear (needs tiles of at least 64 rows)
    max_spill_bytes: int = 0  # accepted local memory per thread, with slack for other versions of ptxas

    @property
    def attrs(self) -> dict[tuple[int, ...], list[list[object]]]:
        """Which arguments are multiples of 16, in Triton's format."""
        pointers = tuple(name for name, kind in self.signature.items() if kind.startswith("*"))
        aligned = pointers if self.aligned is None else self.aligned
        names = list(self.signature)
        return {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}

"""Compile the shipped Triton kernels for sm_90 (H100, H200) without a GPU, and check the results.

    python -P tests/sm90.py                 # a few configurations of each kernel
    python -P tests/sm90.py --all           # every shipped configuration
    python -P tests/sm90.py --module shipped_kernels.hstu_long --json

Detects syntax and type errors, constructs that a version of Triton lacks, spilled registers, shared memory beyond the
device's limit, and missing tensor-core instructions. Does not detect races, wrong results or slow code.

`tests/shipped_kernels/` describes the configurations. Run this file as a separate process, because TRITON_INTERPRET,
which other tests set, replaces the compiler. A module may be a dotted name or a path. The exit code is 1 if any
configuration has a fault.
"""

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

sys.path.append(str(Path(__file__).resolve().parent))  # this folder, which python -P does not add

from shipped_kernels.shipped_kernel import Shipped

HERE = Path(__file__).resolve().parent
SHARED_LIMIT = 232_448  # bytes per block on sm_90: 227 KiB
OPCODES = ("HGMMA", "HMMA", "UTMALDG", "LDGSTS", "MUFU", "LDL", "STL", "RED", "ATOMG")


@dataclass(frozen=True)
class Compiled:
    """The result of compiling one configuration; each fault is a sentence."""

    module: str
    name: str
    kernel: str
    seconds: float
    registers: int
    stack_bytes: int  # local memory per thread: spills
    shared_bytes: int
    instructions: dict[str, int]
    faults: tuple[str, ...]


def kernel_modules() -> list[str]:
    """Dotted names of the modules that describe shipped kernels."""
    files = sorted((HERE / "shipped_kernels").glob("*.py"))
    return [f"shipped_kernels.{path.stem}" for path in files if path.stem != "shipped_kernel"]


def load(module: str) -> ModuleType:
    """Import a module by dotted name, or by path if the name ends in .py."""
    if not module.endswith(".py"):
        return importlib.import_module(module)
    spec = importlib.util.spec_from_file_location(Path(module).stem, module)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def chosen(module: str, everything: bool) -> list[str]:
    """Names of the configurations to compile: all, or per kernel the first without wgmma and two with it."""
    picked: dict[tuple[object, bool, bool], str] = {}
    names = []
    for shipped in load(module).shipped():
        names.append(shipped.name)
        picked.setdefault((shipped.kernel, shipped.expects_wgmma, True), shipped.name)
        if shipped.expects_wgmma:
            picked[shipped.kernel, True, False] = shipped.name
    return names if everything else list(dict.fromkeys(picked.values()))


def compile_one(module: str, name: str) -> Compiled:
    """Compile and check one configuration; a compiler error is reported as a fault."""
    found = [shipped for shipped in load(module).shipped() if shipped.name == name]
    kernel, started = found[0].kernel.__name__, time.perf_counter()
    try:
        registers, stack, shared, instructions = build(found[0])
    except Exception as error:  # any compiler error is a result
        reason = f"does not compile: {type(error).__name__}: {first_line(error)}"
        return Compiled(module, name, kernel, time.perf_counter() - started, 0, 0, 0, {}, (reason,))
    faults = [f"{len(found)} configurations have this name; a name must be unique"] if len(found) > 1 else []
    faults += judge(found[0], stack, shared, instructions)
    seconds = time.perf_counter() - started
    return Compiled(module, name, kernel, seconds, registers, stack, shared, instructions, tuple(faults))


def build(shipped: Shipped) -> tuple[int, int, int, dict[str, int]]:
    """Registers, stack bytes and shared bytes of the kernel, and the number of instructions with each of OPCODES."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(shipped.kernel, dict(shipped.signature), dict(shipped.constexprs), shipped.attrs)
    options = {"num_warps": shipped.num_warps, "num_stages": shipped.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = output_of(triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin.name)
        listing = output_of(triton.knobs.nvidia.nvdisasm.path, "-c", cubin.name)
    opcodes = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(\w+)", listing, flags=re.MULTILINE)
    counted = {opcode: opcodes.count(opcode) for opcode in OPCODES if opcode in opcodes}
    return number(r"REG:(\d+)", usage), number(r"STACK:(\d+)", usage), compiled.metadata.shared, counted


def judge(shipped: Shipped, stack: int, shared: int, instructions: dict[str, int]) -> list[str]:
    """The faults of a configuration that compiled."""
    faults = []
    if stack > shipped.max_spill_bytes:
        faults.append(f"spills {stack} bytes per thread, {shipped.max_spill_bytes} are accepted; use smaller tiles")
    if shared > SHARED_LIMIT:
        faults.append(f"needs {shared} bytes of shared memory, sm_90 has {SHARED_LIMIT}; use smaller tiles or stages")
    if shipped.expects_wgmma and not instructions.get("HGMMA"):
        faults.append("has no wgmma, which this configuration expects; tiles need 64 rows for each four warps")
    return faults


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"the output of cuobjdump has no {pattern}: {text[:300]}"
    return int(found[1])


def first_line(error: BaseException) -> str:
    """One line about an exception: the last one, which names the cause of a compiler error."""
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def compile_all(modules: list[str], everything: bool, processes: int) -> Iterator[Compiled]:
    """Compile in `processes` parallel processes; results are in the order of the modules."""
    wanted = [(module, name) for module in modules for name in chosen(module, everything)]
    context = multiprocessing.get_context("spawn")  # LLVM's threads do not survive a fork
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield from pool.map(compile_one, *zip(*wanted, strict=True)) if wanted else ()


def row(compiled: Compiled) -> str:
    """One line of the readable table."""
    seen = " ".join(f"{opcode}:{count}" for opcode, count in compiled.instructions.items())
    where = f"{compiled.module.removeprefix('shipped_kernels.')} {compiled.name}"
    measured = f"{compiled.registers:4} reg {compiled.stack_bytes:5} stack {compiled.shared_bytes:7} shared"
    return f"{where:80} {measured} {compiled.seconds:5.1f} s  {seen}  {'; '.join(compiled.faults)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", action="append", help="dotted name or path; default: all of shipped_kernels/")
    parser.add_argument("--all", action="store_true", help="every configuration instead of a few of each kernel")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON line per configuration instead of the table")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET is set: the interpreter does not compile; unset it")
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton < 3.10 warns about its default
    results = []
    for compiled in compile_all(arguments.module or kernel_modules(), arguments.all, arguments.processes):
        results.append(compiled)
        print(json.dumps(asdict(compiled)) if arguments.json else row(compiled), flush=True)
    return 1 if any(compiled.faults for compiled in results) else 0


if __name__ == "__main__":
    sys.exit(main())

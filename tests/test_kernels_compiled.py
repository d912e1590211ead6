"""Every shipped Triton configuration compiles for sm_90 within its limits on spills and shared memory.

Wgmma instructions are present where they are expected. The compiler runs in a separate process (`sm90.py`) and needs no
GPU. Samples show which faults `sm90.py` detects.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (its wheels are for Linux on x86-64)"
)
HERE = Path(__file__).parent
LAUNCH = re.compile(r"^ +(\w+)\[.+\]\((?:$|q=)", flags=re.MULTILINE)  # kernel[grid](…)


def compiled(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    """The report of `sm90.py`, one dictionary per configuration, compiled with an empty cache."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(HERE.parent / ".typing")}
    command = [sys.executable, "-P", str(HERE / "sm90.py"), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == any(result["faults"] for result in results), done.stderr[-3000:]
    return results


def faults(results: list[dict[str, Any]]) -> list[str]:
    return [f"{result['module']} {result['name']}: {fault}" for result in results for fault in result["faults"]]


def test_sm90_detects_spills_excess_shared_memory_missing_wgmma_and_compile_errors(tmp_path: Path) -> None:
    results = compiled(tmp_path, "--all", "--module", str(HERE / "sm90_samples.py"))
    found = {result["name"]: " ".join(result["faults"]) for result in results}
    assert found.pop("sound") == ""
    expected = {
        "spills": "bytes per thread",
        "too much shared memory": "sm_90 has 232448",
        "too small for wgmma": "has no wgmma",
        "nonsense": "does not compile: CompilationError",
    }
    assert {name: text in found[name] for name, text in expected.items()} == dict.fromkeys(found, True), found


def test_a_few_configurations_of_each_kernel_compile_for_sm_90(tmp_path: Path) -> None:
    results = compiled(tmp_path)
    assert not faults(results), "\n".join(faults(results))
    sources = [path.read_text(encoding="utf-8") for path in (HERE.parent / "kernels").rglob("*.py")]
    launched = {name for source in sources for name in LAUNCH.findall(source)}
    assert launched == {result["kernel"] for result in results}, "launched and shipped kernels must be the same"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_shipped_configuration_compiles_for_sm_90(tmp_path: Path) -> None:
    results = compiled(tmp_path, "--all")
    assert not faults(results), "\n".join(faults(results))

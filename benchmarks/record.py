"""The environment that every record of a benchmark describes, and how records are saved."""

import argparse
import importlib.util
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from virtualmle.compare.provenance import commit, processor
from virtualmle.data.atomic import write_bytes

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def parser_of(description: str) -> argparse.ArgumentParser:
    """A parser whose --help is the script's docstring, example included."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def environment(device: str = "cpu") -> dict[str, object]:
    """Date, commit, hardware (the GPU's name if `device` is "cuda"), load and versions."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": commit(HERE),
        "hardware": gpu() if device == "cuda" else processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "triton", "numpy")},
    }


def version(package: str) -> str | None:
    return metadata.version(package) if importlib.util.find_spec(package) else None


def gpu() -> str:
    import torch  # noqa: PLC0415 - not every benchmark needs it

    return torch.cuda.get_device_name()


def save(target: Path, record: Mapping[str, object], text: str) -> None:
    """Write TARGET.json for programs and TARGET.md for people."""
    target.parent.mkdir(exist_ok=True)
    encoded = json.dumps(record, indent=1, default=str) + "\n"
    write_bytes(target.with_name(f"{target.name}.json"), encoded.encode())
    write_bytes(target.with_name(f"{target.name}.md"), text.encode())

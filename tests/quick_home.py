"""A home whose protocol makes trials run in about a second: one epoch, a small model, a few knobs."""

import os
import sys
from pathlib import Path

QUICK_SANDBOX = """\
# Quick

| rule | value |
|---|---|
| `metric` | ndcg@10 |
| `max_trials` | 2 |
| `max_train_seconds` | 600 |
| `trial_seconds` | 300 |
| `patience` | 10 |
| `keep_z` | 1.0 |
| `require_reflection` | true |

## optimisation

| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| `batch_size` | 256 … 512 | 512 | 512 |
| `epochs` | 1 … 1 | 1 | 1 |

## capacity

| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| `hidden_dim` | 8 … 32 | 16 | 16 |

## scoring

| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| `transition_weight` | 0 … 20 | 0 | 0 |
"""


def quick_home(home: Path) -> Path:
    """Write the quick protocol to `home` and return `home`."""
    home.mkdir(exist_ok=True)
    (home / "SANDBOX.md").write_text(QUICK_SANDBOX, encoding="utf-8")
    return home


def environment() -> dict[str, str]:
    """The environment in which a child process finds the package as this process does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

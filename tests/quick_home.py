"""A home whose protocol makes every trial a matter of a second: one epoch, a small state, a handful of knobs."""

import os
import sys
from pathlib import Path

QUICK_SANDBOX = """\
# Quick

```toml
[protocol]
metric = "ndcg@10"
max_trials = 2
max_train_seconds = 600.0
trial_seconds = 300.0
patience = 10
keep_z = 1.0
require_reflection = true

[knobs.hidden_dim]
type = "int"
dimension = "capacity"
low = 8
high = 32
default = 16

[knobs.batch_size]
type = "int"
dimension = "optimisation"
low = 256
high = 512
default = 512

[knobs.epochs]
type = "int"
dimension = "optimisation"
low = 1
high = 1
default = 1

[knobs.transition_weight]
type = "float"
dimension = "scoring"
low = 0.0
high = 20.0
default = 0.0
```
"""


def quick_home(home: Path) -> Path:
    """`home` with the quick protocol in it."""
    home.mkdir(exist_ok=True)
    (home / "SANDBOX.md").write_text(QUICK_SANDBOX, encoding="utf-8")
    return home


def environment() -> dict[str, str]:
    """The environment in which a process of ours finds the package as this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

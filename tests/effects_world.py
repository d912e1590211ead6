"""Records of trials with a given NDCG@10, and the simulation of benchmarks/simulate_effects.py."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from virtualmle.memory.records import TrialOutcome, TrialRecord
from virtualmle.models.config import TrialConfig, make_config, train_hash

DEFAULT = make_config("sasrec")
NDCG = 0.05  # of the default
SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "simulate_effects.py"


def load_simulation() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("simulate_effects", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate_effects"] = module  # dataclasses look up their module here
    spec.loader.exec_module(module)
    return module


def trial(
    number: int, changes: dict[str, Any], ndcg: float = NDCG, se: float = 0.0002, **more: Any
) -> TrialRecord:
    """A finished trial over the default, or over `base`, with the paired error `se` of its difference to the base."""
    base: TrialRecord | None = more.pop("base", None)
    config = TrialConfig(**{**(base.config if base else DEFAULT.model_dump()), **changes})
    before = base.outcome.metrics["ndcg@10"] if base and base.outcome else NDCG
    outcome = TrialOutcome(
        status="finished", metrics={"ndcg@10": ndcg}, base_delta=ndcg - before if number > 1 else None,
        base_delta_se=se if number > 1 else None,
    )  # fmt: skip
    return TrialRecord(
        session="s", handle=f"t{number:03}", number=number, base=base.handle if base else "default", changes=changes,
        config=config.model_dump(), config_hash="", train_hash=train_hash(config), status="finished", outcome=outcome,
    )  # fmt: skip


FIRST = trial(1, {})

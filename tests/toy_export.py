"""An export of a small untrained model, and a log for it, for tests of serving: both take a fraction of a second."""

from pathlib import Path

import polars as pl

from virtualmle.data.demo import generate_demo
from virtualmle.data.prepared import PreparedDataset
from virtualmle.models.build import build_model
from virtualmle.models.config import make_config
from virtualmle.serving.artifact import write_export
from virtualmle.serving.assembly import assemble
from virtualmle.serving.layout import TrainedModel
from virtualmle.training.checkpoint import save_checkpoint
from virtualmle.training.spec import CHECKPOINT

PRIORS = {"transition_weight": 3.0, "cooccurrence_weight": 2.0}


def toy_export(dataset_dir: Path, directory: Path, seed: int = 0) -> Path:
    """Write an export with random weights and score priors to `directory`, replacing an export there."""
    config = make_config("sasrec", hidden_dim=16, max_len=6, **PRIORS)
    num_items = PreparedDataset.load(dataset_dir).num_items
    trial = directory.with_name(f"{directory.name}-trial-{seed}")
    trial.mkdir()
    save_checkpoint(trial / CHECKPOINT, build_model(config, num_items, seed=seed), config, num_items)
    contents = assemble([TrainedModel(f"toy-1/t{seed:03d}", trial)], config, dataset_dir, "# Card\n")
    write_export(directory, contents, overwrite=True)
    return directory


def toy_log(file: Path) -> pl.DataFrame:
    """Write the log of the tiny dataset, and a user with only an unknown item, to a CSV file; returns its rows."""
    frame = generate_demo(num_users=150, num_items=60)
    stranger = pl.DataFrame({"user": ["stranger"], "item": ["unheard"], "timestamp": [1_500_000_000]})
    frame = pl.concat([frame, stranger])
    frame.write_csv(file)
    return frame


def histories_of(log: pl.DataFrame) -> dict[str, list[str]]:
    """The items of every user in time order."""
    ordered = log.sort("timestamp", maintain_order=True).group_by("user", maintain_order=True).agg("item")
    return dict(ordered.iter_rows())

"""Exports of untrained models on a prepared dataset, for tests of what is done with an export."""

from pathlib import Path
from typing import Any

import torch

from virtualmle.data.prepared import PreparedDataset
from virtualmle.models.build import build_model
from virtualmle.models.config import make_config
from virtualmle.serving.artifact import Contents
from virtualmle.serving.assembly import assemble
from virtualmle.serving.layout import TrainedModel
from virtualmle.training.checkpoint import save_checkpoint
from virtualmle.training.spec import CHECKPOINT

SMALL = {"hidden_dim": 16, "max_len": 6}


def contents_of(dataset_dir: Path, folder: Path, *members: tuple[str, dict[str, Any]], **scoring: Any) -> Contents:
    """The contents of an export with these members (backbone, knobs); scoring knobs: those given, else the first's."""
    num_items = PreparedDataset.load(dataset_dir).num_items
    models = []
    for number, (backbone, knobs) in enumerate(members):
        config = make_config(backbone, **{**SMALL, **knobs})
        model = build_model(config, num_items, seed=number)
        with torch.no_grad():
            for name, table in model.named_parameters():
                if name.endswith("time_table"):  # initial values near zero would hide the times
                    table.copy_(torch.arange(table.shape[1]) / 4)
        directory = folder / f"t{number:03d}"
        directory.mkdir(parents=True)
        save_checkpoint(directory / CHECKPOINT, model, config, num_items)
        models.append(TrainedModel(f"toy-1/t{number:03d}", directory))
    backbone, knobs = members[0]
    config = make_config(backbone, **{**SMALL, **(scoring or knobs)})
    return assemble(models, config, dataset_dir, "# A card\n")

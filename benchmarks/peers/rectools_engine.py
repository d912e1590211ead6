"""RecTools' SASRecModel, with its defaults except for the settings shared by all engines."""

import warnings

import numpy as np
import pandas as pd
import rectools
import torch
from protocol import DEPTH, HEADS, LR, MAX_LEN, TOP, WIDTH, answer, read_task, timed
from pytorch_lightning import Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

warnings.filterwarnings("ignore")
task = read_task()
torch.set_num_threads(task.threads)
torch.manual_seed(0)
frame = pd.DataFrame({Columns.User: task.users, Columns.Item: task.items, Columns.Weight: 1.0})
start = pd.Timestamp("2020-01-01")
frame[Columns.Datetime] = start + pd.to_timedelta(np.arange(len(frame)), unit="s")  # the order of the log
dataset = Dataset.construct(frame)


def bfloat16_trainer() -> Trainer:
    """RecTools' own trainer, with autocasting to bfloat16."""
    return Trainer(
        max_epochs=task.epochs,
        min_epochs=task.epochs,
        precision="bf16-mixed",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        devices=1,
    )


model = SASRecModel(
    n_blocks=DEPTH,
    n_heads=HEADS,
    n_factors=WIDTH,
    session_max_len=MAX_LEN,
    loss="softmax" if task.loss == "softmax" else "sampled_softmax",
    n_negatives=task.num_negatives,
    lr=LR,
    batch_size=task.batch_size,
    epochs=task.epochs,
    get_trainer_func=bfloat16_trainer if task.bfloat16 else None,
)
fit_seconds, _ = timed(lambda: model.fit(dataset))
users = np.arange(len(task.valid_items))
evaluate_seconds, found = timed(
    lambda: model.recommend(users, dataset, k=TOP, filter_viewed=True, on_unsupported_targets="ignore")
)
top = np.full((len(users), TOP), -1)
top[found[Columns.User], found[Columns.Rank] - 1] = found[Columns.Item]
answer(task, fit_seconds, evaluate_seconds, top, {"rectools": rectools.__version__, "torch": torch.__version__})

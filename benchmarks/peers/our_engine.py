"""VirtualMLE's engine: SASRec (`models/sasrec.py`), trained and evaluated with the functions that a trial uses."""

from pathlib import Path

import numpy as np
import torch
from protocol import DEPTH, HEADS, LR, MAX_LEN, TOP, WIDTH, answer, read_task, timed

import virtualmle
from virtualmle.data.prepared import PreparedDataset
from virtualmle.kernels.losses.arguments import BFLOAT16
from virtualmle.models.config import make_config
from virtualmle.training.evaluate import encode_users, evaluate_validation, train_histories
from virtualmle.training.trainer import Training

task = read_task()
torch.set_num_threads(task.threads)
dataset = PreparedDataset.load(Path(task.folder).parent / "prepared")
config = make_config(
    "sasrec",
    hidden_dim=WIDTH,
    num_blocks=DEPTH,
    num_heads=HEADS,
    max_len=MAX_LEN,
    lr=LR,
    batch_size=task.batch_size,
    tie_embeddings=True,
    loss="full_softmax" if task.loss == "softmax" else "sampled_softmax",
    num_negatives=task.num_negatives,
    negative_sharing="position" if task.loss == "sampled" else "batch",  # RecTools draws for every position
)


def fit() -> Training:
    training = Training(config, dataset, 0, torch.device("cpu"), BFLOAT16 if task.bfloat16 else "ieee")
    for _ in range(task.epochs):
        training.epoch()
    return training


fit_seconds, training = timed(fit)
model = training.model
evaluate_seconds, _ = timed(lambda: evaluate_validation(model, dataset, config, None))

users = len(task.valid_items)
top = np.full((users, TOP), -1)
with torch.inference_mode():
    states = encode_users(model, config, train_histories(dataset))
    for first in range(0, users, 512):
        scores = model.score(states[first : first + 512])
        for row, user in enumerate(range(first, min(first + 512, users))):
            scores[row, task.items[task.offsets[user] : task.offsets[user + 1]]] = -torch.inf
        top[first : first + 512] = scores.topk(TOP, dim=1).indices.numpy()
answer(task, fit_seconds, evaluate_seconds, top, {"virtualmle": virtualmle.__version__, "torch": torch.__version__})

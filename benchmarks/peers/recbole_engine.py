"""RecBole's SASRec with cross-entropy, with its defaults except for the settings shared by all engines."""

import numpy as np

for name, kind in (("float", float), ("int", int), ("bool", bool), ("float_", np.float64)):
    setattr(np, name, kind)  # names that numpy 1.24 removed and RecBole 1.2.1 still uses

import pandas as pd  # noqa: E402
import recbole  # noqa: E402
import torch  # noqa: E402
from protocol import DEPTH, HEADS, LR, MAX_LEN, TOP, WIDTH, answer, read_task, timed, without_history  # noqa: E402
from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.model.sequential_recommender import SASRec  # noqa: E402
from recbole.trainer import Trainer  # noqa: E402
from recbole.utils.case_study import full_sort_topk  # noqa: E402


def write_log(task) -> None:
    """Write each user's train events and validation item in RecBole's format; its split holds out the latter."""
    items = np.insert(task.items, task.offsets[1:], task.valid_items)
    users = np.repeat(np.arange(len(task.valid_items)), np.diff(task.offsets) + 1)
    frame = pd.DataFrame({"user_id:token": users, "item_id:token": items, "timestamp:float": np.arange(len(items))})
    folder = task.folder / "log"
    folder.mkdir(exist_ok=True)
    frame.to_csv(folder / "log.inter", sep="\t", index=False)


task = read_task()
torch.set_num_threads(task.threads)
write_log(task)
config = Config(
    model="SASRec",
    dataset="log",
    config_dict={
        "data_path": str(task.folder),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": MAX_LEN,
        "hidden_size": WIDTH,
        "n_layers": DEPTH,
        "n_heads": HEADS,
        "learning_rate": LR,
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "epochs": task.epochs,
        "use_gpu": False,
        "show_progress": False,
        "eval_args": {"split": {"LS": "valid_only"}, "order": "TO", "group_by": "user", "mode": "full"},
        "metrics": ["NDCG"],
        "valid_metric": "NDCG@10",
        "topk": [TOP],
        "checkpoint_dir": str(task.folder),
        "seed": 0,
    },
)
dataset = create_dataset(config)
train, valid, _ = data_preparation(config, dataset)
model = SASRec(config, train.dataset)
trainer = Trainer(config, model)
fit_seconds, _ = timed(lambda: trainer.fit(train, None, saved=False, show_progress=False))
evaluate_seconds, _ = timed(lambda: trainer.evaluate(valid, load_best_model=False, show_progress=False))

# RecBole ranks the history too: request longer lists and remove it. Rows are in the order of RecBole's user ids.
inner = np.unique(valid.dataset[dataset.uid_field].numpy())
_, best = full_sort_topk(inner, model, valid, TOP + MAX_LEN, device="cpu")
users = valid.dataset[dataset.uid_field].numpy()
owners = dataset.id2token(dataset.uid_field, users[np.isin(users, inner)]).astype(int)
names = np.array([-1, *dataset.field2id_token[dataset.iid_field][1:].astype(int)])  # entry 0 is the padding
ranked = np.full((len(task.valid_items), TOP + MAX_LEN), -1)
ranked[owners] = names[best.numpy()]
versions = {"recbole": recbole.__version__, "torch": torch.__version__}
answer(task, fit_seconds, evaluate_seconds, without_history(task, ranked), versions)

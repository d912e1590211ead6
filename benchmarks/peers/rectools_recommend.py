"""RecTools' `recommend` for every user of a log, timed: `rectools_recommend.py LOG.npz TOP THREADS`.

The SASRecModel (width 64, two blocks, history 50) is fitted for one epoch on a few users only: the time of `recommend`
does not depend on the weights. Prints a JSON object.
"""

import json
import resource
import sys
import time
import warnings

import numpy as np
import pandas as pd
import rectools
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

warnings.filterwarnings("ignore")
FIT_USERS = 200
path, top, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
arrays = np.load(path)
frame = pd.DataFrame({Columns.User: arrays["users"], Columns.Item: arrays["items"], Columns.Weight: 1.0})
frame[Columns.Datetime] = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(len(frame)), unit="s")
# the model knows the items it was fitted on, of which it keeps the last ones of each user: more users add all items
items = frame[Columns.Item].unique()
extra = pd.DataFrame({Columns.User: -1 - np.arange(len(items)) // 40, Columns.Item: items, Columns.Weight: 1.0})
extra[Columns.Datetime] = pd.Timestamp("2019-01-01")
few = pd.concat([frame[frame[Columns.User] < FIT_USERS], extra])
model = SASRecModel(n_blocks=2, n_heads=2, n_factors=64, session_max_len=50, loss="sampled_softmax", n_negatives=16,
                    epochs=1, train_min_user_interactions=2, verbose=0)  # fmt: skip
model.fit(Dataset.construct(few))
users = frame[Columns.User].unique()
started, processor = time.perf_counter(), time.process_time()
dataset = Dataset.construct(frame)
found = model.recommend(users, dataset, k=top, filter_viewed=True, on_unsupported_targets="ignore")
seconds, processor = time.perf_counter() - started, time.process_time() - processor
if found[Columns.User].nunique() < len(users):
    raise SystemExit(f"recommendations for {found[Columns.User].nunique()} of {len(users)} users only")
print(
    json.dumps(
        {
            "users": len(users),
            "rows": len(found),
            "seconds": seconds,
            "processor_seconds": processor,
            "users_per_second": len(users) / seconds,
            "users_per_processor_second": len(users) / processor,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "versions": {"rectools": rectools.__version__, "torch": torch.__version__},
        }
    )
)

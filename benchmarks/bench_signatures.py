"""What the signatures of a trial cost: the worker's and the server's part, for files of the size that a trial writes.

    python benchmarks/bench_signatures.py                                # the size of Amazon Beauty
    python benchmarks/bench_signatures.py --users 1000 --items 500 --repeats 3

The files have random content. Worker: check the spec, sign two training states and all files. Server: sign the spec,
check dataset and files when the trial is recorded, and read the ranks of the session's other trials to compare with.
Writing and syncing the three files with signatures is included. Medians over repeats in milliseconds: of the clock,
with the range, and of the processor, which does not depend on what else the machine does.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

import numpy as np
from record import environment, parser_of

from virtualmle.data.dataset_signature import check_dataset, sign_dataset
from virtualmle.data.hashing import write_hashed
from virtualmle.data.prepared import MANIFEST, SEALED
from virtualmle.models.config import make_config
from virtualmle.tools.signatures import signed_ranks, signed_result
from virtualmle.training.signature import StateSigner, check_spec, check_trial, sign_spec, write_signed_result
from virtualmle.training.spec import (
    CHECKPOINT,
    EPOCH_RANKS,
    RANKS,
    RESULT,
    SPEC,
    USERS,
    TrialResult,
    TrialSpec,
    write_model,
)

KEY = bytes(range(32))
STATE_SHARE = 4.5  # size of a training state over that of the weights
EPOCHS = 14  # evaluated ones
SEALED_BYTES = 12  # per user


def timed(step: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds that a step takes, by the clock and of the processor."""
    started, spent = time.perf_counter(), time.process_time()
    step()
    return 1e3 * (time.perf_counter() - started), 1e3 * (time.process_time() - spent)


def array_bytes(array: object) -> bytes:
    """An array as the content of a file."""
    buffer = BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


class Scene:
    """A dataset and the directory of a trial, with files of the given sizes."""

    def __init__(self, folder: Path, users: int, items: int, dim: int) -> None:
        self.directory, self.data = folder / "t001", folder / "data"
        for path in (self.directory, self.data):
            path.mkdir()
        self.spec = TrialSpec(
            session="s-1", trial="t001", dataset_dir=str(self.data), config=make_config("sasrec").model_dump(), seed=1
        )
        write_model(self.directory / SPEC, self.spec)
        rng = np.random.default_rng(0)
        weights = rng.bytes(4 * items * dim)
        self.state = rng.bytes(int(STATE_SHARE * len(weights)))
        self.contents = {
            RANKS: array_bytes(rng.integers(1, items, users, np.int32)),
            EPOCH_RANKS: array_bytes(rng.integers(1, 255, (EPOCHS, users), np.uint8)),
            USERS: array_bytes(rng.random((users, dim), np.float32)),
            CHECKPOINT: weights,
        }
        self.files = {name: write_hashed(self.directory / name, content) for name, content in self.contents.items()}
        for name, size in ((MANIFEST, 4000), (SEALED, SEALED_BYTES * users)):
            (self.data / name).write_bytes(rng.bytes(size))
        sign_dataset(self.data, KEY)

    def ask(self) -> None:
        """The server, before the start."""
        sign_spec(self.directory, KEY, self.spec)

    def work(self) -> None:
        """The worker, besides what it did before there were signatures: hashing ranks, states of users and weights."""
        check_spec(self.directory, KEY, self.spec)
        sign = StateSigner(self.directory, KEY, "s-1")
        for _ in range(2):
            sign(self.state)
        write_signed_result(
            self.directory, KEY, self.spec, TrialResult(status="finished"), self.files, dataset_id="d", by="worker"
        )

    def record(self, others: int) -> None:
        """The server, when the trial is recorded; `others`: the trials that it is compared with."""
        check_dataset(self.data, KEY)
        signature = check_trial(self.directory, KEY, "s-1", "t001", names=(RESULT, RANKS, CHECKPOINT))
        signed_result(self.directory, signature)
        for _ in range(1 + others):
            signed_ranks(self.directory, check_trial(self.directory, KEY, "s-1", "t001"))

    def freshen(self) -> None:
        """Change the times of all files, so that no hash is known from the repeat before."""
        for path in (*self.directory.iterdir(), *self.data.iterdir()):
            os.utime(path)


def measure(arguments: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds of each part, by the clock and of the processor, by repeat."""
    parts: dict[str, list[tuple[float, float]]] = {"server, start": [], "worker": [], "server, record": []}
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder), arguments.users, arguments.items, arguments.dim)
        for _ in range(arguments.repeats):
            scene.freshen()
            parts["server, start"].append(timed(scene.ask))
            parts["worker"].append(timed(scene.work))
            parts["server, record"].append(timed(lambda: scene.record(arguments.others)))
    repeats = zip(*parts.values(), strict=True)
    parts["all"] = [(sum(wall for wall, _ in each), sum(spent for _, spent in each)) for each in repeats]
    return parts


def main() -> None:
    """Measure, and print a table and one line of JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--users", type=int, default=22_363)
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--others", type=int, default=10, help="trials to compare with")
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    parts = measure(arguments)
    for name, values in parts.items():
        wall, spent = ([pair[n] for pair in values] for n in range(2))
        print(
            f"{name:16} {statistics.median(wall):7.1f} ms ({min(wall):.1f} to {max(wall):.1f})"
            f"   processor {statistics.median(spent):6.1f} ms"
        )
    print(json.dumps({"sizes": vars(arguments), "milliseconds": parts, "environment": environment()}, default=str))


if __name__ == "__main__":
    main()

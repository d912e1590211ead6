"""Record learning curves: train the trials of plan.py to their end, with each user's rank after every epoch.

    python benchmarks/curves/collect.py office.tsv.gz tools.tsv.gz beauty.tsv.gz --backbone sasrec --out curves-out

One file per trial, written atomically; a restarted run continues with the first trial that has no file. The datasets
take turns, so that a run that is ended early has some of each. Two runs, one for each backbone, may share a folder.
`pack.py` makes one file of the trials.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # PYTHONSAFEPATH leaves both out
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from logs import log_of, prepared
from numpy.typing import NDArray
from plan import BACKBONES, SESSIONS, SIZES, drawn, first_trial, moved
from record import parser_of

from virtualmle.data.atomic import write_bytes
from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.models.build import num_parameters
from virtualmle.models.config import TrialConfig
from virtualmle.sandbox.program import TrialSize, judge
from virtualmle.sandbox.statistics import compare
from virtualmle.tools.workspace import trial_seed
from virtualmle.training.errors import TrainingError
from virtualmle.training.evaluate import evaluate_validation
from virtualmle.training.metrics import clip_ranks, metrics_from_ranks
from virtualmle.training.pipeline import set_up_device
from virtualmle.training.trainer import Training

KEEP_Z = 1.0


class Recorded(NamedTuple):
    """A trial as its file has it. All arrays begin with the epoch; `ranks` is (epochs, users)."""

    config: TrialConfig
    parameters: int
    ndcg10: NDArray[np.float64]
    loss: NDArray[np.float64]
    train_seconds: NDArray[np.float64]
    evaluate_seconds: NDArray[np.float64]
    ranks: NDArray[np.uint8]  # of the bare model, above 255 clipped
    cause: str  # why training failed; empty = it did not

    @property
    def final_ranks(self) -> NDArray[np.uint8]:
        """The ranks of the best epoch, by which a trial is judged."""
        return np.asarray(self.ranks[int(self.ndcg10.argmax())])


def train(config: TrialConfig, dataset: PreparedDataset, seed: int) -> Recorded:
    """Train as `trainer.fit` does, and keep the ranks of every epoch; seconds are processor time of one thread."""
    training = Training(config, dataset, seed, set_up_device("cpu", 1))
    rows: list[tuple[float, float, float, float]] = []
    ranks: list[NDArray[np.uint8]] = []
    best, cause = 0, ""
    while len(rows) < config.epochs and len(rows) - best < config.patience:
        started = time.process_time()
        try:
            loss = training.epoch()
            trained = time.process_time()
            with training.evaluated_weights():
                found, _ = evaluate_validation(training.model, dataset, config, None)
        except TrainingError as error:
            cause = str(error)
            break
        ndcg10 = metrics_from_ranks(found)["ndcg@10"]
        best = best if rows and ndcg10 <= rows[best - 1][0] else len(rows) + 1
        rows.append((ndcg10, loss, trained - started, time.process_time() - trained))
        ranks.append(clip_ranks(found))
    columns = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    stacked = np.array(ranks, dtype=np.uint8).reshape(len(rows), dataset.num_ranked)
    return Recorded(config, num_parameters(training.model), *columns, stacked, cause)


def write_trial(path: Path, trial: Recorded) -> None:
    """One compressed file with the arrays of a trial, and the rest as JSON."""
    about = {"config": trial.config.model_dump(), "parameters": trial.parameters, "cause": trial.cause}
    buffer = BytesIO()
    arrays = {name: value for name, value in trial._asdict().items() if isinstance(value, np.ndarray)}
    np.savez_compressed(buffer, about=np.array(json.dumps(about)), **arrays)
    write_bytes(path, buffer.getvalue())


def read_trial(path: Path) -> Recorded:
    """The inverse of `write_trial`."""
    with np.load(path) as file:
        about = json.loads(str(file["about"]))
        arrays = {name: file[name] for name in file.files if name != "about"}
    return Recorded(TrialConfig(**about["config"]), about["parameters"], cause=about["cause"], **arrays)


def incumbent_of(trials: Sequence[Recorded]) -> int | None:
    """The index of the incumbent after `trials`, by the Program's own verdicts."""
    best: int | None = None
    top: int | None = None  # the best trial kept so far, which a simpler incumbent may have replaced
    for index, trial in enumerate(trials):
        if trial.cause:
            continue
        if kept(trials, index, best, top):
            best = index
            top = index if top is None or trial.ndcg10.max() > trials[top].ndcg10.max() else top
    return best


def kept(trials: Sequence[Recorded], index: int, incumbent: int | None, top: int | None) -> bool:
    """Whether the Program keeps a trial against the incumbent and the best trial kept so far."""
    if incumbent is None or top is None:
        return True
    size, other = (TrialSize(str(i), trials[i].parameters) for i in (index, incumbent))
    comparison = compare(trials[incumbent].final_ranks, trials[index].final_ranks)
    against_top = None
    if top != incumbent:
        against_top = (str(top), compare(trials[top].final_ranks, trials[index].final_ranks))
    return judge(size, other, comparison, KEEP_Z, best_kept=against_top).verdict == "keep"


def next_config(dataset: str, backbone: str, session: str, trials: Sequence[Recorded]) -> TrialConfig:
    """The next trial of a session; the same for the same earlier trials."""
    names = (list(SIZES).index(dataset), BACKBONES.index(backbone), SESSIONS.index(session))
    rng = np.random.default_rng((*names, len(trials)))
    if session == "draw":
        return drawn(rng, dataset, backbone)
    best = incumbent_of(trials)
    if best is None:
        return first_trial(dataset, backbone)
    tried = [trial.config for trial in trials]
    while (config := moved(rng, dataset, trials[best].config)) in tried:
        pass
    return config


def datasets_of(logs: Sequence[Path], out: Path) -> dict[str, PreparedDataset]:
    """The prepared datasets by name, prepared once; a name is that of the log up to its first point."""
    found = {}
    for log in logs:
        name = log.name.split(".")[0]
        folder = out / f"dataset-{name}"
        known = (folder / "manifest.json").exists()
        found[name] = PreparedDataset.load(folder) if known else prepared(log_of(log), folder, PrepareOptions())
    return found


def collect(datasets: dict[str, PreparedDataset], backbone: str, out: Path) -> None:
    """Run the session that is least far, until all are complete."""
    keys = [(name, session) for name in datasets for session in SESSIONS]
    sessions = {key: read_session(out, key[0], backbone, key[1]) for key in keys}
    while True:
        (name, session), trials = min(sessions.items(), key=lambda item: len(item[1]) / SIZES[item[0][0]].trials)
        if len(trials) >= SIZES[name].trials:
            return
        dataset = datasets[name]
        config = next_config(name, backbone, session, trials)
        trial = train(config, dataset, trial_seed(0, dataset.dataset_id))
        write_trial(file_of(out, name, backbone, session, len(trials)), trial)
        trials.append(trial)
        seconds = trial.train_seconds.sum() + trial.evaluate_seconds.sum()
        best = trial.ndcg10.max() if len(trial.ndcg10) else 0.0
        print(
            f"{time.strftime('%H:%M:%S')} {name} {backbone} {session} {len(trials)}  {config.loss} lr {config.lr:g} "
            f"epochs {len(trial.ndcg10)}/{config.epochs}  ndcg@10 {best:.4f}  {seconds:.0f} s {trial.cause}",
            flush=True,
        )


def read_session(out: Path, dataset: str, backbone: str, session: str) -> list[Recorded]:
    """The trials of a session that have a file, in their order."""
    trials: list[Recorded] = []
    while (path := file_of(out, dataset, backbone, session, len(trials))).exists():
        trials.append(read_trial(path))
    return trials


def file_of(out: Path, dataset: str, backbone: str, session: str, number: int) -> Path:
    return out / f"{dataset}-{backbone}-{session}-{number:03d}.npz"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("logs", type=Path, nargs="+", help="office.tsv.gz, tools.tsv.gz, beauty.tsv.gz")
    parser.add_argument("--backbone", choices=BACKBONES, required=True)
    parser.add_argument("--out", type=Path, default=Path("curves-out"))
    arguments: argparse.Namespace = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    collect(datasets_of(arguments.logs, arguments.out), arguments.backbone, arguments.out)


if __name__ == "__main__":
    main()

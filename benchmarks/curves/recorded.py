"""The recorded trials as one small file, curves.parquet, one row per trial.

A row has the configuration, and of every epoch the NDCG@10 of the bare model, the loss, the seconds and the ranks of
all users. Of the ranks, those up to 10 are stored exactly, and no others: NDCG@10 is zero beyond.
"""

import json
import lzma
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from virtualmle.data.atomic import write_bytes
from virtualmle.models.config import TrialConfig, has_priors, make_config
from virtualmle.training.metrics import ndcg_per_user
from virtualmle.training.racing import best_until
from virtualmle.training.stopping import judged_epochs

CURVES = Path(__file__).with_name("curves.parquet")  # without score priors
WITH_PRIORS = Path(__file__).with_name("curves-priors.parquet")  # sessions of the engineer
CUTOFF = 10
MISSED = 0  # stands for every rank beyond the cutoff


class Curve(NamedTuple):
    """A recorded trial. The first dimension of the arrays is the evaluated epoch."""

    dataset: str
    backbone: str
    session: str  # "climb" or "draw", see plan.py; "engineer"
    number: int  # in its session
    config: TrialConfig
    parameters: int
    ndcg10: NDArray[np.float64]
    loss: NDArray[np.float64]
    train_seconds: NDArray[np.float64]
    evaluate_seconds: NDArray[np.float64]
    ranks: NDArray[np.uint8]  # (epochs, num_users), those above 10 as 11
    cause: str  # why training failed; empty = it did not
    popularity: float  # validation NDCG@10 of ranking by popularity alone
    epochs: NDArray[np.int64]  # the evaluated ones, ascending
    judged_ranks: NDArray[np.uint8]  # as `ranks`, with the trial's score priors; of a re-scoring one row, the final one
    rescored: bool  # a trained model with other score priors, or a sweep of them: not trained, at no cost

    @property
    def judged(self) -> NDArray[np.float64]:
        """The NDCG@10 by which each epoch is judged, (epochs,); of a re-scoring (1,)."""
        bare = self.judged_ranks is self.ranks
        return self.ndcg10 if bare else np.array([ndcg_per_user(ranks).mean() for ranks in self.judged_ranks])

    @property
    def final_ranks(self) -> NDArray[np.uint8]:
        """The ranks by which the trial is judged, (num_users,)."""
        return np.asarray(self.judged_ranks[-1 if self.rescored else int(self.ndcg10.argmax())])

    @property
    def final(self) -> float:
        """The NDCG@10 by which the trial is judged."""
        return float(self.judged[-1 if self.rescored else int(self.ndcg10.argmax())])

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Seconds from the start to the end of each epoch, (epochs,)."""
        return np.cumsum(self.train_seconds + self.evaluate_seconds)

    def seconds_until(self, epoch: int) -> float:
        """Seconds from the start to the end of the last evaluated epoch until `epoch`; none of a re-scoring."""
        rows = int((self.epochs <= epoch).sum())
        return 0.0 if self.rescored or not rows else float(self.seconds[rows - 1])

    @property
    def judged_at(self) -> list[int]:
        """The epochs after which a worker ranks the judged scores."""
        epochs = self.epochs.tolist()
        return judged_epochs(epochs) if has_priors(self.config) else epochs

    def best_until(self, epoch: int, *, judged: bool) -> int:
        """The row of the best epoch until `epoch`, among those after which the judged scores are ranked, or all."""
        epochs = self.epochs.tolist()
        among = self.judged_at if judged else epochs
        return epochs.index(best_until(epoch, dict(zip(epochs, self.ndcg10.tolist(), strict=True)), among))


def packed(ranks: NDArray[np.uint8]) -> bytes:
    """Ranks (epochs, users) as compressed nibbles; the epochs of a user, which resemble each other, are neighbours."""
    hits = np.where(ranks <= CUTOFF, ranks, MISSED).T.ravel()
    hits = np.append(hits, np.zeros(len(hits) % 2, np.uint8))
    return lzma.compress((hits[::2] << 4 | hits[1::2]).tobytes(), preset=9)


def unpacked(content: bytes, epochs: int) -> NDArray[np.uint8]:
    """The inverse of `packed` for so many epochs: ranks (epochs, users), those above 10 as 11."""
    nibbles = np.frombuffer(lzma.decompress(content), np.uint8)
    hits = np.stack([nibbles >> 4, nibbles & 15], axis=1).ravel()
    hits = hits[: len(hits) // max(epochs, 1) * epochs].reshape(-1, max(epochs, 1)).T[:epochs]
    return np.where(hits == MISSED, CUTOFF + 1, hits).astype(np.uint8)


def row_of(curve: Curve) -> dict[str, Any]:
    """The row of a trial."""
    baseline = make_config(curve.backbone).model_dump()
    changes = {knob: value for knob, value in curve.config.model_dump().items() if value != baseline[knob]}
    return {
        "dataset": curve.dataset,
        "backbone": curve.backbone,
        "session": curve.session,
        "number": curve.number,
        "changes": json.dumps(changes),
        "parameters": curve.parameters,
        "cause": curve.cause,
        "popularity": curve.popularity,
        **{name: getattr(curve, name).tolist() for name in ("ndcg10", "loss", "train_seconds", "evaluate_seconds")},
        "ranks": packed(curve.ranks),
        "epochs": curve.epochs.tolist(),
        "judged_ranks": None if curve.judged_ranks is curve.ranks else packed(curve.judged_ranks),
        "rescored": curve.rescored,
    }


def curve_of(row: dict[str, Any]) -> Curve:
    """The inverse of `row_of`."""
    config = make_config(row["backbone"], **json.loads(row["changes"]))
    arrays = [np.array(row[name]) for name in ("ndcg10", "loss", "train_seconds", "evaluate_seconds")]
    ranks = unpacked(row["ranks"], len(arrays[0]))
    epochs = np.array(row.get("epochs") or range(1, len(ranks) + 1), dtype=np.int64)
    rescored, scored = bool(row.get("rescored")), row.get("judged_ranks")
    judged = ranks if scored is None else unpacked(scored, 1 if rescored else len(ranks))
    judged = judged if scored is None else judged[:, : ranks.shape[1]]  # one epoch of an odd number of users is padded
    names = (row["dataset"], row["backbone"], row["session"], row["number"])
    about = (row["cause"], row["popularity"])
    return Curve(*names, config, row["parameters"], *arrays, ranks, *about, epochs, judged, rescored)


def write_curves(path: Path, curves: Iterable[Curve]) -> None:
    """Write the file atomically."""
    frame = pl.DataFrame([row_of(curve) for curve in curves], infer_schema_length=None)
    floats = ("ndcg10", "loss", "train_seconds", "evaluate_seconds")
    frame = frame.with_columns(pl.col(*floats).cast(pl.List(pl.Float32)))
    buffer = BytesIO()
    frame.write_parquet(buffer, compression="zstd", compression_level=19)
    write_bytes(path, buffer.getvalue())


def read_curves(path: Path = CURVES) -> Sequence[Curve]:
    """The recorded trials in the order in which they were trained."""
    return [curve_of(row) for row in pl.read_parquet(path).iter_rows(named=True)]

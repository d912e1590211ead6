"""Continues the training of an export with the events of a new log, and writes a new export.

The last event of every user of the new log who has an earlier one there is held out: it is neither trained on nor
counted, and both exports are evaluated on it. Old items keep their numbers; new ones follow in the order of their ids.
Score priors are computed from the sums of the export plus those of the new events (`models/prior_sums.py`).

Not covered: the old events themselves. An export has none, so that training sees the new histories only, and pairs of
an old and a new event of one user are not counted.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from ..data.errors import ExportError
from ..data.hashing import sha256_of
from ..data.prepare import collapse_duplicates
from ..data.prepared import Manifest, PreparedDataset, PrepareOptions
from ..data.ties import in_drawn_order
from ..models.config import TrialConfig
from ..models.prior_sums import Events
from ..training.trainer import Training
from .artifact import Contents, Export, Member, check_destination, write_export
from .continuation import Continued, ContinueOptions
from .continued_card import continued_card
from .evaluation import Evaluation, evaluate_export, figure
from .item_index import ItemIndex, as_text, typed_ids
from .later_events import LaterEvents, by_user_and_time, later_events
from .layout import CARD, MANIFEST
from .new_items import extended_table
from .recommender import Recommender
from .sums import ExportSums, load_sums

Progress = Callable[[int, int], None]
"""`progress(done, total)` is called with epochs."""


def continue_export(
    directory: Path,
    log: pl.DataFrame,
    destination: Path,
    options: ContinueOptions,
    device: torch.device | str = "cpu",
    *,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> Continued:
    """Continue the training of the export in `directory` with the log, a frame as `read_log` returns it.

    ExportError if the export is damaged, the destination exists, or no user of the log has three events: two to train
    on, and one held out. TrainingError if the loss is not finite. Nothing is written then.
    """
    check_destination(destination, overwrite=overwrite)
    export, sums = Export.load(directory), load_sums(directory)
    parent_card = _card(directory)  # read before the training, because it may be missing
    log, _ = collapse_duplicates(log)
    if export.config.dataset.has_random_ties:
        log = in_drawn_order(log)
    held_out = later_events(log, None, ItemIndex(export.items), "last")
    before = evaluate_export(Recommender(export, device), sums, held_out)
    items = extended_ids(export.items, log, held_out)
    events = train_events(log, held_out, ItemIndex(items))
    members = _continued_members(export, events, len(items), options, torch.device(device), progress)
    contents = _contents(export, sums, members, items, events, parent=sha256_of(directory / MANIFEST))
    after = _evaluated(contents, log, device)
    difference = figure(after.user_ndcg10 - before.user_ndcg10)
    result = Continued(before.result, after.result, difference, len(items) - len(export.items), len(events.items))
    card = continued_card(result, options, parent_card, contents.parent or "")
    write_export(destination, contents.with_card(card), overwrite=overwrite)
    return result


def _card(directory: Path) -> str:
    try:
        return (directory / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(
            f"{CARD} in {str(directory)!r} cannot be read ({error}), and the new card contains it; restore it, "
            "or write another text file of that name"
        ) from None


def extended_ids(old: pl.Series, log: pl.DataFrame, held_out: LaterEvents) -> pl.Series:
    """The ids of the export's items, and after them, sorted, the others of the log without the held-out events."""
    found, known = _without(by_user_and_time(log), held_out).select("item").unique(), as_text(old).alias("item")
    new = found.join(pl.DataFrame([known]), on="item", how="anti")["item"].sort()
    return typed_ids(pl.concat([known, new]))


def train_events(log: pl.DataFrame, held_out: LaterEvents, index: ItemIndex) -> Events:
    """The events of the log without the held-out ones, as numbers of the extended catalogue."""
    frame = _without(by_user_and_time(log), held_out)
    lengths = np.bincount(frame["code"].to_numpy(), minlength=held_out.num_later_users)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return Events(index.find(frame["item"]), offsets, frame["timestamp"].to_numpy())


def _without(frame: pl.DataFrame, held_out: LaterEvents) -> pl.DataFrame:
    kept = np.ones(frame.height, bool)
    kept[held_out.targets] = False
    return frame.filter(pl.Series(kept))


def _continued_members(
    export: Export, events: Events, num_items: int, options: ContinueOptions, device: torch.device, progress: Progress
) -> list[Member]:
    dataset = _dataset(events, num_items)
    total, done, members = options.epochs * len(export.members), 0, []
    for member in export.members:
        training = Training(options.of_member(member.config), dataset, options.seed, device)
        _load(training, member, events)
        for _ in range(options.epochs):
            training.epoch()
            done += 1
            progress(done, total)
        members.append(Member(member.trial, training.model.cpu().eval(), member.config))
    return members


@torch.no_grad()
def _load(training: Training, member: Member, events: Events) -> None:
    """Give the model of `training` the member's weights; the tables of items get rows for the new items."""
    old = dict(member.model.named_parameters())
    items, offsets = np.asarray(events.items, np.int64), np.asarray(events.offsets)
    for name, parameter in training.model.named_parameters():
        weights = old[name].detach().cpu()
        if parameter.shape != weights.shape:
            weights = extended_table(weights, items, offsets, len(parameter))
        parameter.copy_(weights)


def _dataset(events: Events, num_items: int) -> PreparedDataset:
    """The events as a dataset in memory, which has no validation part."""
    if np.diff(events.offsets).max() < 2:
        raise ExportError(
            "no user of the new log has three events, two to train on and one that is held out; use a longer log"
        )
    manifest = Manifest(
        name="new events", dataset_id="", num_users=len(events.offsets) - 1, num_items=num_items,
        num_interactions=len(events.items), num_interactions_before_cut=len(events.items), rows_read=0, columns={},
        options=PrepareOptions(), profile={}, files={},
    )  # fmt: skip
    none: NDArray[np.int64] = np.empty(0, np.int64)
    arrays: dict[str, NDArray[Any]] = {
        "items": events.items, "offsets": events.offsets, "timestamps": events.timestamps,
        "valid_items": none.astype(np.int32), "valid_timestamps": none,
    }  # fmt: skip
    return PreparedDataset(Path(), manifest, arrays)


def _contents(
    export: Export, sums: ExportSums, members: list[Member], items: pl.Series, events: Events, parent: str
) -> Contents:
    scoring = TrialConfig(**{**export.config.members[0].config, **export.config.scoring})
    total = sums.plus(ExportSums.of_events(events, len(items), scoring))
    counts = np.bincount(events.items, minlength=len(items))
    counts[: len(export.counts)] += export.counts
    return Contents(
        members=members,
        scoring=scoring,
        dataset=export.config.dataset,
        trained_on=export.config.trained_on,
        items=items,
        priors=total.scoring.priors(scoring),
        counts=counts,
        sums=total,
        card="",
        parent=parent,
    )


def _evaluated(contents: Contents, log: pl.DataFrame, device: torch.device | str) -> Evaluation:
    """The evaluation of these contents as they are read back from an export."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "export"
        write_export(directory, contents)
        recommender = Recommender(Export.load(directory), device)
        return evaluate_export(recommender, load_sums(directory), later_events(log, None, recommender.index, "last"))

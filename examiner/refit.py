"""The process of a refit: `python -P -m virtualmle.examiner.refit`, started by `refit_request.refit` only.

It trains the selected configuration once more on all events of a dataset (train, validation and test), and writes the
export. The test events are decrypted in the memory of this process and go nowhere else: no dataset, training state or
checkpoint is written, and the one thing on disk that depends on them is the export itself. No figure is computed.

The order of the steps: everything that can fail without the test events; decryption; the check that no open session has
one of its test events among those that the model would be trained on; the entry in the ledger; training; the same check
for the sessions that have been opened since; the export.
"""

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from ..data.dataset_signature import check_dataset
from ..data.errors import DataError, SealError, TrialError, VirtualMLEError
from ..data.item_names import with_names
from ..data.permissions import keep_private
from ..data.prepared import ITEM_IDS, USER_IDS, PreparedDataset, read_file
from ..models.config import TrialConfig
from ..serving.artifact import Member, check_destination, write_export
from ..serving.assembly import contents_of
from ..serving.layout import ORIGINAL_ID
from ..training.checkpoint import LoadedModel, load_checkpoint
from ..training.ensembles import load_members
from ..training.member_files import beside
from ..training.pipeline import loss_precision, set_up_device
from ..training.private_process import forbid_core_dumps, forbid_inspection
from ..training.spec import CHECKPOINT, read_result, read_spec
from ..training.whole import train_whole
from .authenticity import check_signatures
from .ledger import Ledger
from .looking import log_refit
from .refit_request import MemberToRefit, OpenSession, Publish, RefitProgress, RefitRequest
from .sketches import content_sketch
from .unseal import Targets, open_test
from .vault import Vault, read_key

INTERRUPTED = 143  # exit code after SIGTERM

Ints = NDArray[np.integer[Any]]
ReadSessions = Callable[[], Sequence[OpenSession]]


class Trained(NamedTuple):
    """How a member was trained, as far as a refit repeats it."""

    name: str
    config: TrialConfig
    seed: int
    epochs: int  # until the weights that were selected
    teachers: Sequence[LoadedModel]


def run(
    request: RefitRequest, open_sessions: ReadSessions, report: Callable[[RefitProgress], None] = lambda _: None
) -> None:
    """Train and write the export. `open_sessions` waits for the sessions to be checked: first, and before the writing.

    Raises DataError, TrialError, ExportError, and SealError if the seal cannot be opened or an open session forbids it.
    """
    destination, dataset_dir = Path(request.destination), Path(request.dataset_dir)
    check_destination(destination, overwrite=request.overwrite)
    dataset = PreparedDataset.load(dataset_dir)
    vault = Vault(Path(request.home))
    for member in request.members:
        session, directory = member.name.partition("/")[0], Path(member.directory)
        check_signatures(vault, dataset_dir, dataset.dataset_id, session, [directory])
    device = set_up_device(request.device, request.threads)
    recorded = [_trained(member, device) for member in request.members]
    key = read_key(Path(request.key_file)) if request.key_file else vault.private_key()
    targets = open_test(dataset_dir, key, dataset.dataset_id, dataset.num_users)
    events, names = all_events(dataset, targets), targets.item_names
    check_open_sessions(open_sessions(), dataset_dir, events, key, vault, names)
    sketch = content_sketch(dataset_dir, dataset, targets, key)
    log_refit(vault.directory, request.session, dataset.name, dataset.dataset_id)
    Ledger(vault.directory).record_refit(request.session, dataset.name, dataset.dataset_id, targets.fingerprint, sketch)
    members = _train(recorded, events, request.device, device, report)
    scoring = TrialConfig(**request.scoring)
    contents = contents_of(members, scoring, dataset_dir, request.card, events, "all events", names)
    report(RefitProgress(stage="trained"))
    check_open_sessions(open_sessions(), dataset_dir, events, key, vault, names)
    write_export(destination, contents, overwrite=request.overwrite)


def all_events(dataset: PreparedDataset, targets: Targets) -> PreparedDataset:
    """A dataset in memory whose train part is all events of every user; it has no validation part.

    With a split by time, the test event of a user is the first one after the last cut; later ones are not kept at all.
    """
    before, users = dataset.visible_histories(), targets.users
    assert before.times is not None
    added = np.bincount(users, minlength=dataset.num_users)
    arrays: dict[str, NDArray[Any]] = {
        "items": np.insert(before.items, before.offsets[1:][users], targets.items[users]),
        "timestamps": np.insert(before.times, before.offsets[1:][users], targets.timestamps[users]),
        "offsets": before.offsets + np.concatenate(([0], np.cumsum(added))),
        "valid_items": np.empty(0, np.int32),
        "valid_timestamps": np.empty(0, np.int64),
    }
    return PreparedDataset(Path(), dataset.manifest, arrays)


def check_open_sessions(
    sessions: Sequence[OpenSession],
    dataset_dir: Path,
    events: PreparedDataset,
    key: bytes,
    vault: Vault,
    names: Mapping[int, str] = MappingProxyType({}),
) -> None:
    """Raise SealError if a test event of an open session is one of `events`: its agent could read it from the export.

    Events are compared by original ids and time, so that the same log under another name, with other options, or in an
    earlier or later version is recognised. names: the sealed names of items of the dataset, by item.
    """
    users = np.repeat(np.arange(events.num_users), np.diff(events.offsets))
    known = _rows(dataset_dir, names, users, events.items, events.timestamps)
    for each in sessions:
        directory = Path(each.dataset_dir)
        hidden = _hidden(each, key, vault)
        found = hidden.items[hidden.users], hidden.timestamps[hidden.users]
        rows = _rows(directory, hidden.item_names, hidden.users, *found)
        if known.join(rows, on=rows.columns, how="semi").height:
            raise SealError(
                f"session {each.session} is open, and test events of it are among the events of this dataset: its "
                f"agent could read them from the export; finalize {each.session}, then export with --refit again"
            )


def _hidden(session: OpenSession, key: bytes, vault: Vault) -> Targets:
    """The test events of an open session."""
    directory = Path(session.dataset_dir)
    try:
        check_dataset(directory, vault.mac_key())
        dataset = PreparedDataset.load(directory)
        return open_test(directory, key, dataset.dataset_id, dataset.num_users)
    except (DataError, SealError) as error:
        raise SealError(
            f"session {session.session} is open, and whether its test events are among those of this dataset cannot be "
            f"checked: {error}"
        ) from None


def _rows(directory: Path, names: Mapping[int, str], users: Ints, items: Ints, times: Ints) -> pl.DataFrame:
    """Events with original ids; names: those of the items that have none in the visible files."""
    user_ids, item_ids = (pl.read_parquet(read_file(directory, file))[ORIGINAL_ID] for file in (USER_IDS, ITEM_IDS))
    item_ids = with_names(item_ids, names)
    return pl.DataFrame({"user": user_ids.gather(users), "item": item_ids.gather(items), "time": times})


def _trained(member: MemberToRefit, device: torch.device) -> Trained:
    directory = Path(member.directory)
    result, spec = read_result(directory), read_spec(directory)
    if result is None or result.status != "finished" or not result.best_epoch:
        raise TrialError(f"trial {member.name} has no trained epochs to repeat; refit a trial that has finished")
    _, config = load_checkpoint(directory / CHECKPOINT)
    teachers = load_members(beside(directory, spec.teachers), device)
    return Trained(member.name, config, spec.seed, result.best_epoch, teachers)


def _train(
    recorded: Sequence[Trained],
    events: PreparedDataset,
    requested: str,
    device: torch.device,
    report: Callable[[RefitProgress], None],
) -> list[Member]:
    total, done, members = sum(each.epochs for each in recorded), 0, []
    report(RefitProgress(stage="training", done=0, total=total))
    for each in recorded:
        precision, before = loss_precision(requested, device, each.config), done

        def on_epoch(epoch: int, before: int = before) -> None:
            report(RefitProgress(stage="training", done=before + epoch, total=total))

        model = train_whole(each.config, events, each.seed, device, each.epochs, on_epoch, precision, each.teachers)
        members.append(Member(each.name, model, each.config))
        done += each.epochs
    return members


def _read_sessions() -> list[OpenSession]:
    """The next message of the command; if there is none, the command has ended, and so does this process."""
    line = sys.stdin.readline()
    if not line:
        sys.exit(INTERRUPTED)
    return Publish.model_validate_json(line).open_sessions


def _report(message: RefitProgress) -> None:
    print(message.model_dump_json(), flush=True)


def main() -> int:
    """Serve one request from standard input; errors that the caller can correct become a message."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(INTERRUPTED))  # so that temporary files are deleted
    forbid_core_dumps()
    forbid_inspection()
    request = RefitRequest.model_validate_json(sys.stdin.readline())
    keep_private(request.umask)
    try:
        run(request, _read_sessions, _report)
    except VirtualMLEError as error:
        _report(RefitProgress(stage="error", error=str(error)))
        return 1
    _report(RefitProgress(stage="written"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

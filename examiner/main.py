"""The examiner's process: `python -P -m virtualmle.examiner.main --home … --session … --trial … --model … --dataset …`.

Only `request.examine` starts this process. The order of the steps matters: first everything that can fail without the
test targets, then decryption, then the entries in the audit log and the look ledger, and only then the ranking of the
targets. The exit code is 0 if the result is in the vault, and 1 with {"error": …} on standard output if the caller can
correct the error.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.atomic import write_bytes, write_json
from ..data.commitment import targets_digest
from ..data.errors import SealError, TrialError, VirtualMLEError
from ..data.histories import Histories
from ..data.locks import keep_passed_lock
from ..data.prepared import PreparedDataset
from ..models.config import TrialConfig
from ..models.priors import PriorTables, ScorePriors
from ..training.baselines import baseline_metrics
from ..training.checkpoint import LoadedModel, load_checkpoint
from ..training.ensembles import load_members, rank_ensemble
from ..training.evaluate import evaluate_targets
from ..training.member_files import beside
from ..training.metrics import metrics_from_ranks, metrics_per_user
from ..training.private_process import forbid_inspection, start_privately
from ..training.ranking import Ranks
from ..training.spec import CHECKPOINT, TrialResult, read_result, read_spec
from .authenticity import check_signatures
from .ledger import Ledger, Look
from .looking import log_look
from .request import Beside, DefaultResult, Opening, TestResult
from .sketches import content_sketch
from .unseal import Targets, open_test
from .vault import OWNER_ONLY, OWNER_ONLY_DIRECTORY, Vault, read_key

FINGERPRINT_DIGITS = 12
RESULT_BYTES = 16384  # upper bound on the size of a result file


@dataclass(frozen=True)
class Candidate:
    """A model to be examined: that of the selected trial, or of one of its repetitions; of an ensemble, its members."""

    members: Sequence[LoadedModel]  # one, unless the trial is an ensemble
    config: TrialConfig
    priors: ScorePriors | None

    def rank(self, histories: Histories, targets: NDArray[np.int32], num_items: int) -> Ranks:
        """Ranks and ties of the targets after the histories, as the trial's worker ranks validation targets."""
        if not self.config.ensemble:
            (member,) = self.members
            return evaluate_targets(member.model, self.config, histories, targets, self.priors, num_items)
        return rank_ensemble(self.members, histories, targets, [self.priors], num_items)[0]


@dataclass(frozen=True)
class Compared:
    """What is ranked beside the selected trial: the default's trial, and its models."""

    trial: str
    candidates: Sequence[Candidate]


def examine(
    home: Path, session: str, trial: str, models: Sequence[Path], dataset_dir: Path, key_file: Path | None, *,
    beside: Beside | None = None, is_packed: bool = False,
) -> TestResult:  # fmt: skip
    """Take the one look of `session`. Raises DataError, TrialError, SealError; the look is used once it is recorded.

    beside: the default's trial and its models, which are ranked in the same look.
    is_packed: the files are from a bundle of another home (`choice.py`), whose signatures only that home can check.
    """
    vault = Vault(home)
    dataset = PreparedDataset.load(dataset_dir)
    if not is_packed:
        check_signatures(vault, dataset_dir, dataset.dataset_id, session, [*models, *(beside.models if beside else ())])
    candidates = [load_candidate(directory, dataset) for directory in models]
    compared = Compared(beside.trial, [load_candidate(each, dataset) for each in beside.models]) if beside else None
    private_key = read_key(key_file) if key_file else vault.private_key()
    targets = open_test(dataset_dir, private_key, dataset.dataset_id, dataset.num_users)
    sketch = content_sketch(dataset_dir, dataset, targets, private_key)
    path = _check_result_path(vault, session)
    _keep_item_names(vault, session, targets)
    log_look(vault.directory, session, trial, dataset.name, dataset.dataset_id)
    look = Ledger(vault.directory).record(session, dataset.name, dataset.dataset_id, targets.fingerprint, sketch)
    result = evaluate(trial, candidates, dataset, targets, look, compared)
    write_json(path, result.model_dump(), OWNER_ONLY)
    return result


def _check_result_path(vault: Vault, session: str) -> Path:
    """The path of the result, after writing and deleting a file of its size: a full disk must not waste the look."""
    vault.create_directory()
    path = vault.revealed_path(session)
    probe = path.with_suffix(".probe")
    try:
        path.parent.mkdir(exist_ok=True, mode=OWNER_ONLY_DIRECTORY)
        write_bytes(probe, bytes(RESULT_BYTES), OWNER_ONLY)
        probe.unlink()
    except OSError as error:
        raise SealError(
            f"no result can be written to {str(path.parent)!r} ({error.strerror}); check its permissions and free space"
        ) from None
    return path


def _keep_item_names(vault: Vault, session: str, targets: Targets) -> None:
    """Write the names of the items without a visible event to the vault, for exports after the reveal."""
    if not targets.item_names:
        return
    path = vault.names_path(session)
    try:
        path.parent.mkdir(exist_ok=True, mode=OWNER_ONLY_DIRECTORY)
        write_json(path, targets.item_names, OWNER_ONLY)
    except OSError as error:
        raise SealError(f"{str(path)!r} cannot be written ({error.strerror}); free some disk space") from None


def load_candidate(directory: Path, dataset: PreparedDataset) -> Candidate:
    """Load the model and priors of a finished trial, on the trial's device if available. Raises TrialError."""
    result = read_result(directory)
    if result is None or result.status != "finished":
        raise TrialError(f"trial {directory.name} has not finished; only a finished trial can be examined")
    spec = read_spec(directory)
    if spec.threads:
        torch.set_num_threads(spec.threads)
    device = "cuda" if not spec.device.startswith("cpu") and torch.cuda.is_available() else "cpu"
    members, config = _models(directory, result, device)
    for model, _ in members:
        if model.num_items != dataset.num_items:
            raise TrialError(
                f"trial {directory.name} scores {model.num_items} items, but {dataset.name} has {dataset.num_items}: "
                "it was trained on another dataset"
            )
    return Candidate(members, config, ScorePriors.from_dataset(dataset, config, device))


def _models(directory: Path, result: TrialResult, device: str) -> tuple[list[LoadedModel], TrialConfig]:
    """The model of a finished trial, or the models of an ensemble's members, and its configuration."""
    spec = read_spec(directory)
    if spec.members:
        chosen = spec.settings[result.best_setting] if result.best_setting is not None else {}
        return load_members(beside(directory, spec.members), device), TrialConfig(**{**spec.config, **chosen})
    model, config = load_checkpoint(directory / CHECKPOINT)
    return [LoadedModel(model.to(device), config)], config


def evaluate(
    trial: str, candidates: Sequence[Candidate], dataset: PreparedDataset, targets: Targets, look: Look,
    compared: Compared | None = None,
) -> TestResult:  # fmt: skip
    """Rank the test target of every user who has one with each model, given all earlier events of the user."""
    histories, items = histories_before_test(dataset).of_users(targets.users), targets.items[targets.users]
    found = [each.rank(histories, items, dataset.num_items) for each in candidates]
    metrics = [metrics_from_ranks(ranks) for ranks, _ in found]
    users = mean_per_user([ranks for ranks, _ in found])
    errors = {name: standard_error(values) for name, values in users.items()}
    several = len(found) > 1
    return TestResult(
        session=look.session,
        trial=trial,
        dataset=dataset.name,
        dataset_id=dataset.dataset_id,
        metrics={name: float(np.mean([each[name] for each in metrics])) for name in metrics[0]},
        metrics_sd={name: float(np.std([each[name] for each in metrics], ddof=1)) for name in metrics[0] if several},
        metrics_se=errors,
        repetitions=metrics if several else [],
        baselines=baseline_metrics(dataset, histories, items, PriorTables(dataset)),
        ndcg10_se=errors["ndcg@10"],
        ties=sum(ties for _, ties in found),
        num_users=len(items),
        look=look.look,
        look_note=look.note,
        fingerprint_short=targets.fingerprint[:FINGERPRINT_DIGITS],
        at=look.at,
        opening=opening_of(targets, dataset.dataset_id),
        default=_compared(compared, users, histories, items, dataset.num_items) if compared else None,
    )


def _compared(
    compared: Compared, selected: Mapping[str, NDArray[np.float64]], histories: Histories, items: NDArray[np.int32],
    num_items: int,
) -> DefaultResult:  # fmt: skip
    """The default's metrics, and the differences of the selected trial's values to them, user by user."""
    users = mean_per_user([each.rank(histories, items, num_items)[0] for each in compared.candidates])
    differences = {name: selected[name] - values for name, values in users.items()}
    return DefaultResult(
        trial=compared.trial,
        models=len(compared.candidates),
        metrics={name: float(values.mean()) for name, values in users.items()},
        metrics_se={name: standard_error(values) for name, values in users.items()},
        delta={name: float(values.mean()) for name, values in differences.items()},
        delta_se={name: standard_error(values) for name, values in differences.items()},
    )


def mean_per_user(ranks: Sequence[NDArray[np.int32]]) -> dict[str, NDArray[np.float64]]:
    """The values of every metric per user, float64 (num_users,), as means over the models' ranks (num_users,)."""
    each = [metrics_per_user(one) for one in ranks]
    return {name: np.mean([values[name] for values in each], axis=0) for name in each[0]}


def standard_error(values: NDArray[np.float64]) -> float:
    """The standard error of the mean of values (num_users,); 0 for a single one."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def opening_of(targets: Targets, dataset_id: str) -> Opening | None:
    """The opening of the commitment to the test targets, which `open_test` has checked."""
    if not targets.nonce:
        return None
    digest = targets_digest(dataset_id, targets.items, targets.timestamps)
    return Opening(nonce=targets.nonce.hex(), targets_digest=digest)


def histories_before_test(dataset: PreparedDataset) -> Histories:
    """Train and validation events of every user, as they stand before the test target."""
    return dataset.visible_histories()


def main() -> int:
    """Parse the command line and examine; print errors that the caller can correct as JSON on standard output."""
    parser = argparse.ArgumentParser(prog="virtualmle.examiner.main", description="Take a session's one look.")
    for name in ("home", "dataset"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("session", "trial"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--model", type=Path, nargs="+", required=True)
    parser.add_argument("--beside-trial")
    parser.add_argument("--beside", type=Path, nargs="+", default=[])
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--packed", action="store_true")
    arguments = parser.parse_args()
    keep_passed_lock()
    start_privately()
    forbid_inspection()
    try:
        examine(
            arguments.home, arguments.session, arguments.trial, arguments.model, arguments.dataset, arguments.key_file,
            beside=Beside(arguments.beside_trial, arguments.beside) if arguments.beside_trial else None,
            is_packed=arguments.packed,
        )  # fmt: skip
    except VirtualMLEError as error:
        print(json.dumps({"error": str(error)}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

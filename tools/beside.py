"""The default beside the selected trial: both are evaluated in the one look of a session, and compared user by user.

Which trial it is, and its models, are fixed at the freeze and stand in the audit log and the receipt. A session that an
earlier version has frozen has none.
"""

from collections.abc import Sequence
from pathlib import Path

from ..data.errors import SessionError
from ..examiner.audit import AuditLog
from ..examiner.request import Beside, TestResult
from ..examiner.vault import Vault
from ..memory.records import SessionRecord, TrialRecord
from ..sandbox.statistics import z_score
from .confirming import repetition_directories
from .members import check_model
from .results import DefaultTest
from .sync import default_trial
from .workspace import Workspace


def beside_to_freeze(
    ws: Workspace, session: SessionRecord, selected: TrialRecord, trials: Sequence[TrialRecord]
) -> Beside | None:
    """The default's trial and the models that the look evaluates; None without one, or if it is the selected trial."""
    default = None if session.replay else default_trial(ws, session, trials)
    if default is None or default.handle == selected.handle:
        return None
    repeated = repetition_directories(ws, session, default.handle)
    return _with_models(ws, default, repeated or [ws.trial_directory(session.id, default.handle)])


def frozen_beside(ws: Workspace, session: SessionRecord) -> Beside | None:
    """What the freeze has fixed; None if it fixed nothing, or if a model was lost since: it is not worth the look."""
    entries = AuditLog(Vault(ws.home).directory).entries()
    frozen = [entry.body for entry in entries if entry.session == session.id and entry.kind == "frozen"]
    fixed = frozen[-1].get("beside") if frozen else None
    if not fixed:
        return None
    directories = [ws.trial_directory(session.id, name) for name in fixed["checkpoints"]]
    return _with_models(ws, ws.memory.trials.get(session.id, fixed["trial"]), directories)


def default_test(result: TestResult) -> DefaultTest | None:
    """The default's test figures and the differences to them; None if the look has none."""
    found = result.default
    if found is None:
        return None
    delta, se = found.delta["ndcg@10"], found.delta_se["ndcg@10"]
    models = "" if found.models == 1 else f", the mean of {found.models} models"
    return DefaultTest(
        trial=found.trial,
        metrics=found.metrics,
        se=found.metrics_se,
        delta=found.delta,
        delta_se=found.delta_se,
        summary=f"test NDCG@10 {_measured(result.metrics, result.metrics_se)} against "
        f"{_measured(found.metrics, found.metrics_se)} of the default ({found.trial}{models}): {delta:+.4f} ± {se:.4f} "
        f"(z {z_score(delta, se):+.1f}, paired over {result.num_users:,} users)",
    )


def _measured(metrics: dict[str, float], errors: dict[str, float]) -> str:
    return f"{metrics['ndcg@10']:.4f} ± {errors['ndcg@10']:.4f}"


def _with_models(ws: Workspace, default: TrialRecord, directories: Sequence[Path]) -> Beside | None:
    """None unless every model is there as its worker has signed it."""
    try:
        for directory in directories:
            check_model(ws, default, directory)
    except SessionError:
        return None
    return Beside(default.handle, directories)

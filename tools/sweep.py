"""The tool sweep: many settings of the scoring knobs over one trained model, in one call and as one trial."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from ..data.errors import AdmissionError, ConflictError, SweepError
from ..memory.records import Hypothesis, SessionRecord, Sweep, TrialRecord
from ..models.config import TrialConfig, fingerprint, train_hash
from ..sandbox.action_space import ActionSpace
from ..sandbox.changes import merged_settings
from ..sandbox.program import Admission, admit
from ..sandbox.sweeping import complete, differences, plan_settings
from .guidance import budget_of, pending_reflection, stop_of
from .help_text import described
from .observation import observe
from .places import occupation
from .planning import IGNORED_LENGTH, ignored_changes, planned, with_estimate
from .results import TrialObservation
from .run_trial import cleaned, resolve_base, start_trial
from .sync import default_trial, sync_session
from .wait_trial import WaitSeconds, wait_trial
from .workspace import Workspace

ROUNDED_LENGTH = 300  # of the list of rounded numbers, so that the observation stays short


@described
def sweep(
    ws: Workspace,
    session: Annotated[str, Field(description="session id")],
    settings: Annotated[
        list[dict[str, Any]] | None,
        Field(description="changes of scoring knobs, e.g. [{\"transition_weight\": 2}, {\"fusion\": \"rerank\"}]"),
    ] = None,
    base: Annotated[str, Field(description="incumbent (if left out), default or a trial (t003)")] = "incumbent",
    hypothesis: Annotated[Hypothesis | None, Field(description="what you expect")] = None,
    wait_seconds: WaitSeconds = None,
    settings_list: Annotated[
        list[str] | None, Field(description="settings as texts, e.g. transition_weight=4, fusion=rerank")
    ] = None,
    dry_run: Annotated[bool, Field(description="start nothing: what it would take and do")] = False,
) -> TrialObservation:
    """Re-score a trained model with many settings of the scoring knobs: seconds, and one trial of the budget.

    The best setting becomes the trial's configuration; as the best of N it is kept if z reaches keep_z + sqrt(2 ln N).
    Settings measured before are left out.
    """  # fmt: skip
    settings = merged_settings(settings, settings_list)
    record = ws.memory.sessions.get(session)
    dataset_dir = ws.session_dataset(record)
    running = sync_session(ws, session)
    trials = ws.memory.trials.all(session)
    handle, config, measured = _trained_base(ws, record, base, trials)
    protocol = ws.session_protocol(record)
    configs = plan_settings(protocol.space, config, settings, protocol.max_sweep)
    roundings = [protocol.space.roundings(record.backbone, setting) for setting in settings]
    rounded = ", ".join(dict.fromkeys(text for text in roundings if text))[:ROUNDED_LENGTH]
    said = {"rounded": rounded, "ignored": _ignored(handle, config, settings, protocol.space)}
    admissions = [_admit(ws, record, trials, running, config, setting, measured) for setting in configs]
    refused = next((admission for admission in admissions if admission.kind == "refused"), None)
    known = [admission.trial for admission in admissions if admission.trial]
    all_known = f"{', '.join(dict.fromkeys(known))} measured all of these settings; nothing was spent"
    new = [setting for setting, admission in zip(configs, admissions, strict=True) if not admission.trial]
    if dry_run:
        decided = refused or (Admission("admitted", "") if new else Admission("duplicate", all_known, known[0]))
        changes = differences(config, new[0].model_dump()) if len(new) == 1 else {}
        plan = planned(ws, record, trials, new or configs, decided, (), (handle, config), changes)
        return plan.model_copy(update=said)
    if refused:
        raise AdmissionError(refused.reason)
    if not new:
        return observe(ws, record, known[0], duplicate_reason=f"{all_known}.").model_copy(update=said)
    values = complete(config, new)
    request = TrialRecord(
        session=session,
        handle="",
        number=0,
        base=handle,
        changes=differences(config, values[0]),
        config=new[0].model_dump(),
        config_hash=fingerprint(new[0].model_dump()),
        train_hash=train_hash(config),
        hypothesis=cleaned(hypothesis),
        sweep=Sweep(settings=values, left_out=list(dict.fromkeys(known))),
    )
    try:
        started = start_trial(ws, record, request, dataset_dir, seen=len(trials))
    except ConflictError:  # another client was faster
        return sweep(ws, session, settings, base, hypothesis, wait_seconds)
    observed = wait_trial(ws, session, started, wait_seconds)
    return with_estimate(ws, record, observed.model_copy(update=said), new[0], trials)


def _ignored(
    handle: str, base: TrialConfig, settings: Sequence[Mapping[str, Any]], space: ActionSpace
) -> str:
    """Which values of which settings have no effect, each said once."""
    found = [ignored_changes(handle, base, space.resolve(base, setting), setting) for setting in settings]
    return "; ".join(dict.fromkeys(text for text in found if text))[:IGNORED_LENGTH]


def _trained_base(
    ws: Workspace, session: SessionRecord, base: str, trials: list[TrialRecord]
) -> tuple[str, TrialConfig, str]:
    """The handle and the configuration of `base`, and the trial that has measured it, which "default" does not name.

    SweepError unless there is one, and its model is still there.
    """
    handle, config = resolve_base(ws, session, base)
    default = default_trial(ws, session, trials) if handle == "default" else None
    if handle == "default" and default is None:
        raise SweepError(
            f"base={base!r} has no trained model yet, and a sweep re-scores a trained one; "
            "call run_trial with changes={} first, or give the handle of a finished trial"
        )
    if not config.ensemble and ws.checkpoint_directory(session.id, train_hash(config)) is None:
        raise SweepError(
            f"the checkpoint of base={base!r} is missing, and a sweep does not train; restore the trial's directory, "
            "or choose another finished trial"
        )
    return handle, config, default.handle if default else handle


def _admit(
    ws: Workspace,
    session: SessionRecord,
    trials: list[TrialRecord],
    running: list[TrialRecord],
    base: TrialConfig,
    config: TrialConfig,
    measured: str,
) -> Admission:
    changes = differences(base, config.model_dump())
    if not changes:  # the base was measured, even if it may be trained on
        return Admission("duplicate", "", measured)
    return admit(
        session_state=session.state,
        trials=trials,
        budget=budget_of(session, trials),
        running=occupation(ws, session, running, trials),
        pending_reflection=pending_reflection(ws, session, trials),
        base=base,
        config=config,
        changes=changes,
        stop=stop_of(ws, session, trials),
    )

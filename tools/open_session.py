"""The tool open_session: open a session for one backbone on one dataset, or resume an open one."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field

from ..data.errors import ConfigError, ReplayError, SessionError
from ..data.prepared import Manifest
from ..data.wording import counted, listed
from ..memory.records import SessionRecord
from ..sandbox.protocol import Protocol
from ..trials.places import most_places
from .contents import same_content
from .guidance import budget_of, next_step
from .help_text import described
from .knob_entries import knob_rows
from .recording import open_recorded
from .results import OpenedSession
from .sync import sync_session
from .transfer import prior_of
from .workspace import Workspace


@described
def open_session(
    ws: Workspace,
    dataset: Annotated[str, Field(description="a registered dataset, e.g. demo")],
    backbone: Annotated[Literal["sasrec", "hstu"], Field(description="model to tune")],
    new: Annotated[bool, Field(description="true: do not resume an open session")] = False,
) -> OpenedSession:
    """Open or resume a tuning session and get its brief: rules, data profile, action space, earlier knowledge.

    Datasets are registered by people (`virtualmle data add`).
    """
    data = ws.manifest(dataset)
    replay = replay_source(ws, backbone)
    found = ws.memory.sessions.all_open(data.dataset_id, backbone)
    open_sessions = [s for s in found if s.replay.get("digest") == replay.get("digest")]
    resumed = bool(open_sessions) and not new
    session = open_sessions[-1] if resumed else _new_session(ws, data, backbone)
    sync_session(ws, session.id)
    return brief_of(ws, session, resumed)


def replay_source(ws: Workspace, backbone: str) -> dict[str, Any]:
    """What a session records about the replay table of the workspace; empty without one.

    Raises ReplayError if the table has no cells of this backbone.
    """
    if ws.replay is None:
        return {}
    if backbone not in ws.replay.table.backbones():
        held = ", ".join(ws.replay.table.backbones())
        raise ReplayError(f"{ws.replay.table.path.name} has no cells of {backbone}; it replays {held}")
    return ws.replay.source


def _new_session(ws: Workspace, data: Manifest, backbone: str) -> SessionRecord:
    settings, protocol = ws.settings, ws.protocol
    parallel = settings.parallel or protocol.parallel
    if parallel == "auto" and settings.ray_address is not None:
        raise ConfigError("parallel=auto counts the places of this machine, not of a Ray cluster; give --parallel N")
    _refuse_unknown_sources(ws)
    record = SessionRecord(
        id="",
        dataset=data.name,
        dataset_id=data.dataset_id,
        backbone=backbone,
        seed=settings.seed,
        protocol_hash=protocol.sha256,
        protocol_text=protocol.text,
        max_trials=settings.max_trials or protocol.max_trials,
        max_train_seconds=settings.max_train_seconds or protocol.max_train_seconds,
        parallel=most_places(settings.device, settings.threads) if parallel == "auto" else parallel,
        auto_parallel=parallel == "auto",
        with_reflection=settings.with_reflection and protocol.require_reflection,
        with_memory=settings.with_memory,
        memory_from=list(settings.memory_from),
        max_llm_usd=protocol.max_llm_usd,
        profile=data.stated_profile,
        client=settings.client,
        replay=replay_source(ws, backbone),
    )
    same, taken = same_content(ws, data.dataset_id), ws.session_names_on_disk()
    return open_recorded(ws, record, taken, lambda: _refuse_too_many(ws, record, same))


def _refuse_too_many(ws: Workspace, record: SessionRecord, same: Collection[str]) -> None:
    """Raise SessionError if the content has as many sessions as may be opened, in whatever state; replays are free."""
    most = ws.settings.max_sessions or ws.protocol.max_sessions
    known = [other for other in ws.memory.sessions.on_datasets(same) if not other.replay]
    if record.replay or len(known) < most:
        return
    still_open = [other.id for other in known if other.state == "open"]
    resume = f"go on with {listed(still_open)}, or let" if still_open else "let"
    raise SessionError(
        f"the data of {record.dataset!r} has had {counted(len(known), 'session')}, and max_sessions={most}; "
        f"{resume} a person raise it: `virtualmle serve --max-sessions {len(known) + 1}`, or the rule max_sessions in "
        "SANDBOX.md; `virtualmle tune` opens further ones"
    )


def _refuse_unknown_sources(ws: Workspace) -> None:
    """Raise SessionError if `memory_from` names a dataset that memory does not know, which is probably a typo."""
    known = ws.memory.knowledge().sources() if ws.settings.memory_from else []
    unknown = [name for name in ws.settings.memory_from if name not in known]
    if unknown:
        raise SessionError(
            f"memory holds nothing from {', '.join(map(repr, unknown))}, so it cannot be used as a source; "
            f"datasets in memory: {', '.join(map(repr, known)) or 'none yet'}"
        )


def brief_of(ws: Workspace, session: SessionRecord, resumed: bool) -> OpenedSession:
    """The brief of a session."""
    protocol = ws.session_protocol(session)
    trials = ws.memory.trials.all(session.id)
    incumbent = ws.memory.trials.incumbent(session.id)
    return OpenedSession(
        session=session.id,
        resumed=resumed,
        dataset=session.dataset,
        backbone=session.backbone,
        budget=budget_of(session, trials),
        rules=protocol_summary(protocol, session),
        profile=session.profile,
        action_space=[row.content() for row in knob_rows(protocol.space, session.backbone)],
        max_sweep=protocol.max_sweep,
        parallel=session.parallel,
        prior=[entry.content() for entry in prior_of(ws, session)],
        incumbent=incumbent.handle if incumbent else None,
        next=next_step(ws, session, trials),
    )


def protocol_summary(protocol: Protocol, session: SessionRecord) -> list[str]:
    """The protocol in a few sentences."""
    rules = [
        "Selection uses validation NDCG@10 only; the test set is sealed until finalize, which evaluates on it once.",
        "A trial applies `changes` to a base configuration; the server chooses seeds and prepares the data.",
        f"keep: paired z >= {protocol.keep_z:g} against the incumbent; within noise, the simpler configuration wins.",
        f"Budget: {counted(session.max_trials, 'trial')}, {session.max_train_seconds:g} training seconds, "
        f"stop after {counted(protocol.patience, 'trial')} in a row without a keep.",
        "A trial that matches a discard heuristic of the prior is refused unless override_reason is given.",
        "A repeated configuration is returned at no cost. If only scoring knobs change, nothing is trained again.",
        f"sweep tries up to {protocol.max_sweep} settings of the scoring knobs over one trained model as one trial.",
    ]
    if "split" in session.profile:
        rules.append(
            "The log is split by time: train events are before a first cut, and the validation target of a user is the "
            "first event between the two cuts. Only users with events on both sides of the first cut are ranked."
        )
    if "ties" in session.profile:
        rules.append("The order of a user's events at one time is drawn at random, so it says nothing.")
    if protocol.racing:
        rules.append(
            "A trial that will not be kept is stopped early: it teaches an upper bound, is never a base and never "
            "selected; the same configuration again runs on to its end."
        )
    if session.replay:
        rules.append(
            "The session is a replay: every trial of the grid was measured before, and is answered at once with its "
            "recorded metrics and seconds. finalize reports validation only."
        )
    if session.parallel > 1:
        rules.append(
            f"Up to {session.parallel} trials run at a time. They are judged in the order in which they end, each "
            "against the incumbent of that moment; wait_trial without a handle waits for the first one to end."
        )
    if session.max_llm_usd is not None:
        rules.append(f"The language model may cost up to {session.max_llm_usd:g} US dollars.")
    if session.with_reflection:
        rules.append(
            "After each finished trial, call write_reflection; until then, run_trial refuses the next trial. "
            "A re-scoring within noise needs none."
        )
    return rules

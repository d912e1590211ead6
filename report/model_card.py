"""The model card of an export, in Markdown: what the model is, what was measured of it, and what it cannot do.

Equal sessions give equal cards: there is no time of writing, no path and no machine in them. Test figures are on the
card only if the session has revealed them, and only on that of the trial they belong to.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from .. import __version__
from ..data.catalogue import DEMO
from ..data.prepared import Manifest
from ..data.wording import counted, listed
from ..memory.records import TrialRecord
from ..models.config import teachers_of
from ..sandbox.program import trials_measured
from ..sandbox.statistics import selection_inflation
from ..tools.cognition import best_first
from ..tools.withholding import withheld_sentence
from . import formats
from .gather import ReportData
from .split_agreement import targets_of
from .tables import verdict_label

SHOWN_TRIALS = 10
NORMAL_95 = 1.96  # half-width of a 95 % interval, in standard errors
BACKBONES = {"sasrec": "SASRec (Kang & McAuley 2018)", "hstu": "HSTU (Zhai et al. 2024)"}
PRIOR_WEIGHTS = ("popularity_weight", "transition_weight", "cooccurrence_weight")


def model_card(
    data: ReportData,
    trial: TrialRecord,
    dataset: Manifest,
    members: Sequence[TrialRecord],
    refit_epochs: Sequence[int] | None = None,
    elsewhere: int = 0,
    num_nameless: int = 0,
) -> str:
    """The card of `trial`, a finished trial of the session in `data`, whose dataset has the manifest `dataset`.

    members: the trials whose models it scores: itself, or the members of an ensemble. refit_epochs: the epochs of every
    member, if the exported models were trained again on all events. elsewhere: how many configurations the other
    sessions of the members have measured, among which the members were chosen, too. num_nameless: the items whose ids
    are sealed.
    """
    kind = "ensemble" if trial.is_ensemble else trial.config["backbone"]
    sections = [
        f"# {dataset.name}: {kind} {data.session.id}/{trial.handle}\n\n{_summary(members, dataset)}",
        _section("Use", _use(members)),
        _section(
            "Figures of the examined model, not of this one" if refit_epochs else "Figures",
            [*_refit_notice(data, trial, refit_epochs), *_figures(data, trial, elsewhere)],
        ),
        _section("Model", _model(data, trial, members, TRAIN_ONLY if refit_epochs is None else _all_events(dataset))),
        _section("Data", [*_data(dataset), *_nameless(num_nameless)]),
        _section("Protocol", _protocol(data)),
        _section("Trials", _trials(data)),
        _section("Limits", _limits(data, trial)),
        _section("Reproduce", _reproduce(data, trial, dataset, members, is_refit=refit_epochs is not None)),
    ]
    return "\n\n".join(sections) + "\n"


def _section(title: str, paragraphs: Iterable[str]) -> str:
    return "\n\n".join([f"## {title}", *paragraphs])


def _summary(members: Sequence[TrialRecord], dataset: Manifest) -> str:
    backbones = listed(sorted({BACKBONES[member.config["backbone"]] for member in members}))
    model = backbones if len(members) == 1 else f"An ensemble of {len(members)} models, {backbones}"
    return (
        f"{model}, which recommends a user's next item from the user's history. Tuned "
        f"and exported with VirtualMLE {__version__}. It knows the {dataset.num_items:,} items of the dataset "
        f"`{dataset.name}`, and no users: a history is part of each request."
    )


def _use(members: Sequence[TrialRecord]) -> list[str]:
    times = (
        "The model reads the times of a history (`time_bias`): pass `times=`, in seconds. Without them it assumes gaps "
        "of the training data's median length."
        if any(member.config["time_bias"] for member in members)
        else "The model reads the order of a history, not its times."
    )
    return [
        '```python\nfrom virtualmle.serving import Recommender\n\nrecommender = Recommender.load("DIR")\n'
        'print(recommender.recommend(["an item id", "a later item id"], k=10))\n```',
        "```sh\nvirtualmle recommend DIR --log FILE --top 20 --out recs.parquet\n"
        "virtualmle serve-model DIR --port 8080\n```",
        f"{times} Unknown items are skipped; an empty history gets the most popular items.",
    ]


def _figures(data: ReportData, trial: TrialRecord, elsewhere: int) -> list[str]:
    outcome = trial.outcome
    assert outcome is not None  # a finished trial has an outcome
    test = data.test if data.session.state == "revealed" and data.test and data.test.trial == trial.handle else None
    errors = outcome.details.get("metrics_se", {})
    rows = []
    for name in formats.METRICS:
        row = [formats.METRIC_TITLES[name], _interval(outcome.metrics.get(name), errors.get(name))]
        if test:
            error = test.metrics_se.get(name, test.ndcg10_se if name == "ndcg@10" else None)
            row.append(_interval(test.metrics.get(name), error))
        rows.append(row)
    heading = ["metric", "validation [95 % interval]", *(["test [95 % interval]"] if test else [])]
    default = data.default.outcome if data.default else None
    references = {
        "the default configuration": default.metrics.get("ndcg@10") if default else None,
        "ranking by popularity alone": outcome.details.get("popularity_ndcg10"),
    }
    known = [f"{name} {formats.metric(value)}" for name, value in references.items() if value is not None]
    compared = f" For comparison, validation NDCG@10: {', '.join(known)}." if known else ""
    inflation = _inflation(outcome.ndcg_se, trials_measured(data.trials), elsewhere)
    return [
        _table(heading, rows),
        f"Full ranking over the catalogue, one target per user. Intervals are over users.{inflation}{compared}",
        _state_of_test(data, trial),
    ]


def _inflation(error: float | None, here: int, elsewhere: int) -> str:
    """How much the choice among all measured configurations may inflate the figures, in a sentence."""
    if error is None:
        return ""
    others = f", {elsewhere} of them in other sessions of its members" if elsewhere else ""
    return (
        f" The trial was chosen among {counted(here + elsewhere, 'configuration')}{others}; choosing the best may "
        f"inflate its validation figures by up to {formats.metric(selection_inflation(error, here + elsewhere))} "
        "(NDCG@10)."
    )


def _refit_notice(data: ReportData, trial: TrialRecord, refit_epochs: Sequence[int] | None) -> list[str]:
    """Which figures belong to which model, in a paragraph; nothing for a model as it was examined."""
    if not refit_epochs:
        return []
    name, epochs = f"{data.session.id}/{trial.handle}", " and ".join(map(str, refit_epochs))
    return [
        f"**The model in this directory has no figures.** The table is of the model of `{name}`, which was trained on "
        f"the train part only. This model has the same configuration and seed, and was trained again for {epochs} "
        "epochs on all events: train, validation and test. No event was held back from it, so nothing here measures "
        "it; `virtualmle evaluate` does, on later data."
    ]


def _state_of_test(data: ReportData, trial: TrialRecord) -> str:
    """How the test set stands to this model, in a paragraph."""
    session, test = data.session, data.test
    if session.state == "open":
        return "**Not examined.** The session is open, and its test set is sealed: there are no test figures."
    if not data.withheld_by and (session.state != "revealed" or test is None):
        return "**Not examined.** There is no test result of this session."
    if session.selected != trial.handle:
        selected = session.selected
        return f"**Not examined.** The session's one look at the test set was for {selected}, not for this trial."
    if test is None:
        return f"**Examined, not shown.** {withheld_sentence(session.id, data.withheld_by)}"
    several = (
        f" The test figures are means of {len(test.repetitions)} models of this configuration under fresh seeds; the "
        "exported model has the seed of the session and was not examined itself."
        if test.repetitions
        else ""
    )
    return (
        f"**Look number {test.look}** at the test set of this data{test.look_remark}, with "
        f"{counted(test.num_users, 'user')}.{several} A look after the first is optimistic if earlier "
        "ones have led to a choice."
    )


TRAIN_ONLY = (
    "Trained on the train part only: the validation and the test event of each user are not in the weights, nor in "
    "the score priors."
)


def _all_events(dataset: Manifest) -> str:
    later = (
        " Of the events after the last cut, only the first of each user is one of them." if dataset.time_split else ""
    )
    return (
        f"Trained on all events (`--refit`): train, validation and test.{later} Weights, score priors and counts "
        "depend on the test events. Keep this directory from agents that tune on the same data: they could read test "
        "events from it."
    )


def _model(data: ReportData, trial: TrialRecord, members: Sequence[TrialRecord], trained_on: str) -> list[str]:
    config = trial.config
    priors = [f"`{name}` {formats.value(config[name])}" for name in PRIOR_WEIGHTS if config[name]]
    fused = (
        f"Score priors are added to the model's scores ({config['fusion']}): {', '.join(priors)}."
        if priors
        else "No score prior is added to the model's scores."
    )
    return [
        f"{_size(trial, members)} {trained_on} {fused}",
        "Differences from the protocol's default: "
        f"{formats.settings(data.differences(trial), 'none')}. `config.json` has all knobs.",
        "`item_vectors.npy` is float32 (num_items, d), in the order of `items.parquet`. The plain inner product of a "
        "row with the result of `Recommender.user_vectors` is the model's score without priors and masks, for any "
        "index of nearest neighbours by inner product. "
        f"{_scores_by(members)}",
    ]


def _size(trial: TrialRecord, members: Sequence[TrialRecord]) -> str:
    """The parameters and members of the model; of an ensemble also what serving it costs."""
    total = counted(trial.outcome.parameters if trial.outcome else 0, "parameter")
    if len(members) == 1:
        return f"{total}, width {trial.config['hidden_dim']}, one member."
    each = "; ".join(
        f"`{member.session}/{member.handle}`, {member.config['backbone']} of width {member.config['hidden_dim']} with "
        f"{counted(member.outcome.parameters if member.outcome else 0, 'parameter')}"
        for member in members
    )
    width = sum(member.config["hidden_dim"] for member in members)
    return (
        f"{total} in {len(members)} members, whose scores are standardised per user and averaged: {each}. **Serving "
        f"cost**: a request encodes the history once per member, and scores items with vectors of width {width}."
    )


def _scores_by(members: Sequence[TrialRecord]) -> str:
    if len(members) > 1:
        return "Norms, temperatures and the standardisation of every member are in the vectors."
    inner = "cosine" if members[0].config["scores"] == "cosine" else "inner product"
    return f"The model scores by {inner}; norms and temperature are in the vectors."


def _data(dataset: Manifest) -> list[str]:
    rows = [[f"`{name}`", formats.plain(value)] for name, value in dataset.stated_profile.items()]
    options = dataset.options
    return [
        f"Dataset `{dataset.name}`, content `{dataset.dataset_id}` (a hash of its train and validation events). "
        f"Prepared with a {options.k_core}-core filter and the last {options.max_events} events per user.",
        "Profile of the train part:",
        _table(["quantity", "value"], rows),
    ]


def _nameless(number: int) -> list[str]:
    """What it means that the ids of some items are sealed, in a paragraph; nothing if there are none."""
    if not number:
        return []
    return [
        f"{counted(number, 'item')} of the catalogue {'has' if number == 1 else 'have'} no event outside the test set. "
        "The ids are sealed, so they are null in `items.parquet`, and these items are never recommended. An export has "
        "the ids once the session's look is over and no other session on the data is open."
    ]


def _protocol(data: ReportData) -> list[str]:
    session = data.session
    confirmed = data.confirmation
    return [
        f"{targets_of(session)} Each "
        "target is ranked among all items outside the user's history; ties count against the model. Trials are "
        "compared by paired differences over users, and the best on validation is selected"
        + (f", by its mean over {confirmed.repetitions} fresh seeds." if confirmed and confirmed.selected else "."),
        f"Session `{session.id}`, state {session.state}, seed {session.seed}, protocol `{session.protocol_hash[:12]}`, "
        f"at most {session.max_trials} trials and {formats.duration(session.max_train_seconds)} of training.",
    ]


def _trials(data: ReportData) -> list[str]:
    counts = Counter(verdict_label(trial) for trial in data.trials)
    verdicts = ", ".join(f"{number} {label}" for label, number in sorted(counts.items()))
    shown = best_first(data.trials)[:SHOWN_TRIALS]
    rows = [
        [
            trial.handle,
            formats.with_error(trial.outcome.metrics.get("ndcg@10"), trial.outcome.ndcg_se),
            formats.settings(data.differences(trial)),
        ]
        for trial in shown
        if trial.outcome
    ]
    return [
        f"{counted(len(data.trials), 'trial')}: {verdicts}. The best on validation:",
        _table(["trial", "NDCG@10 ± SE", "differences from the default"], rows),
    ]


def _limits(data: ReportData, trial: TrialRecord) -> list[str]:
    limits = [
        "Items that are not in `items.parquet` are unknown: they are neither recommended nor read in a history.",
        "The figures are of past behaviour, not of what users do after a recommendation; a split by user also lets a "
        "model learn from events that are later than another user's target.",
        "Tastes change: evaluate the model on newer data before use, and train again from time to time.",
        "The score priors are counts of transitions and common histories. An entry of a rare item can come from a "
        "single user, although no user is named.",
    ]
    if not any(trial.config[name] for name in PRIOR_WEIGHTS):
        limits.pop()
    if data.session.state == "open":
        limits.append("The session is not finished: a later trial may be better.")
    return ["\n".join(f"- {limit}" for limit in limits)]


def _reproduce(
    data: ReportData, trial: TrialRecord, dataset: Manifest, members: Sequence[TrialRecord], *, is_refit: bool
) -> list[str]:
    session, outcome = data.session, trial.outcome
    engine = outcome.details.get("engine", "unknown") if outcome else "unknown"
    device = outcome.details.get("device", "unknown") if outcome else "unknown"
    add = "" if dataset.name == DEMO else f"virtualmle data add {dataset.name} FILE\n"
    tune = f"virtualmle tune {dataset.name} --backbone {session.backbone} --seed {session.seed}"
    again = f"virtualmle export {session.id} DIR --trial {trial.handle} --refit\n" if is_refit else ""
    if len(members) > 1:
        names = ", ".join(f"`{member.session}/{member.handle}`" for member in members)
        return [
            f"`config.json` has the configurations of the members, {names}. Run each in a session with the seed of its "
            "own, and then a trial whose `ensemble` names them"
            f"{', and export it with `--refit`' if is_refit else ''}. The dataset must have the content "
            f"`{dataset.dataset_id}`. The ensemble was scored with {engine}, on {device}.",
            *_taught(members),
        ]
    return [
        f"```sh\n{add}{tune} --trials {session.max_trials}\n{again}```",
        f"The dataset must have the content `{dataset.dataset_id}`. The configuration in `config.json` gives this "
        f"model again under session seed {session.seed}: bit for bit on a CPU with equal versions and threads. It was "
        f"trained with {engine}, on {device}.",
        *_taught(members),
    ]


def _taught(members: Sequence[TrialRecord]) -> list[str]:
    """Which trained models the members learnt from; nothing if none had teachers."""
    return [
        f"`{member.session}/{member.handle}` was trained on the predictions of {listed(teachers)}, models of the train "
        "part alone. A handle without a session is a trial of the same session. Run these first, so that they have the "
        "same handles: the model depends on them as well as on `config.json`."
        for member in members
        if (teachers := [f"`{name}`" for name in teachers_of(member.configuration)])
    ]


def _interval(value: float | None, error: float | None) -> str:
    if value is None or error is None:
        return formats.metric(value)
    low, high = max(0.0, value - NORMAL_95 * error), min(1.0, value + NORMAL_95 * error)
    return f"{formats.metric(value)} [{formats.metric(low)}, {formats.metric(high)}]"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

"""A home with a session as reports see it: real memory.db, real vault, hostile texts of an agent."""

import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rich.console import Console

from virtualmle.examiner.request import TestResult
from virtualmle.examiner.vault import Vault
from virtualmle.memory.records import (
    Hypothesis,
    ReflectionRecord,
    RuleRecord,
    SessionRecord,
    SummaryRecord,
    TrialOutcome,
    TrialRecord,
)
from virtualmle.memory.store import Memory
from virtualmle.models.config import TrialConfig, fingerprint, train_hash
from virtualmle.report import formats
from virtualmle.report.html import write_report
from virtualmle.sandbox.protocol import parse_protocol

PROTOCOL = parse_protocol("""# A small protocol
| rule | value |
|---|---|
| metric | ndcg@10 |
| max_trials | 20 |
| max_train_seconds | 3600 |
| trial_seconds | 600 |
| patience | 8 |
| keep_z | 1.0 |
| require_reflection | true |

### optimisation
| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| lr | 1e-5 … 1e-2, log | 3e-4 | 3e-4 |

### capacity
| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| hidden_dim | 16 … 256 | 128 | 128 |
| num_blocks | 1 … 4 | 1 | 1 |

### regularisation
| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| dropout | 0.0 … 0.9 | 0.2 | 0.2 |

### scoring
| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| transition_weight | 0.0 … 20.0 | 0.0 | 0.0 |
| cooccurrence_weight | 0.0 … 20.0 | 0.0 | 0.0 |
| cooccurrence_window | 1 … 20 | 5 | 5 |
""")
PROFILE = {
    "users": 4905, "items": 2420, "interactions": 43448, "density": 0.00366, "length_mean": 8.858,
    "length_median": 6.0, "popularity_gini": 0.5213, "repeat_rate": 0.0, "time_span_days": 1821.0,
}  # fmt: skip
EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)> [red]&amp; \"quoted\"[/red]"

# changes over the incumbent, validation NDCG@10, Δ and its standard error, verdict
STORY: list[tuple[dict[str, Any], float, float | None, float | None, str]] = [
    ({}, 0.05512, None, None, "keep"),
    ({"lr": 0.001}, 0.05931, 0.00419, 0.00121, "keep"),
    ({"hidden_dim": 192}, 0.05894, -0.00037, 0.00102, "discard"),
    ({"dropout": 0.4}, 0.06127, 0.00196, 0.00094, "keep"),
    ({"transition_weight": 4.0}, 0.06688, 0.00561, 0.00113, "keep"),
    ({"cooccurrence_weight": 2.0, "cooccurrence_window": 3}, 0.06803, 0.00115, 0.00071, "keep"),
    ({"num_blocks": 2}, 0.06711, -0.00092, 0.00088, "discard"),
]


BASELINES = {
    name: {"ndcg@10": ndcg, "ndcg@5": ndcg / 2, "recall@10": 2 * ndcg, "recall@5": ndcg, "mrr": ndcg}
    for name, ndcg in (("popularity", 0.0101), ("transitions", 0.0623), ("cooccurrence", 0.0456))
}


def finished(ndcg: float, delta: float | None, se: float | None, verdict: str) -> TrialOutcome:
    return TrialOutcome(
        status="finished",
        verdict=verdict,  # type: ignore[arg-type]
        reason="first finished trial" if delta is None else f"z={delta / (se or 1):.2f} against the incumbent",
        metrics={
            "ndcg@10": ndcg, "ndcg@5": 0.84 * ndcg, "recall@10": 1.75 * ndcg, "recall@5": 1.2 * ndcg, "mrr": 0.88 * ndcg
        },
        ndcg_se=0.00263,
        delta=delta,
        delta_se=se,
        z=None if delta is None or se is None else delta / se,
        base_delta=delta,
        base_delta_se=se,
        parameters=684_416,
        train_seconds=41.3,
        wall_seconds=44.8,
        curve=[
            {"epoch": epoch, "loss": 5.0, "ndcg10": ndcg * share, "train_seconds": 1.0, "evaluate_seconds": 0.1}
            for epoch, share in ((1, 0.5), (2, 0.9))
        ],
        details={"baselines": BASELINES} if delta is None else {},
    )  # fmt: skip


CRASHED = TrialOutcome(
    status="crashed", verdict="crash", reason=EVIL, cause=f"the loss became NaN in epoch 2 {EVIL}",
    train_seconds=9.1, wall_seconds=12.0,
)  # fmt: skip


class Story:
    """A home with one session, to which tests add trials."""

    def __init__(self, home: Path, dataset: str = "office") -> None:
        self.home = home
        self.memory = Memory(home / "memory.db")
        self.session = self.memory.sessions.open(
            SessionRecord(
                id="", dataset=dataset, dataset_id="d41f0c9ab2e7", backbone="sasrec", seed=7,
                protocol_hash=PROTOCOL.sha256, protocol_text=PROTOCOL.text, max_trials=20, max_train_seconds=3600,
                profile=PROFILE, client=f"agent {EVIL}",
            )
        ).id  # fmt: skip
        self.incumbent = PROTOCOL.space.default("sasrec")
        self.base = "default"

    def start(self, changes: dict[str, Any]) -> tuple[TrialRecord, TrialConfig]:
        config = PROTOCOL.space.resolve(self.incumbent, changes)
        dumped = config.model_dump()
        record = TrialRecord(
            session=self.session, handle="", number=0, base=self.base, changes=changes, config=dumped,
            config_hash=fingerprint(dumped), train_hash=train_hash(config),
            hypothesis=Hypothesis(dimension="capacity", reason=EVIL), override_reason=EVIL if changes else None,
        )  # fmt: skip
        return self.memory.trials.start(record), config

    def run(self, changes: dict[str, Any], outcome: TrialOutcome) -> TrialRecord:
        record, config = self.start(changes)
        self.memory.trials.finish(self.session, record.handle, outcome)
        if outcome.verdict == "keep":
            self.incumbent, self.base = config, record.handle
        return self.memory.trials.get(self.session, record.handle)

    def reflect(self, record: TrialRecord, lesson: str) -> None:
        self.memory.reflections.add(
            ReflectionRecord(
                session=self.session, trial=record.handle, what_changed=formats.settings(record.changes),
                verdict=record.outcome.verdict or "discard" if record.outcome else "discard",
                helped="yes" if record.outcome and record.outcome.verdict == "keep" else "no", dimension="scoring",
                lesson=lesson, next_step="try a wider transition window", check="supported",
                check_note="Δ +0.0056 ± 0.0011 over t004",
            )
        )  # fmt: skip

    def end(self, look: int = 3, look_note: str = "") -> None:
        """Freeze the session and reveal its test result, as finalize does."""
        selected = max(
            (t for t in self.memory.trials.all(self.session) if t.outcome and t.outcome.metrics),
            key=lambda t: t.outcome.metrics["ndcg@10"] if t.outcome else 0.0,
        )
        self.memory.rules.add(
            RuleRecord(
                kind="prefer", statement=f"mix in item transitions {EVIL}", condition="transition_weight > 0",
                backbone="sasrec", session=self.session, evidence=["t005"], check="supported", support=2,
            )
        )  # fmt: skip
        self.memory.summaries.add(
            SummaryRecord(
                session=self.session, dataset="office", dataset_id="d41f0c9ab2e7", backbone="sasrec",
                text=f"Learning rate first, then priors.\nCapacity did not help. {EVIL}",
                computed={"selected": selected.handle, "validation": {"ndcg@10": 0.06803}}, profile=PROFILE,
            )
        )  # fmt: skip
        self.memory.sessions.set_state(self.session, "open", "frozen", selected=selected.handle)
        self.memory.sessions.set_state(self.session, "frozen", "attempted")
        result = TestResult(
            session=self.session, trial=selected.handle, dataset="office", dataset_id="d41f0c9ab2e7",
            metrics={"ndcg@10": 0.04321, "ndcg@5": 0.03456, "recall@10": 0.07891, "recall@5": 0.05432, "mrr": 0.03987},
            baselines={name: {**found, "ndcg@10": found["ndcg@10"] - 0.005} for name, found in BASELINES.items()},
            ndcg10_se=0.00234, ties=0, num_users=4905, look=look, fingerprint_short="0123456789ab",
            look_note=look_note, at="2026-01-02T03:04:05+00:00",
        )  # fmt: skip
        path = Vault(self.home).revealed_path(self.session)
        path.parent.mkdir(parents=True)
        path.write_text(result.model_dump_json())
        self.memory.sessions.set_state(self.session, "attempted", "revealed")


def tell(home: Path) -> Story:
    """An open session with all trials of STORY, a crash and a cancelled trial."""
    story = Story(home)
    for changes, ndcg, delta, se, verdict in STORY:
        record = story.run(changes, finished(ndcg, delta, se, verdict))
        story.reflect(record, f"{formats.settings(changes)}: {verdict}. {EVIL}")
    story.run({"lr": 0.005}, CRASHED)
    story.run({"hidden_dim": 160}, TrialOutcome(status="cancelled", reason="cancelled", train_seconds=3.0))
    return story


class Page(HTMLParser):
    """The parsed page: elements, attributes, text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        self.words += [" "] if tag in ("td", "th") else []

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def values(self, *names: str) -> list[str]:
        return [value or "" for name, value in self.attributes if name in names]


def page_of(story: Story) -> Page:
    return Page(write_report(story.home, story.session).read_text(encoding="utf-8"))


def terminal(*tables: Any, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(*tables)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]

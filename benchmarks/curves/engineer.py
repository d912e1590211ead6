"""Record sessions of the engineer with every trial trained to its end and judged after each epoch, or pack them.

    python benchmarks/curves/engineer.py office.tsv.gz tools.tsv.gz --trials 16 --out engineer-out
    python benchmarks/curves/engineer.py office.tsv.gz tools.tsv.gz --out engineer-out --pack

From its early sweep on, the engineer's trials have score priors. Models are small and short, so that a session takes
minutes: the page of the sessions differs from SANDBOX.md in the upper ends of `epochs` and `hidden_dim`. A session is
resumed where an earlier run has left it. `recorded.py` describes the file that --pack writes.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # PYTHONSAFEPATH leaves both out
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from mcp import Client
from plan import BACKBONES
from record import parser_of
from recorded import CUTOFF, WITH_PRIORS, Curve, write_curves

from virtualmle.agents.loop import run_agent
from virtualmle.agents.registry import make_agent
from virtualmle.compare.session import SessionOver, UntilFinalize
from virtualmle.data.atomic import write_bytes
from virtualmle.memory.records import TrialRecord
from virtualmle.models.config import has_priors
from virtualmle.sandbox.protocol import load_protocol
from virtualmle.server.app import build_server
from virtualmle.tools import run_trial
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.training.epoch_ranks import read_epoch_ranks, read_ranks
from virtualmle.training.spec import EPOCH_RANKS, JUDGED_RANKS

SMALL = {"| 1 … 100 | 20 | 20 |": "| 1 … 12 | 12 | 12 |", "| 16 … 256, log | 128 | 128 |": "| 16 … 32, log | 32 | 32 |"}
NDCG10, LOSS, TRAIN, EVALUATE = "ndcg10", "loss", "train_seconds", "evaluate_seconds"


def small_page() -> str:
    """The text of SANDBOX.md with small models and few epochs."""
    page = load_protocol().text
    for row, smaller in SMALL.items():
        assert page.count(row) == 1, f"SANDBOX.md has no row {row}"
        page = page.replace(row, smaller)
    return page


def record(log: Path, backbone: str, home: Path, trials: int) -> None:
    """Play a session of the engineer with a protocol that races, and without the race: its trials are only judged."""
    home.mkdir(parents=True, exist_ok=True)
    write_bytes(home / "small.md", small_page().encode())
    settings = Settings(protocol_path=home / "small.md", max_trials=trials, device="cpu", threads=1, keep_warm=60.0)
    run_trial.prepare_race = lambda *_: None
    asyncio.run(_play(log, backbone, home, settings))


async def _play(log: Path, backbone: str, home: Path, settings: Settings) -> None:
    async with Client(build_server(home, settings)) as client:
        try:
            await run_agent(client, UntilFinalize(make_agent("engineer", 0)), str(log), backbone)
        except SessionOver:
            return


def curves_in(home: Path, dataset: str) -> Iterator[Curve]:
    """The finished trials of the one session in `home`, in their order."""
    ws = Workspace.open(home)
    with ws.memory:
        (session,) = ws.memory.sessions.all()
        finished = [trial for trial in ws.memory.trials.all(session.id) if trial.status == "finished"]
        for trial in finished:
            yield curve_of(trial, dataset, session.backbone, ws.trial_directory(session.id, trial.handle))


def curve_of(trial: TrialRecord, dataset: str, backbone: str, directory: Path) -> Curve:
    """A trial as the file has it."""
    outcome, config = trial.outcome, trial.configuration
    ranks, final = read_epoch_ranks(directory / EPOCH_RANKS), read_ranks(directory)
    assert outcome is not None and ranks is not None and final is not None
    rescored = bool(outcome.details.get("rescored"))
    judged = final[None] if rescored else read_epoch_ranks(directory / JUDGED_RANKS) if has_priors(config) else None
    bare = np.minimum(ranks, CUTOFF + 1)
    columns = [np.array([epoch[name] for epoch in outcome.curve]) for name in (NDCG10, LOSS, TRAIN, EVALUATE)]
    return Curve(
        dataset, backbone, "engineer", trial.number, config, outcome.parameters, *columns, bare, "",
        float(outcome.details["popularity_ndcg10"]), np.array([epoch["epoch"] for epoch in outcome.curve]),
        bare if judged is None else np.minimum(judged, CUTOFF + 1), rescored,
    )  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("logs", type=Path, nargs="+", help="office.tsv.gz, tools.tsv.gz")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("engineer-out"))
    parser.add_argument("--pack", action="store_true", help="write one file of what is recorded")
    arguments: argparse.Namespace = parser.parse_args()
    homes = [(log, backbone, arguments.out / f"{log.name.split('.')[0]}-{backbone}")
             for log in arguments.logs for backbone in BACKBONES]  # fmt: skip
    if arguments.pack:
        curves = [curve for log, _, home in homes if home.exists() for curve in curves_in(home, log.name.split(".")[0])]
        write_curves(WITH_PRIORS, curves)
        print(f"{len(curves)} trials, {WITH_PRIORS.stat().st_size / 1e6:.2f} MB: {WITH_PRIORS}")
        return
    for log, backbone, home in homes:
        record(log, backbone, home, arguments.trials)


if __name__ == "__main__":
    main()

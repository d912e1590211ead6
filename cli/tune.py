"""`virtualmle tune`: a complete session without an MCP client, from the data to the report."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .model_options import NO_MODEL, ModelOptions, asks_a_model
from .options import (
    HERE,
    WARM_SECONDS,
    Address,
    AgentName,
    Device,
    HoldoutLength,
    Home,
    Json,
    KCoreOn,
    KeepWarm,
    LauncherName,
    MemoryFrom,
    NoFinalize,
    Parallel,
    Replay,
    Sandbox,
    Seconds,
    Seed,
    SeedingOption,
    Split,
    Threads,
    Ties,
    Track,
    Trials,
    WithoutMemory,
    WithoutReflection,
    make_settings,
    open_workspace,
    seeding_named,
    split_options,
)

if TYPE_CHECKING:
    from ..data.prepared import PrepareOptions
    from ..tools.workspace import Settings


@asks_a_model
def tune(  # noqa: PLR0913, PLR0917 - one parameter per option
    dataset: Annotated[
        str, typer.Argument(help="demo, the name of a registered or public dataset, or the path of a log file.")
    ],
    backbone: Annotated[str, typer.Option(help="sasrec or hstu.")] = "sasrec",
    split_by: Split = None,
    holdout: HoldoutLength = None,
    k_core_on: KCoreOn = None,
    ties: Ties = None,
    agent: AgentName = "engineer",
    trials: Trials = None,
    seconds: Seconds = None,
    parallel: Parallel = None,
    seed: Seed = 0,
    seeding: SeedingOption = "default",
    new: Annotated[bool, typer.Option("--new", help="Open a new session even if one is open already.")] = False,
    no_finalize: NoFinalize = False,
    track: Track = None,
    without_reflection: WithoutReflection = False,
    without_memory: WithoutMemory = False,
    memory_from: MemoryFrom = "",
    device: Device = "auto",
    threads: Threads = 0,
    keep_warm: KeepWarm = WARM_SECONDS,
    launcher: LauncherName = "local",
    address: Address = None,
    sandbox: Sandbox = None,
    replay: Replay = None,
    asked: ModelOptions = NO_MODEL,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Tune a backbone on a dataset.

    Runs trials until the budget is spent or a stop rule applies, evaluates the best one on the test set, prints the
    result and writes an HTML report. With --no-finalize, the session stays open and the test set sealed until
    `virtualmle sessions finalize`. An open session of this dataset and backbone is resumed, unless --new is given.
    Ctrl-C interrupts the session; the same command or `virtualmle sessions resume` continues it.

    Example: virtualmle tune demo --backbone hstu --trials 12

    With a split by time: virtualmle tune purchases.csv --split time --holdout 30d

    With a model of a local Ollama: virtualmle tune demo --agent llm --model qwen3:8b --base-url http://localhost:11434/v1
    """
    from ..agents.registry import ASKING, RECIPE, check_agent  # imports the tools, which takes half a second
    from ..data.errors import ConfigError
    from ..sandbox.protocol import MOST_SESSIONS
    from ..tracking.targets import parse_targets
    from .headless import HeadlessRun, run_headless

    if backbone not in ("sasrec", "hstu"):
        raise ConfigError(f"backbone={backbone!r} is not known; choose sasrec or hstu")
    start = seeding_named(seeding)
    targets = parse_targets(track or ())
    check_agent(agent)  # before the dataset is prepared
    if without_memory and agent.startswith(RECIPE):
        raise ConfigError("--without-memory hides the trials by which a recipe counts its steps; leave it out")
    if agent in ASKING:
        asked.check(home)
    settings = make_settings(
        trials, seconds, seed, without_reflection, without_memory, device, threads, sandbox, keep_warm, memory_from,
        replay, parallel, launcher, address, MOST_SESSIONS,
    )  # fmt: skip
    options = split_options(split_by, holdout, k_core_on, ties)
    if replay and options:
        raise ConfigError(
            "--split, --holdout, --k-core-on and --ties prepare a log, which --replay does not; leave them out"
        )
    where, name = _replayed(home, dataset, settings) if replay else _prepared(home, dataset, sandbox, options)
    plan = HeadlessRun(
        where, agent, seed, name, backbone, new=new, model=asked, seeding=start, finalize=not no_finalize,
        track=targets,
    )
    run_headless(plan, settings, as_json)


def _replayed(home: Path, dataset: str, settings: "Settings") -> tuple[Path, str]:
    """Check the home and the replay table; returns the home and the name of the dataset, which need not exist here."""
    ws = open_workspace(home, settings)
    with ws.memory:
        return ws.home, ws.manifest(dataset).name


def _prepared(home: Path, dataset: str, sandbox: Path | None, options: "PrepareOptions | None") -> tuple[Path, str]:
    """Check the home and register the dataset if necessary; returns both. Guessed columns are printed to stderr."""
    from ..examiner.vault import Vault
    from ..tools.recording import record_dataset
    from .dataset_text import filter_lines, split_lines
    from .live import download_bar

    # Opened before the server is started, so that a broken home gives a one-line error and not a lost connection
    ws = open_workspace(home, make_settings(sandbox=sandbox))
    with ws.memory:
        before = ws.catalogue.names()
        with download_bar(dataset) as progress:
            name = ws.catalogue.resolve(dataset, Vault(ws.home).public_key(), progress, options)
        record_dataset(ws.home, name, ws.memory)
        manifest = ws.catalogue.manifest(name)
    if name not in before:
        columns = ", ".join(f"{role} from {column!r}" for role, column in manifest.columns.items())
        print(
            f"registered {name}: {manifest.num_users:,} users, {manifest.num_items:,} items, "
            f"{manifest.num_interactions:,} interactions (columns: {columns})",
            file=sys.stderr,
        )
        for line in (*filter_lines(manifest), *split_lines(manifest)):
            print(f"  {line}", file=sys.stderr)
    return ws.home, name

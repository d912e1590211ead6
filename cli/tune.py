"""`virtualmle tune`: a whole session without any client, from the data to the report."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    HERE,
    WARM_SECONDS,
    Device,
    Home,
    Json,
    KeepWarm,
    MemoryFrom,
    Placebo,
    Sandbox,
    Seconds,
    Seed,
    Threads,
    Trials,
    WithoutMemory,
    WithoutReflection,
    make_settings,
    open_workspace,
)


def tune(  # noqa: PLR0913, PLR0917 - one parameter per option
    dataset: Annotated[str, typer.Argument(help="demo, a registered or public dataset's name, or the path of a log.")],
    backbone: Annotated[str, typer.Option(help="sasrec or hstu.")] = "sasrec",
    agent: Annotated[str, typer.Option(help="engineer or random.")] = "engineer",
    trials: Trials = None,
    seconds: Seconds = None,
    seed: Seed = 0,
    new: Annotated[bool, typer.Option("--new", help="Open another session even if one is open.")] = False,
    without_reflection: WithoutReflection = False,
    without_memory: WithoutMemory = False,
    memory_from: MemoryFrom = "",
    placebo_memory: Placebo = False,
    device: Device = "auto",
    threads: Threads = 0,
    keep_warm: KeepWarm = WARM_SECONDS,
    sandbox: Sandbox = None,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Tune a backbone on a dataset and print the result; takes up an open session of the two again.

    Example: virtualmle tune demo --backbone hstu --trials 12
    """
    from ..agents.registry import make_agent  # brings the tools: half a second
    from ..data.errors import ConfigError
    from .driving import Drive, drive

    if backbone not in ("sasrec", "hstu"):
        raise ConfigError(f"backbone={backbone!r} is not known; choose sasrec or hstu")
    make_agent(agent, seed)  # a wrong name should not cost the preparation of a dataset
    settings = make_settings(
        trials, seconds, seed, without_reflection, without_memory, device, threads, sandbox, keep_warm, memory_from,
        placebo_memory,
    )  # fmt: skip
    where, name = _prepared(home, dataset, sandbox)
    drive(Drive(where, agent, seed, name, backbone, new=new), settings, as_json)


def _prepared(home: Path, dataset: str, sandbox: Path | None) -> tuple[Path, str]:
    """The home, checked, and the dataset's name, registered if it was not yet; what was guessed is said on stderr."""
    from ..examiner.vault import Vault
    from .dataset_text import filter_lines
    from .live import download_bar

    # Opened here before any server is started: what is wrong with it becomes one line, not a lost connection
    ws = open_workspace(home, make_settings(sandbox=sandbox))
    with ws.memory:
        before = ws.catalogue.names()
        with download_bar(dataset) as progress:
            name = ws.catalogue.resolve(dataset, Vault(ws.home).public_key(), progress)
        manifest = ws.catalogue.manifest(name)
    if name not in before:
        taken = ", ".join(f"{role} from {column!r}" for role, column in manifest.columns.items())
        print(
            f"registered {name}: {manifest.num_users:,} users, {manifest.num_items:,} items, "
            f"{manifest.num_interactions:,} interactions (columns: {taken})",
            file=sys.stderr,
        )
        for line in filter_lines(manifest):
            print(f"  {line}", file=sys.stderr)
    return ws.home, name

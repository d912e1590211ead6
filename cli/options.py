"""Options that several commands share, written once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..tools.workspace import Settings, Workspace



def absolute(path: Path) -> Path:
    """The path as every room sees it: one directory has one name, or its key and its data would part."""
    return path.expanduser().resolve()


Home = Annotated[
    Path,
    typer.Option(
        "--home",
        callback=absolute,
        help="Directory that holds memory.db and .virtualmle/.",
        show_default="current directory",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")]
Trials = Annotated[
    int | None, typer.Option("--trials", min=1, help="Trials per new session.", show_default="as SANDBOX.md says")
]
Seconds = Annotated[
    float | None,
    typer.Option("--seconds", min=1, help="Training seconds per new session.", show_default="as SANDBOX.md says"),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of new sessions and of the agent.")]
WithoutReflection = Annotated[bool, typer.Option("--without-reflection", help="Ablation: no reflections.")]
WithoutMemory = Annotated[
    bool, typer.Option("--without-memory", help="Ablation: no prior, and the agent remembers the last trial only.")
]
MemoryFrom = Annotated[
    str, typer.Option("--memory-from", help="Use cognition from these datasets only: beauty,tools.", show_default="all")
]
Placebo = Annotated[
    bool, typer.Option("--placebo-memory", help="Ablation: a memory of the same form about the wrong knobs.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Torch threads of a trial on CPU.", show_default="all")]
KeepWarm = Annotated[
    float,
    typer.Option(
        "--keep-warm",
        min=0,
        envvar="VIRTUALMLE_KEEP_WARM",
        help="Seconds that a worker waits for its session's next trial, torch loaded; 0 = it leaves.",
    ),
]
Sandbox = Annotated[
    Path | None,
    typer.Option("--sandbox", help="A SANDBOX.md to tune under.", show_default="HOME/SANDBOX.md, else the bundled one"),
]

HERE = Path(".")
WARM_SECONDS = 300.0  # an agent thinks for seconds, sometimes for minutes


def make_settings(  # noqa: PLR0913, PLR0917 - one parameter per option
    trials: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    without_reflection: bool = False,
    without_memory: bool = False,
    device: str = "auto",
    threads: int = 0,
    sandbox: Path | None = None,
    keep_warm: float = 0.0,
    memory_from: str = "",
    placebo: bool = False,
) -> "Settings":
    """What a person chose on the command line, as the tools take it.

    Raises ConfigError for an unknown device and for choices about memory that do not go together.
    """
    from ..data.errors import ConfigError
    from ..tools.workspace import Settings

    if device not in ("auto", "cpu") and not device.startswith("cuda"):
        raise ConfigError(f"device={device!r} is not known; use auto, cpu, cuda or cuda:N")
    datasets = tuple(name.strip() for name in memory_from.split(",") if name.strip())
    if without_memory and (datasets or placebo):
        raise ConfigError("--without-memory excludes --memory-from and --placebo-memory; leave it or them out")
    return Settings(
        max_trials=trials,
        max_train_seconds=seconds,
        seed=seed,
        with_reflection=not without_reflection,
        with_memory=not without_memory,
        device=device,
        threads=threads,
        keep_warm=keep_warm,
        memory_from=datasets,
        placebo=placebo,
        protocol_path=sandbox,
    )


def open_workspace(home: Path, settings: "Settings | None" = None) -> "Workspace":
    """The workspace of `home`, created if need be."""
    from ..tools.workspace import Workspace

    return Workspace.open(home, settings=settings)

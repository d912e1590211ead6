"""The options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ..agents.seeding import Seeding
    from ..data.prepared import PrepareOptions
    from ..tools.workspace import Settings, Workspace


def absolute(path: Path) -> Path:
    """The absolute path: every module must use the same path of a home, so that its key and its data stay together.

    Raises HomeError if `path` is relative to a working directory that was deleted, or is not valid UTF-8.
    """
    from ..data.errors import HomeError

    try:
        resolved = path.expanduser().resolve()
    except FileNotFoundError:
        raise HomeError(
            f"home={str(path)!r} is relative to the working directory, which was deleted; change to another directory, "
            "or name the home by an absolute path with --home"
        ) from None
    try:
        str(resolved).encode()
    except UnicodeEncodeError:
        raise HomeError(
            f"home={str(resolved)!r} has a name that is not UTF-8; rename the directory, "
            "or choose another with --home"
        ) from None
    return resolved


def _page(path: Path | None) -> Path | None:
    """The protocol file that --sandbox names; a name without a suffix that is no file is one of the bundled pages."""
    from ..sandbox.protocol import packaged_page

    is_name = path is not None and path.name == str(path) and not path.suffix and not path.exists()
    return packaged_page(path.name) if path is not None and is_name else path


Home = Annotated[
    Path,
    typer.Option(
        "--home",
        callback=absolute,
        help="Home directory, which holds memory.db and .virtualmle/.",
        show_default="current directory",
    ),
]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-host",
        metavar="NAME",
        help="Name that a reverse proxy forwards in the Host header, e.g. recsys.example.org; may be repeated.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
Trials = Annotated[
    int | None,
    typer.Option("--trials", min=1, help="Maximum number of trials of a new session.", show_default="from SANDBOX.md"),
]
Seconds = Annotated[
    float | None,
    typer.Option("--seconds", min=1, help="Maximum training seconds of a new session.", show_default="from SANDBOX.md"),
]
AGENT_NAMES = ("engineer", "llm", "hybrid", "opro", "tpe", "gp", "cmaes", "grid", "coordinate", "random")
"""The names of `agents.registry.AGENTS`, which would take half a second to import for --help; a test compares them."""
AgentName = Annotated[
    str, typer.Option("--agent", help=f"One of {', '.join(AGENT_NAMES)}, or recipe:FILE (configurations of a file).")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the agent and of new sessions.")]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="KIND=ADDRESS",
        help="Track live to mlflow=URI, optuna=URL or tensorboard=DIR; may be repeated.",
        show_default="nowhere",
    ),
]
NoFinalize = Annotated[
    bool,
    typer.Option("--no-finalize", help="Leave the session open at the end: no look at the test set is used."),
]
SeedingOption = Annotated[
    str, typer.Option("--seeding", help="First trials of a sampler: none, default, moves (the engineer's) or memory.")
]
WithoutReflection = Annotated[bool, typer.Option("--without-reflection", help="Ablation: no reflections are written.")]
WithoutMemory = Annotated[
    bool, typer.Option("--without-memory", help="Ablation: no prior, and the agent sees the last trial only.")
]
MemoryFrom = Annotated[
    str,
    typer.Option(
        "--memory-from", help="Use only the knowledge of these datasets, e.g. beauty,tools.", show_default="all"
    ),
]
MaxSessions = Annotated[
    int | None,
    typer.Option(
        "--max-sessions",
        min=1,
        help="Sessions that may be opened on the same data, counting all that ever were.",
        show_default="from SANDBOX.md",
    ),
]
Reveal = Annotated[
    bool,
    typer.Option("--reveal", help="Show the test result although another session on the same data is open."),
]
Parallel = Annotated[
    str | None,
    typer.Option(
        "--parallel",
        metavar="N|auto",
        help="Trials of a new session at a time; auto = one per GPU, or as many as fit in cores and memory.",
        show_default="from SANDBOX.md",
    ),
]
ResumedParallel = Annotated[
    str | None,
    typer.Option(
        "--parallel",
        metavar="N|auto",
        help="Trials of the session at a time from now on; auto = one per GPU, or as many as fit in cores and memory.",
        show_default="as it was",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cpu:float32, cuda or cuda:N.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Torch threads of a trial on CPU.", show_default="all")]
KeepWarm = Annotated[
    float,
    typer.Option(
        "--keep-warm",
        min=0,
        envvar="VIRTUALMLE_KEEP_WARM",
        help="Seconds that a worker stays loaded for the session's next trial; 0 = exit at once.",
    ),
]
LAUNCHERS = ("local", "ray")
LauncherName = Annotated[
    str, typer.Option("--launcher", help="Where trials run: local, or ray, the Ray cluster at --address.")
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Address of the Ray cluster, e.g. 10.0.0.5:6379.",
        show_default="the cluster that this machine belongs to",
    ),
]
Sandbox = Annotated[
    Path | None,
    typer.Option(
        "--sandbox",
        callback=_page,
        help="Path of the protocol file, or the name of a bundled one: paper.",
        show_default="HOME/SANDBOX.md, else the bundled one",
    ),
]

Replay = Annotated[
    Path | None,
    typer.Option("--replay", help="Serve trials from this table of `virtualmle replay build` instead of training."),
]

Split = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="leave-one-out, or time: the last part of the log by time is test, the part before it validation.",
        show_default="leave-one-out",
    ),
]
HoldoutLength = Annotated[
    str | None,
    typer.Option(
        "--holdout",
        help="With --split time: the length of test and of validation, e.g. 30d, 12h, 4w, or 10% of the events.",
        show_default=False,
    ),
]

KCoreOn = Annotated[
    str | None,
    typer.Option(
        "--k-core-on",
        help="Events that the k-core counts: all, or train, so that nothing visible depends on test events.",
        show_default="all",
    ),
]

Ties = Annotated[
    str | None,
    typer.Option(
        "--ties",
        help="Order of a user's events at one time: file, or random, a control that is registered as another dataset.",
        show_default="file",
    ),
]

HERE = Path(".")
WARM_SECONDS = 300.0  # agents plan for seconds, sometimes for minutes


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
    replay: Path | None = None,
    parallel: str | None = None,
    launcher: str = "local",
    address: str | None = None,
    max_sessions: int | None = None,
) -> "Settings":
    """The settings for the tools from the options of a command.

    Raises ConfigError for an unknown device or launcher, for Ray if it is not installed, and for options that exclude
    each other.
    """
    from ..data.errors import ConfigError
    from ..tools.workspace import Settings
    from ..training.products import FLOAT32_CPU

    if device not in ("auto", "cpu", FLOAT32_CPU) and not device.startswith("cuda"):
        raise ConfigError(f"device={device!r} is not known; use auto, cpu, {FLOAT32_CPU}, cuda or cuda:N")
    datasets = tuple(name.strip() for name in memory_from.split(",") if name.strip())
    if without_memory and datasets:
        raise ConfigError("--without-memory excludes --memory-from; use one of the two")
    return Settings(
        max_trials=trials,
        max_train_seconds=seconds,
        max_sessions=max_sessions,
        parallel=parallel_of(parallel),
        seed=seed,
        with_reflection=not without_reflection,
        with_memory=not without_memory,
        device=device,
        threads=threads,
        ray_address=_ray_address(launcher, address, device),
        keep_warm=keep_warm,
        memory_from=datasets,
        protocol_path=sandbox,
        replay=absolute(replay) if replay else None,
    )


def _ray_address(launcher: str, address: str | None, device: str) -> str | None:
    """The address of the Ray cluster; None for trials on this machine."""
    from ..data.errors import ConfigError
    from ..trials.ray_launcher import check_ray

    if launcher not in LAUNCHERS:
        raise ConfigError(f"launcher={launcher!r} is not known; choose one of {', '.join(LAUNCHERS)}")
    if launcher == "local" and address is not None:
        raise ConfigError(f"--address {address} names a Ray cluster; add --launcher ray")
    if launcher == "local":
        return None
    check_ray(address or "auto", device)
    return address or "auto"


def parallel_of(text: str | None) -> int | Literal["auto"] | None:
    """The value of --parallel; raises ConfigError unless it is `auto` or a number that the protocol allows."""
    from ..data.errors import ConfigError
    from ..sandbox.protocol import MAX_PARALLEL

    if text is None:
        return None
    if text == "auto":
        return "auto"
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PARALLEL:
        raise ConfigError(f"--parallel {text!r} is neither auto nor a number from 1 to {MAX_PARALLEL}; choose one")
    return int(text)


def seeding_named(name: str) -> "Seeding":
    """The seeding with this name; raises ConfigError for an unknown one."""
    from ..agents.seeding import SEEDINGS
    from ..data.errors import ConfigError

    for seeding in SEEDINGS:
        if seeding == name:
            return seeding
    raise ConfigError(f"seeding={name!r} is not known; choose one of {', '.join(SEEDINGS)}")


def split_options(
    split_by: str | None, holdout: str | None, k_core_on: str | None, ties: str | None
) -> "PrepareOptions | None":
    """How a dataset is to be prepared that a command registers; None if none of the options is given.

    Raises DataError for an unknown value, and for options that do not fit to the split.
    """
    from ..data.prepared import ALL, FILE, LEAVE_ONE_OUT, PrepareOptions

    if split_by is None and holdout is None and k_core_on is None and ties is None:
        return None
    return PrepareOptions(
        split=split_by or LEAVE_ONE_OUT, holdout=holdout or "", k_core_on=k_core_on or ALL, ties=ties or FILE
    )


def open_workspace(home: Path, settings: "Settings | None" = None) -> "Workspace":
    """The workspace of `home`, which is created if it does not exist."""
    from ..tools.workspace import Workspace

    return Workspace.open(home, settings=settings)

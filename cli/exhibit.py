"""`virtualmle exhibit`: a table or figure of the paper, or the record of given configurations, by one command."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .compare import MemoryFrom, NoLook, Out, Set, Threads, end, model_choice, progress, words
from .model_options import NO_MODEL, ModelOptions, asks_a_model
from .options import HERE, Device, Home, Json, Replay, Sandbox, absolute
from .record import RecordOptions, has_record_options, make_record, refuse_options, refuse_record_options

RECORD = "record"
NO_RECORD = RecordOptions()


@has_record_options
@asks_a_model
def exhibit(  # noqa: PLR0913, PLR0917 - one parameter per option
    name: Annotated[str, typer.Argument(help="table1, table2, table3, table4, figure2 or record.")],
    scale: Annotated[str, typer.Option(help="demo (minutes on a CPU), office, or full (the paper's, on a GPU).")] =
    "demo", agents: Annotated[str, typer.Option("--agents", help="Other arms.", show_default="the exhibit's own")] = "",
    models: Annotated[str, typer.Option("--models", help="Language models of table4, separated by commas.")] = "",
    datasets: Annotated[str, typer.Option("--datasets", help="Other datasets.", show_default="the scale's")] = "",
    backbones: Annotated[str, typer.Option("--backbones", help="sasrec, hstu, or both.")] = "sasrec,hstu",
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Sessions; of a record: 2 to 10 fresh seeds.",
    show_default="the scale's")] = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, show_default="the scale's")] = None,
    memory_from: MemoryFrom = "",
    replay: Replay = None,
    settings: Set = "",
    no_look: NoLook = False,
    recorded: RecordOptions = NO_RECORD,
    asked: ModelOptions = NO_MODEL,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Sessions side by side.")] = 1,
    threads: Threads = 1,
    device: Device = "auto",
    sandbox: Sandbox = None,
    out: Out = None,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Make a table or figure of the VirtualMLE paper (arXiv 2606.03221) from sessions of your own.

    table1: overall, beside published figures; table2: trials to best, in the paper's six-knob space; table3: without
    reflection, without memory; table4: language models with their cost; figure2: best so far with cognition from other
    datasets. Sessions that are over, or that another exhibit in the same directory has run, are not run again.

    record: audited figures of given configurations, nothing searched for: five fresh seeds that the server draws,
    selection on validation, one look at the test set, signed receipts.

    Example: virtualmle exhibit table3 --seeds 1 --trials 4 --out exhibits

    The record: virtualmle exhibit record --scale full --datasets amazon-beauty --with-default --ensemble --out record
    """
    from ..compare.comparison import Request
    from ..compare.exhibits import EXHIBITS, SCALES, requests_of, show
    from ..compare.record import RecordRequest
    from ..data.errors import ConfigError
    from ..data.prepared import FILE

    if name not in (*EXHIBITS, RECORD):
        raise ConfigError(f"exhibit={name!r} is not known; choose one of {', '.join((*EXHIBITS, RECORD))}")
    if scale not in SCALES:
        raise ConfigError(f"scale={scale!r} is not known; choose one of {', '.join(SCALES)}")
    if name == RECORD:
        others = {"agents": agents, "models": models, "trials": trials, "memory-from": memory_from, "replay": replay}
        refuse_options(name, {**others, "no-look": no_look, "model": asked != NO_MODEL})
        make_record(
            RecordRequest(
                home=home,
                out=absolute(out) if out else home / "exhibits",
                datasets=words(datasets),
                backbones=words(backbones),
                scale=scale,
                repetitions=seeds,
                recipes=absolute(recorded.recipes) if recorded.recipes else None,
                ties=recorded.ties or FILE,
                with_default=recorded.with_default,
                ensemble=recorded.ensemble,
                settings=words(settings),
                sandbox=sandbox,
                parallel=recorded.parallel,
                device=device,
                threads=threads,
                jobs=jobs,
            ),
            as_json,
        )
        return
    refuse_record_options(name, recorded)
    size = SCALES[scale]
    request = Request(
        home=home,
        out=absolute(out) if out else home / "exhibits",
        datasets=words(datasets),
        arms=words(agents),
        backbones=words(backbones),
        seeds=seeds or size.seeds,
        trials=trials or size.trials,
        sandbox=sandbox,
        settings=words(settings),
        memory_from=words(memory_from),
        replay=absolute(replay) if replay else None,
        device=device,
        threads=threads,
        jobs=jobs,
        look=not no_look,
        model=model_choice(asked),
    )
    requests = requests_of(EXHIBITS[name], request, size, words(models))
    with progress() as bar:
        shown = show(EXHIBITS[name], requests, bar.advance, bar.begin)
    _print(shown.paths[0], shown.summary.model_dump() if as_json else None)
    end(shown.compared.failures)


def _print(path: Path, summary: dict[str, object] | None) -> None:
    if summary is not None:
        print(json.dumps({"report": str(path), "summary": summary}, indent=1, allow_nan=False))
        return
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"report: {path}")

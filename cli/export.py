"""`virtualmle export`: write a trial's model as a self-contained directory, for use outside the session."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .memory import existing_memory
from .options import HERE, Home, Json, Reveal, absolute, open_workspace


def export(  # noqa: PLR0913, PLR0917 - one parameter per option
    session: Annotated[str, typer.Argument(help="The id of a session, e.g. demo-sasrec-1.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The directory to write; it must not exist yet.")],
    trial: Annotated[
        str | None, typer.Option(help="The trial to export, e.g. t004.", show_default="the selected or best one")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DIR if it is an export.")] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="Train the trial's configuration again on all events, also the test events.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Of a refit: auto, cpu, cpu:float32, cuda or cuda:N.", show_default="the trial's")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Of a refit: torch threads on CPU.", show_default="all")] = 0,
    key_file: Annotated[
        Path | None,
        typer.Option(help="Of a refit in operator mode: the file with the private key.", show_default="the vault's"),
    ] = None,
    reveal: Reveal = False,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Export a tuned model: weights, item ids, score priors, item vectors and a model card.

    An open session exports its best finished trial so far; its test set stays sealed. The directory has no interaction
    of any user and needs no session, dataset or database: load it with virtualmle.serving.Recommender.

    With --refit, only of a session whose look at the test set is over, the configuration is trained once more on train,
    validation and test events, for the epochs that were selected. That model has no figures; its card says so.

    Example: virtualmle export demo-sasrec-1 model

    Trained on all events: virtualmle export demo-sasrec-1 model-all --refit
    """
    from ..examiner.refit_request import refit as run_refit
    from ..report.gather import gather
    from ..report.model_card import model_card
    from ..serving.artifact import check_destination, write_export  # imports torch
    from ..serving.assembly import assemble
    from ..tools.export import plan_export
    from ..tools.refit import epochs_of, open_sessions, plan_refit, refit_request

    check_destination(directory, overwrite=overwrite)
    existing_memory(home).close()
    ws = open_workspace(home)
    with ws.memory:
        plan = plan_refit(ws, session, trial) if refit else plan_export(ws, session, trial)
        manifest = ws.catalogue.manifest(plan.session.dataset)
        data = gather(home, plan.session.id, reveal=reveal)
        if refit:
            card = model_card(data, plan.trial, manifest, plan.members, epochs_of(plan), plan.measured_elsewhere(ws))
            request = refit_request(
                ws, plan, card, str(absolute(directory)), overwrite=overwrite, device=device, threads=threads,
                key_file=None if key_file is None else str(absolute(key_file)),
            )  # fmt: skip
            with epochs_bar("refit") as progress:
                run_refit(request, lambda: open_sessions(ws), progress)
        else:
            contents = assemble(
                plan.models, plan.trial.configuration, plan.dataset_dir, card="", names=plan.item_names
            )
            card = model_card(
                data, plan.trial, manifest, plan.members, elsewhere=plan.measured_elsewhere(ws),
                num_nameless=contents.items.null_count(),
            )  # fmt: skip
            write_export(directory, contents.with_card(card), overwrite=overwrite)
    _print_written(plan.name, directory, is_refit=refit, as_json=as_json)


def _print_written(name: str, directory: Path, *, is_refit: bool, as_json: bool) -> None:
    if as_json:
        trained_on = "all events" if is_refit else "train"
        print(json.dumps({"export": str(directory), "trial": name, "trained_on": trained_on}))
        return
    print(f"exported {name} to {directory}{', trained again on all events' if is_refit else ''}")
    print(f"its card: {directory / 'MODEL_CARD.md'}")
    if is_refit:
        print(
            "It contains information about the test events: keep it from agents that tune on the same data. It has no "
            "figures until `virtualmle evaluate` measures it on later data."
        )


@contextmanager
def epochs_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A callback that shows on stderr how many epochs are done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), TextColumn("{task.completed:,} of {task.total:,} epochs"),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("epochs", total=None, visible=False)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        yield progress

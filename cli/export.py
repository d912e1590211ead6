"""`virtualmle export`: write a trial's model as a self-contained directory, for use outside the session."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .memory import existing_memory
from .options import HERE, Home, Json, open_workspace


def export(
    session: Annotated[str, typer.Argument(help="The id of a session, e.g. demo-sasrec-1.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The directory to write; it must not exist yet.")],
    trial: Annotated[
        str | None, typer.Option(help="The trial to export, e.g. t004.", show_default="the selected or best one")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DIR if it is an export.")] = False,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Export a tuned model: weights, item ids, score priors, item vectors and a model card.

    An open session exports its best finished trial so far; its test set stays sealed. The directory has no interaction
    of any user and needs no session, dataset or database: load it with virtualmle.serving.Recommender.

    Example: virtualmle export demo-sasrec-1 model
    """
    from ..report.gather import gather
    from ..report.model_card import model_card
    from ..serving.artifact import check_destination, write_export  # imports torch
    from ..serving.assembly import assemble
    from ..tools.export import plan_export

    check_destination(directory, overwrite=overwrite)
    existing_memory(home).close()
    ws = open_workspace(home)
    with ws.memory:
        plan = plan_export(ws, session, trial)
        manifest = ws.catalogue.manifest(plan.session.dataset)
    card = model_card(gather(home, plan.session.id), plan.trial, manifest)
    contents = assemble(plan.models, plan.trial.configuration, plan.dataset_dir, card)
    write_export(directory, contents, overwrite=overwrite)
    name = plan.models[0].name
    if as_json:
        print(json.dumps({"export": str(directory), "trial": name, "trained_on": contents.trained_on}))
        return
    print(f"exported {name} to {directory}")
    print(f"its card: {directory / 'MODEL_CARD.md'}")

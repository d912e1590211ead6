"""What carries a recipe: one knob at a time goes back to its default, and everything else stays.

    python benchmarks/bench_ablation.py beauty.tsv.gz --set hidden_dim=64 --keep ablation --save

The recipe is the first configuration of compare/record.toml. Knobs that belong together go back together (GROUPS).
Every model is trained under one seed, with the random streams that trials share, and ranks the validation items of the
same users, bare and with the score priors of the recipe; differences to the recipe are paired over users. Nothing is
ranked on test. What has been trained is kept in the folder of --keep, so that the same command goes on where it was;
several processes may share the folder, for example one per backbone.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

import numpy as np
import torch
from logs import log_of, prepared
from numpy.typing import NDArray
from record import RESULTS, environment, parser_of, save

from virtualmle.agents.recipe import read_recipes
from virtualmle.compare.record import RECIPES
from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.models.config import SCORING_KNOBS, fingerprint, make_config
from virtualmle.models.knobs.declaration import BACKBONES
from virtualmle.models.priors import ScorePriors
from virtualmle.sandbox.statistics import compare
from virtualmle.training.evaluate import evaluate_variants, train_histories
from virtualmle.training.metrics import ndcg_per_user
from virtualmle.training.pipeline import loss_precision
from virtualmle.training.trainer import fit

CPU = torch.device("cpu")
RECIPE = "the recipe"
GROUPS = (
    ("scores", "temperature"), ("dropout", "embedding_dropout", "attention_dropout"), ("linear_dim", "attention_dim"),
)  # fmt: skip
LENGTH = ("epochs", "patience", "schedule")  # how long a model trains is the same for all

Knobs = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table per log and backbone, and one JSON line."""
    parser = parser_of(__doc__)
    parser.add_argument("logs", nargs="+", type=Path, help="logs of users, items and timestamps")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KNOB=VALUE", help="changes of the recipe itself")
    parser.add_argument("--keep", type=Path, help="folder for the ranks of what has been trained")
    parser.add_argument("--save", action="store_true", help="write results/ablation.md and .json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    changed = {name: json.loads(value) for name, value in (word.split("=", 1) for word in options.set)}
    tables, texts = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for log in options.logs:
            name = log.name.split(".")[0]
            dataset = prepared(log_of(log), Path(temporary) / name, PrepareOptions())
            for backbone in options.backbones:
                knobs = recipe_of(name, backbone) | changed
                found = {
                    what: ranks_of(dataset, backbone, variant, options.seed, options.keep or Path(temporary))
                    for what, variant in variants_of(backbone, knobs)
                }
                rows = rows_of(found)
                tables.append({"log": name, "backbone": backbone, "recipe": knobs, "rows": rows})
                texts.append(as_text(f"{name}, {backbone}", rows))
                print(texts[-1], flush=True)
    content = {"bench": "ablation", "seed": options.seed, "tables": tables, **environment()}
    print(json.dumps(content))
    if options.save:
        head = f"{content['hardware']}, {content['date']}, commit {content['commit']}, seed {options.seed}; "
        head += "validation NDCG@10 and its differences in units of 0.0001, paired over users"
        title = "# One knob of the recipe back at a time"
        save(RESULTS / "ablation", content, "\n".join([title, "", head, "", *texts]))
    return 0


def recipe_of(name: str, backbone: str) -> dict[str, Any]:
    """The knobs of the first configuration of the shipped recipes."""
    return dict(read_recipes(RECIPES).steps(name, backbone)[0].changes)


def variants_of(backbone: str, recipe: Knobs) -> Iterator[tuple[str, Knobs]]:
    """The recipe, and then the recipe without each of its knobs or groups of knobs, with what was put back."""
    yield RECIPE, recipe
    default = make_config(backbone)
    trained = [name for name in recipe if name not in LENGTH and name not in SCORING_KNOBS]
    groups = [group for group in GROUPS if set(group) & set(trained)]
    alone = [(name,) for name in trained if not any(name in group for group in groups)]
    for group in (*groups, *alone):
        back = {name: getattr(default, name) for name in group if name in recipe}
        if any(recipe[name] != value for name, value in back.items()):
            yield ", ".join(f"{name}={value}" for name, value in back.items()), dict(recipe) | back


def ranks_of(dataset: PreparedDataset, backbone: str, knobs: Knobs, seed: int, keep: Path) -> NDArray[np.int32]:
    """The ranks (2, num_users) of the validation items, bare and with the priors of `knobs`, from `keep` if there."""
    config = make_config(backbone, **knobs)
    keep.mkdir(parents=True, exist_ok=True)
    file = keep / f"{dataset.dataset_id[:8]}-{fingerprint(config.model_dump())}-{seed}.npy"
    if not file.exists():
        started = time.process_time()
        model = fit(config, dataset, seed, CPU, precision=loss_precision("auto", CPU, config)).model
        priors = [None, ScorePriors.from_dataset(dataset, config)]
        histories = train_histories(dataset)
        found = evaluate_variants(model, config, histories, dataset.valid_items, priors, dataset.num_items)
        partial = file.with_suffix(".partial.npy")
        np.save(partial, np.stack([ranks for ranks, _ in found]))
        partial.rename(file)
        print(f"{file.name}: {time.process_time() - started:.0f} processor seconds", file=sys.stderr, flush=True)
    return np.load(file)


def rows_of(found: Mapping[str, NDArray[np.int32]]) -> list[dict[str, Any]]:
    """One row per variant, the recipe first and then those that lose most with priors."""
    rows = []
    for what, ranks in found.items():
        row: dict[str, Any] = {"what": what}
        for kind, own, base in zip(("bare", "priors"), ranks, found[RECIPE], strict=True):
            compared = compare(base, own)
            row |= {kind: float(ndcg_per_user(own).mean()), f"{kind}_delta": compared.delta, f"{kind}_se": compared.se}
        rows.append(row)
    return [rows[0], *sorted(rows[1:], key=lambda row: row["priors_delta"])]


def as_text(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A table in Markdown, differences in units of 1e-4."""
    lines = [f"## {title}", "", "| back to the default | bare | Δ, SE | with priors | Δ, SE |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        cells = [row["what"]]
        for kind in ("bare", "priors"):
            delta = f"{1e4 * row[f'{kind}_delta']:+.1f}, {1e4 * row[f'{kind}_se']:.1f}".replace("-", "−")
            cells += [f"{row[kind]:.4f}", "" if row["what"] == RECIPE else delta]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())

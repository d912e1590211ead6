"""Make one file of the trials that collect.py has recorded.

python benchmarks/curves/pack.py curves-out
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # PYTHONSAFEPATH leaves both out
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from collect import read_session
from plan import BACKBONES, SESSIONS, SIZES
from record import parser_of
from recorded import CURVES, CUTOFF, Curve, write_curves

from virtualmle.data.prepared import PreparedDataset
from virtualmle.training.popularity import popularity_ndcg10


def curves_in(folder: Path) -> list[Curve]:
    """The trials in a folder of collect.py, with ranks above 10 as 11."""
    popularity = {name: popularity_ndcg10(PreparedDataset.load(folder / f"dataset-{name}")) for name in SIZES}
    return [
        Curve(
            dataset=dataset,
            backbone=backbone,
            session=session,
            number=number,
            ranks=(ranks := np.minimum(trial.ranks, CUTOFF + 1)),
            judged_ranks=ranks,
            epochs=np.arange(1, len(ranks) + 1),
            rescored=False,
            popularity=popularity[dataset],
            **{name: value for name, value in trial._asdict().items() if name != "ranks"},
        )
        for dataset in SIZES
        for backbone in BACKBONES
        for session in SESSIONS
        for number, trial in enumerate(read_session(folder, dataset, backbone, session))
    ]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path, help="the --out of collect.py")
    parser.add_argument("--out", type=Path, default=CURVES)
    arguments = parser.parse_args()
    curves = curves_in(arguments.folder)
    write_curves(arguments.out, curves)
    print(f"{len(curves)} trials, {arguments.out.stat().st_size / 1e6:.2f} MB: {arguments.out}")


if __name__ == "__main__":
    main()

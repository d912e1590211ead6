"""Apply the diffs of docs/recipes/add-a-knob.md to a copy of the package and check the new knob."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import virtualmle
from virtualmle.models.config import make_config, train_hash

ROOT = Path(virtualmle.__file__).parent
RECIPE = ROOT / "docs" / "recipes" / "add-a-knob.md"

CHECK = """
import torch
from virtualmle.models.batch import make_batch
from virtualmle.models.build import build_model
from virtualmle.models.config import SCORING_KNOBS, make_config, train_hash
from virtualmle.sandbox.protocol import load_protocol

space = load_protocol().space
for backbone in ("sasrec", "hstu"):
    config = space.resolve(space.default(backbone), {"embedding_noise": 0.5})
    assert config == make_config(backbone, embedding_noise=0.5)
    assert space.dimension("embedding_noise") == "regularisation" and "embedding_noise" not in SCORING_KNOBS
    batch = lambda c: make_batch(torch.tensor([1, 2, 3]), torch.tensor([0, 3]), c, times=torch.arange(3))
    noisy, plain = build_model(config, 9, 0), build_model(make_config(backbone), 9, 0)
    for model in (noisy, plain):
        torch.manual_seed(0)
    assert torch.equal(noisy.eval()(batch(noisy.config)), plain.eval()(batch(plain.config)))
    without_dropout = [make_config(backbone, dropout=0.0, embedding_noise=noise) for noise in (0.0, 0.5)]
    states = [build_model(c, 9, 0).train()(batch(c)) for c in without_dropout]
    assert not torch.allclose(*states)
    print(train_hash(make_config(backbone)))
"""


def run(copy: Path, *arguments: str) -> str:
    """The output of a Python command that imports the package from the copy."""
    done = subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(copy / ".typing"), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def diffs() -> list[str]:
    """The diffs of the recipe's fenced blocks, without their indentation."""
    fenced = re.findall(r"^( *)```diff\n(.*?)^ *```$", RECIPE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(body) for _, body in fenced]


def test_the_recipe_adds_a_knob_in_three_steps(tmp_path: Path) -> None:
    copy = tmp_path / "package"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "tests", "benchmarks", "demo-home", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=ignored)
    (copy / ".typing").mkdir()
    (copy / ".typing" / "virtualmle").symlink_to("..")

    recipe_diffs = diffs()
    assert len(recipe_diffs) == 2, "the recipe has two diffs: one declares the knob, one uses it"
    for diff in recipe_diffs:
        done = subprocess.run(["git", "apply", "-"], cwd=copy, input=diff, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"the diff of the recipe does not apply: {done.stderr}\n{diff}"
    run(copy, "-m", "virtualmle.sandbox.tables", "SANDBOX.md", "docs/knobs.md")

    row = "| `embedding_noise` | float | 0.0 … 0.5 | 0.0 | 0.0 | standard deviation of Gaussian noise added"
    assert row in (copy / "SANDBOX.md").read_text(encoding="utf-8")
    row = "| `embedding_noise` | [0, 10] | 2 significant digits, multiples of 0.000001 | Bishop 1995 |"
    assert row in (copy / "docs" / "knobs.md").read_text(encoding="utf-8")
    identities = run(copy, "-c", CHECK).split()
    assert identities == [train_hash(make_config(backbone)) for backbone in ("sasrec", "hstu")]

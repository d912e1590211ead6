"""The record as a user runs it: real sessions on the demo, fresh seeds, one look each, receipts, kills."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.quick_home import QUICK_SANDBOX, environment
from virtualmle.agents.recipe import Recipes, Step, read_recipes
from virtualmle.cli.sessions import agent_of
from virtualmle.compare.record import RECIPES, RecordRequest, page_of
from virtualmle.compare.record_outcome import PartResult
from virtualmle.compare.record_session import best_models
from virtualmle.compare.record_task import RecordTask, parts_of
from virtualmle.data.errors import ConfigError
from virtualmle.examiner.request import looks, read_revealed
from virtualmle.memory.store import Memory
from virtualmle.models.knobs.declaration import BACKBONES
from virtualmle.models.knobs.trial_names import MAX_MEMBERS
from virtualmle.sandbox.protocol import load_protocol, parse_protocol
from virtualmle.sandbox.sweeping import plan_settings
from virtualmle.tools.workspace import trial_seed

COMMAND = [sys.executable, "-P", "-m", "virtualmle"]
RECIPE = """
[[sasrec]]
changes.hidden_dim = 24

[[sasrec]]
sweep.transition_weight = [4.0, 8.0]

[[sasrec]]
teachers = 4
changes.hidden_dim = 24
changes.loss = "full_softmax"

[[sasrec]]
changes.hidden_dim = 28

[[hstu]]
changes.hidden_dim = 32
changes.transition_weight = 2.0

[[ensemble]]
sweep.transition_weight = [4.0, 8.0]
"""
SUPERVISION = """
## supervision

| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| `loss` | full_softmax, sampled_softmax | sampled_softmax | sampled_softmax |
| `teachers` | 1 to 4 trials | none | none |
"""


def run(*command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *command], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == code, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the quick protocol, which has no rules of a confirmation, and a file of recipes."""
    folder = tmp_path_factory.mktemp("record") / "home"
    folder.mkdir()
    page = QUICK_SANDBOX + "| `ensemble` | 2 to 4 trials | none | none |\n" + SUPERVISION
    (folder / "SANDBOX.md").write_text(page, encoding="utf-8")
    (folder / "recipes.toml").write_text(RECIPE, encoding="utf-8")
    return folder


def words(home: Path, out: str, *further: str) -> list[str]:
    return [
        "exhibit", "record", "--recipes", str(home / "recipes.toml"), "--with-default", "--ensemble", "--home",
        str(home), "--out", str(home / out), *further,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def recorded(home: Path) -> Path:
    """The directory of a record that ran without disturbance."""
    done = run(*words(home, "calm"))
    assert "## Test figures" in done.stdout and "record.md" in done.stdout
    return home / "calm"


def content_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "record.json").read_text(encoding="utf-8")))


def parts_in(out: Path) -> dict[str, dict[str, Any]]:
    (record,) = content_of(out)["records"]
    return {part["name"]: part for part in record["parts"]}


def inner_home(out: Path) -> Path:
    (found,) = (out / "sessions").iterdir()
    return found


def test_each_session_runs_its_recipe_and_the_best_trial_is_confirmed_under_seeds_of_the_server(recorded: Path) -> None:
    (record,) = content_of(recorded)["records"]
    parts = parts_in(recorded)
    assert [part["name"] for part in record["parts"]] == ["sasrec", "hstu", "ensemble"]
    ran = [(trial["base"], trial["changes"]) for trial in parts["sasrec"]["trials"]]
    assert ran[:2] == [("default", {}), ("default", {"hidden_dim": 24})]
    assert ran[2][0] == "t002" and ran[2][1]["transition_weight"] in (4.0, 8.0)
    assert ran[3][0] == "default" and ran[3][1]["loss"] == "full_softmax"
    assert [trial["changes"] for trial in parts["hstu"]["trials"]] == [{}, {"hidden_dim": 32, "transition_weight": 2.0}]
    for name in ("sasrec", "hstu"):
        part = parts[name]
        best = max(part["trials"], key=lambda trial: trial["ndcg10"])
        assert part["selected"] == best["trial"]
        assert part["seed"] == trial_seed(0, record["dataset_id"])
        seeds = [one["seed"] for one in part["repetitions"]]
        assert seeds == [trial_seed(0, record["dataset_id"], number) for number in (1, 2)]


def test_the_ensemble_joins_the_trained_models_of_both_backbones_and_is_not_confirmed(recorded: Path) -> None:
    parts = parts_in(recorded)
    ensemble = parts["ensemble"]
    best = {name: parts[name]["session"] for name in ("sasrec", "hstu")}
    assert {name.partition("/")[0] for name in ensemble["members"]} == set(best.values())
    assert "demo-sasrec-1/t001" not in ensemble["members"]  # the plain default
    assert ensemble["confirmation"] is None and ensemble["repetitions"] == []
    assert ensemble["trials"][1]["base"] == "t001" and "transition_weight" in ensemble["trials"][1]["changes"]


def test_a_student_learns_from_the_models_of_all_sessions_that_ran_before_it(recorded: Path) -> None:
    parts = parts_in(recorded)
    (student,) = [trial for trial in parts["sasrec"]["trials"] if "teachers" in trial["changes"]]
    ran = {"demo-hstu-1/t002": parts["hstu"]["trials"][1], **{t["trial"]: t for t in parts["sasrec"]["trials"][1:3]}}
    best = max(trial["ndcg10"] for trial in ran.values())
    good = {name for name, trial in ran.items() if trial["ndcg10"] >= 0.9 * best} - {"t002"}  # t003 re-scores it
    assert student["changes"]["teachers"] == "+".join(sorted(good)), "much weaker models teach nothing"
    with Memory(inner_home(recorded) / "memory.db") as memory:
        taught = memory.trials.get(parts["sasrec"]["session"], student["trial"])
        teachers = memory.trials.all(parts["hstu"]["session"])
        assert taught.outcome is not None and taught.outcome.train_seconds > 0
        assert all(teacher.finished_at < taught.created_at for teacher in teachers if teacher.finished_at)
        task = RecordTask.model_construct(home=str(inner_home(recorded)), dataset="demo")
        again = best_models(task, memory.sessions.all(), 1, MAX_MEMBERS, students=False)
    own = {name.removeprefix(f"{parts['sasrec']['session']}/") for name in again}
    assert own == good, "a process that goes on after the last step would choose the same teachers"
    one = PartResult.model_validate(parts["sasrec"])
    selected = one.selected == student["trial"]
    assert bool(one.teachers) == selected and "teachers" not in one.settings


def test_figures_are_means_and_deviations_of_what_each_seed_gave(recorded: Path) -> None:
    text = (recorded / "record.md").read_text(encoding="utf-8")
    with Memory(inner_home(recorded) / "memory.db") as memory:
        for name in ("sasrec", "hstu"):
            part = parts_in(recorded)[name]
            revealed = read_revealed(inner_home(recorded), part["session"])
            assert revealed is not None and revealed.metrics == part["test"]["metrics"]
            values = [one["test"]["ndcg@10"] for one in part["repetitions"]]
            assert values == [figures["ndcg@10"] for figures in revealed.repetitions] and len(set(values)) == 2
            mean = sum(values) / len(values)
            sd = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
            assert part["test"]["metrics"]["ndcg@10"] == pytest.approx(mean, abs=1e-12)
            assert part["test"]["metrics_sd"]["ndcg@10"] == pytest.approx(sd, abs=1e-12)
            assert f"| demo | {name} | 2 | {mean:.4f} ± {sd:.4f} |" in text
            outcome = memory.trials.get(part["session"], part["selected"]).outcome
            measured = {"sasrec": 6, "hstu": 2}[name]  # the sweep has measured two settings
            assert outcome is not None and outcome.ndcg_se is not None
            assert part["inflation"] == pytest.approx(outcome.ndcg_se * math.sqrt(2 * math.log(measured)), abs=1e-12)
            assert part["test"]["default"]["trial"] == "t001"
            assert f"| {part['test']['default']['metrics']['ndcg@10']:.4f} |" in text


def test_no_session_is_looked_at_before_all_have_run_their_trials_and_each_is_looked_at_once(recorded: Path) -> None:
    home, parts = inner_home(recorded), parts_in(recorded)
    ledger = looks(home)
    assert [(look.session, look.look) for look in ledger] == [
        (part["session"], number) for number, part in enumerate(parts.values(), 1)
    ]
    assert [part["test"]["look"] for part in parts.values()] == [1, 2, 3]
    with Memory(home / "memory.db") as memory:
        ended = [trial.finished_at for look in ledger for trial in memory.trials.all(look.session)]
        assert max(time for time in ended if time) <= min(look.at for look in ledger)
        assert all(trial.reflected for trial in memory.trials.all(parts["hstu"]["session"]))


def test_receipts_lie_beside_the_record_and_hold_on_any_machine(recorded: Path) -> None:
    text = (recorded / "record.md").read_text(encoding="utf-8")
    for part in parts_in(recorded).values():
        file = recorded / "receipts" / f"{part['session']}.json"
        assert hashlib.sha256(file.read_bytes()).hexdigest() == part["receipt_sha256"]
        assert f"`virtualmle verify receipts/{part['session']}.json`" in text
        assert "FAIL" not in run("verify", str(file)).stdout
    assert str(recorded.parent) not in text + (recorded / "record.json").read_text(encoding="utf-8")


def test_a_second_run_runs_nothing_and_another_record_counts_the_looks_of_the_first(recorded: Path, home: Path) -> None:
    result = inner_home(recorded) / "result.json"
    before = result.stat().st_mtime_ns
    text = (recorded / "record.md").read_text(encoding="utf-8")
    again = run(*words(home, "calm", "--json", "--parallel", "2"))
    assert result.stat().st_mtime_ns == before and again.stderr == ""
    assert (recorded / "record.md").read_text(encoding="utf-8") == text and "- parallel: 1\n" in text
    assert json.loads(again.stdout)["looks_elsewhere"] == {"demo": 0}


def test_a_record_is_not_replaced_by_another_one(recorded: Path, home: Path) -> None:
    before = {path: path.read_bytes() for path in recorded.rglob("*") if path.is_file()}
    (home / "other.toml").write_text(RECIPE.replace("24", "16"), encoding="utf-8")
    done = run(*words(home, "calm"), "--recipes", str(home / "other.toml"), code=1)
    assert "holds a record of demo that this request would not write again; choose another --out" in done.stderr
    assert {path: path.read_bytes() for path in before} == before and len(list((recorded / "sessions").iterdir())) == 1


def test_both_orders_of_ties_are_recorded_side_by_side_from_one_recipe(home: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    days = np.repeat(np.arange(6), 2)  # two events a day
    rows = [
        f"u{user},i{item:02d},{day}"
        for user in range(60)
        for day, item in zip(days, np.sort(generator.permutation(30)[:12].reshape(6, 2)).ravel(), strict=True)
    ]
    log, recipes = tmp_path / "shop.csv", tmp_path / "shop.toml"
    log.write_text("\n".join(["user,item,timestamp", *rows]) + "\n", encoding="utf-8")
    recipes.write_text("[[shop.sasrec]]\nchanges.hidden_dim = 24\n", encoding="utf-8")
    command = ["exhibit", "record", "--datasets", str(log), "--recipes", str(recipes), "--backbones", "sasrec"]
    run(*command, "--ties", "both", "--home", str(home), "--out", str(tmp_path / "out"))
    plain, drawn = content_of(tmp_path / "out")["records"]
    assert (plain["dataset"], drawn["dataset"]) == ("shop", "shop-ties-random")
    assert plain["dataset_id"] != drawn["dataset_id"]
    figures = [(one["validation"]["ndcg@10"], one["test"]["metrics"]["ndcg@10"]) for one in
               (plain["parts"][0], drawn["parts"][0])]  # fmt: skip
    before, after = zip(*figures, strict=True), [100 * (b / a - 1) for a, b in zip(*figures, strict=True)]
    cells = [f"{a:.4f} | {b:.4f} | {change:+.1f} %" for (a, b), change in zip(before, after, strict=True)]
    text = (tmp_path / "out" / "record.md").read_text(encoding="utf-8")
    assert f"| shop | sasrec | yes | {cells[0]} | {cells[1]} |" in text


def test_the_recipe_of_a_file_is_an_agent_of_tune_and_resumed_as_such(home: Path) -> None:
    file = home / "one.toml"
    file.write_text("[[sasrec]]\nchanges.hidden_dim = 24\n", encoding="utf-8")
    own = home.parent / "tuned"
    page = ("--sandbox", str(home / "SANDBOX.md"))
    run("tune", "demo", "--agent", f"recipe:{file}", "--no-finalize", *page, "--home", str(own))
    with Memory(own / "memory.db") as memory:
        (session,) = memory.sessions.all()
        assert [trial.changes for trial in memory.trials.all(session.id)] == [{"hidden_dim": 24}]
    assert session.state == "open" and agent_of(session) == f"recipe:{file}"


@pytest.mark.slow
def test_kills_change_no_figure_and_no_trial_or_look_happens_twice(recorded: Path, home: Path) -> None:
    kills = 0
    for seconds in (4.0, 9.0, 14.0, 120.0):
        process = subprocess.Popen(
            [*COMMAND, *words(home, "killed")], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            assert process.wait(seconds) == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert kills
    calm, killed = parts_in(recorded), parts_in(home / "killed")
    for name, part in killed.items():
        assert [trial["changes"] for trial in part["trials"]] == [trial["changes"] for trial in calm[name]["trials"]]
        assert part["test"]["metrics"] == calm[name]["test"]["metrics"]
    assert [look.look for look in looks(inner_home(home / "killed"))] == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["record", "--agents", "engineer"], "--agents has no effect on the exhibit record"),
        (["record", "--no-look"], "--no-look has no effect"), (["record", "--seeds", "1"], "from 2 to 10"),
        (["record", "--recipes", "nothing.toml"], "cannot be read"), (["record", "--backbones", "gru"], "'gru'"),
        (["record", "--ties", "item"], "ties='item' is not known; choose file, random or both"),
        (["table1", "--ensemble"], "--ensemble has no effect on the exhibit table1"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_run_is_refused_in_one_line(home: Path, options: list[str], text: str) -> None:
    done = run("exhibit", *options, "--home", str(home), "--out", str(home / "refused"), code=1)
    assert text in done.stderr and done.stderr.count("\n") == 1


def test_a_step_that_the_server_refuses_ends_the_record_with_its_reason(home: Path) -> None:
    (home / "wrong.toml").write_text("[[sasrec]]\nchanges.hidden_dim = 4096\n", encoding="utf-8")
    command = ["exhibit", "record", "--recipes", str(home / "wrong.toml"), "--backbones", "sasrec", "--home", str(home)]
    done = run(*command, "--out", str(home / "wrong"), code=1)
    assert "step 1 of the recipe was refused: hidden_dim=4096" in done.stderr


@pytest.mark.parametrize("dataset", ["demo", "amazon-beauty"])
def test_every_step_that_is_shipped_is_valid_under_the_page_that_is_shipped(dataset: str) -> None:
    protocol = load_protocol()
    parts = parts_of(dataset, ("sasrec", "hstu"), read_recipes(RECIPES), with_default=True, ensemble=True)
    assert [part.name for part in parts] == [*BACKBONES, "ensemble"]
    for part in parts:
        config = protocol.space.default(part.backbone)
        for step in part.steps:
            if step.settings:
                assert plan_settings(protocol.space, config, step.settings, protocol.max_sweep)
            else:
                config = protocol.space.resolve(protocol.space.default(part.backbone), step.changes)
                assert {name: getattr(config, name) for name in step.changes} == step.changes  # nothing was rounded


def test_the_page_of_a_record_confirms_one_trial_and_races_none(home: Path) -> None:
    for page in (home / "SANDBOX.md", None):
        request = RecordRequest(home, home / "out", sandbox=page)
        protocol = parse_protocol(page_of(request, 5))
        assert (protocol.confirm_top, protocol.confirm_repetitions, protocol.racing) == (1, 5, False)
        assert protocol.space == load_protocol(home / "SANDBOX.md").space


def test_an_ensemble_of_one_configuration_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(ConfigError, match="needs 2 trained models"):
        parts_of("demo", ("sasrec",), read_recipes(RECIPES), with_default=True, ensemble=True)


def test_recipes_that_begin_with_students_are_refused_before_anything_is_trained() -> None:
    taught = Step({"loss": "full_softmax"}, teachers=2)
    recipes = Recipes({"sasrec": [taught, Step({"lr": 0.002})], "hstu": [taught]}, {})
    with pytest.raises(ConfigError, match="the recipes for demo begin with students; give a configuration before"):
        parts_of("demo", BACKBONES, recipes, with_default=True, ensemble=False)
    other = Recipes({"sasrec": [taught, Step({"lr": 0.002})], "hstu": [Step({"lr": 0.002}), taught]}, {})
    assert len(parts_of("demo", BACKBONES, other, with_default=True, ensemble=False)) == 2, "HSTU has a teacher"

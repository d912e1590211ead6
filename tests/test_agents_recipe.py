"""The agent of a recipe: its steps in their order, a sweep over the best, and files that are refused."""

from pathlib import Path
from typing import Any

import pytest

from tests.agents_world import World, decide
from virtualmle.agents.base import Finalize, Reflect, Refusal, RunTrial, Sweep, WaitTrial
from virtualmle.agents.history import History, PastTrial
from virtualmle.agents.recipe import RecipeAgent, Recipes, Step, next_step, read_recipes
from virtualmle.agents.registry import check_agent, make_agent
from virtualmle.data.errors import ConfigError

TWO = """
[[sasrec]]
changes.lr = 0.001
changes.dropout = 0.4

[[sasrec]]
changes.lr = 0.002

[[other.sasrec]]
changes.lr = 0.003
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "recipes.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_steps_run_once_each_in_their_order_and_every_trial_is_reflected(tmp_path: Path) -> None:
    world = World(trials_max=9).play(make_agent(f"recipe:{written(tmp_path, TWO)}"))
    assert [row["changes"] for row in world.trials] == [{"lr": 0.001, "dropout": 0.4}, {"lr": 0.002}]
    assert [row["base"] for row in world.trials] == ["default", "default"]
    assert [reflection.trial for reflection in world.reflections] == ["t001", "t002"]
    assert world.over is not None and world.over.summary


def test_a_dataset_with_its_own_list_uses_only_that_one(tmp_path: Path) -> None:
    recipes = read_recipes(written(tmp_path, TWO))
    assert recipes.steps("other", "sasrec") == (Step({"lr": 0.003}),)
    assert len(recipes.steps("demo", "sasrec")) == 2 and recipes.steps("demo", "hstu") == ()


def test_a_control_with_ties_in_random_order_runs_the_list_of_the_plain_dataset(tmp_path: Path) -> None:
    text = TWO + "[[own-ties-random.sasrec]]\nchanges.lr = 0.004\n[[own.sasrec]]\nchanges.lr = 0.005\n"
    recipes = read_recipes(written(tmp_path, text))
    assert recipes.steps("other-ties-random", "sasrec") == recipes.steps("other", "sasrec") == (Step({"lr": 0.003}),)
    assert recipes.steps("own-ties-random", "sasrec") == (Step({"lr": 0.004}),)
    assert recipes.steps("demo-ties-random", "sasrec") == recipes.steps("demo", "sasrec")
    assert recipes.steps("other-ties-random", "hstu") == ()


def test_a_sweep_has_every_combination_over_the_best_trial_other_than_the_default(tmp_path: Path) -> None:
    text = "[[sasrec]]\nsweep.transition_weight = [2.0, 4.0]\nsweep.popularity_weight = 0.25\n"
    (step,) = read_recipes(written(tmp_path, text)).steps("d", "sasrec")
    world = World(surface=lambda config: 0.9 if config.lr == 0.0003 else config.lr)  # the default is best
    world.play(RecipeAgent(Recipes({"sasrec": [Step({}), Step({"lr": 0.002}), Step({"lr": 0.001})]}, {})))
    action = step.action(History(world.situation))
    expected = tuple({"transition_weight": weight, "popularity_weight": 0.25} for weight in (2.0, 4.0))
    assert action == Sweep(expected, "t002")
    alone = World()
    (first,) = decide(RecipeAgent(Recipes({"sasrec": [step]}, {})), alone.situation)
    assert isinstance(first, Sweep) and first.base == "default"


def test_a_step_with_teachers_learns_from_the_best_models_so_far(tmp_path: Path) -> None:
    text = "".join(f"[[sasrec]]\nchanges.lr = {lr}\n" for lr in (0.003, 0.001, 0.002))
    text += '[[sasrec]]\nteachers = 2\nchanges.loss = "full_softmax"\n'
    scores = {3e-3: 0.058, 1e-3: 0.06, 2e-3: 0.059}
    world = World(lambda config: scores.get(config.lr, 0.055), trials_max=9)
    world.play(RecipeAgent(read_recipes(written(tmp_path, text))))
    assert world.trials[3]["changes"] == {"loss": "full_softmax", "teachers": "t002+t003"}
    assert world.trials[3]["base"] == "default"
    agent = RecipeAgent(Recipes({"sasrec": [Step({"lr": 1e-3}), Step({}, teachers=1)]}, {}))
    waits = World()
    for _ in range(2):  # the first step, and its reflection
        waits.execute(decide(agent, waits.situation))
    waits.running = "t001"
    assert decide(agent, waits.situation) == (WaitTrial("t001"),)


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_training_that_crashed_is_run_once_more(attempts: int) -> None:
    """As after a power cut, which leaves the trial that was running as a crash."""
    left = attempts

    def fragile(config: Any) -> float:
        nonlocal left
        if config.lr != 2e-3 or not left:
            return float(config.lr)
        left -= 1
        return float("nan")

    world, agent = World(fragile), RecipeAgent(Recipes({"sasrec": [Step({"lr": lr}) for lr in (1e-3, 2e-3, 4e-3)]}, {}))
    while not world.over:
        world.configs = {t: config for t, config in world.configs.items() if t != "t002"}  # a crash may be repeated
        world.execute(decide(agent, world.situation))
    assert [row["changes"]["lr"] for row in world.trials] == [1e-3, 2e-3, 2e-3, 4e-3]
    assert [row["status"] for row in world.trials][2] == ("finished" if attempts == 1 else "crashed")


def test_a_student_that_crashed_is_run_once_more_with_its_teachers_whatever_was_trained_since() -> None:
    def row(handle: str, status: str = "finished", **changes: Any) -> PastTrial:
        return PastTrial(trial=handle, number=int(handle[1:]), base="default", changes=changes, settings=changes,
                         status=status, reflected=True)  # type: ignore[arg-type]

    student = row("t002", "crashed", teachers="t001", lr=2e-3)
    assert next_step([row("t001"), student]) == (1, student)
    assert next_step([row("t001"), student, row("t003", lr=1e-3)]) == (1, student), "t003 may be a better teacher"
    assert next_step([row("t001"), student, row("t003", teachers="t001", lr=2e-3)]) == (2, None)
    default = row("t001", "crashed")
    assert next_step([default]) == (0, default), "the plain default as well"

    world = World(trials_max=9)
    agent = RecipeAgent(Recipes({"sasrec": [Step({"lr": 1e-3}), Step({"loss": "full_softmax"}, teachers=1)]}, {}))
    while len(world.trials) < 2:
        world.execute(decide(agent, world.situation))
    world.trials[1] |= {"status": "crashed", "metrics": {}, "verdict": None, "reflected": True}
    world.trials[1]["changes"] = {"loss": "full_softmax", "teachers": "another/t007"}  # the best one when it began
    (action,) = decide(agent, world.situation)
    assert isinstance(action, RunTrial) and action.changes == world.trials[1]["changes"]


def test_a_student_that_comes_first_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(ConfigError, match="a step with teachers needs a trained model"):
        decide(RecipeAgent(Recipes({"sasrec": [Step({"lr": 1e-3}, teachers=2)]}, {})), World().situation)


def test_a_recipe_goes_on_where_an_earlier_process_left_it() -> None:
    recipes = Recipes({"sasrec": [Step({"lr": 0.001}), Step({"lr": 0.002})]}, {})
    world = World()
    world.execute(decide(RecipeAgent(recipes), world.situation))
    (reflection,) = decide(RecipeAgent(recipes), world.situation)
    assert isinstance(reflection, Reflect)
    world.execute([reflection])
    (action,) = decide(RecipeAgent(recipes), world.situation)
    assert isinstance(action, RunTrial) and action.changes == {"lr": 0.002}
    assert action.override  # a rule of an earlier session does not refuse what is given


def test_a_session_without_memory_is_refused_because_its_earlier_trials_are_hidden(tmp_path: Path) -> None:
    world = World(trials_max=9, memory=False)
    with pytest.raises(ConfigError, match="this session without memory hides them; open another one with --new"):
        world.play(make_agent(f"recipe:{written(tmp_path, TWO)}"))
    assert not world.trials


def test_a_refused_step_raises_the_reason_and_an_empty_recipe_ends_at_once() -> None:
    world = World()
    world.refused.append(Refusal({"lr": 7.0}, "default", "lr=7 is out of range"))
    with pytest.raises(ConfigError, match="step 1 of the recipe was refused: lr=7 is out of range"):
        decide(RecipeAgent(Recipes({"sasrec": [Step({"lr": 7.0})]}, {})), world.situation)
    (action,) = decide(RecipeAgent(Recipes({}, {})), World().situation)
    assert isinstance(action, Finalize)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("lr = 1", "lr is no list of steps"),
        ("[sasrec]\nlr = 1", r"sasrec is no list of steps; write each step under \[\[sasrec\]\]"),
        ("[[sasrec]]\nlr = 1", "step 1 of sasrec has lr; give either changes or sweep"),
        ("[[sasrec]]", "has nothing"), ("[[sasrec]]\nover = \"t001\"\nchanges.lr = 1", "over='t001' is not known"),
        ("[[sasrec]]\nsweep.fusion = []", "sweep has no settings"), ("[[sasrec", "is not TOML"),
        ("[[sasrec]]\nchanges.lr = 1\nsweep.fusion = [1]", "either changes or sweep"),
        ("[[sasrec]]\nchanges = 3", "step 1 of sasrec: changes=3 names no knob; write changes.KNOB = VALUE"),
        ("[[sasrec]]\nsweep = 3", r"sweep=3 names no knob; write sweep.KNOB = \[VALUE, ...\]"),
        ("sasrec = [1, 2]", "step 1 of sasrec is 1; write it as changes.KNOB = VALUE"),
        ("[[sasrec]]\nsweep = [1]", "sweep has no settings"),
        ("[[sasrek]]\nchanges.lr = 1", r"sasrek is no list of steps; did you mean \[\[sasrec\]\]"),
        ("[[shop.HSTU]]\nchanges.lr = 1", r"shop.HSTU is no list of steps; did you mean \[\[shop.hstu\]\]"),
        ("[sasrek]\nchanges.lr = 1", r"sasrek.changes is no list of steps; did you mean \[\[sasrec\]\]"),
        ("[[gru]]\nchanges.lr = 1", "gru is no list of steps; the lists are sasrec, hstu, ensemble, alone or after"),
        ("[shop]\nsasrec = 1", r"shop.sasrec is no list of steps; write each step under \[\[shop.sasrec\]\]"),
        ("[[sasrec]]\nchanges.lr = inf", "step 1 of sasrec: lr=inf is no value of a knob; write a finite number"),
        ("[[sasrec]]\nsweep.temperature = [1.0, nan]", "temperature=nan is no value"),
        ("[[sasrec]]\nchanges.lr = 2026-01-01", "lr=2026-01-01 is no value"),
        ("[[sasrec]]\nteachers = 9\nchanges.lr = 1", "step 1 of sasrec: teachers=9 is not from 1 to 4"),
        ("[[sasrec]]\nteachers = 1\nchanges.teachers = [\"t001\"]", "has teachers and changes.teachers; give one"),
        ("[[sasrec]]\nteachers = true\nchanges.lr = 1", "teachers=True is not from 1 to 4"),
        ("[[sasrec]]\nteachers = 2\nsweep.fusion = [\"blend\"]", "a sweep trains nothing, so it has no teachers"),
        ("[[sasrec]]\nteachers = 2", "step 1 of sasrec has teachers; give either changes or sweep"),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_refused_with_the_place(tmp_path: Path, text: str, reason: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError, match=reason):
        check_agent(f"recipe:{file}")


def test_a_recipe_needs_a_file_that_can_be_read() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        check_agent("recipe:nothing.toml")
    with pytest.raises(ConfigError, match="or recipe:FILE"):
        check_agent("recipe")

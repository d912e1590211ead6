"""The package in Python: its public names are lazy, `help()` of a tool is readable, results print as tables."""

import inspect
import pydoc
import subprocess
import sys

import pytest

import virtualmle
from virtualmle.models.config import KNOBS, knobs_named
from virtualmle.server.app import TOOLS
from virtualmle.tools.results import Budget, SessionList, SessionSummary, TrialObservation

OBSERVATION = TrialObservation(
    session="demo-sasrec-1",
    trial="t001",
    status="finished",
    base="default",
    changes={"lr": 0.001},
    metrics={"ndcg@10": 0.12345678},
    reason="<b>kept</b>",
    budget=Budget(trials_used=1, trials_max=3, train_seconds_used=1.23456, train_seconds_max=9),
    next="reflect",
)


def test_importing_the_package_loads_no_library() -> None:
    program = "import sys; before = set(sys.modules); import virtualmle; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    libraries = {name.split(".")[0] for name in done.stdout.split()} - {"virtualmle"} - sys.stdlib_module_names
    assert libraries == set(), "the package loads libraries before a public name is used"


def test_every_tool_and_the_workspace_are_public_names() -> None:
    tools = {tool.__name__ for tool, _ in TOOLS}
    assert tools | {"Recommender", "Workspace", "Settings"} == set(virtualmle.__all__) <= set(dir(virtualmle))
    assert all(inspect.getmodule(getattr(virtualmle, name)) for name in virtualmle.__all__)
    with pytest.raises(AttributeError, match="it offers"):
        virtualmle.run_trials  # noqa: B018


@pytest.mark.parametrize("tool", [tool for tool, _ in TOOLS], ids=lambda tool: tool.__name__)
def test_help_shows_types_and_descriptions(tool: object) -> None:
    text = pydoc.plain(pydoc.render_doc(tool))
    assert "FieldInfo" not in text and "Annotated" not in text
    described = inspect.signature(inspect.unwrap(tool))  # type: ignore[arg-type]
    for name, parameter in described.parameters.items():
        for note in getattr(parameter.annotation, "__metadata__", ()):
            words = " ".join(text.split())
            assert f" {name}: " in words and " ".join(note.description.split()) in words


def test_a_result_prints_as_a_table_without_empty_fields() -> None:
    lines = str(OBSERVATION).splitlines()
    assert "metrics        ndcg@10 0.1235" in lines and not any(line.startswith("sweep") for line in lines)
    page = OBSERVATION._repr_html_()
    assert page.startswith("<table>") and "&lt;b&gt;kept" in page and "<b>" not in page


def test_sessions_print_as_one_table() -> None:
    row = SessionSummary(
        session="demo-sasrec-1", dataset="demo", backbone="sasrec", state="open", trials=1, best_ndcg10=None,
        opened_at="2026",
    )  # fmt: skip
    heading, line = str(SessionList(sessions=[row])).splitlines()
    assert heading.split()[:2] == ["session", "dataset"] and line.split()[0] == "demo-sasrec-1"
    assert str(SessionList(sessions=[])).split()[0] == "session"


@pytest.mark.parametrize(
    ("words", "knobs"),
    [
        ("learning rate", ["lr"]),
        ("Embedding size", ["hidden_dim"]),
        ("width and layers", ["hidden_dim", "num_blocks"]),
        ("more negatives", ["num_negatives"]),
        ("embedding dropout", ["embedding_dropout"]),
        ("the rate of zebras", []),
    ],
)
def test_knobs_are_named_in_words(words: str, knobs: list[str]) -> None:
    assert knobs_named(words) == knobs
    assert all(knobs_named(name) == [name] for name in KNOBS)

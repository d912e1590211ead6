"""The pages for users against the command line: every command and option exists, and the tutorial runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import typer

import virtualmle
from tests.quick_home import environment, quick_home
from virtualmle.cli.app import app, main

DOCS = Path(virtualmle.__file__).parent / "docs"
PAGES = ("tutorial.md", "glossary.md", "after-tuning.md", "export.md", "serving.md", "security.md", "mcp-clients.md")
ENDLESS, ELSEWHERE = "serve-model", "convert"  # tests/test_serving_readme.py and test_serving_portable.py run them
TUNING = ("tune", "sessions resume")


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The words after `virtualmle` of every command in a page: in blocks, in indented lines, and in running text."""
    text = (DOCS / page).read_text(encoding="utf-8")
    whole = re.findall(r"^(?:    )?virtualmle (.+)$", text, flags=re.MULTILINE)
    inline = re.findall(r"`virtualmle ([^`]+)`", text)
    return [shlex.split(line, comments=True) for line in [*whole, *inline]]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_in_a_page_exists(page):
    root = typer.main.get_command(app)
    for words in commands(page):
        command, rest = root, words
        while rest and hasattr(command, "commands"):
            assert rest[0] in command.commands, f"{page}: virtualmle {' '.join(words)} is no command"
            command, rest = command.commands[rest[0]], rest[1:]
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        unknown = [word for word in rest if word.startswith("--") and word not in known]
        assert not unknown, f"{page}: virtualmle {' '.join(words)} has no option {unknown}"


def test_every_section_about_a_command_is_linked_from_the_table_of_its_page():
    text = (DOCS / "after-tuning.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert re.findall(r"\[`([^`]+)`\]\(#", text) == sections
    root = typer.main.get_command(app)
    for section in sections:
        command = root
        for word in section.split():
            command = command if word.startswith("--") else command.commands[word]


@pytest.mark.slow
def test_the_tutorial_runs_word_by_word(tmp_path, monkeypatch, capsys):
    home = quick_home(tmp_path / "home")
    monkeypatch.chdir(home)
    first, last = blocks("tutorial.md", "python")
    exec(first.replace("num_users=600, num_items=200", "num_users=200, num_items=60"), {})
    for words in [shlex.split(line)[1:] for block in blocks("tutorial.md", "sh") for line in block.splitlines()]:
        name = " ".join(words[:2])
        if words[0] in {ENDLESS, ELSEWHERE}:
            continue
        if name.startswith(TUNING):
            fewer = ["2" if word == "6" else word for word in words]
            done = subprocess.run(
                [sys.executable, "-P", "-m", "virtualmle", *fewer],
                env=environment(), capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{words}: {done.stderr}"
        else:
            with pytest.raises(SystemExit) as left:
                main(words)
            assert left.value.code in (0, None), words
    assert pl.read_parquet("recs.parquet")["rank"].max() == 20
    assert (home / "shop-model-new" / "MODEL_CARD.md").exists()
    capsys.readouterr()
    exec(last, {})
    assert len(capsys.readouterr().out.splitlines()) >= 10

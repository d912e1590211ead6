"""The datasets of a record: both orders of ties of one log, under whatever names they are registered."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from virtualmle.cli.app import main
from virtualmle.compare.record import RecordRequest, tasks_of
from virtualmle.compare.record_outcome import other_looks
from virtualmle.compare.record_task import RecordTask
from virtualmle.data.catalogue import Catalogue
from virtualmle.data.errors import ConfigError
from virtualmle.examiner.ledger import Ledger
from virtualmle.examiner.vault import Vault

RECIPE = "[[mynano.sasrec]]\nchanges.hidden_dim = 24\n\n[[sasrec]]\nchanges.hidden_dim = 32\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of two events a day, with a file of recipes beside it."""
    generator = np.random.default_rng(0)
    rows = [
        f"u{user},i{item:02d},{place // 2}"
        for user in range(60)
        for place, item in enumerate(generator.permutation(30)[:12])
    ]
    file = tmp_path / "nano.csv"
    file.write_text("\n".join(["user,item,timestamp", *rows]) + "\n", encoding="utf-8")
    (tmp_path / "recipes.toml").write_text(RECIPE, encoding="utf-8")
    return file


def add(log: Path, *words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", "add", *words, "--home", str(log.parent)])
    assert ended.value.code == 0


def tasks(log: Path, dataset: str, ties: str) -> list[RecordTask]:
    home = log.parent
    request = RecordRequest(
        home, home / "out", (dataset,), backbones=("sasrec",), recipes=home / "recipes.toml", ties=ties
    )
    return tasks_of(request)


def test_a_registered_dataset_is_paired_with_its_control_or_refused_with_the_command_that_adds_one(log: Path) -> None:
    add(log, "mynano", str(log), "--k-core", "3")
    for ties in ("both", "random"):
        with pytest.raises(ConfigError, match="'mynano' has no control") as refused:
            tasks(log, "mynano", ties)
    command = re.sub(r".*: virtualmle data add ", "", str(refused.value)).replace(" FILE ", f" {log} ")
    assert command == f"mynano-ties-random {log} --k-core 3 --ties random"
    add(log, *shlex.split(command))
    plain, control = tasks(log, "mynano", "both")
    assert (plain.dataset, control.dataset) == ("mynano", "mynano-ties-random")
    assert plain.dataset_id != control.dataset_id and plain.parts() == control.parts()
    assert plain.parts()[0].steps[0].changes == {"hidden_dim": 24}
    assert tasks(log, "mynano", "random") == [control] == tasks(log, "mynano-ties-random", "random")
    assert tasks(log, "mynano-ties-random", "file") == [control]
    with pytest.raises(ConfigError, match="has ties in random order; name the dataset in the order of the file"):
        tasks(log, "mynano-ties-random", "both")


def test_a_control_that_was_prepared_otherwise_is_none(log: Path) -> None:
    add(log, "mynano", str(log))
    add(log, "mynano-ties-random", str(log), "--ties", "random", "--k-core", "3")
    with pytest.raises(ConfigError, match="virtualmle data replace mynano-ties-random FILE --ties random"):
        tasks(log, "mynano", "both")


def test_a_file_that_is_registered_under_another_name_is_paired_with_its_control(log: Path) -> None:
    add(log, "mynano", str(log))
    plain, control = tasks(log, str(log), "both")
    assert (plain.dataset, control.dataset) == ("mynano", "nano-ties-random")
    assert plain.listed_as == control.listed_as == "mynano" and plain.parts() == control.parts()
    assert tasks(log, str(log), "random") == [control] == tasks(log, "mynano", "random")
    assert [task.dataset for task in tasks(log, "mynano", "both")] == ["mynano", "nano-ties-random"]


def look(home: Path, session: str, dataset: str, dataset_id: str, fingerprint: str) -> None:
    vault = Vault(home)
    vault.create_directory()
    Ledger(vault.directory).record(session, dataset, dataset_id, fingerprint)


def test_looks_at_a_content_count_under_whatever_id_and_those_of_the_control_of_the_record_do_not(log: Path) -> None:
    fewer = log.with_name("fewer.csv")
    fewer.write_text(log.read_text(encoding="utf-8").replace("u7,", "u007,"), encoding="utf-8")
    add(log, "renamed", str(fewer))
    plain, control = tasks(log, str(log), "both")
    base, earlier, own = log.parent, log.parent / "earlier", [log.parent / name for name in ("plain", "control")]
    near = Catalogue(base).manifest("renamed").dataset_id
    for home, task in zip(own, (plain, control), strict=True):
        look(home, "own-1", task.dataset, task.dataset_id, "content")
    counted = [base, earlier, *own]
    assert other_looks(base, own, counted, plain.dataset_id) == 0
    look(base, "a-1", "nano-ties-random", control.dataset_id, "content")
    look(base, "a-2", "renamed", near, "nearly")
    look(base, "a-3", "another", "another id", "other content")
    look(earlier, "a-1", "nano, prepared otherwise", "a third id", "content")
    assert [other_looks(base, own, counted, task.dataset_id) for task in (plain, control)] == [3, 3]
    assert other_looks(base, own[:1], counted, plain.dataset_id) == 4  # the control of another record


def test_a_dataset_that_is_available_needs_no_registration(log: Path) -> None:
    assert [(task.dataset, task.listed_as) for task in tasks(log, "demo", "both")] == [
        ("demo", "demo"), ("demo-ties-random", "demo")
    ]  # fmt: skip

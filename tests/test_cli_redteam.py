"""The attacks of `virtualmle redteam` and `doctor`: their verdicts are true, and docs/security.md lists them all."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import virtualmle
from tests.quick_home import environment
from virtualmle.cli.app import main
from virtualmle.cli.attacks import homes, registry
from virtualmle.cli.attacks.agent import figures_found
from virtualmle.cli.attacks.attack import Attack
from virtualmle.cli.attacks.scene import Scene, build_scene, dataset_directory, held_if_refused
from virtualmle.cli.attacks.verdict import Verdict
from virtualmle.cli.checks import failures
from virtualmle.data.errors import SealError
from virtualmle.data.similar import visible_sketch

PAGE = Path(virtualmle.__file__).parent / "docs" / "security.md"
SEEN = {"7e", "7f", "7g", "7h", "7i"}  # a process of the same user can do this; `doctor` says so
MAY_BE_SKIPPED = {"11a", "11b"}  # a system without /proc, a kernel without Landlock


def virtualmle_json(*arguments: str, timeout: float = 1200) -> tuple[int, dict[str, list[dict[str, str]]]]:
    command = [sys.executable, "-P", "-m", "virtualmle", *arguments, "--json"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def unexpected(attacks: list[dict[str, str]]) -> list[dict[str, str]]:
    """The attacks that ended in another way than docs/security.md says."""
    expected = {number: {"seen" if number in SEEN else "held"} for number in registry.NUMBERS}
    for number in MAY_BE_SKIPPED:
        expected[number].add("skipped")
    return [attack for attack in attacks if attack["outcome"] not in expected[attack["number"]]]


def ignore(attack: Attack, verdict: Verdict) -> None:
    del attack, verdict


def test_the_page_has_a_row_for_every_attack_and_no_other() -> None:
    rows = re.findall(r"^\| (\w+)( \*)? \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    numbers = {number: bool(star) for number, star in rows if re.fullmatch(r"S\d|\d+[a-z]?", number)}
    attacks = {attack.number: attack.is_quick for attack in registry.SHELL_ATTACKS}
    expected = {number: attacks.get(number, False) for number in registry.NUMBERS}
    assert numbers == expected


def test_an_attack_that_succeeds_is_seen_only_if_a_check_fails_that_did_not_fail_before(tmp_path: Path) -> None:
    found = {tmp_path / "base": {"vault": "as ever"}, tmp_path / "home": {"vault": "as ever"}}
    scene = Scene(tmp_path, tmp_path / "base", "s", tmp_path / "log", [], lambda home: found[home])

    def refuse() -> None:
        raise SealError("this was refused")

    assert held_if_refused(refuse, "a thing was done", scene, tmp_path / "home").outcome == "held"
    assert held_if_refused(lambda: None, "a thing was done", scene, tmp_path / "home").outcome == "fell"
    found[tmp_path / "home"]["records"] = "entry 7 does not fit"
    seen = held_if_refused(lambda: None, "a thing was done", scene, tmp_path / "home")
    assert seen.outcome == "seen" and "entry 7 does not fit" in seen.detail


def test_a_test_figure_is_found_in_every_notation_unless_it_was_shown_before_the_look() -> None:
    metrics = {"ndcg@10": 0.042371, "recall@10": 0.5}
    for text in ("it is 0.0424 now", "0.042371", "as .0424,", '{"x": 0.0424}'):
        assert figures_found(text, metrics), text
    for text in ("10.0424", "0.04", "0.5000", "nothing"):
        assert not figures_found(text, metrics), text
    assert not figures_found("0.0424", metrics, before="validation 0.0424")


def test_test_figures_in_the_log_of_another_tuning_server_are_found(tmp_path: Path) -> None:
    home = tmp_path / "tuner"
    (home / "runs").mkdir(parents=True)
    log = home / "runs" / "history.jsonl"
    log.write_text('{"trial": 1, "valid_ndcg@10": 0.0512}\n')
    assert homes.figures_below(home).outcome == "held"
    lines = ('{"test_ndcg@10": 0.0488}', "test set: NDCG@10 = 0.0488", "Test Recall: 0.12", '{"test": {"mrr": 0.031}}')
    for line in lines:
        log.write_text(line)
        assert homes.figures_below(home).outcome == "fell", line
    log.chmod(0o644)
    home.chmod(0o755)
    assert homes.open_files_below(home).outcome == "fell"
    home.chmod(0o700)
    assert homes.open_files_below(home).outcome == "held"
    log.write_text("nothing")
    assert [verdict.outcome for _, verdict in homes.scan_home(home, ignore)] == ["held", "held"]


def test_an_unknown_number_is_refused_before_anything_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["redteam", "--only", "7c,99"])
    assert left.value.code == 1 and "99 is no attack; choose from S1," in capsys.readouterr().err


@pytest.mark.slow
def test_an_attack_on_a_copy_leaves_the_scratch_home_as_it_was_and_says_why_it_held(tmp_path: Path) -> None:
    scene = build_scene(tmp_path, failures)
    before = {path: path.read_bytes() for path in scene.base.rglob("*") if path.is_file()}
    chosen = [attack for attack in registry.SHELL_ATTACKS if attack.number in ("S1", "7a", "12")]
    verdicts = {attack.number: attack.run(scene) for attack in chosen}
    assert verdicts["S1"].outcome == "held" and "cannot be decrypted" in verdicts["S1"].detail
    assert verdicts["12"].outcome == "held" and "sealed choice" in verdicts["12"].detail
    assert {path: path.read_bytes() for path in scene.base.rglob("*") if path.is_file()} == before
    visible_sketch(dataset_directory(scene.base))  # is kept beside the arrays, and belongs there
    assert failures(scene.base) == {}
    (dataset_directory(scene.base) / "test_items.npy").write_bytes(b"\x93NUMPY")
    assert "plain targets" in failures(scene.base)


@pytest.mark.slow
def test_the_red_team_tries_every_attack_and_its_exit_code_says_whether_one_fell() -> None:
    code, found = virtualmle_json("redteam")
    outcomes = {attack["number"]: attack["outcome"] for attack in found["attacks"]}
    assert list(outcomes) != [] and set(outcomes) == set(registry.NUMBERS)
    assert unexpected(found["attacks"]) == [] and code == 0


@pytest.mark.slow
def test_the_doctor_tries_the_quick_attacks_and_its_exit_code_says_whether_one_fell(tmp_path: Path) -> None:
    code, found = virtualmle_json("doctor", "--home", str(tmp_path))
    outcomes = {attack["number"]: attack["outcome"] for attack in found["attacks"]}
    quick = {attack.number for attack in registry.SHELL_ATTACKS if attack.is_quick}
    assert set(outcomes) == quick and unexpected(found["attacks"]) == []
    assert code == 0 and [each for each in found["findings"] if each["status"] == "fail"] == []
    assert list(tmp_path.iterdir()) == []  # the home that was asked about is only read

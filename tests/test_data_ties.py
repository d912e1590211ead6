"""Ties in random order: what is permuted, what stays, and that the dataset is never taken for the one in file order."""

import hashlib
import json
from itertools import groupby
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.exported import contents_of
from virtualmle.cli.app import main
from virtualmle.data.catalogue import Catalogue
from virtualmle.data.demo import generate_demo
from virtualmle.data.errors import ConfigError, DataError
from virtualmle.data.prepare import collapse_duplicates, prepare
from virtualmle.data.prepared import TRAIN, Manifest, PreparedDataset, PrepareOptions
from virtualmle.data.readers import Log, read_log
from virtualmle.data.seal import NO_TARGET
from virtualmle.data.ties import has_ties, in_drawn_order
from virtualmle.examiner.unseal import Targets, open_test
from virtualmle.examiner.vault import Vault
from virtualmle.report.split_agreement import targets_of
from virtualmle.serving import Recommender
from virtualmle.serving.artifact import write_export
from virtualmle.serving.continuation import ContinueOptions
from virtualmle.serving.continuing import continue_export
from virtualmle.serving.evaluation import evaluate_export
from virtualmle.serving.later_events import later_events
from virtualmle.serving.sums import load_sums
from virtualmle.tools.contents import content_in
from virtualmle.tools.open_session import open_session
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.trials.warm import retire

Row = tuple[str, str, int]
FILE, RANDOM = PrepareOptions(k_core=1), PrepareOptions(k_core=1, ties="random")
DAY = 86_400
NUM_USERS = 400


def log_of(rows: list[Row]) -> Log:
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "timestamp": pl.Int64}, orient="row")
    return Log(frame, {role: role for role in frame.columns}, len(rows))


def tied_rows() -> list[Row]:
    """Two or three events a day, those of one day by item id as in Amazon's logs; every third user has no tie."""
    draw = np.random.default_rng(11)
    rows = []
    for user in range(NUM_USERS):
        for day in range(4):
            items = sorted(draw.choice(60, 1 if user % 3 == 0 else int(draw.integers(2, 4)), replace=False))
            rows += [(f"u{user}", f"i{item:02d}", (day + user) * DAY) for item in items]
    return rows


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "home")


def prepared(log: Log, name: str, options: PrepareOptions, tmp_path: Path, vault: Vault) -> tuple[Manifest, Targets]:
    manifest = prepare(log, name, tmp_path / "data" / name, options, vault.public_key(), vault.mac_key())
    opened = open_test(tmp_path / "data" / name, vault.private_key(), manifest.dataset_id, manifest.num_users)
    return manifest, opened


def sequences(directory: Path, targets: Targets) -> dict[str, list[tuple[int, str]]]:
    """(time, item) of all events of every user, by original ids, the test target last."""
    dataset = PreparedDataset.load(directory)
    users = pl.read_parquet(directory / "user_ids.parquet")["original_id"]
    items = dict(enumerate(pl.read_parquet(directory / "item_ids.parquet")["original_id"])) | targets.item_names
    seen = dataset.visible_histories()
    assert seen.times is not None
    found = {}
    for number, user in enumerate(users):
        part = slice(seen.offsets[number], seen.offsets[number + 1])
        found[user] = [(int(t), items[int(i)]) for t, i in zip(seen.times[part], seen.items[part], strict=True)]
    for user, item, time in zip(targets.users, targets.items, targets.timestamps, strict=True):
        found[users[int(user)]].append((int(time), items[int(item)]))
    return found


@st.composite
def logs(draw: st.DrawFn) -> list[Row]:
    event = st.tuples(st.sampled_from("abc"), st.sampled_from("xyzw"), st.integers(0, 3))
    return [*draw(st.lists(event, max_size=25)), *[("a", item, 9) for item in "xyzw"]]


@given(logs())
def test_the_draw_is_the_documented_one_and_does_not_depend_on_the_order_of_rows(rows: list[Row]) -> None:
    found = in_drawn_order(log_of(rows).frame)
    users, items = (sorted({row[column] for row in rows}) for column in (0, 1))
    text = b"VMLE-TIES-1\n"
    for names in (users, items):
        text += "\0".join([str(len(names)), *names]).encode() + b"\0"
    ordered = sorted(rows)
    for column in range(3):
        for row in ordered:
            value = [users.index(row[0]), items.index(row[1]), row[2]][column]
            text += value.to_bytes(8, "little")
    draws = np.random.PCG64(int.from_bytes(hashlib.sha256(text).digest(), "little")).random_raw(len(rows)).tolist()
    assert found.rows() == [row for _, row in sorted(zip(draws, ordered, strict=True))]
    assert in_drawn_order(log_of(rows[::-1]).frame).rows() == found.rows()


@given(logs())
def test_a_tie_is_two_items_of_one_user_at_one_time(rows: list[Row]) -> None:
    moments: dict[tuple[str, int], set[str]] = {}
    for user, item, time in rows:
        moments.setdefault((user, time), set()).add(item)
    assert has_ties(log_of(rows).frame) == any(len(items) > 1 for items in moments.values())
    finer = pl.Series("nanosecond", range(len(rows)), dtype=pl.Int64)
    assert not has_ties(log_of(rows).frame.with_columns(finer)), "fractions of a second order events, too"


@pytest.mark.parametrize("core_on", ["all", TRAIN])
def test_only_the_order_inside_ties_changes(core_on: str, tmp_path: Path, vault: Vault) -> None:
    log = log_of(tied_rows())
    before, file = prepared(log, "file", PrepareOptions(k_core=1, k_core_on=core_on), tmp_path, vault)
    after, random = prepared(log, "random", PrepareOptions(k_core=1, k_core_on=core_on, ties="random"), tmp_path, vault)
    old, new = sequences(tmp_path / "data" / "file", file), sequences(tmp_path / "data" / "random", random)
    assert old.keys() == new.keys() and after.dataset_id != before.dataset_id
    for user, events in old.items():
        assert [time for time, _ in events] == [time for time, _ in new[user]]
        groups = [[sorted(group) for _, group in groupby(each, lambda event: event[0])] for each in (events, new[user])]
        assert groups[0] == groups[1]
        if int(user[1:]) % 3 == 0:
            assert events == new[user], "without ties, train events and both targets are the same"
    tied = [user for user in old if int(user[1:]) % 3]
    ascending = sum(new[user][-2:] == sorted(new[user][-2:]) for user in tied)
    assert all(old[user] == sorted(old[user]) for user in tied)
    assert abs(ascending - len(tied) / 2) < 4 * (len(tied) / 4) ** 0.5, "the order of items says nothing"
    assert before.profile.keys() ^ after.profile.keys() == {"ties"}
    assert file.fingerprint == random.fingerprint, "looks at both are counted together"


def test_equal_logs_give_equal_data_in_any_order_of_rows_and_other_logs_another_draw(
    tmp_path: Path, vault: Vault
) -> None:
    rows = tied_rows()
    first, _ = prepared(log_of(rows), "first", RANDOM, tmp_path, vault)
    again, _ = prepared(log_of(rows[::-1]), "again", RANDOM, tmp_path, vault)
    assert (first.dataset_id, first.files) == (again.dataset_id, again.files)
    frame = log_of(rows).frame
    more = in_drawn_order(log_of([*rows, ("stranger", "i00", 0)]).frame).filter(pl.col("user") != "stranger")
    assert not more.equals(in_drawn_order(frame)) and more.sort("*").equals(frame.sort("*"))


def test_a_log_without_ties_is_the_same_dataset_under_another_name(tmp_path: Path, vault: Vault) -> None:
    rows = [(f"u{user}", f"i{(3 * user + day) % 20}", day) for user in range(30) for day in range(6)]
    log = log_of([*rows, *rows[:5]])  # repeated rows are no ties
    for duplicates in (False, True):
        made = [
            prepared(log, f"{ties}-{duplicates}",
                     PrepareOptions(k_core=1, keep_duplicates=duplicates, ties=ties), tmp_path, vault)
            for ties in ("file", "random")
        ]  # fmt: skip
        (plain, file), (drawn, random) = made
        assert (plain.dataset_id, plain.files, plain.profile) == (drawn.dataset_id, drawn.files, drawn.profile)
        assert file.items.tolist() == random.items.tolist() and not drawn.has_random_ties
        assert "ties" not in json.loads(plain.model_dump_json())["options"]


def test_ties_in_the_test_part_only_make_another_dataset_too(tmp_path: Path, vault: Vault) -> None:
    rows = [(f"u{user}", f"i{(user + day) % 9}", day * DAY + user) for user in range(60) for day in range(30)]
    rows += [(f"u{user}", f"i{item}", 30 * DAY) for user in range(60) for item in range(9)]
    by_time = {"k_core": 1, "split": "time", "holdout": "12h"}
    log = Log(log_of(rows).frame, {}, len(rows), has_clock=True)
    plain, file = prepared(log, "file", PrepareOptions(**by_time), tmp_path, vault)
    drawn, random = prepared(log, "random", PrepareOptions(**by_time, ties="random"), tmp_path, vault)
    assert plain.files == drawn.files and plain.dataset_id != drawn.dataset_id
    assert (random.timestamps == file.timestamps).all() and NO_TARGET not in random.items
    assert len(set(file.items.tolist())) == 1 and len(set(random.items.tolist())) > 4


def test_43_percent_of_the_users_of_beauty_have_their_last_two_events_on_one_day(
    shared_data: Path, tmp_path: Path, vault: Vault
) -> None:
    log = read_log(shared_data / "beauty.tsv.gz")
    plain, file = prepared(log, "file", PrepareOptions(), tmp_path, vault)
    drawn, random = prepared(log, "random", PrepareOptions(ties="random"), tmp_path, vault)
    old, new = (sequences(tmp_path / "data" / name, opened) for name, opened in (("file", file), ("random", random)))
    assert (plain.num_users, plain.num_items, plain.num_interactions) == (
        drawn.num_users, drawn.num_items, drawn.num_interactions
    )  # fmt: skip
    tied = [user for user, events in old.items() if events[-1][0] == events[-2][0]]
    assert (len(tied), len(old)) == (9_719, 22_363)
    shares = [sum(int(each[u][-2][1]) < int(each[u][-1][1]) for u in tied) / len(tied) for each in (old, new)]
    assert shares[0] == 1 and abs(shares[1] - 0.5) < 4 * 0.5 / len(tied) ** 0.5
    loose = [user for user, events in old.items() if len({time for time, _ in events}) == len(events)]
    assert loose and all(old[user] == new[user] for user in loose)


def test_names_and_refusals_keep_the_two_apart(tmp_path: Path, vault: Vault) -> None:
    catalogue, key, file = Catalogue(tmp_path / "home"), vault.public_key(), tmp_path / "shop.csv"
    log_of(tied_rows()).frame.write_csv(file)
    names = [catalogue.resolve(str(file), key, options=options) for options in (None, PrepareOptions(ties="random"))]
    assert names == ["shop", "shop-ties-random"]
    assert catalogue.resolve(str(file), key, options=PrepareOptions(ties="random")) == "shop-ties-random"
    assert PrepareOptions(split="time", holdout="9d", ties="random").suffix == "-time-9d-ties-random"
    with pytest.raises(DataError, match="registered with --split leave-one-out, not .* --ties random"):
        catalogue.resolve("shop", key, options=PrepareOptions(ties="random"))
    ids = {catalogue.manifest(name).dataset_id for name in names}
    assert len(ids) == 2 and content_in(tmp_path / "home", ids.pop()) >= ids, "one content: results are withheld"
    with pytest.raises(DataError, match="ties='none' is not known; use file or random"):
        PrepareOptions(ties="none")


def test_the_command_line_prepares_the_control_and_says_what_became_of_the_ties(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--home", str(tmp_path / "home")])
        said = capsys.readouterr()
        assert not ended.value.code, said.err
        return said.out

    demo, control = (run("data", "prepare", "demo", *ties) for ties in ((), ("--ties", "random")))
    assert "demo-ties-random: 700 users" in control and "was drawn at random (--ties random)" in control
    assert "ties" not in demo and "ties                 in random order" in control
    rows = pl.DataFrame([(f"u{u}", f"i{(u + d) % 9}", d) for u in range(20) for d in range(9)],
                        schema=["user", "item", "position"], orient="row")  # fmt: skip
    rows.write_csv(tmp_path / "order.csv")
    said = run("data", "add", "order", str(tmp_path / "order.csv"), "--timestamp", "position", "--ties", "random")
    assert "no user has two events at one time, so --ties random changed nothing but the name" in said


def test_sessions_on_the_control_say_so_and_share_no_trial_with_the_plain_dataset(tmp_path: Path) -> None:
    settings = Settings(threads=1, with_reflection=False, keep_warm=60, max_sessions=9)
    ws = Workspace.open(tmp_path / "home", settings=settings)
    for name, options in (("demo", None), ("demo-ties-random", PrepareOptions(ties="random"))):
        assert ws.catalogue.resolve("demo", Vault(ws.home).public_key(), options=options) == name
    plain, control = open_session(ws, "demo", "sasrec"), open_session(ws, "demo-ties-random", "sasrec")
    drawn = "The order of a user's events at one time is drawn at random, so it says nothing."
    assert drawn in control.rules and drawn not in plain.rules and control.profile["ties"] == "in random order"
    tiny = {"epochs": 1, "hidden_dim": 16, "batch_size": 512}
    for opened in (plain, control):
        assert run_trial(ws, opened.session, tiny).status == "finished"
    first, second = (ws.memory.trials.get(opened.session, "t001") for opened in (plain, control))
    assert first.config_hash == second.config_hash and second.outcome is not None
    assert "reused_from" not in second.outcome.details and ws.memory.trials.elsewhere(second) == []
    run_trial(ws, control.session, {**tiny, "hidden_dim": 24}, base="default")
    with pytest.raises(ConfigError, match="was trained on other data"):
        run_trial(ws, control.session, {"ensemble": [f"{plain.session}/t001", "t001"]})
    records = [ws.memory.sessions.get(opened.session) for opened in (plain, control)]
    assert ["drawn at random" in targets_of(record) for record in records] == [False, True]
    for record in records:
        retire(ws.inbox(record.id))
    ws.close()


def test_an_export_of_the_control_is_evaluated_and_continued_with_ties_in_random_order(
    tmp_path: Path, vault: Vault
) -> None:
    prepared(log_of(tied_rows()), "control", RANDOM, tmp_path, vault)
    write_export(tmp_path / "model", contents_of(tmp_path / "data" / "control", tmp_path / "trials", ("sasrec", {})))
    recommender = Recommender.load(tmp_path / "model", "cpu")
    dataset = recommender.export.config.dataset
    assert (dataset.preparation, dataset.has_random_ties) == ("leave-one-out, ties in random order", True)
    later = collapse_duplicates(log_of([(f"new-{u}", i, t) for u, i, t in tied_rows()]).frame)[0]
    drawn = later_events(later, None, recommender.index, "last", random_ties=True)
    shuffled = later_events(later.sample(fraction=1, shuffle=True, seed=1), None, recommender.index, "last",
                            random_ties=True)  # fmt: skip
    assert drawn.items.tolist() == shuffled.items.tolist()
    assert drawn.items.tolist() != later_events(later, None, recommender.index, "last").items.tolist()
    result = evaluate_export(recommender, load_sums(tmp_path / "model"), drawn).result
    continued = continue_export(tmp_path / "model", later, tmp_path / "next", ContinueOptions(epochs=1))
    assert continued.before == result
    assert Recommender.load(tmp_path / "next", "cpu").export.config.dataset.has_random_ties


def test_data_without_the_option_is_bit_for_bit_as_before(tmp_path: Path, vault: Vault) -> None:
    frame = generate_demo(num_users=150, num_items=60)
    manifest, _ = prepared(Log(frame, {role: role for role in frame.columns}, frame.height), "tiny", PrepareOptions(),
                           tmp_path, vault)  # fmt: skip
    assert manifest.dataset_id == "514696e1295d48f8a5fbfc86d85f9ace"  # as version 0.9 gave it
    assert has_ties(frame), "the demo has ties, so the option changes it"
    assert "ties" not in (tmp_path / "data" / "tiny" / "manifest.json").read_text()

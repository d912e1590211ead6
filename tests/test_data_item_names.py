"""What visible files tell of items that occur in test events: no names, and with k_core_on = "train" nothing at all."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.toy_export import PRIORS
from virtualmle.cli.app import main
from virtualmle.data.demo import generate_demo
from virtualmle.data.errors import DataError
from virtualmle.data.item_names import nameless_items, opened_names, sealed_names
from virtualmle.data.prepare import prepare
from virtualmle.data.prepared import ALL, ITEM_IDS, SEALED, TRAIN, PreparedDataset, PrepareOptions
from virtualmle.data.readers import Log
from virtualmle.data.seal import NO_TARGET
from virtualmle.examiner.main import examine
from virtualmle.examiner.refit import _rows
from virtualmle.examiner.request import read_item_names
from virtualmle.examiner.unseal import Targets, open_test
from virtualmle.examiner.vault import Vault
from virtualmle.models.build import build_model
from virtualmle.models.config import TrialConfig, make_config
from virtualmle.serving import Recommender
from virtualmle.serving.artifact import write_export
from virtualmle.serving.assembly import assemble
from virtualmle.serving.layout import TrainedModel
from virtualmle.training.checkpoint import save_checkpoint
from virtualmle.training.signature import sign_as_it_is
from virtualmle.training.spec import CHECKPOINT, TrialResult, TrialSpec, write_model

NUM_USERS, NUM_ITEMS, LENGTH = 120, 40, 7
SECRETS = 9
LOOSE = PrepareOptions(k_core=1)


def make_log(labels: list[str], num_items: int = NUM_ITEMS) -> Log:
    """A log whose users end with the given items; all earlier events are fixed."""
    rng = np.random.default_rng(3)
    rows = []
    for user in range(NUM_USERS):
        rows += [(f"user-{user}", f"item-{rng.integers(num_items)}", day) for day in range(LENGTH - 1)]
        rows.append((f"user-{user}", labels[user], 50 + user))
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "timestamp": pl.Int64}, orient="row")
    return Log(frame, {role: role for role in frame.columns}, len(rows))


def secret_labels(stem: str = "secret") -> list[str]:
    """Labels of which some are items that no other event has."""
    return [f"{stem}-{user}" if user < SECRETS else f"item-{user % NUM_ITEMS}" for user in range(NUM_USERS)]


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "home")


@pytest.fixture
def secret(tmp_path: Path, vault: Vault) -> Path:
    log = make_log(secret_labels())
    prepare(log, "toy", tmp_path / "toy", LOOSE, vault.public_key(), mac_key=vault.mac_key())
    return tmp_path / "toy"


def item_ids(directory: Path) -> pl.Series:
    return pl.read_parquet(directory / ITEM_IDS)["original_id"]


def opened(directory: Path, vault: Vault) -> Targets:
    dataset = PreparedDataset.load(directory)
    return open_test(directory, vault.private_key(), dataset.dataset_id, dataset.num_users)


def test_items_of_test_events_only_are_named_in_the_seal_and_nowhere_else(secret: Path, vault: Vault) -> None:
    ids, targets = item_ids(secret), opened(secret, vault)
    assert (ids.null_count(), len(ids)) == (SECRETS, NUM_ITEMS + SECRETS)
    assert not any(name.startswith("secret") for name in ids.drop_nulls())
    assert not any(b"secret" in path.read_bytes() for path in secret.iterdir())
    assert sorted(targets.item_names.values()) == sorted(f"secret-{n}" for n in range(SECRETS))
    assert {ids[item] for item in targets.item_names} == {None}
    users = targets.users
    rows = _rows(secret, targets.item_names, users, targets.items, targets.timestamps)
    expected = {(f"user-{u}", label, 50 + u) for u, label in enumerate(secret_labels())}
    assert set(rows.iter_rows()) == expected


def test_other_names_of_the_same_items_change_no_visible_byte_but_their_places(tmp_path: Path, vault: Vault) -> None:
    """The names are as long or longer, and of the same number; those that keep their places give equal files."""
    sizes = set()
    for stem in ("secret", "a-rather-longer-and-quite-different-secret"):
        prepare(make_log(secret_labels(stem)), "toy", tmp_path / stem / "toy", LOOSE, vault.public_key())
        sizes.add((tmp_path / stem / "toy" / SEALED).stat().st_size)
    assert len(sizes) == 1


def test_names_of_any_length_come_back_from_the_seal() -> None:
    names = pl.Series(["a", "b" * 64, "ü" * 40, "c\0", "d" * 300])
    arrays = sealed_names(names, np.array([1, 2, 3]))
    assert arrays["nameless_names"].shape == (3, 128)
    assert opened_names(arrays) == {1: "b" * 64, 2: "ü" * 40, 3: "c\0"}
    assert sealed_names(names, np.array([4]))["nameless_names"].shape == (1, 512)
    assert sealed_names(names, nameless_items(5, np.arange(5))) == {}


def test_a_log_without_such_items_is_prepared_as_before(tmp_path: Path, vault: Vault) -> None:
    frame = generate_demo(num_users=150, num_items=60)
    log = Log(frame, {role: role for role in frame.columns}, frame.height)
    manifest = prepare(log, "tiny", tmp_path / "tiny", PrepareOptions(), vault.public_key())
    assert manifest.dataset_id == "514696e1295d48f8a5fbfc86d85f9ace"  # as version 0.9 gave it
    assert (manifest.format_version, item_ids(tmp_path / "tiny").null_count()) == (2, 0)
    written = json.loads((tmp_path / "tiny" / "manifest.json").read_bytes())
    assert set(written["options"]) == {"k_core", "max_events", "id_key", "keep_duplicates"}
    assert "catalogue" not in written["profile"]
    assert "items, including those of test events only" in manifest.stated_profile["catalogue"]


@pytest.mark.parametrize("keep_duplicates", [False, True])
def test_with_a_core_of_visible_events_no_byte_depends_on_the_labels(
    tmp_path: Path, vault: Vault, keep_duplicates: bool
) -> None:
    """The labels make items frequent, rare or new; with the core of all events, that changes which items are kept."""
    rng, num_items = np.random.default_rng(0), 200
    frequent = make_log([""] * NUM_USERS, num_items).frame.filter(pl.col("timestamp") < 50)["item"].mode().min()
    labels = {
        "even": [f"item-{number}" for number in rng.integers(num_items, size=NUM_USERS)],
        "one": [frequent] * NUM_USERS,
        "new": [f"new-{user % 11}" for user in range(NUM_USERS // 2)] + [frequent] * (NUM_USERS // 2),
    }
    found: dict[str, set[tuple[bytes, ...]]] = {ALL: set(), TRAIN: set()}
    for on in (ALL, TRAIN):
        options = PrepareOptions(k_core=3, k_core_on=on, keep_duplicates=keep_duplicates)
        for name, items in labels.items():
            folder = tmp_path / on / name
            manifest = prepare(make_log(items, num_items), "toy", folder, options, vault.public_key())
            assert manifest.options == options and PreparedDataset.load(folder).manifest == manifest
            visible = sorted(path for path in folder.iterdir() if path.name != SEALED)
            found[on].add(tuple(path.read_bytes() for path in visible))
    assert len(found[TRAIN]) == 1 and len(found[ALL]) == 3
    sizes = {(tmp_path / TRAIN / name / SEALED).stat().st_size for name in labels}
    assert len(sizes) == 1


def test_the_core_of_visible_events_is_that_of_the_log_without_each_users_last_event(
    tmp_path: Path, vault: Vault
) -> None:
    labels = [f"new-{user}" if user % 2 else "item-1" for user in range(NUM_USERS)]
    log = make_log(labels)
    options = PrepareOptions(k_core=5, k_core_on=TRAIN, max_events=5)
    manifest = prepare(log, "toy", tmp_path / "toy", options, vault.public_key())
    dataset, targets = PreparedDataset.load(tmp_path / "toy"), opened(tmp_path / "toy", vault)
    visible = log.frame.filter(pl.col("timestamp") < 50)
    assert manifest.rows_read == visible.height
    assert manifest.before_core is not None and manifest.before_core.interactions == visible.height
    assert manifest.num_interactions_before_cut == manifest.before_core.interactions  # 40 frequent items, 6 events each
    assert manifest.num_interactions == 4 * NUM_USERS  # and one of five in test
    ids = item_ids(tmp_path / "toy")
    users = pl.read_parquet(tmp_path / "toy" / "user_ids.parquet")["original_id"]
    mine = dict(visible.group_by("user", maintain_order=True).agg("item").iter_rows())
    for number, user in enumerate(users):
        events = [*dataset.items[dataset.offsets[number] : dataset.offsets[number + 1]], dataset.valid_items[number]]
        assert [ids[int(item)] for item in events] == mine[user][-4:]
        odd = int(user.split("-")[1]) % 2
        assert targets.items[number] == NO_TARGET if odd else ids[int(targets.items[number])] == "item-1"
    assert len(targets.users) == NUM_USERS // 2
    everything = prepare(log, "toy", tmp_path / "all", PrepareOptions(k_core=5), vault.public_key())
    assert everything.num_items == dataset.num_items
    assert opened(tmp_path / "all", vault).fingerprint == targets.fingerprint  # looks at both count together


def test_options_that_exclude_each_other_and_a_log_without_a_target_are_refused(tmp_path: Path, vault: Vault) -> None:
    with pytest.raises(DataError, match="k_core_on='both' is not known; use all or train"):
        PrepareOptions(k_core_on="both")
    with pytest.raises(DataError, match="leave --k-core-on out"):
        PrepareOptions(split="time", holdout="9d", k_core_on=TRAIN)
    log = make_log([f"new-{user}" for user in range(NUM_USERS)])
    with pytest.raises(DataError, match="no user's last event"):
        prepare(log, "toy", tmp_path / "toy", PrepareOptions(k_core=5, k_core_on=TRAIN), vault.public_key())


def trained(directory: Path, dataset_dir: Path, vault: Vault) -> TrialConfig:
    """The files of a finished trial, of an untrained model, signed."""
    config = make_config("sasrec", hidden_dim=16, max_len=6, **PRIORS)
    dataset = PreparedDataset.load(dataset_dir)
    directory.mkdir(parents=True)
    model = build_model(config, dataset.num_items, seed=0)
    save_checkpoint(directory / CHECKPOINT, model, config, dataset.num_items)
    spec = TrialSpec(session="toy-1", trial="t001", dataset_dir=str(dataset_dir), config=config.model_dump(), seed=1,
                     device="cpu", threads=1)  # fmt: skip
    write_model(directory / "spec.json", spec)
    write_model(directory / "result.json", TrialResult(status="finished", device="cpu"))
    sign_as_it_is(directory, vault.session_key("toy-1"), spec, dataset_id=dataset.dataset_id, by="adoption")
    return config


def test_an_export_recommends_no_sealed_item_and_names_it_after_the_look(
    tmp_path: Path, secret: Path, vault: Vault
) -> None:
    config = trained(tmp_path / "t001", secret, vault)
    models = [TrainedModel("toy-1/t001", tmp_path / "t001")]
    write_export(tmp_path / "before", assemble(models, config, secret, "# Card\n"))
    before = Recommender.load(tmp_path / "before", "cpu")
    some, history = before.index.ids.drop_nulls().to_list(), ["item-1", "item-2"]
    everything = before.num_items
    for found in (before.recommend(history, k=everything), before.recommend([], k=everything),
                  before.similar("item-1", k=everything), before.recommend([None], k=3)):  # fmt: skip
        assert None not in found.items
    assert len(before.recommend([], k=everything).items) == NUM_ITEMS == len(some)
    assert len(before.similar("item-1", k=everything).items) == NUM_ITEMS - 1
    assert before.recommend(["secret-1"], k=3).unknown == ("secret-1",)
    assert read_item_names(vault.directory.parents[1], "toy-1") == {}
    examine(vault.directory.parents[1], "toy-1", "t001", [tmp_path / "t001"], secret, None)
    names = read_item_names(vault.directory.parents[1], "toy-1")
    assert sorted(names.values()) == sorted(f"secret-{n}" for n in range(SECRETS))
    write_export(tmp_path / "after", assemble(models, config, secret, "# Card\n", names=names))
    after = Recommender.load(tmp_path / "after", "cpu")
    assert after.index.ids.null_count() == 0
    assert set(after.recommend([], k=everything).items) == {*some, *names.values()}
    assert after.recommend(["secret-1"], k=3).unknown == ()


def test_the_command_line_prepares_a_core_of_visible_events_beside_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--home", str(tmp_path)])
        said = capsys.readouterr()
        assert not ended.value.code, said.err
        return said.out

    run("data", "prepare", "demo")
    said = run("data", "prepare", "demo", "--k-core-on", "train")
    assert "demo-core-on-train: 700 users, 247 items, 6,280 interactions" in said
    assert "the k-core and all counts are without test" in said and "all with events before the test part" in said
    assert "252 items, including those of test events only" in run("data", "show", "demo")

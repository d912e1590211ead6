"""The catalogue: registration, resolution of user input, and the bundled demo."""

import gzip
import json
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from virtualmle.data.catalogue import DOWNLOADS, Catalogue
from virtualmle.data.demo import generate_demo
from virtualmle.data.errors import DataError, HomeError
from virtualmle.data.names import name_from_file
from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.examiner.vault import Vault


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def key(home: Path) -> bytes:
    return Vault(home).public_key()


@pytest.fixture
def serve_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL at which an HTTP server on the loopback interface serves it."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def write_log(tmp_path: Path) -> Callable[..., Path]:
    def write(filename: str, seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        lines = [f"u{u}\ti{rng.integers(8)}\t{rng.integers(100)}\n" for u in range(30) for _ in range(8)]
        path = tmp_path / filename
        path.write_text("".join(lines))
        return path

    return write


def test_an_added_log_can_be_listed_and_loaded(home: Path, key: bytes, write_log: Callable[..., Path]) -> None:
    catalogue = Catalogue(home)
    assert catalogue.names() == []
    manifest = catalogue.add("mine", write_log("log.tsv"), public_key=key, options=PrepareOptions(max_events=5))
    assert catalogue.names() == ["mine"]
    assert catalogue.path("mine") == home / ".virtualmle" / "data" / "mine"
    dataset = catalogue.load("mine")
    assert isinstance(dataset, PreparedDataset)
    assert (dataset.dataset_id, dataset.max_events) == (manifest.dataset_id, 5)
    assert catalogue.manifest("mine") == manifest


def test_an_unknown_name_raises_an_error_that_lists_the_known_names(
    home: Path, key: bytes, write_log: Callable[..., Path]
) -> None:
    catalogue = Catalogue(home)
    catalogue.add("mine", write_log("log.tsv"), public_key=key)
    for ask in (catalogue.path, catalogue.load, lambda name: catalogue.resolve(name, key)):
        with pytest.raises(DataError, match="no dataset is named 'yours'; registered: mine; .*amazon-beauty"):
            ask("yours")


def test_a_name_can_be_registered_only_once(home: Path, key: bytes, write_log: Callable[..., Path]) -> None:
    catalogue = Catalogue(home)
    catalogue.add("mine", write_log("log.tsv"), public_key=key)
    with pytest.raises(DataError, match="exists already"):
        catalogue.add("mine", write_log("other.tsv", seed=1), public_key=key)
    with pytest.raises(DataError, match="letters, digits"):
        catalogue.add("../mine", write_log("log.tsv"), public_key=key)


def test_a_log_that_cannot_be_read_leaves_no_dataset(home: Path, key: bytes, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tsv"
    bad.write_text("a\tb\tnever\n")
    with pytest.raises(DataError):
        Catalogue(home).add("bad", bad, public_key=key)
    assert Catalogue(home).names() == []


def test_resolving_a_path_registers_the_file_once_under_its_stem(
    home: Path, key: bytes, write_log: Callable[..., Path]
) -> None:
    catalogue = Catalogue(home)
    path = write_log("My shop.2024.tsv")
    assert catalogue.resolve(str(path), key) == "My-shop"
    assert catalogue.resolve(str(path), key) == "My-shop"
    assert catalogue.resolve("My-shop", key) == "My-shop"
    assert catalogue.names() == ["My-shop"]


def test_a_copy_of_a_registered_log_keeps_its_name(home: Path, key: bytes, write_log: Callable[..., Path]) -> None:
    catalogue = Catalogue(home)
    catalogue.add("mine", write_log("log.tsv"), public_key=key)
    assert catalogue.resolve(str(write_log("copy.tsv")), key) == "mine"
    catalogue.add("cut", write_log("log.tsv"), public_key=key, options=PrepareOptions(max_events=4))
    assert catalogue.resolve(str(write_log("copy.tsv")), key) == "mine"


def test_a_log_registered_by_an_earlier_version_keeps_its_name(
    home: Path, key: bytes, write_log: Callable[..., Path]
) -> None:
    path = write_log("log.tsv")
    Catalogue(home).add("mine", path, public_key=key)
    record = home / ".virtualmle" / "vault" / "sources" / "mine.json"
    source = json.loads(record.read_text())
    del source["cleaning"], source["options"]["keep_duplicates"]
    record.write_text(json.dumps(source))
    assert Catalogue(home).resolve(str(path), key) == "mine"


def test_a_log_registered_with_identical_rows_is_another_dataset(
    home: Path, key: bytes, write_log: Callable[..., Path]
) -> None:
    path = write_log("log.tsv")
    Catalogue(home).add("mine", path, public_key=key, options=PrepareOptions(keep_duplicates=True))
    assert Catalogue(home).resolve(str(path), key) == "log"


def test_a_different_log_with_the_same_stem_needs_another_name(
    home: Path, key: bytes, write_log: Callable[..., Path]
) -> None:
    catalogue = Catalogue(home)
    catalogue.resolve(str(write_log("log.tsv")), key)
    with pytest.raises(DataError, match=r"data add NAME log\.tsv"):
        catalogue.resolve(str(write_log("log.tsv", seed=1)), key)


def test_a_path_without_a_file_is_refused(home: Path, key: bytes) -> None:
    for path in ("nowhere/log", "log.csv"):
        with pytest.raises(DataError, match="there is no file"):
            Catalogue(home).resolve(path, key)


def test_the_hash_of_a_raw_file_is_stored_only_in_the_vault(
    home: Path, key: bytes, write_log: Callable[..., Path]
) -> None:
    path = write_log("log.tsv")
    Catalogue(home).add("mine", path, public_key=key)
    source = home / ".virtualmle" / "vault" / "sources" / "mine.json"
    digest = json.loads(source.read_text())["sha256"]
    assert stat.S_IMODE(source.stat().st_mode) == 0o600
    visible = [p for p in (home / ".virtualmle" / "data").rglob("*") if p.is_file()]
    assert visible
    assert not any(digest.encode() in p.read_bytes() for p in visible)


def test_a_home_that_is_a_file_raises_a_home_error(tmp_path: Path, key: bytes) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="--home"):
        Catalogue(tmp_path / "file").ensure_demo(key)


@pytest.mark.parametrize(
    ("filename", "name"),
    [("beauty.tsv.gz", "beauty"), ("reviews_Baby_5.json.gz", "reviews_Baby_5"), ("a b(1).csv", "a-b-1")],
)
def test_a_file_name_gives_a_dataset_name(filename: str, name: str) -> None:
    assert name_from_file(filename) == name


def test_a_file_name_without_a_letter_is_invalid() -> None:
    with pytest.raises(DataError, match="invalid"):
        name_from_file("+++.csv")


def test_concurrent_threads_create_the_demo_once(home: Path, key: bytes) -> None:
    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(lambda _: Catalogue(home).resolve("demo", key), range(4)))
    assert names == ["demo"] * 4
    assert [path.name for path in (home / ".virtualmle" / "data").iterdir()] == ["demo"]
    dataset = Catalogue(home).load("demo")
    assert dataset.num_users == 700
    assert 240 <= dataset.num_items <= 260
    assert 9 <= dataset.manifest.num_interactions / dataset.num_users <= 12


def test_equal_seeds_give_equal_demo_logs() -> None:
    assert generate_demo().equals(generate_demo())
    assert not generate_demo().equals(generate_demo(seed=1))


def test_the_demo_has_transitions_popularity_and_drift() -> None:
    frame = generate_demo()
    pairs = frame.with_columns(next=pl.col("item").shift(-1).over("user", order_by="timestamp")).drop_nulls()
    counts = pairs.group_by("item", "next").len().sort("len", descending=True)
    favourite = counts.group_by("item", maintain_order=True).first()
    followed = favourite["len"].sum() / pairs.height
    assert followed > 0.1, "an item predicts the next one: 1 / 400 by chance"
    popular = frame["item"].value_counts().sort("count", descending=True)["count"]
    assert popular.head(80).sum() / frame.height > 0.35, "a third of the items has more than its share of the events"
    middle = frame["timestamp"].median()
    early = frame.filter(pl.col("timestamp") < middle)["item"].value_counts()
    late = frame.filter(pl.col("timestamp") >= middle)["item"].value_counts()
    shares = early.join(late, on="item", how="full", coalesce=True).fill_null(0)
    drift = (shares["count"] - shares["count_right"]).abs().sum() / frame.height
    assert drift > 0.3, "popularity changes over time"


def test_a_download_is_checked_prepared_and_deleted(
    home: Path, key: bytes, serve_folder: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = serve_folder
    rng = np.random.default_rng(1)
    lines = [
        json.dumps({"reviewerID": f"A{u}", "asin": f"B{rng.integers(9)}", "unixReviewTime": int(rng.integers(99))})
        for u in range(20)
        for _ in range(7)
    ]
    (folder / "reviews.json.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    source = DOWNLOADS["amazon-baby"].__class__(f"{url}/reviews.json.gz", (20, 9, 140))
    monkeypatch.setitem(DOWNLOADS, "amazon-baby", source)
    steps: list[tuple[int, int | None]] = []
    assert Catalogue(home).resolve("amazon-baby", key, lambda done, total: steps.append((done, total))) == "amazon-baby"
    assert steps[-1][0] == steps[-1][1] == (folder / "reviews.json.gz").stat().st_size
    assert Catalogue(home).manifest("amazon-baby").num_users == 20
    assert list((home / ".virtualmle" / "vault" / "downloads").iterdir()) == []
    monkeypatch.setitem(DOWNLOADS, "amazon-beauty", source.__class__(source.url, (20, 9, 141)))
    with pytest.raises(DataError, match="not the published"):
        Catalogue(home).resolve("amazon-beauty", key)
    assert Catalogue(home).names() == ["amazon-baby"]


def test_modules_import_without_packages_that_only_other_modules_need() -> None:
    code = (
        "import sys\n"
        "for name in ('httpx', 'polars', 'cryptography'): sys.modules[name] = None\n"
        "import virtualmle.data.prepared, virtualmle.data.download, virtualmle.data.profile\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
    code = (
        "import sys; sys.modules['httpx'] = None; import virtualmle.data.catalogue; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)

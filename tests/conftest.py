"""Fixtures and settings that the tests of all rooms share."""

import gc
import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

# `make test` runs one pytest process per core, and tests start further processes. One torch thread per process avoids
# contention and fixes the order of sums. Two polars threads keep polars parallel without one thread per core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "2")
# Commands that tests start leave no worker behind; tests of warm workers request one explicitly.
os.environ["VIRTUALMLE_KEEP_WARM"] = "0"
# The time of an example depends on the load of the machine, so a deadline would say nothing about the code. In CI every
# run draws the same examples; elsewhere each run draws new ones.
settings.register_profile("shared cores", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("shared cores")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Freeze the objects that imports create; the garbage collector would scan millions of them repeatedly."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture
def anyio_backend() -> str:
    """The event loop of tests with pytest.mark.anyio: the one that the server runs on."""
    return "asyncio"


@pytest.fixture
def shared_data() -> Path:
    """The folder of real interaction logs beside the checkout; skips the test if it does not exist."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real interaction logs in ../shared/data, beside the checkout")
    return folder


@pytest.fixture
def shared_logs() -> Path:
    """The folder of small logs as real exports look, with a README of right answers; skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "cases" / "logs"
    if not folder.is_dir():
        pytest.skip("needs the example logs in ../shared/cases/logs, which this checkout does not have beside it")
    return folder


@pytest.fixture(scope="session")
def tiny_dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of about 150 users and 60 items, from the demo generator; the key of its seal is discarded."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from virtualmle.data.demo import generate_demo
    from virtualmle.data.prepare import prepare
    from virtualmle.data.prepared import PrepareOptions
    from virtualmle.data.readers import Log

    frame = generate_demo(num_users=150, num_items=60)
    directory = tmp_path_factory.mktemp("data") / "tiny"
    key = X25519PrivateKey.generate().public_key().public_bytes_raw()
    prepare(Log(frame, {name: name for name in frame.columns}, len(frame)), "tiny", directory, PrepareOptions(), key)
    return directory

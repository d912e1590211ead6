"""Fixtures shared by all rooms."""

import os
from pathlib import Path

import pytest

# Two cores serve every test process: one torch thread each, and the same sums in the same order everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Commands started by tests leave no worker behind; tests of warm workers ask for them.
os.environ["VIRTUALMLE_KEEP_WARM"] = "0"


@pytest.fixture
def shared_data() -> Path:
    """The folder of real interaction logs beside the checkout; the test is skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real interaction logs in ../shared/data, which this checkout does not have beside it")
    return folder


@pytest.fixture(scope="session")
def tiny_dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of about 150 users and 60 items, from the demo generator; sealed with a key nobody keeps."""
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

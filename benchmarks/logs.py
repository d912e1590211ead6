"""Read a log for a benchmark, or generate the demo, and prepare it in a folder; the sealing key is discarded."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from virtualmle.data.demo import generate_demo
from virtualmle.data.prepare import prepare
from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.data.readers import Log, read_log


def log_of(path: Path | None, **demo: int) -> Log:
    """The log at `path`, or a generated demo log if `path` is None; demo: the sizes of the latter."""
    if path:
        return read_log(path)
    frame = generate_demo(**demo)
    return Log(frame, {name: name for name in frame.columns}, len(frame))


def prepared(log: Log, folder: Path, options: PrepareOptions) -> PreparedDataset:
    """The log, prepared in `folder`."""
    key = X25519PrivateKey.generate().public_key().public_bytes_raw()
    prepare(log, "log", folder, options, key)
    return PreparedDataset.load(folder)

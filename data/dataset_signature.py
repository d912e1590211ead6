"""The MAC of a prepared dataset, in the file dataset.mac beside its manifest and its sealed test split.

Who prepares a dataset signs it with the key of the home's vault. The public key is enough to make a test split that can
be decrypted, and the manifest is plain text; only the MAC tells that both are those of the preparation. The manifest
has the hashes of all other files.
"""

import hashlib
import json
from pathlib import Path

from .atomic import write_bytes
from .errors import DataError
from .hashing import stored_sha256
from .mac import Signature, is_valid, sign
from .prepared import MANIFEST, SEALED

DATASET_MAC = "dataset.mac"
PURPOSE = "dataset"
READ_ONLY = 0o444


def signature_file(key: bytes, manifest: bytes, sealed: bytes) -> bytes:
    """The content of dataset.mac for the contents of the two files."""
    files = {name: hashlib.sha256(content).hexdigest() for name, content in ((MANIFEST, manifest), (SEALED, sealed))}
    return (json.dumps({"mac": sign(key, PURPOSE, files, {}).hex}) + "\n").encode()


def sign_dataset(directory: Path, key: bytes) -> None:
    """Sign the dataset in `directory` as it is. Raises OSError if it cannot be read or written."""
    content = signature_file(key, (directory / MANIFEST).read_bytes(), (directory / SEALED).read_bytes())
    write_bytes(directory / DATASET_MAC, content, READ_ONLY)


def check_dataset(directory: Path, key: bytes) -> Signature:
    """The signature of the dataset in `directory`. DataError if there is none, or if it is not that of the files."""
    advice = "restore it, or register the log again with `virtualmle data replace`"
    try:
        signature = Signature(str(json.loads((directory / DATASET_MAC).read_bytes())["mac"]))
        files = {name: stored_sha256(directory / name) for name in (MANIFEST, SEALED)}
    except OSError as error:
        missing = Path(str(error.filename)).name
        raise DataError(
            f"dataset {directory.name!r} has no readable {missing}, so it is not known to be the one that was "
            f"prepared; {advice}"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{str(directory / DATASET_MAC)!r} is damaged; {advice}") from None
    if not is_valid(signature, key, PURPOSE, files, {}):
        raise DataError(
            f"{MANIFEST} or {SEALED} of dataset {directory.name!r} was changed after the dataset was prepared, or "
            f"belongs to another dataset or home; {advice}"
        )
    return signature
